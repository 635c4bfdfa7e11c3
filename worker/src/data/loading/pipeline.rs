//! From a request to pixels: read, decode, replace what is broken, transform.

use super::{LoaderConfig, ReplacedSample, SampleRequest};
use crate::data::{
    DataError, Dataset, SkipReason,
    pixels::{DecodeError, Decoder, Geometry, Resampler, SampleDraws},
};
use common::ids::SampleIndex;

/// How many samples after a broken one are tried in its place.
const TRIES: u64 = 16;

/// One thread's decoder and buffers.
#[derive(Debug, Default)]
pub struct Pipeline {
    decoder: Decoder,
    resampler: Resampler,
    bytes: Vec<u8>,
}

impl Pipeline {
    /// Writes the pixels of a sample, or of the first after it that can be decoded; returns which one it was, and what
    /// was wrong with the one that was wanted. The choice depends on the data set alone.
    pub fn make(
        &mut self,
        config: &LoaderConfig,
        wanted: SampleRequest,
        pixels: &mut [u8],
    ) -> Result<(SampleRequest, Option<ReplacedSample>), DataError> {
        let dataset = &config.datasets[wanted.source as usize];
        let mut first: Option<ReplacedSample> = None;
        let mut last = String::new();
        let tries = TRIES.min(dataset.len() - 1);
        for offset in 0..=tries {
            let sample = SampleRequest { index: SampleIndex((wanted.index.0 + offset) % dataset.len()), ..wanted };
            match self.one(config, dataset, sample, pixels)? {
                Ok(()) => return Ok((sample, first)),
                Err(error) => {
                    let key = dataset.key(sample.index)?;
                    last = format!("{error} (key `{key}`)");
                    first.get_or_insert_with(|| ReplacedSample {
                        wanted,
                        key,
                        reason: SkipReason::BrokenImage,
                        detail: error.to_string(),
                    });
                }
            }
        }
        Err(DataError::NoReplacement {
            name: dataset.name().to_owned(),
            index: wanted.index.0,
            key: dataset.key(wanted.index)?,
            tries,
            reason: last,
        })
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
        self.resampler.apply(config.resize, &geometry, picture, pixels);
        Ok(())
    }
}
