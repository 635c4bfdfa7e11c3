//! The binding of `shim/hooks.cpp`: to be told when a variable's gradient is complete in a backward pass.

use super::shim::{AtTensor, checked, pointer};
use std::ffi::{c_char, c_void};
use tch::{TchError, Tensor};

type Told = extern "C" fn(*mut c_void, i64);
type Callback = Box<dyn Fn(usize) + Send + Sync>;

unsafe extern "C" {
    fn llm2clip_on_gradient(variable: *const AtTensor, told: Told, context: *mut c_void, number: i64) -> *mut c_char;
    fn llm2clip_off_gradient(variable: *const AtTensor) -> *mut c_char;
}

/// Calls back with a variable's number whenever a backward pass has added to its gradient; ends when dropped.
pub struct GradientHooks {
    variables: Vec<Tensor>,
    // Boxed twice: the address of the inner, fat box is what C++ keeps.
    _callback: Box<Callback>,
}

extern "C" fn told(context: *mut c_void, number: i64) {
    // SAFETY: `context` is the callback of a `GradientHooks`, which takes every hook off before it frees the callback.
    let callback = unsafe { &*context.cast::<Callback>() };
    callback(usize::try_from(number).expect("variables are numbered from 0"));
}

impl GradientHooks {
    /// Listens to leaf variables that require gradients; they are numbered as they stand. `callback` runs on the thread of
    /// the backward pass and should be quick; a panic in it ends the process.
    ///
    /// # Errors
    /// When libtorch refuses.
    pub fn new(
        variables: impl IntoIterator<Item = Tensor>,
        callback: impl Fn(usize) + Send + Sync + 'static,
    ) -> Result<Self, TchError> {
        let callback: Box<Callback> = Box::new(Box::new(callback));
        let context = std::ptr::from_ref::<Callback>(&callback).cast_mut().cast::<c_void>();
        let mut hooks = Self { variables: Vec::new(), _callback: callback };
        for (number, variable) in (0..).zip(variables) {
            // SAFETY: the variable is live for the call; `context` outlives the hook, see `told`.
            checked("on_gradient", unsafe { llm2clip_on_gradient(pointer(&variable), told, context, number) })?;
            hooks.variables.push(variable);
        }
        Ok(hooks)
    }
}

impl Drop for GradientHooks {
    fn drop(&mut self) {
        for variable in &self.variables {
            // SAFETY: the variable is live: this struct holds it.
            let taken = checked("off_gradient", unsafe { llm2clip_off_gradient(pointer(variable)) });
            taken.expect("a hook that was set can be taken off");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Arc, Mutex};
    use tch::{Device, Kind};

    #[test]
    fn hooks_fire_from_the_output_to_the_input_in_every_pass_and_not_after_their_end() {
        let layer = || Tensor::ones([3, 3], (Kind::Float, Device::Cpu)).set_requires_grad(true);
        let layers: Vec<Tensor> = (0..4).map(|_| layer()).collect();
        let backward = || {
            let x = Tensor::ones([2, 3], (Kind::Float, Device::Cpu));
            layers.iter().fold(x, |x, layer| x.matmul(layer)).sum(Kind::Float).backward();
        };
        let seen = Arc::new(Mutex::new(Vec::new()));
        let hooks = {
            let seen = seen.clone();
            let layers = layers.iter().map(Tensor::shallow_clone);
            GradientHooks::new(layers, move |number| seen.lock().unwrap().push(number)).unwrap()
        };
        backward();
        backward();
        assert_eq!(*seen.lock().unwrap(), [3, 2, 1, 0, 3, 2, 1, 0]);
        drop(hooks);
        backward();
        assert_eq!(seen.lock().unwrap().len(), 8);
    }
}
