//! Compiles the stand-ins for libtorch's CUDA half and for NCCL, for tests on machines without a GPU. What they are strict about
//! is said in `device.cpp` and `nccl.c`.

use std::{
    ffi::OsStr,
    fs,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
};

const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../worker/stand_in");
const SOURCES: [&str; 5] = ["device.cpp", "operations.cpp", "streams.hpp", "memory.hpp", "nccl.c"];

/// Where the compiled stand-ins are.
#[derive(Debug)]
#[allow(dead_code, reason = "not every test needs all of it")]
pub struct StandIn {
    /// What `LIBTORCH` of a program is to be, so that it finds the one GPU.
    pub libtorch: PathBuf,
    /// What `LLM2CLIP_NCCL` of it is to be.
    pub nccl: PathBuf,
}

#[allow(dead_code, reason = "as above")]
impl StandIn {
    /// The environment of a program that is to compute on the stand-in.
    pub fn environment(&self) -> [(&'static str, &OsStr); 3] {
        [
            ("LIBTORCH", self.libtorch.as_os_str()),
            ("LLM2CLIP_NCCL", self.nccl.as_os_str()),
            ("LLM2CLIP_DEVICE", OsStr::new("cuda")),
        ]
    }
}

/// The stand-ins, compiled unless they are there from the same sources: half a minute.
pub fn compiled() -> &'static StandIn {
    static COMPILED: OnceLock<StandIn> = OnceLock::new();
    COMPILED.get_or_init(|| {
        let mut hasher = DefaultHasher::new();
        SOURCES.iter().for_each(|name| fs::read(Path::new(FOLDER).join(name)).unwrap().hash(&mut hasher));
        let here = std::env::current_exe().unwrap();
        let build = here.parent().and_then(Path::parent).unwrap();
        let folder = build.join(format!("stand-in-{:016x}", hasher.finish()));
        if !folder.exists() {
            let unfinished = tempfile::tempdir_in(build).unwrap();
            compile(unfinished.path());
            // Another test may have been faster; what it made is the same.
            let _ = fs::rename(unfinished.path(), &folder);
        }
        StandIn { libtorch: folder.join("torch"), nccl: folder.join("libnccl.so") }
    })
}

fn compile(folder: &Path) {
    let library = folder.join("torch/lib/libtorch_cuda.so");
    fs::create_dir_all(library.parent().unwrap()).unwrap();
    fs::write(folder.join("torch/build-version"), "2.11.0\n").unwrap();
    let include = Path::new(env!("LIBTORCH")).join("include");
    let mut cuda = compiler("CXX", "c++");
    cuda.args(["-std=c++17", "-O1", "-D_GLIBCXX_USE_CXX11_ABI=1", "-isystem"]).arg(&include);
    cuda.arg("-isystem").arg(include.join("torch/csrc/api/include"));
    run(cuda.arg("-o").arg(&library).args(["device.cpp", "operations.cpp"]));
    run(compiler("CC", "cc").args(["-O1", "-pthread", "-o"]).arg(folder.join("libnccl.so")).arg("nccl.c"));
}

fn compiler(variable: &str, name: &str) -> Command {
    let mut command = Command::new(std::env::var_os(variable).unwrap_or_else(|| name.into()));
    command.current_dir(FOLDER).args(["-shared", "-fPIC"]);
    command
}

fn run(command: &mut Command) {
    let output = command.output().expect("the compiler that the build needs too");
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}
