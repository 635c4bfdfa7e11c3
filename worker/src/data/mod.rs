//! Image-text data: what is in the shards, and their pixels in the order that was asked for.
//!
//! `glob`, `tar`, `scan`, `captions` and `dataset` read the index once; `decode`, `geometry`, `transform` and `loader` make
//! pixels of it. It knows neither ranks nor steps: a request names samples, and the same request gives the same pixels
//! on every machine and with any number of threads.

mod bare;
pub mod batch;
mod captions;
mod crop;
mod dataset;
mod decode;
mod error;
mod files;
mod geometry;
mod glob;
mod index;
pub mod inspect;
mod jpeg;
mod loader;
mod picture;
mod pipeline;
mod png;
mod queue;
mod random;
mod report;
mod resample;
mod scan;
mod slab;
mod tar;
#[cfg(test)]
mod tests;
mod transform;

pub use bare::{Bare, BareTimes};
pub use batch::{Batch, BatchRequest, ReplacedSample, SampleRequest};
pub use common::recipe::CaptionColumn;
pub use dataset::{Dataset, Shard};
pub use decode::Convert;
pub use error::DataError;
pub use loader::{Loader, LoaderConfig};
pub use report::{Report, ShardFault, SkipReason, Skipped};
pub use transform::{Resize, Transform};
