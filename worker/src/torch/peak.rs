//! What a device can do at most: the ground for model FLOPs utilisation (MFU).

use libloading::os::unix::{Library, RTLD_LOCAL, RTLD_NOW};
use std::ffi::{CStr, c_char, c_int};
use tch::{Device, Kind};

/// Says the peak of this machine's devices in TFLOP/s, where the table below does not know it.
pub const PEAK_VARIABLE: &str = "LLM2CLIP_PEAK_TFLOPS";

/// Dense bf16 TFLOP/s with fp32 sums, from the makers' data sheets. The first name that the device's begins with counts.
const BF16: [(&str, f64); 20] = [
    ("NVIDIA GB200", 2500.0),
    ("NVIDIA B200", 2250.0),
    ("NVIDIA H200 NVL", 836.0),
    ("NVIDIA H200", 989.4),
    ("NVIDIA GH200", 989.4),
    ("NVIDIA H100 PCIe", 756.0),
    ("NVIDIA H100 NVL", 835.0),
    ("NVIDIA H100", 989.4),
    ("NVIDIA H800", 989.4),
    ("NVIDIA H20", 148.0),
    ("NVIDIA A100", 312.0),
    ("NVIDIA A800", 312.0),
    ("NVIDIA L40S", 362.0),
    ("NVIDIA L40", 181.0),
    ("NVIDIA L4", 121.0),
    ("NVIDIA A10G", 70.0),
    ("NVIDIA A10", 125.0),
    ("NVIDIA A40", 149.7),
    ("NVIDIA GeForce RTX 4090", 165.2),
    ("NVIDIA GeForce RTX 3090", 71.0),
];

/// FLOP/s that the device can do at most in products of this kind; absent where nobody said.
pub fn flop_per_s(device: Device, kind: Kind) -> Option<f64> {
    let told = std::env::var(PEAK_VARIABLE).ok();
    match (told, device, kind) {
        (Some(told), ..) => told.parse::<f64>().ok().filter(|tera| *tera > 0.0).map(|tera| tera * 1e12),
        (None, Device::Cuda(number), Kind::BFloat16) => known(&name(number)?),
        _ => None,
    }
}

fn known(name: &str) -> Option<f64> {
    BF16.iter().find(|(begin, _)| name.starts_with(begin)).map(|(_, tera)| tera * 1e12)
}

/// A GPU's name, as the driver tells it.
pub fn name(number: usize) -> Option<String> {
    type Initialise = unsafe extern "C" fn(u32) -> c_int;
    type Get = unsafe extern "C" fn(*mut c_int, c_int) -> c_int;
    type Name = unsafe extern "C" fn(*mut c_char, c_int, c_int) -> c_int;
    // SAFETY: the driver's library, which libtorch's CUDA half has loaded already; its start code has run.
    let driver = unsafe { Library::open(Some("libcuda.so.1"), RTLD_NOW | RTLD_LOCAL) }.ok()?;
    let mut text = [0 as c_char; 256];
    let mut device = 0;
    // SAFETY: the functions have these types (CUDA driver API); they write a number, and at most 255 letters and a zero.
    unsafe {
        let initialise = driver.get::<Initialise>(b"cuInit\0").ok()?;
        let get = driver.get::<Get>(b"cuDeviceGet\0").ok()?;
        let name = driver.get::<Name>(b"cuDeviceGetName\0").ok()?;
        let number = c_int::try_from(number).ok()?;
        let fine = initialise(0) == 0 && get(&raw mut device, number) == 0 && name(text.as_mut_ptr(), 255, device) == 0;
        fine.then(|| CStr::from_ptr(text.as_ptr()).to_string_lossy().into_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longer_name_counts() {
        assert_eq!(known("NVIDIA H100 80GB HBM3"), Some(989.4e12));
        assert_eq!(known("NVIDIA H100 PCIe"), Some(756e12));
        assert_eq!(known("NVIDIA H200"), Some(989.4e12));
        assert_eq!(known("NVIDIA L40S"), Some(362e12));
        assert_eq!(known("Tesla T4"), None);
    }
}
