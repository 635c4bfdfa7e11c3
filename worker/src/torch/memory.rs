//! How much memory computing took at most.

use super::shim::checked;
use std::ffi::c_char;
use tch::Device;

unsafe extern "C" {
    fn llm2clip_peak_bytes(device: i8, bytes: *mut i64) -> *mut c_char;
    fn llm2clip_reset_peak(device: i8) -> *mut c_char;
}

/// The most bytes at a time since [`reset_peak`]: on a GPU of libtorch's tensors, on the CPU of the whole process. Absent
/// where the system does not say.
pub fn peak_bytes(device: Device) -> Option<u64> {
    let Device::Cuda(number) = device else {
        let status = std::fs::read_to_string("/proc/self/status").ok()?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
        return Some(line.split_whitespace().next()?.parse::<u64>().ok()? << 10);
    };
    let mut bytes = 0;
    // SAFETY: it writes one number.
    checked("peak_bytes", unsafe { llm2clip_peak_bytes(i8::try_from(number).ok()?, &raw mut bytes) }).ok()?;
    u64::try_from(bytes).ok()
}

/// Begins to look for the peak anew. A system that does not let us goes on with the old one.
pub fn reset_peak(device: Device) {
    let Device::Cuda(number) = device else {
        // 5 is the peak of resident memory, see proc(5).
        let _ = std::fs::write("/proc/self/clear_refs", "5");
        return;
    };
    if let Ok(number) = i8::try_from(number) {
        // SAFETY: it takes a number and checks it.
        let _ = checked("reset_peak", unsafe { llm2clip_reset_peak(number) });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_large_buffer_shows_in_the_peak() {
        let before = peak_bytes(Device::Cpu).unwrap();
        let buffer = std::hint::black_box(vec![1u8; 300 << 20]);
        let with = peak_bytes(Device::Cpu).unwrap();
        assert!(with >= before.max(300 << 20), "{before} {with} {}", buffer.len());
    }
}
