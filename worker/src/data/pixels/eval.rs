//! Images that come alone, as evaluation sees them.

use super::{DecodeError, Decoder, Geometry, Resampler, SampleDraws, Transform};
use common::{
    ids::{Epoch, SampleIndex},
    recipe::{ConvertToRgb, PixelMode},
};

/// Makes pixels of images' bytes; one a thread.
#[derive(Debug, Default)]
pub struct EvalImages {
    decoder: Decoder,
    resampler: Resampler,
}

impl EvalImages {
    /// Writes `3 * size * size` bytes, channels first: what [`Transform::Eval`] makes of an image, with Pillow's bytes.
    ///
    /// # Errors
    /// When the image cannot be decoded.
    pub fn read(&mut self, bytes: &[u8], size: u32, pixels: &mut [u8]) -> Result<(), DecodeError> {
        // Evaluation draws nothing of it.
        let mut draws = SampleDraws::new(0, 0, SampleIndex(0), Epoch(0));
        let mut chosen = None;
        let picture = self.decoder.decode_part(bytes, ConvertToRgb::AfterResize, |shape| {
            let geometry = Geometry::new(&Transform::Eval, shape, &mut draws, size)?;
            Ok(chosen.insert(geometry).needed())
        })?;
        let geometry = chosen.expect("an image that was decoded has a size");
        self.resampler.apply(PixelMode::PillowExact, &geometry, picture, pixels);
        Ok(())
    }
}
