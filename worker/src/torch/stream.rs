//! Streams and events of a GPU, through libtorch's device-neutral layer: nothing of CUDA is linked. Without
//! `libtorch_cuda.so` every function returns libtorch's error.

use super::shim::{AtTensor, checked, pointer};
use std::{
    ffi::{c_char, c_void},
    time::Duration,
};
use tch::{TchError, Tensor};

/// libtorch's `c10::Event`, seen from here as something with an address.
#[repr(C)]
struct C10Event {
    _opaque: [u8; 0],
}

unsafe extern "C" {
    fn llm2clip_set_device(device: i8) -> *mut c_char;
    fn llm2clip_current_stream(device: i8, stream: *mut i64) -> *mut c_char;
    fn llm2clip_new_stream(device: i8, priority: i32, stream: *mut i64) -> *mut c_char;
    fn llm2clip_stream_handle(device: i8, stream: i64, handle: *mut *mut c_void) -> *mut c_char;
    fn llm2clip_record_stream(tensor: *const AtTensor, device: i8, stream: i64) -> *mut c_char;
    fn llm2clip_set_stream(device: i8, stream: i64) -> *mut c_char;
    fn llm2clip_record_event(device: i8, stream: i64, timed: bool, event: *mut *mut C10Event) -> *mut c_char;
    fn llm2clip_block_event(event: *const C10Event, device: i8, stream: i64) -> *mut c_char;
    fn llm2clip_query_event(event: *const C10Event, passed: *mut bool) -> *mut c_char;
    fn llm2clip_wait_event(event: *const C10Event) -> *mut c_char;
    fn llm2clip_elapsed_ms(from: *const C10Event, to: *const C10Event, milliseconds: *mut f64) -> *mut c_char;
    fn llm2clip_free_event(event: *mut C10Event);
}

fn index(device: usize) -> Result<i8, TchError> {
    i8::try_from(device).map_err(|_| TchError::Torch(format!("there is no GPU number {device}")))
}

/// Makes a GPU that of the calling thread.
///
/// # Errors
/// When there is no such GPU, or libtorch has no CUDA.
pub fn set_device(device: usize) -> Result<(), TchError> {
    // SAFETY: it takes a number and checks it.
    checked("set_device", unsafe { llm2clip_set_device(index(device)?) })
}

/// A stream of a GPU. libtorch keeps streams for ever, so this is no more than its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stream {
    device: i8,
    id: i64,
}

impl Stream {
    /// The one that libtorch puts this thread's work on.
    ///
    /// # Errors
    /// When there is no such GPU, or libtorch has no CUDA.
    pub fn current(device: usize) -> Result<Self, TchError> {
        let (device, mut id) = (index(device)?, 0);
        // SAFETY: it writes one number.
        checked("current_stream", unsafe { llm2clip_current_stream(device, &raw mut id) })?;
        Ok(Self { device, id })
    }

    /// One of libtorch's pool of streams that go before others.
    ///
    /// # Errors
    /// When there is no such GPU, or libtorch has no CUDA.
    pub fn high_priority(device: usize) -> Result<Self, TchError> {
        let (device, mut id) = (index(device)?, 0);
        // SAFETY: it writes one number.
        checked("new_stream", unsafe { llm2clip_new_stream(device, -1, &raw mut id) })?;
        Ok(Self { device, id })
    }

    /// Puts what the calling thread asks of the GPU on this stream from now on.
    ///
    /// # Errors
    /// When CUDA does.
    pub fn make_current(&self) -> Result<(), TchError> {
        // SAFETY: it takes two numbers that libtorch gave.
        checked("set_stream", unsafe { llm2clip_set_stream(self.device, self.id) })
    }

    /// The `cudaStream_t`, which libtorch owns.
    ///
    /// # Errors
    /// When libtorch does not know it.
    pub fn native_handle(&self) -> Result<*mut c_void, TchError> {
        let mut handle = std::ptr::null_mut();
        // SAFETY: it writes one pointer.
        checked("stream_handle", unsafe { llm2clip_stream_handle(self.device, self.id, &raw mut handle) })?;
        Ok(handle)
    }
}

