//! Rotary position embedding (Su et al. 2021) on split halves, with Llama 3.1's stretching of the frequencies.
//!
//! Frequencies and angles are fp32 whatever the model's kind: half precision moves outputs by 2e-3.

use crate::torch::transfer::numbers;
use tch::{Device, Kind, Tensor};

/// `rope_scaling` of Llama 3.1 and later: long wavelengths are stretched, short ones kept, those between interpolated.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Scaling {
    /// By how much long wavelengths are stretched.
    pub factor: f64,
    /// Wavelengths above `original_length / low_freq_factor` are long.
    pub low_freq_factor: f64,
    /// Wavelengths below `original_length / high_freq_factor` are short.
    pub high_freq_factor: f64,
    /// The context that the model was first trained on, in tokens.
    pub original_length: f64,
}

impl Scaling {
    fn stretch(&self, frequency: f32) -> f32 {
        let (factor, low, high) = (self.factor as f32, self.low_freq_factor as f32, self.high_freq_factor as f32);
        let length = self.original_length as f32;
        let wavelength = std::f32::consts::TAU / frequency;
        if wavelength < length / high {
            frequency
        } else if wavelength > length / low {
            frequency / factor
        } else {
            let smooth = (length / wavelength - low) / (high - low);
            (1.0 - smooth) * frequency / factor + smooth * frequency
        }
    }
}

/// The frequencies of a head: [E/2] fp32.
pub(super) fn frequencies(head_dim: i64, theta: f64, scaling: Option<Scaling>, device: Device) -> Tensor {
    let exponent = Tensor::arange_start_step(0, head_dim, 2, (Kind::Float, Device::Cpu)) / head_dim as f64;
    let plain = Tensor::pow_scalar(theta, &exponent).reciprocal();
    let plain: Vec<f32> = Vec::try_from(&plain).expect("a vector of fp32 on the CPU");
    let stretched: Vec<f32> = plain.iter().map(|f| scaling.map_or(*f, |scaling| scaling.stretch(*f))).collect();
    Tensor::from_slice(&stretched).to_device(device)
}

/// Cosines and sines of each token's position in its own text: each [T, 1, E].
pub(super) struct Angles {
    cos_T1E: Tensor,
    sin_T1E: Tensor,
}

impl Angles {
    /// Of texts of these lengths, one after the other.
    pub(super) fn new(frequencies: &Tensor, lengths: &[i64], kind: Kind) -> Self {
        let longest = lengths.iter().copied().max().unwrap_or(0);
        let positions = Tensor::arange(longest, (Kind::Float, frequencies.device()));
        let half = positions.outer(frequencies);
        let table_LE = Tensor::cat(&[&half, &half], 1);
        let each: Vec<i64> = lengths.iter().flat_map(|length| 0..*length).collect();
        let each_T = numbers(&each, frequencies.device());
        let of_tokens = |table_LE: Tensor| table_LE.to_kind(kind).index_select(0, &each_T).unsqueeze(1);
        Self { cos_T1E: of_tokens(table_LE.cos()), sin_T1E: of_tokens(table_LE.sin()) }
    }

    /// Rotates [T, H, E]: component j with component j + E/2.
    pub(super) fn rotate(&self, x_THE: &Tensor) -> Tensor {
        let halves = x_THE.chunk(2, -1);
        let turned = Tensor::cat(&[&(-&halves[1]), &halves[0]], -1);
        x_THE * &self.cos_T1E + turned * &self.sin_T1E
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // Llama 3.2 1B: theta 5e5, factor 32, 1, 4, 8192.
    #[test]
    fn long_wavelengths_are_stretched_and_short_ones_kept() {
        let scaling = Scaling { factor: 32.0, low_freq_factor: 1.0, high_freq_factor: 4.0, original_length: 8192.0 };
        let plain: Vec<f32> = Vec::try_from(frequencies(64, 5e5, None, Device::Cpu)).unwrap();
        let scaled: Vec<f32> = Vec::try_from(frequencies(64, 5e5, Some(scaling), Device::Cpu)).unwrap();
        assert_eq!(plain[0], 1.0);
        assert_eq!(plain[..10], scaled[..10]);
        assert_eq!(plain[31] / 32.0, scaled[31]);
        assert!(scaled.windows(2).all(|pair| pair[0] > pair[1]), "frequencies fall: {scaled:?}");
    }
}
