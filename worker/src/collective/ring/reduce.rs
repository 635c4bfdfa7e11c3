//! Sums of bytes that are numbers.

use crate::collective::CollectiveError;
use half::bf16;
use tch::Kind;

/// Adds the second slice to the first. Both hold whole numbers of one type and are aligned for it.
pub(super) type Add = fn(&mut [u8], &[u8]);

/// The sum of a type.
pub(super) fn add_of(kind: Kind, operation: &'static str) -> Result<Add, CollectiveError> {
    match kind {
        Kind::Float => Ok(|to, from| add::<f32>(to, from, |a, b| a + b)),
        Kind::Double => Ok(|to, from| add::<f64>(to, from, |a, b| a + b)),
        Kind::Int64 => Ok(|to, from| add::<i64>(to, from, i64::wrapping_add)),
        // Added in fp32, rounded once.
        Kind::BFloat16 => Ok(|to, from| add::<bf16>(to, from, |a, b| bf16::from_f32(a.to_f32() + b.to_f32()))),
        other => Err(CollectiveError::Unsupported { operation, what: format!("numbers of type {other:?}") }),
    }
}

fn add<T: bytemuck::Pod>(to: &mut [u8], from: &[u8], sum: impl Fn(T, T) -> T) {
    let (to, from): (&mut [T], &[T]) = (bytemuck::cast_slice_mut(to), bytemuck::cast_slice(from));
    for (to, from) in to.iter_mut().zip(from) {
        *to = sum(*to, *from);
    }
}
