//! A real CUDA libtorch, loaded beside the CPU half that the program is linked with. In a process of its own: libtorch
//! looks for CUDA once. `LLM2CLIP_TEST_CUDA_LIBTORCH` names the torch folder; without it the one that `make libtorch-cuda`
//! fetches is taken, and without that the test says that it skipped.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::path::{Path, PathBuf};
use worker::{
    collective::nccl::Library,
    torch::{
        cuda::{Cuda, load_from},
        stream::Stream,
    },
};

#[test]
fn the_cuda_half_of_a_full_install_loads_without_a_rebuild() {
    let fetched = Path::new(env!("CARGO_MANIFEST_DIR")).join("../.deps/libtorch-cuda-2.11.0/torch");
    let named = std::env::var_os("LLM2CLIP_TEST_CUDA_LIBTORCH").map(PathBuf::from);
    let Some(torch) = named.or_else(|| fetched.exists().then_some(fetched)) else {
        println!("skipped: `make libtorch-cuda` first, or set LLM2CLIP_TEST_CUDA_LIBTORCH to a CUDA PyTorch 2.11.0");
        return;
    };
    let cuda = load_from(&[torch.join("lib")]);
    let stream = Stream::current(0);
    // It has brought NCCL along, which needs no search.
    let nccl = Library::of_this_process().unwrap();
    println!("NCCL {}", nccl.version());
    assert_eq!(nccl.path(), "libnccl.so.2");
    match cuda {
        Cuda::Gpu { count } => {
            println!("{count} GPUs");
            let handle = stream.and_then(|stream| stream.native_handle());
            assert!(handle.is_ok(), "{handle:?}");
        }
        Cuda::NoGpu { reason, idle } => {
            assert!(idle && reason.contains("the driver shows no GPU"), "{reason}");
            // The error is of CUDA's half now: it has registered itself.
            let error = stream.map(|_| ()).map_err(|error| error.to_string());
            assert!(error.as_ref().is_err_and(|text| !text.contains("not linked with support")), "{error:?}");
        }
    }
}
