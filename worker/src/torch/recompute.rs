//! The binding of `shim/recompute.cpp`: activation checkpointing (Chen et al. 2016, "Training deep nets with sublinear
//! memory cost").

use super::shim::{AtTensor, checked, pointer};
use std::ffi::{c_char, c_void};
use tch::Tensor;

type Body = Box<dyn Fn(&Tensor) -> Tensor>;
type Run = extern "C" fn(*mut c_void, *const AtTensor) -> *mut AtTensor;
type Free = extern "C" fn(*mut c_void);

unsafe extern "C" {
    fn llm2clip_recompute(
        input: *const AtTensor,
        body: *mut c_void,
        run: Run,
        free: Free,
        output: *mut *mut AtTensor,
    ) -> *mut c_char;
}

extern "C" fn run(body: *mut c_void, input: *const AtTensor) -> *mut AtTensor {
    // SAFETY: `body` is the box that `recompute` gave away and `free` has not taken back; `input` is a live tensor, of
    // which a handle is made. Passes that run on a GPU's own thread of libtorch's come here while the thread that owns
    // the body waits for them.
    let (body, input) = unsafe { (&*body.cast::<Body>(), Tensor::clone_from_ptr(input.cast_mut().cast())) };
    let output = body(&input);
    let pointer = pointer(&output);
    // The caller frees it.
    std::mem::forget(output);
    pointer
}

extern "C" fn free(body: *mut c_void) {
    // SAFETY: made by `Box::into_raw` in `recompute`, taken back once, here.
    drop(unsafe { Box::from_raw(body.cast::<Body>()) });
}

/// `body(x)`, of which the backward pass keeps x alone: it runs `body` again. So `body` draws no random numbers, and gives
/// the same whenever it is called.
///
/// # Panics
/// When libtorch refuses what `body` does; in a backward pass libtorch ends the process then.
pub fn recompute(x: &Tensor, body: impl Fn(&Tensor) -> Tensor + 'static) -> Tensor {
    // libtorch looks for gradients of the function's inputs only: without this one the variables in `body` get none.
    let input = if x.requires_grad() { x.shallow_clone() } else { x.detach().set_requires_grad(true) };
    let body: Box<Body> = Box::new(Box::new(body));
    let mut output = std::ptr::null_mut();
    // SAFETY: `input` is live for the call, `body` is given away, `output` is written when it succeeds.
    let message =
        unsafe { llm2clip_recompute(pointer(&input), Box::into_raw(body).cast(), run, free, &raw mut output) };
    checked("recompute", message).expect("the part runs as it does without recomputation");
    // SAFETY: a new tensor, owned by nobody else.
    unsafe { Tensor::from_ptr(output.cast()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        rc::Rc,
        sync::atomic::{AtomicUsize, Ordering},
    };
    use tch::{Device, Kind};

    #[test]
    fn gradients_are_the_same_in_every_bit_and_the_part_runs_twice_and_is_freed() {
        static RUNS: AtomicUsize = AtomicUsize::new(0);
        let normal = |rows, columns| Tensor::randn([rows, columns], (Kind::Float, Device::Cpu));
        let weight = Rc::new(normal(7, 7).set_requires_grad(true));
        for wants_gradient in [true, false] {
            let x = normal(5, 7).set_requires_grad(wants_gradient);
            let plain = |x: &Tensor| x.matmul(&weight).tanh().matmul(&weight).sin();
            plain(&x).square().sum(Kind::Float).backward();
            let take = |tensor: &Tensor| {
                let gradient = tensor.grad().copy();
                let mut place = tensor.grad();
                let _ = place.zero_();
                gradient
            };
            let expected = (wants_gradient.then(|| take(&x)), take(&weight));
            RUNS.store(0, Ordering::Relaxed);
            let held = weight.clone();
            let y = recompute(&x, move |x| {
                RUNS.fetch_add(1, Ordering::Relaxed);
                x.matmul(&held).tanh().matmul(&held).sin()
            });
            y.square().sum(Kind::Float).backward();
            assert_eq!((wants_gradient.then(|| take(&x)), take(&weight)), expected);
            assert_eq!(RUNS.load(Ordering::Relaxed), 2);
            drop(y);
            assert_eq!(Rc::strong_count(&weight), 1, "the part is freed with the graph");
        }
        let held = weight.clone();
        let y = tch::no_grad(|| recompute(&normal(2, 7), move |x| x.matmul(&held)));
        assert!(!y.requires_grad());
        assert_eq!(Rc::strong_count(&weight), 1, "without gradients nothing is kept");
    }
}
