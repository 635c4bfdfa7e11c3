//! Builds the C++ shim against libtorch's headers, and links to libtorch where it lies: an rpath, so that the binaries run
//! from any folder.
use std::{env, path::PathBuf};

fn main() {
    println!("cargo:rerun-if-env-changed=LIBTORCH");
    println!("cargo:rerun-if-changed=shim");
    let libtorch = env::var_os("LIBTORCH").map(PathBuf::from).expect("LIBTORCH is set by .cargo/config.toml");
    let libtorch = libtorch.canonicalize().unwrap_or_else(|error| {
        panic!(
            "{} cannot be read ({error}): run `make setup` in the checkout, or set LIBTORCH to a libtorch 2.11.0",
            libtorch.display()
        )
    });
    cc::Build::new()
        .cpp(true)
        .std("c++17")
        .file("shim/shim.cpp")
        .file("shim/hooks.cpp")
        .file("shim/recompute.cpp")
        .file("shim/socket.cpp")
        .include(libtorch.join("include"))
        .include(libtorch.join("include/torch/csrc/api/include"))
        .flag_if_supported("-Wno-unused-parameter")
        .define("_GLIBCXX_USE_CXX11_ABI", "1")
        .opt_level(2)
        .debug(false)
        .warnings(false)
        .compile("llm2clip_shim");
    println!("cargo:rustc-link-arg=-Wl,-rpath,{}", libtorch.join("lib").display());
}