/// Keeps the tensor's memory, when it is freed, from being given away before the stream has passed what is on it then.
///
/// # Errors
/// When the tensor is on another device.
pub fn record_stream(tensor: &Tensor, stream: &Stream) -> Result<(), TchError> {
    // SAFETY: the pointer is a live `at::Tensor` for the length of the call.
    checked("record_stream", unsafe { llm2clip_record_stream(pointer(tensor), stream.device, stream.id) })
}

/// A point on a stream.
#[derive(Debug)]
pub struct Event(*mut C10Event);

// SAFETY: an event is recorded once, before anybody else has it; after that it is only read, and CUDA's functions for
// that may be called from any thread.
unsafe impl Send for Event {}

impl Event {
    /// Where the stream stands now.
    ///
    /// # Errors
    /// When CUDA does.
    pub fn record(stream: &Stream) -> Result<Self, TchError> {
        Self::new(stream, false)
    }

    /// As [`Event::record`], with the time at which the device passes it: for [`Event::since`].
    ///
    /// # Errors
    /// When CUDA does.
    pub fn record_timed(stream: &Stream) -> Result<Self, TchError> {
        Self::new(stream, true)
    }

    fn new(stream: &Stream, timed: bool) -> Result<Self, TchError> {
        let mut event = std::ptr::null_mut();
        // SAFETY: it makes an event and writes its address when it succeeds.
        checked("record_event", unsafe { llm2clip_record_event(stream.device, stream.id, timed, &raw mut event) })?;
        Ok(Self(event))
    }

    /// Waits until the device has passed the point.
    ///
    /// # Errors
    /// When a kernel before it failed.
    pub fn wait(&self) -> Result<(), TchError> {
        // SAFETY: the event lives as long as `self`.
        checked("wait_event", unsafe { llm2clip_wait_event(self.0) })
    }

    /// How long after `from` the device passed the point. Both are timed and passed.
    ///
    /// # Errors
    /// When they are not.
    pub fn since(&self, from: &Self) -> Result<Duration, TchError> {
        let mut milliseconds = 0.0;
        // SAFETY: both events live for the call; it writes one number.
        checked("elapsed", unsafe { llm2clip_elapsed_ms(from.0, self.0, &raw mut milliseconds) })?;
        Ok(Duration::from_secs_f64(milliseconds.max(0.0) / 1e3))
    }

    /// Makes what comes next on the stream wait for this point. The caller does not wait.
    ///
    /// # Errors
    /// When CUDA does.
    pub fn block(&self, stream: &Stream) -> Result<(), TchError> {
        // SAFETY: the event lives as long as `self`.
        checked("block_event", unsafe { llm2clip_block_event(self.0, stream.device, stream.id) })
    }

    /// Whether the device has passed the point.
    ///
    /// # Errors
    /// When a kernel before it failed.
    pub fn query(&self) -> Result<bool, TchError> {
        let mut passed = false;
        // SAFETY: the event lives as long as `self`; it writes one bool.
        checked("query_event", unsafe { llm2clip_query_event(self.0, &raw mut passed) })?;
        Ok(passed)
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        // SAFETY: made by `record`, freed once, here.
        unsafe { llm2clip_free_event(self.0) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_cuda_libtorchs_words_are_the_error() {
        if tch::Cuda::is_available() {
            println!("skipped: this machine computes on a GPU");
            return;
        }
        for error in
            [Stream::current(0).unwrap_err(), Stream::high_priority(0).unwrap_err(), set_device(0).unwrap_err()]
        {
            assert!(error.to_string().contains("cuda"), "{error}");
        }
        assert!(Stream::current(1000).unwrap_err().to_string().contains("1000"));
    }
}
