//! Which part of an image is used: torchvision's rules, number for number.

use super::random::Draws;
use common::recipe::Augment;

/// A rectangle of an image, in pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(test, derive(serde::Deserialize))]
pub struct Crop {
    /// First row.
    pub top: u32,
    /// First column.
    pub left: u32,
    /// Rows.
    pub height: u32,
    /// Columns.
    pub width: u32,
}

/// A random crop as `RandomResizedCrop.get_params` of torchvision 0.26 chooses it, given its draws: ten tries, then the
/// largest centred crop within the ratios. The aspect ratio is computed in fp32, as there.
pub fn random_crop(width: u32, height: u32, augment: &Augment, draws: &mut impl Draws) -> Crop {
    let area = f64::from(height) * f64::from(width);
    let log = |ratio: f64| f64::from((ratio as f32).ln());
    for _ in 0..10 {
        let target = area * draws.uniform(augment.scale.0, augment.scale.1);
        let ratio = f64::from((draws.uniform(log(augment.ratio.0), log(augment.ratio.1)) as f32).exp());
        let w = (target * ratio).sqrt().round_ties_even();
        let h = (target / ratio).sqrt().round_ties_even();
        if 0.0 < w && w <= f64::from(width) && 0.0 < h && h <= f64::from(height) {
            let (w, h) = (w as u32, h as u32);
            let top = draws.below(height - h + 1);
            let left = draws.below(width - w + 1);
            return Crop { top, left, height: h, width: w };
        }
    }
    let ratio = f64::from(width) / f64::from(height);
    let lowest = augment.ratio.0.min(augment.ratio.1);
    let highest = augment.ratio.0.max(augment.ratio.1);
    let (w, h) = if ratio < lowest {
        (width, ((f64::from(width) / lowest).round_ties_even() as u32).clamp(1, height))
    } else if ratio > highest {
        (((f64::from(height) * highest).round_ties_even() as u32).clamp(1, width), height)
    } else {
        (width, height)
    };
    Crop { top: (height - h) / 2, left: (width - w) / 2, height: h, width: w }
}

/// The size after `Resize(size)`: the shorter side becomes `size`, the longer is rounded down. (width, height)
pub fn shorter_side_to(size: u32, width: u32, height: u32) -> (u32, u32) {
    let long = |long: u32, short: u32| (f64::from(size) * f64::from(long) / f64::from(short)) as u32;
    if width <= height { (size, long(height, width)) } else { (long(width, height), size) }
}

/// `CenterCrop(size)` of an image that is at least that large.
pub fn centre_crop(size: u32, width: u32, height: u32) -> Crop {
    let start = |side: u32| (f64::from(side - size) / 2.0).round_ties_even() as u32;
    Crop { top: start(height), left: start(width), height: size, width: size }
}
