//! A digest of what every rank should have the same of: whether replicas are replicas.
//!
//! The bits of each number, as an integer, times an odd weight of its place, summed modulo 2^64 a block of numbers: a sum of
//! integers is the same in whatever order a device adds it up, and no single bit can change without it. BLAKE3 of the blocks'
//! sums is the digest. It reads the numbers once, where they are, and fetches a few sums.

use tch::{Device, Kind, TchError, Tensor};

/// Numbers of a block: the weights and the integers take 16 bytes each of them.
const BLOCK: i64 = 1 << 22;
/// An odd number near 2^64 / golden ratio: its multiples are spread over all bits (Knuth, The Art of Computer Programming,
/// volume 3, section 6.4).
const SPREAD: i64 = 0x9e37_79b9_7f4a_7c15_u64.cast_signed();

/// The digest of flat tensors of fp32 or fp64 numbers, one after the other, as two numbers of 64 bits.
///
/// # Errors
/// When libtorch refuses, or the device fails.
pub fn of(tensors: &[&Tensor]) -> Result<[i64; 2], TchError> {
    let longest = tensors.iter().map(|tensor| tensor.numel() as i64).max().unwrap_or_default().min(BLOCK);
    let device = tensors.first().map_or(Device::Cpu, |tensor| tensor.device());
    let odd = Tensor::f_arange(longest, (Kind::Int64, device))?.f_mul_scalar(SPREAD)?.f_bitwise_or(1)?;
    let mut sums = Vec::new();
    for tensor in tensors {
        let bits = tensor.detach().f_view_dtype(if tensor.kind() == Kind::Double { Kind::Int64 } else { Kind::Int })?;
        for block in bits.f_split(BLOCK, 0)? {
            let weighted = block.f_to_kind(Kind::Int64)?.f_mul(&odd.f_narrow(0, 0, block.size1()?)?)?;
            sums.push(weighted.f_sum(Kind::Int64)?);
        }
    }
    let mut hasher = blake3::Hasher::new();
    if !sums.is_empty() {
        let sums: Vec<i64> = Tensor::f_stack(&sums, 0)?.f_to_device(Device::Cpu)?.try_into()?;
        sums.iter().for_each(|sum| _ = hasher.update(&sum.to_le_bytes()));
    }
    let hash = hasher.finalize();
    let (high, low) = hash.as_bytes()[..16].split_at(8);
    let number = |bytes: &[u8]| i64::from_le_bytes(bytes.try_into().expect("half of 16 bytes"));
    Ok([number(high), number(low)])
}

/// As it is told.
pub fn hex(digest: [i64; 2]) -> String {
    digest.iter().flat_map(|half| half.to_le_bytes()).map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_bit_of_every_number_counts_and_so_does_its_place() {
        tch::manual_seed(3);
        let x = Tensor::randn([1000], (Kind::Float, Device::Cpu));
        let whole = of(&[&x]).unwrap();
        assert_eq!(of(&[&x.copy()]).unwrap(), whole);
        for bit in 0..32 {
            let y = x.copy();
            let mut bits = y.view_dtype(Kind::Int).narrow(0, 31 * bit, 1);
            let _ = bits.bitwise_xor_tensor_(&Tensor::from(1i32 << bit));
            assert_ne!(of(&[&y]).unwrap(), whole, "bit {bit}");
        }
        assert_ne!(of(&[&x.flip([0])]).unwrap(), whole);
        assert_ne!(of(&[&x.narrow(0, 0, 500), &x.narrow(0, 500, 500)]).unwrap(), whole);
        let wide = x.to_kind(Kind::Double);
        let other = &wide + &Tensor::from(1e-15);
        assert_ne!(of(&[&wide]).unwrap(), of(&[&other]).unwrap());
    }

    #[test]
    fn longer_than_a_block_and_nothing_at_all() {
        let x = Tensor::arange(BLOCK + 5, (Kind::Float, Device::Cpu));
        let whole = of(&[&x]).unwrap();
        let _ = x.narrow(0, BLOCK + 4, 1).fill_(0.5);
        assert_ne!(of(&[&x]).unwrap(), whole);
        assert_eq!(of(&[]).unwrap(), of(&[]).unwrap());
        assert_eq!(hex([1, -1]), "0100000000000000ffffffffffffffff");
    }
}
