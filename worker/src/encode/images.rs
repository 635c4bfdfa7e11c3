//! Files of images to features.

use super::Encoder;
use crate::data::{EvalImages, Normalise, glob, progress::Line};
use anyhow::Context as _;
use std::path::{Path, PathBuf};
use tch::{Kind, Tensor};

/// The files that patterns name, one pattern after the other.
pub(super) fn files(patterns: &[PathBuf]) -> anyhow::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for pattern in patterns {
        if pattern.is_dir() {
            anyhow::bail!("{} is a folder: name its images, such as '{}/*.jpg'", pattern.display(), pattern.display());
        }
        files.extend(glob::files(pattern).with_context(|| format!("--images {}", pattern.display()))?);
    }
    Ok(files)
}

/// The vision tower with its transform.
pub(super) struct ImageSide<'a> {
    encoder: &'a Encoder<'a>,
    normalise: Normalise,
}

impl<'a> ImageSide<'a> {
    pub(super) fn new(encoder: &'a Encoder<'a>) -> Self {
        Self { encoder, normalise: Normalise::new(encoder.device) }
    }

    /// Features [N, P] of files, normalised, on the CPU.
    pub(super) fn of_files(&self, files: &[PathBuf]) -> anyhow::Result<Tensor> {
        let line = Line::new("encoding", "images");
        let mut features = Vec::new();
        let (mut done, mut read) = (0, 0);
        for batch in files.chunks(self.encoder.args.batch as usize) {
            let (pixels, bytes) = self.pixels(batch)?;
            features.push(self.forward(&pixels, batch.len()));
            done += batch.len() as u64;
            read += bytes;
            line.show(done, files.len() as u64, read);
        }
        Ok(Tensor::cat(&features, 0))
    }

    /// Features [N, P] of images in memory; `name` says what each is.
    pub(super) fn of_bytes(&self, images: &[(&str, Vec<u8>)]) -> anyhow::Result<Tensor> {
        let size = self.size();
        let mut pixels = vec![0; images.len() * 3 * size * size];
        let mut reader = EvalImages::default();
        for ((name, bytes), pixels) in images.iter().zip(pixels.chunks_exact_mut(3 * size * size)) {
            reader.read(bytes, size as u32, pixels).with_context(|| format!("the image {name} cannot be decoded"))?;
        }
        Ok(self.forward(&pixels, images.len()))
    }

    fn size(&self) -> usize {
        usize::try_from(self.encoder.model.description.image.size).expect("an image's side is checked when it is read")
    }

    fn forward(&self, pixels: &[u8], count: usize) -> Tensor {
        let size = self.size() as i64;
        let bytes = Tensor::from_data_size(pixels, &[count as i64, 3, size, size], Kind::Uint8);
        let pixels = self.normalise.apply(&bytes.to_device(self.encoder.device));
        self.encoder.model.image_features(&pixels.to_kind(self.encoder.kind)).to_device(tch::Device::Cpu)
    }

    /// Pixels of files, decoded on all threads, and how many bytes the files have.
    fn pixels(&self, files: &[PathBuf]) -> anyhow::Result<(Vec<u8>, u64)> {
        let size = self.size();
        let image = 3 * size * size;
        let mut pixels = vec![0; files.len() * image];
        let share = files.len().div_ceil(usize::from(self.encoder.args.threads.max(1))).max(1);
        let bytes = std::thread::scope(|scope| {
            let shares = files.chunks(share).zip(pixels.chunks_mut(share * image));
            let running: Vec<_> =
                shares.map(|(files, pixels)| scope.spawn(move || decode(files, size as u32, pixels))).collect();
            let join = |thread: std::thread::ScopedJoinHandle<'_, anyhow::Result<u64>>| {
                thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            };
            running.into_iter().map(join).sum::<anyhow::Result<u64>>()
        })?;
        Ok((pixels, bytes))
    }
}

fn decode(files: &[PathBuf], size: u32, pixels: &mut [u8]) -> anyhow::Result<u64> {
    let mut reader = EvalImages::default();
    let mut read = 0;
    for (file, pixels) in files.iter().zip(pixels.chunks_exact_mut(3 * (size * size) as usize)) {
        let bytes = std::fs::read(file).with_context(|| format!("could not read {}", file.display()))?;
        reader.read(&bytes, size, pixels).with_context(|| broken(file))?;
        read += bytes.len() as u64;
    }
    Ok(read)
}

fn broken(file: &Path) -> String {
    format!("{} cannot be decoded: leave it out, or fetch it again", file.display())
}
