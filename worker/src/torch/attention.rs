//! Attention within texts of unequal lengths that stand one after the other, in one kernel: FlashAttention's (Dao 2023), which
//! libtorch has for GPUs and tch does not reach.

use super::{
    shim::{AtTensor, checked, pointer},
    transfer::numbers,
};
use std::{ffi::c_char, sync::OnceLock};
use tch::{Device, Kind, TchError, Tensor};

unsafe extern "C" {
    fn llm2clip_packed_attention(
        q: *const AtTensor,
        k: *const AtTensor,
        v: *const AtTensor,
        starts: *const AtTensor,
        longest: i64,
        causal: bool,
        output: *mut *mut AtTensor,
    ) -> *mut c_char;
}

/// Where each text begins among the tokens of all, and where the last one ends.
#[derive(Debug)]
pub struct Starts {
    /// [texts + 1] int32.
    starts: Tensor,
    longest: i64,
}

impl Starts {
    /// Of texts of these lengths, on a device.
    pub fn new(lengths: &[i64], device: Device) -> Self {
        let ends = lengths.iter().scan(0i64, |end, length| {
            *end += length;
            Some(*end)
        });
        let starts: Vec<i64> = std::iter::once(0).chain(ends).collect();
        let starts = numbers(&starts, device).to_kind(Kind::Int);
        Self { starts, longest: lengths.iter().copied().max().unwrap_or(0) }
    }
}

/// Whether there is a kernel for queries of this kind here: on a GPU that it runs on, in 16 bits, for heads of at most 256 numbers.
pub fn packs(device: Device, kind: Kind, head_width: i64) -> bool {
    takes(device, kind, head_width) && runs_on(device)
}

/// Whether the kernel is for such queries, where it runs.
fn takes(device: Device, kind: Kind, head_width: i64) -> bool {
    let small = head_width <= 256 && head_width % 8 == 0;
    matches!(device, Device::Cuda(_)) && matches!(kind, Kind::BFloat16 | Kind::Half) && small
}

/// Whether the kernel runs on the process's GPU, tried once: those before Ampere, and builds of libtorch without it, refuse.
fn runs_on(device: Device) -> bool {
    static RUNS: OnceLock<bool> = OnceLock::new();
    *RUNS.get_or_init(|| {
        let x = Tensor::zeros([3, 1, 8], (Kind::BFloat16, device));
        let tried = packed([&x, &x, &x], &Starts::new(&[1, 2], device), false);
        if let Err(error) = &tried {
            let reason = error.to_string();
            let reason = reason.lines().next().unwrap_or_default();
            tracing::warn!(reason, "texts of unequal lengths are attended to one length after the other");
        }
        tried.is_ok()
    })
}

/// What each query gathers from the values of its own text: [T, H, E], of queries [T, H, E], keys and values [T, K, E] where K
/// divides H. Gradients flow to all three.
///
/// # Errors
/// When [`packs`] says no, or CUDA does.
pub fn packed(qkv: [&Tensor; 3], texts: &Starts, causal: bool) -> Result<Tensor, TchError> {
    let [q, k, v] = qkv.map(pointer);
    let mut output = std::ptr::null_mut();
    // SAFETY: the pointers are of live tensors for the length of the call; it writes one pointer when it succeeds, to a new
    // tensor that is owned by nobody else.
    unsafe {
        let starts = pointer(&texts.starts);
        checked(
            "packed attention",
            llm2clip_packed_attention(q, k, v, starts, texts.longest, causal, &raw mut output),
        )?;
        Ok(Tensor::from_ptr(output.cast()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_takes_what_it_is_for() {
        let gpu = Device::Cuda(0);
        assert!(takes(gpu, Kind::BFloat16, 128) && takes(gpu, Kind::Half, 256));
        let cases = [(gpu, Kind::Float, 128), (Device::Cpu, Kind::BFloat16, 128), (gpu, Kind::BFloat16, 264)];
        assert!(cases.iter().all(|(device, kind, width)| !takes(*device, *kind, *width)));
        assert!(!takes(gpu, Kind::BFloat16, 12));
    }

    #[test]
    fn a_cpu_refuses_in_libtorchs_words() {
        let x = Tensor::ones([5, 2, 8], (Kind::BFloat16, Device::Cpu));
        let error = packed([&x, &x, &x], &Starts::new(&[3, 2], Device::Cpu), false).unwrap_err().to_string();
        assert!(error.contains("_flash_attention_forward"), "{error}");
    }
}
