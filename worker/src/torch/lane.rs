//! A second line of work on a tensor's device, beside the one that torch computes on: communication and copies go there.
//! On a CPU there is none, and all happens in the order of the calls.

use super::stream::{Event, Stream, record_stream, set_device};
use tch::{Device, TchError, Tensor};

/// See the file's text.
#[derive(Debug, Clone, Copy)]
pub struct Lane(Option<(usize, Stream)>);

/// A point in torch's own line of work.
#[derive(Debug)]
pub struct Mark(Option<Event>);

impl Lane {
    /// A lane of a device.
    ///
    /// # Errors
    /// When CUDA does.
    pub fn new(device: Device) -> Result<Self, TchError> {
        match device {
            Device::Cuda(number) => {
                set_device(number)?;
                Ok(Self(Some((number, Stream::high_priority(number)?))))
            }
            _ => Ok(Self(None)),
        }
    }

    /// Where the calling thread's current line of work stands.
    ///
    /// # Errors
    /// When CUDA does.
    pub fn mark(&self) -> Result<Mark, TchError> {
        let event = |(number, _): (usize, Stream)| Event::record(&Stream::current(number)?);
        Ok(Mark(self.0.map(event).transpose()?))
    }

    /// What comes next on the lane waits for the mark.
    ///
    /// # Errors
    /// When CUDA does.
    pub fn follow(&self, mark: &Mark) -> Result<(), TchError> {
        match (&self.0, &mark.0) {
            (Some((_, stream)), Some(event)) => event.block(stream),
            _ => Ok(()),
        }
    }

    /// Does `work` on the lane: what it asks of the device does not hold up the calling thread's own line.
    ///
    /// # Errors
    /// When CUDA does.
    pub fn run<T>(&self, work: impl FnOnce() -> T) -> Result<T, TchError> {
        let Some((number, stream)) = self.0 else { return Ok(work()) };
        // A new thread begins on GPU 0.
        set_device(number)?;
        let before = Stream::current(number)?;
        stream.make_current()?;
        let done = work();
        before.make_current()?;
        Ok(done)
    }

    /// What comes next on the calling thread's own line waits for the lane, which `tensors` were last used on.
    ///
    /// # Errors
    /// When CUDA does.
    pub fn join(&self, tensors: &[&Tensor]) -> Result<(), TchError> {
        let Some((number, stream)) = self.0 else { return Ok(()) };
        let own = Stream::current(number)?;
        for tensor in tensors {
            record_stream(tensor, &own)?;
        }
        Event::record(&stream)?.block(&own)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::Kind;

    #[test]
    fn on_a_cpu_work_is_done_where_it_is_asked_for() {
        let lane = Lane::new(Device::Cpu).unwrap();
        let x = Tensor::ones([3], (Kind::Float, Device::Cpu));
        let mark = lane.mark().unwrap();
        lane.follow(&mark).unwrap();
        let sum = lane.run(|| x.sum(Kind::Float).double_value(&[])).unwrap();
        lane.join(&[&x]).unwrap();
        assert_eq!(sum, 3.0);
    }
}
