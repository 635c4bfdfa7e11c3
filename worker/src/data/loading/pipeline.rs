//! From a request to pixels: read, decode, replace what is broken, transform.

use super::{BrokenSample, LoaderConfig, OnBroken, SampleRequest};
use crate::data::{
    DataError, Dataset, SkipReason,
    pixels::{DecodeError, Decoder, Geometry, Resampler, SampleDraws},
};

/// One thread's decoder and buffers.
#[derive(Debug, Default)]
pub struct Pipeline {
    decoder: Decoder,
    resampler: Resampler,
    bytes: Vec<u8>,
}

impl Pipeline {
    /// Writes the pixels of a sample, or of what stands in for it when it is broken; returns which one it was, and what
    /// was wrong with the one that was wanted. The choice depends on the request and the data alone.
    ///
    /// # Errors
    /// When the image cannot be read, or nothing that may stand in for it can be decoded.
    pub fn make(
        &mut self,
        config: &LoaderConfig,
        wanted: SampleRequest,
        pixels: &mut [u8],
    ) -> Result<(SampleRequest, Option<BrokenSample>), DataError> {
        let dataset = &config.datasets[wanted.source as usize];
        let Err(error) = self.one(config, dataset, wanted, pixels)? else { return Ok((wanted, None)) };
        let (key, detail) = (dataset.key(wanted.index)?, error.to_string());
        let broken = BrokenSample { wanted, key, reason: SkipReason::BrokenImage, detail };
        let OnBroken::Replace(reserve) = &config.on_broken else {
            pixels.fill(0);
            return Ok((wanted, Some(broken)));
        };
        let mut last = format!("{} (key `{}`)", broken.detail, broken.key);
        for attempt in 0.. {
            let Some(index) = reserve.reserve(wanted, attempt) else {
                let (name, index, key) = (dataset.name().to_owned(), wanted.index.0, broken.key);
                return Err(DataError::NoReplacement { name, index, key, tries: attempt, reason: last });
            };
            let sample = SampleRequest { index, ..wanted };
            match self.one(config, dataset, sample, pixels)? {
                Ok(()) => return Ok((sample, Some(broken))),
                Err(error) => last = format!("{error} (key `{}`)", dataset.key(index)?),
            }
        }
        unreachable!("a reserve ends")
    }

    fn one(
        &mut self,
        config: &LoaderConfig,
        dataset: &Dataset,
        sample: SampleRequest,
        pixels: &mut [u8],
    ) -> Result<Result<(), DecodeError>, DataError> {
        dataset.read_image(sample.index, &mut self.bytes)?;
        let bytes = std::mem::take(&mut self.bytes);
        let result = self.pixels(config, sample, &bytes, pixels, || ());
        self.bytes = bytes;
        Ok(result)
    }

    /// Decodes what the sample's crop needs of an image, says so, and resizes it.
    pub fn pixels(
        &mut self,
        config: &LoaderConfig,
        sample: SampleRequest,
        bytes: &[u8],
        pixels: &mut [u8],
        decoded: impl FnOnce(),
    ) -> Result<(), DecodeError> {
        let mut draws = SampleDraws::new(config.seed, sample.source, sample.index, sample.epoch);
        let mut chosen = None;
        let picture = self.decoder.decode_part(bytes, config.convert, |size| {
            let geometry = Geometry::new(&config.transform, size, &mut draws, config.image_size)?;
            Ok(chosen.insert(geometry).needed())
        })?;
        decoded();
        let geometry = chosen.expect("an image that was decoded has a size");
        self.resampler.apply(config.pixels, &geometry, picture, pixels);
        Ok(())
    }
}
