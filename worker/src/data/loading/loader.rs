//! Threads that decode batches ahead of the training.

use super::{
    Batch, BatchRequest, Beside, OnBroken,
    ahead::{Ahead, Requests},
    pipeline::Pipeline,
    queue::{Chunk, Part, Queue},
};
use crate::data::{DataError, Dataset, Transform};
use common::recipe::{ConvertToRgb, PixelMode};
use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    thread::JoinHandle,
    time::{Duration, Instant},
};

/// How long to wait for a batch. Shared storage that fails over is back well before.
const PATIENCE: Duration = Duration::from_secs(600);

/// What batches are made of, and how.
#[derive(Debug, Clone)]
pub struct LoaderConfig {
    /// The data sets that requests name by number.
    pub datasets: Vec<Arc<Dataset>>,
    /// The side of the images in pixels.
    pub image_size: u32,
    /// What is done to each image.
    pub transform: Transform,
    /// How near to Pillow's it is.
    pub pixels: PixelMode,
    /// When it becomes RGB.
    pub convert: ConvertToRgb,
    /// What to do about broken images.
    pub on_broken: OnBroken,
    /// The seed of the crops.
    pub seed: u64,
    /// Threads that decode; at least one.
    pub threads: usize,
    /// Batches that may be decoded ahead; at least one.
    pub prefetch_batches: usize,
    /// What is read of the samples besides their images, so that it is fetched together with them.
    pub beside: Option<Arc<dyn Beside>>,
}

/// Gives batches in the order of their requests. A batch's pixels depend on its request, the seed and the data sets,
/// never on threads. Dropping it ends its threads.
pub struct Loader {
    queue: Arc<Queue>,
    /// What is fetched before it is decoded; absent when all data are files.
    ahead: Option<Arc<Ahead>>,
    threads: Vec<JoinHandle<()>>,
    waited: Duration,
}

impl Loader {
    /// Starts to decode. `requests` is asked by the loader's threads, one at a time and in order.
    pub fn start(config: LoaderConfig, requests: impl Iterator<Item = BatchRequest> + Send + 'static) -> Self {
        let mut requests: Box<dyn Iterator<Item = BatchRequest> + Send> = Box::new(requests);
        let ahead = Ahead::of(&config)
            .map(|storage| Ahead::new(storage, std::mem::replace(&mut requests, Box::new(std::iter::empty()))));
        if let Some(ahead) = &ahead {
            requests = Box::new(Requests(ahead.clone()));
        }
        let queue = Arc::new(Queue::new(requests, config.prefetch_batches, config.image_size));
        let config = Arc::new(config);
        let mut work: Vec<(String, Box<dyn FnOnce() + Send>)> = Vec::new();
        if let Some(ahead) = &ahead {
            let (config, ahead, queue) = (config.clone(), ahead.clone(), queue.clone());
            work.push(("loader-ahead".to_owned(), Box::new(move || guarded(&queue, || ahead.run(&config)))));
        }
        for i in 0..config.threads.max(1) {
            let (config, queue) = (config.clone(), queue.clone());
            work.push((format!("loader-{i}"), Box::new(move || guarded(&queue, || decode_all(&config, &queue)))));
        }
        let mut threads = Vec::new();
        for (name, work) in work {
            match std::thread::Builder::new().name(name).spawn(work) {
                Ok(thread) => threads.push(thread),
                Err(error) => queue.fail(Box::new(format!("it could not start: {error}"))),
            }
        }
        Self { queue, ahead, threads, waited: Duration::ZERO }
    }

    /// The next batch; `None` after the last one, and after an error.
    ///
    /// # Errors
    /// When an image cannot be read, or nothing that may stand in for it can be decoded.
    #[expect(clippy::should_implement_trait, reason = "after an error there is nothing more: no adaptor is of use")]
    pub fn next(&mut self) -> Option<Result<Batch, DataError>> {
        let began = Instant::now();
        let batch = self.queue.next(PATIENCE);
        self.waited += began.elapsed();
        if let (Some(ahead), Some(Ok(_))) = (&self.ahead, &batch) {
            ahead.delivered();
        }
        batch
    }

    /// How long [`Loader::next`] has waited in all.
    pub fn wait_time(&self) -> Duration {
        self.waited
    }
}

impl Drop for Loader {
    fn drop(&mut self) {
        self.queue.stop();
        self.ahead.iter().for_each(|ahead| ahead.stop());
        for thread in self.threads.drain(..) {
            // A thread that panicked has said so through the queue.
            let _ = thread.join();
        }
    }
}

/// Decodes chunks until there are none.
fn decode_all(config: &LoaderConfig, queue: &Queue) {
    let mut pipeline = Pipeline::default();
    while let Some(mut chunk) = queue.take() {
        let part = decode(&mut pipeline, config, queue, &mut chunk);
        queue.put(&chunk, part);
    }
}

/// A thread's work. Its panic becomes the consumer's error.
fn guarded(queue: &Queue, run: impl FnOnce()) {
    if let Err(panic) = catch_unwind(AssertUnwindSafe(run)) {
        queue.fail(panic);
    }
}

fn decode(pipeline: &mut Pipeline, config: &LoaderConfig, queue: &Queue, chunk: &mut Chunk) -> Result<Part, DataError> {
    let image = 3 * config.image_size as usize * config.image_size as usize;
    let mut part = Part { pixels: std::mem::take(&mut chunk.pixels), ..Part::default() };
    for (sample, pixels) in chunk.samples.iter().zip(part.pixels.chunks_exact_mut(image)) {
        if queue.stopped() {
            break;
        }
        let known = config.datasets.get(sample.source as usize).is_some_and(|data| sample.index.0 < data.len());
        if !known {
            let (tag, source_number, index) = (chunk.tag, sample.source, sample.index.0);
            return Err(DataError::NoSuchSample { tag, source_number, index });
        }
        let (used, broken) = pipeline.make(config, *sample, pixels)?;
        part.samples.push(used);
        part.broken.extend(broken);
    }
    Ok(part)
}
