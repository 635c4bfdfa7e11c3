//! Decoding and resizing alone, of images that are in memory: what bounds a loader on the same threads.

use super::{LoaderConfig, SampleRequest, pipeline::Pipeline};
use crate::data::{DataError, pixels::DecodeError};
use std::{
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

/// Images in memory, and what is done to them.
pub struct Bare<'a> {
    config: &'a LoaderConfig,
    images: Vec<(SampleRequest, Vec<u8>)>,
}

/// How long it took.
#[derive(Debug, Clone, Copy, Default)]
pub struct BareTimes {
    /// From the first image's start to the last one's end.
    pub wall: Duration,
    /// Time in the decoder, of all threads together.
    pub decode: Duration,
    /// Time in the resizer, of all threads together.
    pub resize: Duration,
}

impl<'a> Bare<'a> {
    /// Reads the images of samples.
    pub fn read(config: &'a LoaderConfig, samples: impl Iterator<Item = SampleRequest>) -> Result<Self, DataError> {
        let read = |sample: SampleRequest| {
            let mut bytes = Vec::new();
            config.datasets[sample.source as usize].read_image(sample.index, &mut bytes)?;
            Ok((sample, bytes))
        };
        Ok(Self { config, images: samples.map(read).collect::<Result<_, DataError>>()? })
    }

    /// How many images there are.
    pub fn count(&self) -> usize {
        self.images.len()
    }

    /// Decodes and resizes every image once, on the configuration's threads. Broken images take the time that they take.
    pub fn run(&self) -> BareTimes {
        let next = AtomicUsize::new(0);
        let total = Mutex::new(BareTimes::default());
        let began = Instant::now();
        std::thread::scope(|scope| {
            for _ in 0..self.config.threads.max(1) {
                scope.spawn(|| {
                    let times = self.work(&next);
                    let mut total = total.lock().unwrap_or_else(PoisonError::into_inner);
                    total.decode += times.decode;
                    total.resize += times.resize;
                });
            }
        });
        let times = total.into_inner().unwrap_or_else(PoisonError::into_inner);
        BareTimes { wall: began.elapsed(), ..times }
    }

    fn work(&self, next: &AtomicUsize) -> BareTimes {
        let mut pipeline = Pipeline::default();
        let mut pixels = vec![0; 3 * self.config.image_size as usize * self.config.image_size as usize];
        let mut times = BareTimes::default();
        while let Some((sample, bytes)) = self.images.get(next.fetch_add(1, Ordering::Relaxed)) {
            let began = Instant::now();
            let mut decoded = began;
            let result: Result<(), DecodeError> = pipeline.pixels(self.config, *sample, bytes, &mut pixels, || {
                decoded = Instant::now();
            });
            if result.is_ok() {
                times.decode += decoded - began;
                times.resize += decoded.elapsed();
            }
        }
        times
    }
}
