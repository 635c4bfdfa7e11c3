//! The simulation runs the agent in its own process, and the agent's crate links libtorch: an rpath to where that lies.
use std::{env, path::PathBuf};

fn main() {
    println!("cargo:rerun-if-env-changed=LIBTORCH");
    if let Some(libtorch) = env::var_os("LIBTORCH").map(PathBuf::from).and_then(|path| path.canonicalize().ok()) {
        println!("cargo:rustc-link-arg-tests=-Wl,-rpath,{}", libtorch.join("lib").display());
    }
}
