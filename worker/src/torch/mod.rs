//! What tch lacks: the binding of the C++ shim, the loading of CUDA, the bytes of CPU tensors, and one socket option. The only `unsafe`
//! beside NCCL's.

pub mod attention;
pub mod cuda;
pub mod hooks;
pub mod lane;
pub mod memory;
pub mod peak;
pub mod recompute;
pub mod shim;
pub mod socket;
pub mod stream;
pub mod transfer;

use common::recipe::Precision;
use tch::{Device, Kind, Tensor};

/// What a precision computes in.
pub fn kind(precision: Precision) -> Kind {
    match precision {
        Precision::Fp32 => Kind::Float,
        Precision::Bf16 => Kind::BFloat16,
    }
}

/// The bytes of a contiguous CPU tensor.
///
/// Panics when the tensor is on another device or not contiguous.
pub fn cpu_bytes(tensor: &Tensor) -> &[u8] {
    let len = checked_len(tensor);
    // SAFETY: a contiguous CPU tensor owns `len` bytes from `data_ptr`, and the borrow keeps the tensor alive.
    unsafe { std::slice::from_raw_parts(tensor.data_ptr().cast(), len) }
}

/// The bytes of a contiguous CPU tensor, to be written. See [`cpu_bytes`].
pub fn cpu_bytes_mut(tensor: &mut Tensor) -> &mut [u8] {
    let len = checked_len(tensor);
    // SAFETY: as in `cpu_bytes`; `&mut` keeps others from reading through this handle meanwhile.
    unsafe { std::slice::from_raw_parts_mut(tensor.data_ptr().cast(), len) }
}

fn checked_len(tensor: &Tensor) -> usize {
    assert_eq!(tensor.device(), Device::Cpu, "only a CPU tensor's bytes can be seen");
    assert!(tensor.is_contiguous(), "only a contiguous tensor's bytes can be seen");
    tensor.numel() * tensor.kind().elt_size_in_bytes()
}

/// Maps a file into memory, to be read.
///
/// # Errors
/// When the system refuses.
pub fn map_file(file: &std::fs::File) -> std::io::Result<memmap2::Mmap> {
    // SAFETY: what is mapped was written once, under its name only when whole, and is not changed afterwards; every
    // reader checks its digest or its structure, and treats the bytes as bytes.
    unsafe { memmap2::Mmap::map(file) }
}
