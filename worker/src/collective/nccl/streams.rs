//! What stands between torch's work on a device and the communicator's: two streams that wait for each other.

use crate::torch::stream::{Event, Stream, record_stream, set_device};
use cudarc::nccl::sys::cudaStream_t;
use tch::{TchError, Tensor};

/// The communicator's stream, and its order with the one that torch computes on.
pub trait Streams: Send + Sync {
    /// Makes the device that of the calling thread.
    fn enter(&self) -> Result<(), TchError>;
    /// The communicator's stream as CUDA knows it.
    fn handle(&self) -> Result<cudaStream_t, TchError>;
    /// What comes next on the communicator's stream waits for what is on torch's now.
    fn follow(&self) -> Result<(), TchError>;
    /// What comes next on torch's stream waits for what is on the communicator's now, which uses these tensors: their
    /// memory is not given away before. Returns when that has passed.
    fn lead(&self, tensors: &[&Tensor]) -> Result<Box<dyn Passed>, TchError>;
}

/// A point on a stream.
pub trait Passed: Send {
    /// Whether the device has passed it. Does not wait.
    fn passed(&self) -> Result<bool, TchError>;
}

/// The streams of a GPU.
#[derive(Debug)]
pub struct CudaStreams {
    device: usize,
    own: Stream,
}

impl CudaStreams {
    /// A stream of its own, of high priority: an operation is waited for as soon as it is there.
    ///
    /// # Errors
    /// When libtorch has no CUDA, or there is no such device.
    pub fn new(device: usize) -> Result<Self, TchError> {
        set_device(device)?;
        Ok(Self { device, own: Stream::high_priority(device)? })
    }
}

impl Streams for CudaStreams {
    fn enter(&self) -> Result<(), TchError> {
        set_device(self.device)
    }

    fn handle(&self) -> Result<cudaStream_t, TchError> {
        Ok(self.own.native_handle()?.cast())
    }

    fn follow(&self) -> Result<(), TchError> {
        Event::record(&Stream::current(self.device)?)?.block(&self.own)
    }

    fn lead(&self, tensors: &[&Tensor]) -> Result<Box<dyn Passed>, TchError> {
        for tensor in tensors {
            record_stream(tensor, &self.own)?;
        }
        let event = Event::record(&self.own)?;
        event.block(&Stream::current(self.device)?)?;
        Ok(Box::new(event))
    }
}

impl Passed for Event {
    fn passed(&self) -> Result<bool, TchError> {
        self.query()
    }
}
