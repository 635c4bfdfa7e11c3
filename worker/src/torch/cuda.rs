//! CUDA, found and loaded at start: one binary computes on the CPU or on a GPU.
//!
//! libtorch looks for its CUDA half once, at the first call that asks. So `load` comes before any other call of
//! libtorch's. It is loaded, not linked: a machine without a GPU has neither it nor the gigabytes that it needs.

use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};
use std::{
    env, fmt, fs,
    path::{Path, PathBuf},
    str::FromStr,
};
use tch::Device;

/// libtorch's CUDA half.
const LIBRARY: &str = "libtorch_cuda.so";
/// Says where trainers compute; they inherit it from their worker.
pub const DEVICE_VARIABLE: &str = "LLM2CLIP_DEVICE";
/// The libtorch that this program is built for.
const TORCH: &str = "2.11.0";

/// Whether GPUs can be computed on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cuda {
    /// So many.
    Gpu {
        /// One or more.
        count: u32,
    },
    /// None.
    NoGpu {
        /// Why, and what to do when there ought to be one.
        reason: String,
        /// Whether the machine has a GPU all the same.
        idle: bool,
    },
}

/// Loads CUDA when the machine has a GPU. Call it before any other function of libtorch's.
pub fn load() -> Cuda {
    if !has_gpu(Path::new("/")) {
        return Cuda::NoGpu { reason: "this machine has no NVIDIA GPU".to_owned(), idle: false };
    }
    load_from(&folders())
}

/// Loads CUDA because the user says that there is a GPU: not every driver has the files that tell (that of WSL has not).
/// Call it before any other function of libtorch's.
pub fn load_asked_for() -> Cuda {
    match load_from(&folders()) {
        Cuda::NoGpu { reason, .. } if !has_gpu(Path::new("/")) => {
            Cuda::NoGpu { reason: format!("this machine shows no NVIDIA GPU, and {reason}"), idle: false }
        }
        found => found,
    }
}

/// Loads CUDA from the first of the folders that has it, whether or not the machine has a GPU.
pub fn load_from(folders: &[PathBuf]) -> Cuda {
    let idle = |reason| Cuda::NoGpu { reason, idle: true };
    let Some(path) = folders.iter().map(|folder| folder.join(LIBRARY)).find(|path| path.exists()) else {
        let folders: Vec<_> = folders.iter().map(|folder| folder.display().to_string()).collect();
        return idle(format!(
            "there is no {LIBRARY} in {}: `make libtorch-cuda` fetches it, or set LIBTORCH to the torch folder \
             of a CUDA PyTorch {TORCH}",
            folders.join(" or ")
        ));
    };
    if let Some(found) = version_of(&path).filter(|found| !found.starts_with(TORCH)) {
        return idle(format!("{} is of torch {found}, this program needs {TORCH}", path.display()));
    }
    // SAFETY: libtorch's own start code is run, as if the program were linked with it; it is of the version that this
    // program is built for.
    match unsafe { Library::open(Some(&path), RTLD_NOW | RTLD_GLOBAL) } {
        // For as long as the process lives.
        Ok(library) => std::mem::forget(library),
        Err(error) => {
            let error = std::error::Error::source(&error).unwrap_or(&error);
            return idle(format!("{} cannot be loaded: {error}", path.display()));
        }
    }
    match u32::try_from(tch::Cuda::device_count()) {
        Ok(count) if count > 0 => Cuda::Gpu { count },
        _ => idle(format!(
            "{LIBRARY} is loaded, but the driver shows no GPU: is it as new as CUDA 13, and is CUDA_VISIBLE_DEVICES right?"
        )),
    }
}

/// Whether there is a GPU, as the driver's files tell.
fn has_gpu(root: &Path) -> bool {
    let has = |folder: &str, fits: fn(&str) -> bool| {
        let entries = fs::read_dir(root.join(folder)).into_iter().flatten().flatten();
        entries.into_iter().any(|entry| entry.file_name().to_str().is_some_and(fits))
    };
    let numbered = |name: &str| name.strip_prefix("nvidia").is_some_and(|rest| rest.parse::<u32>().is_ok());
    has("proc/driver/nvidia/gpus", |_| true) || has("dev", numbered)
}

/// Where CUDA's half may lie: beside the half that is linked, and where the user says.
fn folders() -> Vec<PathBuf> {
    let mut folders = Vec::new();
    if let Some(own) = env::var_os("LIBTORCH").filter(|value| !value.is_empty()) {
        folders.push(Path::new(&own).join("lib"));
    }
    let maps = fs::read_to_string("/proc/self/maps").unwrap_or_default();
    if let Some(linked) = linked(&maps)
        && !folders.contains(&linked)
    {
        // `make libtorch-cuda` puts the CUDA half beside the CPU half's folder.
        let fetched = linked.ancestors().nth(2).map(|cache| cache.join(format!("libtorch-cuda-{TORCH}/torch/lib")));
        folders.push(linked);
        folders.extend(fetched);
    }
    folders
}

/// The folder of libtorch_cpu.so, of a process's memory map.
fn linked(maps: &str) -> Option<PathBuf> {
    let path = maps.lines().filter_map(|line| line.find('/').map(|at| &line[at..]));
    path.map(Path::new).find(|path| path.ends_with("libtorch_cpu.so"))?.parent().map(Path::to_owned)
}

/// The version of the torch whose `lib/` the file is in, as its own files tell it.
fn version_of(library: &Path) -> Option<String> {
    let torch = library.parent()?.parent()?;
    if let Ok(text) = fs::read_to_string(torch.join("build-version")) {
        return Some(text.trim().to_owned());
    }
    let text = fs::read_to_string(torch.join("version.py")).ok()?;
    let line = text.lines().find(|line| line.starts_with("__version__"))?;
    Some(line.split(['\'', '"']).nth(1)?.to_owned())
}

