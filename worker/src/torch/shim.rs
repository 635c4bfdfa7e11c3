//! The binding of `shim/shim.cpp`.

use std::ffi::{CStr, c_char};
use tch::{TchError, Tensor};

/// libtorch's `at::Tensor`, seen from here as something with an address.
#[repr(C)]
pub(super) struct AtTensor {
    _opaque: [u8; 0],
}

unsafe extern "C" {
    fn llm2clip_set_grad(variable: *mut AtTensor, gradient: *const AtTensor) -> *mut c_char;
    fn llm2clip_fused_adamw(
        count: i64,
        parameters: *const *mut AtTensor,
        gradients: *const *mut AtTensor,
        exp_avgs: *const *mut AtTensor,
        exp_avg_sqs: *const *mut AtTensor,
        skip: *const AtTensor,
        step: f64,
        learning_rate: f64,
        beta1: f64,
        beta2: f64,
        weight_decay: f64,
        eps: f64,
    ) -> *mut c_char;
    fn llm2clip_free(message: *mut c_char);
}

pub(super) fn pointer(tensor: &Tensor) -> *mut AtTensor {
    tensor.as_ptr().cast_mut().cast()
}

pub(super) fn checked(operation: &str, message: *mut c_char) -> Result<(), TchError> {
    if message.is_null() {
        return Ok(());
    }
    // SAFETY: a message that is not null is a C string of the shim's, freed once, here.
    let text = unsafe {
        let text = CStr::from_ptr(message).to_string_lossy().into_owned();
        llm2clip_free(message);
        text
    };
    Err(TchError::Torch(format!("{operation}: {text}")))
}

/// Makes `gradient` the gradient of `variable`: backward passes add to it in place.
///
/// # Errors
/// When shape, type or device differ.
pub fn set_grad(variable: &Tensor, gradient: &Tensor) -> Result<(), TchError> {
    // SAFETY: both pointers are live `at::Tensor`s for the length of the call.
    checked("set_grad", unsafe { llm2clip_set_grad(pointer(variable), pointer(gradient)) })
}

/// Constants of one AdamW update.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamW {
    /// Which update this is, from 1: for the bias correction.
    pub step: u64,
    /// The learning rate.
    pub learning_rate: f64,
    /// Decay rates of the two moments.
    pub betas: (f64, f64),
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// Added to the denominator.
    pub eps: f64,
}

/// A parameter with all that an update of it needs: four tensors of one shape, type and device.
#[derive(Debug)]
pub struct Updated {
    /// What is trained; changed.
    pub parameter: Tensor,
    /// Its gradient.
    pub gradient: Tensor,
    /// The mean of gradients; changed.
    pub exp_avg: Tensor,
    /// The mean of squared gradients; changed.
    pub exp_avg_sq: Tensor,
}

/// Updates parameters and their moments in place, in one go. Nothing is changed when `skip`, a float scalar on the same
/// device, is 1.
///
/// # Errors
/// When tensors of one parameter differ in shape or type.
pub fn fused_adamw(updated: &mut [Updated], skip: Option<&Tensor>, constants: &AdamW) -> Result<(), TchError> {
    if updated.is_empty() {
        return Ok(());
    }
    let list = |part: fn(&Updated) -> &Tensor| updated.iter().map(|each| pointer(part(each))).collect::<Vec<_>>();
    let (parameters, gradients) = (list(|each| &each.parameter), list(|each| &each.gradient));
    let (exp_avgs, exp_avg_sqs) = (list(|each| &each.exp_avg), list(|each| &each.exp_avg_sq));
    let AdamW { step, learning_rate, betas, weight_decay, eps } = *constants;
    // SAFETY: the lists are of `count` live `at::Tensor`s for the length of the call, borrowed mutably with `updated`.
    checked("fused_adamw", unsafe {
        llm2clip_fused_adamw(
            updated.len() as i64,
            parameters.as_ptr(),
            gradients.as_ptr(),
            exp_avgs.as_ptr(),
            exp_avg_sqs.as_ptr(),
            skip.map_or(std::ptr::null(), |skip| pointer(skip).cast_const()),
            step as f64,
            learning_rate,
            betas.0,
            betas.1,
            weight_decay,
            eps,
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::{Device, Kind};

    #[test]
    fn gradients_land_in_the_buffer_and_add_up() {
        let buffer = Tensor::zeros([3], (Kind::Float, Device::Cpu));
        let variable = Tensor::ones([3], (Kind::Float, Device::Cpu)).set_requires_grad(true);
        set_grad(&variable, &buffer).unwrap();
        (&variable * 2).sum(Kind::Float).backward();
        (&variable * 3).sum(Kind::Float).backward();
        assert_eq!(Vec::<f32>::try_from(&buffer).unwrap(), [5.0; 3]);
        assert!(set_grad(&variable, &Tensor::zeros([4], (Kind::Float, Device::Cpu))).is_err());
    }

    #[test]
    fn adamw_is_that_of_loshchilov_and_hutter() {
        let constants = AdamW { step: 1, learning_rate: 0.1, betas: (0.9, 0.98), weight_decay: 0.5, eps: 1e-8 };
        let parameter = Tensor::from_slice(&[1.0f32, -2.0]);
        let gradient = Tensor::from_slice(&[0.3f32, 0.0]);
        let (exp_avg, exp_avg_sq) = (parameter.zeros_like(), parameter.zeros_like());
        let mut updated = [Updated { parameter, gradient, exp_avg, exp_avg_sq }];
        fused_adamw(&mut updated, Some(&Tensor::from(1.0f32)), &constants).unwrap();
        let found = |updated: &[Updated]| Vec::<f32>::try_from(&updated[0].parameter).unwrap();
        assert_eq!(found(&updated), [1.0, -2.0], "the update was to be skipped");
        fused_adamw(&mut updated, Some(&Tensor::from(0.0f32)), &constants).unwrap();
        // The first update is lr·sign(g) after the decay of lr·λ.
        let found = found(&updated);
        assert!((found[0] - (0.95 - 0.1)).abs() < 1e-6 && (found[1] + 1.9).abs() < 1e-6, "{found:?}");
    }
}
