//! PNGs in the modes that Pillow opens them in.

use super::{
    decode::{DecodeError, checked_pixels},
    picture::{Mode, Picture},
};
use ::png::{BitDepth, ColorType, Decoder, DecodingError, Transformations};
use std::io::Cursor;

/// Decodes a PNG into `picture`. A colour or palette entry that is marked as transparent is one like any other.
pub fn decode(
    bytes: &[u8],
    scratch: &mut Vec<u8>,
    picture: &mut Picture,
    broken: impl Fn(String) -> DecodeError,
) -> Result<(), DecodeError> {
    let said = |error: DecodingError| broken(error.to_string());
    let mut decoder = Decoder::new(Cursor::new(bytes));
    decoder.set_transformations(Transformations::EXPAND);
    let mut reader = decoder.read_info().map_err(said)?;
    let size = reader.info().size();
    let (color, depth) = (reader.info().color_type, reader.info().bit_depth);
    checked_pixels(u64::from(size.0), u64::from(size.1))?;
    let length = reader.output_buffer_size().ok_or_else(|| broken("its size overflows".to_owned()))?;
    scratch.resize(length, 0);
    reader.next_frame(scratch).map_err(said)?;
    let (expanded, expanded_depth) = reader.output_color_type();
    // Of 16 bits the upper 8 come first.
    let step = if expanded_depth == BitDepth::Sixteen { 2 } else { 1 };
    let pixels = scratch.chunks_exact(expanded.samples() * step);
    let rgb = |pixel: &[u8]| match expanded.samples() {
        3.. => [pixel[0], pixel[step], pixel[2 * step]],
        _ => [pixel[0]; 3],
    };
    let mode = match (color, depth) {
        (ColorType::Grayscale, BitDepth::One) | (ColorType::Indexed, _) => Mode::Indexed,
        (ColorType::Grayscale, BitDepth::Sixteen) => Mode::Gray16,
        (ColorType::Grayscale, _) => Mode::Gray,
        (ColorType::Rgb, _) => Mode::Rgb,
        (ColorType::GrayscaleAlpha | ColorType::Rgba, _) => Mode::Rgba,
    };
    picture.fill(size, mode, |made| match mode {
        Mode::Gray => made.extend(pixels.map(|pixel| pixel[0])),
        Mode::Gray16 => made.extend(pixels.flat_map(|pixel| [pixel[1], pixel[0]])),
        Mode::Rgba => made.extend(pixels.flat_map(|pixel| {
            let [r, g, b] = rgb(pixel);
            [r, g, b, pixel[(expanded.samples() - 1) * step]]
        })),
        Mode::Rgb | Mode::Indexed | Mode::Cmyk => made.extend(pixels.flat_map(rgb)),
    });
    Ok(())
}
