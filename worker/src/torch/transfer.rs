//! Copies between host and device that nobody waits for before they are needed. On a CPU they are plain copies.

use super::{
    cpu_bytes_mut,
    lane::Lane,
    shim::{checked, pointer},
    stream::{Event, Stream},
};
use crate::torch::shim::AtTensor;
use std::ffi::c_char;
use tch::{Device, Kind, TchError, Tensor};

unsafe extern "C" {
    fn llm2clip_copy_async(to: *mut AtTensor, from: *const AtTensor) -> *mut c_char;
    fn llm2clip_pinned(bytes: i64, tensor: *mut *mut AtTensor) -> *mut c_char;
}

/// Memory of the host that a GPU reads and writes by itself: [bytes] uint8.
fn pinned(bytes: usize) -> Result<Tensor, TchError> {
    let mut tensor = std::ptr::null_mut();
    // SAFETY: it writes one pointer when it succeeds, to a new tensor that is owned by nobody else.
    unsafe {
        checked("pinned memory", llm2clip_pinned(bytes as i64, &raw mut tensor))?;
        Ok(Tensor::from_ptr(tensor.cast()))
    }
}

fn copy_async(to: &Tensor, from: &Tensor) -> Result<(), TchError> {
    // SAFETY: both pointers are live `at::Tensor`s for the length of the call; who calls keeps them until it is done.
    checked("copy", unsafe { llm2clip_copy_async(pointer(to), pointer(from)) })
}

/// Numbers of the host as a vector on a device. Nobody waits for the copy: what is computed with it next comes after it.
///
/// Panics when libtorch refuses, as its other functions do.
pub fn numbers<T: tch::kind::Element + bytemuck::NoUninit>(values: &[T], device: Device) -> Tensor {
    if !matches!(device, Device::Cuda(_)) {
        return Tensor::from_slice(values);
    }
    let copied = || {
        let bytes: &[u8] = bytemuck::cast_slice(values);
        let mut host = pinned(bytes.len())?;
        cpu_bytes_mut(&mut host).copy_from_slice(bytes);
        let there = Tensor::f_empty([values.len() as i64], (T::KIND, device))?;
        // libtorch keeps pinned memory until the copies from it are done.
        copy_async(&there, &host.f_view_dtype(T::KIND)?)?;
        Ok::<_, TchError>(there)
    };
    copied().expect("libtorch copies numbers to where it computes")
}

/// Numbers on their way to the host.
#[derive(Debug)]
pub struct Fetch {
    host: Tensor,
    done: Option<Event>,
}

impl Fetch {
    /// Begins to fetch scalars, as they are when all that was asked of the device before is done.
    ///
    /// # Errors
    /// When libtorch does.
    pub fn begin(scalars: &[&Tensor]) -> Result<Self, TchError> {
        let flat: Vec<Tensor> = scalars.iter().map(|scalar| scalar.detach().to_kind(Kind::Double).view([-1])).collect();
        let values = Tensor::cat(&flat, 0);
        let Device::Cuda(number) = values.device() else { return Ok(Self { host: values, done: None }) };
        let host = pinned(values.numel() * Kind::Double.elt_size_in_bytes())?.f_view_dtype(Kind::Double)?;
        copy_async(&host, &values)?;
        Ok(Self { host, done: Some(Event::record(&Stream::current(number)?)?) })
    }

    /// Waits for them.
    ///
    /// # Errors
    /// When a kernel before them failed.
    pub fn wait(self) -> Result<Vec<f64>, TchError> {
        self.done.as_ref().map_or(Ok(()), Event::wait)?;
        Vec::try_from(&self.host)
    }
}

/// Batches of one kind on their way to the device: from pinned memory, on a lane of their own, while the step before
/// computes.
#[derive(Debug)]
pub struct Uploader {
    device: Device,
    lane: Lane,
    /// Pinned memory and the end of its last copy; two, so that one is filled while the other is read.
    slots: [Option<(Tensor, Event)>; 2],
    next: usize,
}

impl Uploader {
    /// To a device.
    ///
    /// # Errors
    /// When CUDA does.
    pub fn new(device: Device) -> Result<Self, TchError> {
        Ok(Self { device, lane: Lane::new(device)?, slots: [None, None], next: 0 })
    }

    /// The bytes of numbers of a kind as a tensor on the device. What is computed with it next waits for it by itself.
    ///
    /// # Errors
    /// When CUDA does, or the shape is not of so many bytes.
    pub fn upload(&mut self, bytes: &[u8], shape: &[i64], kind: Kind) -> Result<Tensor, TchError> {
        if shape.iter().product::<i64>() as usize * kind.elt_size_in_bytes() != bytes.len() {
            return Err(TchError::Shape(format!("{} bytes are no {shape:?} of {kind:?}", bytes.len())));
        }
        let Device::Cuda(number) = self.device else {
            return Tensor::f_from_data_size(bytes, shape, kind);
        };
        let slot = self.next;
        self.next = (slot + 1) % self.slots.len();
        let mut pinned = match self.slots[slot].take() {
            Some((pinned, copied)) if pinned.numel() == bytes.len() => {
                copied.wait()?;
                pinned
            }
            _ => pinned(bytes.len())?,
        };
        cpu_bytes_mut(&mut pinned).copy_from_slice(bytes);
        let (tensor, copied) = self.lane.run(|| {
            let tensor = Tensor::empty(shape, (kind, self.device));
            copy_async(&tensor, &pinned.f_view_dtype(kind)?.f_view(shape)?)?;
            Ok::<_, TchError>((tensor, Event::record(&Stream::current(number)?)?))
        })??;
        self.lane.join(&[&tensor])?;
        self.slots[slot] = Some((pinned, copied));
        Ok(tensor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_bytes_arrive_as_they_were() {
        let loss = Tensor::from(0.1f32).set_requires_grad(true);
        let fetch = Fetch::begin(&[&loss, &Tensor::from(2.5f64)]).unwrap();
        let _ = tch::no_grad(|| loss.shallow_clone().fill_(7.0));
        assert_eq!(fetch.wait().unwrap(), [f64::from(0.1f32), 2.5]);
        let mut uploader = Uploader::new(Device::Cpu).unwrap();
        for shift in 0..3u8 {
            let bytes: Vec<u8> = (0..12).map(|i| i + shift).collect();
            let tensor = uploader.upload(&bytes, &[2, 6], Kind::Uint8).unwrap();
            assert_eq!((tensor.kind(), tensor.size()), (Kind::Uint8, vec![2, 6]));
            assert_eq!(super::super::cpu_bytes(&tensor), bytes);
        }
        let numbers = uploader.upload(bytemuck::cast_slice(&[1i64, -2]), &[1, 2], Kind::Int64).unwrap();
        assert_eq!(Vec::<i64>::try_from(numbers.view([-1])).unwrap(), [1, -2]);
        assert!(uploader.upload(&[1, 2, 3], &[4], Kind::Uint8).is_err());
    }
}