/// Where a trainer is to compute.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum DeviceChoice {
    /// On a GPU when there is one.
    #[default]
    Auto,
    /// On the CPU.
    Cpu,
    /// On a GPU; which one follows from the trainer's place.
    Gpu,
    /// On this GPU.
    GpuNumber(u32),
}

impl FromStr for DeviceChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "cpu" => Ok(Self::Cpu),
            "cuda" => Ok(Self::Gpu),
            other => match other.strip_prefix("cuda:").map(str::parse) {
                Some(Ok(number)) => Ok(Self::GpuNumber(number)),
                _ => Err(format!("`{other}` is no device: it is auto, cpu, cuda, or cuda:N")),
            },
        }
    }
}

impl fmt::Display for DeviceChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Cpu => f.write_str("cpu"),
            Self::Gpu => f.write_str("cuda"),
            Self::GpuNumber(number) => write!(f, "cuda:{number}"),
        }
    }
}

impl DeviceChoice {
    /// The device of the process in this place, from 0, of its machine. Loads CUDA when it may be needed: see [`load`].
    ///
    /// # Errors
    /// When the choice is a GPU that is not there; the message says why.
    pub fn choose(self, slot: u32) -> Result<Device, String> {
        match self {
            Self::Cpu => Ok(Device::Cpu),
            Self::Auto => self.among(slot, &load()),
            Self::Gpu | Self::GpuNumber(_) => self.among(slot, &load_asked_for()),
        }
    }

    fn among(self, slot: u32, cuda: &Cuda) -> Result<Device, String> {
        let number = match (self, cuda) {
            (Self::Cpu, _) => return Ok(Device::Cpu),
            (Self::Auto, Cuda::NoGpu { reason, idle }) => {
                if *idle {
                    tracing::warn!(reason, "computing on the CPU");
                }
                return Ok(Device::Cpu);
            }
            (choice, Cuda::NoGpu { reason, .. }) => return Err(format!("--device {choice}: {reason}")),
            (Self::Auto | Self::Gpu, Cuda::Gpu { count }) => slot % count,
            (Self::GpuNumber(number), Cuda::Gpu { count }) if number < *count => number,
            (choice, Cuda::Gpu { count }) => {
                return Err(format!("--device {choice}: this machine's GPUs are numbered 0 to {}", count - 1));
            }
        };
        Ok(Device::Cuda(number as usize))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_has_its_gpu() {
        let two = Cuda::Gpu { count: 2 };
        let none = Cuda::NoGpu { reason: "no driver".to_owned(), idle: true };
        let check = |choice: &str, slot, cuda: &Cuda, expected: Result<Device, &str>| {
            let choice: DeviceChoice = choice.parse().unwrap();
            let found = choice.among(slot, cuda);
            assert_eq!(found.as_ref().map_err(String::as_str), expected.as_ref().map_err(|text| *text), "{choice}");
        };
        check("auto", 3, &two, Ok(Device::Cuda(1)));
        check("auto", 3, &none, Ok(Device::Cpu));
        check("cpu", 3, &two, Ok(Device::Cpu));
        check("cuda", 2, &two, Ok(Device::Cuda(0)));
        check("cuda:1", 0, &two, Ok(Device::Cuda(1)));
        check("cuda:2", 0, &two, Err("--device cuda:2: this machine's GPUs are numbered 0 to 1"));
        check("cuda:0", 0, &none, Err("--device cuda:0: no driver"));
        assert!("gpu".parse::<DeviceChoice>().unwrap_err().contains("auto, cpu, cuda"));
        for text in ["auto", "cpu", "cuda", "cuda:7"] {
            assert_eq!(text.parse::<DeviceChoice>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn a_gpu_shows_in_the_drivers_files() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("dev/nvidia-caps")).unwrap();
        fs::write(root.path().join("dev/nvidiactl"), "").unwrap();
        assert!(!has_gpu(root.path()), "the driver alone is no GPU");
        fs::write(root.path().join("dev/nvidia0"), "").unwrap();
        assert!(has_gpu(root.path()));
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("proc/driver/nvidia/gpus/0000:01:00.0")).unwrap();
        assert!(has_gpu(root.path()));
    }

    #[test]
    fn what_is_missing_and_what_is_wrong_are_named() {
        let root = tempfile::tempdir().unwrap();
        let lib = root.path().join("lib");
        fs::create_dir(&lib).unwrap();
        let check = |expected: &str| match load_from(std::slice::from_ref(&lib)) {
            Cuda::NoGpu { reason, idle: true } => assert!(reason.contains(expected), "{reason}"),
            other => panic!("{other:?}"),
        };
        check("`make libtorch-cuda` fetches it");
        fs::write(lib.join(LIBRARY), "no library").unwrap();
        check("cannot be loaded");
        fs::write(root.path().join("version.py"), "__version__ = '2.9.1+cu126'\ncuda = '12.6'\n").unwrap();
        check("is of torch 2.9.1+cu126");
        fs::write(root.path().join("build-version"), "2.11.0+cu130\n").unwrap();
        check("cannot be loaded");
    }

    #[test]
    fn the_linked_half_is_found_in_the_memory_map() {
        let maps = "7f0-7f1 r-xp 00000000 08:01 12 /opt/torch/lib/libc10.so\n7f2-7f3 r-xp 0 08:01 3 /opt/torch/lib/libtorch_cpu.so\n";
        assert_eq!(linked(maps), Some("/opt/torch/lib".into()));
        assert_eq!(linked("7ffd-7ffe [stack]\n"), None);
    }
}
