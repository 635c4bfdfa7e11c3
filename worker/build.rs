//! Links the trainer to libtorch where it lies: an rpath, so that the binaries run from any folder.
use std::{env, path::PathBuf};

fn main() {
    println!("cargo:rerun-if-env-changed=LIBTORCH");
    let libtorch = env::var_os("LIBTORCH").map(PathBuf::from).expect("LIBTORCH is set by .cargo/config.toml");
    let lib = libtorch.join("lib").canonicalize().unwrap_or_else(|error| {
        panic!(
            "{} cannot be read ({error}): run `make setup` in the checkout, or set LIBTORCH to a libtorch 2.11.0",
            libtorch.join("lib").display()
        )
    });
    println!("cargo:rustc-link-arg=-Wl,-rpath,{}", lib.display());
}
