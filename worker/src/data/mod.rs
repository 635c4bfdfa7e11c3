//! Image-text data: what is in the shards, and their pixels in the order that was asked for.
//!
//! `storage` is where the bytes lie, files or objects. `glob`, `tar`, `scan`, `captions` and `dataset` read the index once; `decode`, `crop`, `transform` and `loader` make
//! pixels of it. It knows neither ranks nor steps: a request names samples, and the same request gives the same pixels
//! on every machine and with any number of threads.

pub mod batch;
mod captions;
mod crop;
mod dataset;
mod decode;
mod error;
mod files;
mod glob;
mod index;
pub mod inspect;
mod loader;
mod pipeline;
mod queue;
mod random;
mod report;
mod scan;
pub mod storage;
pub(crate) mod tar;
#[cfg(test)]
mod tests;
mod transform;

pub use batch::{Batch, BatchRequest, ReplacedSample, SampleRequest};
pub use common::recipe::CaptionColumn;
pub use dataset::{Dataset, Shard};
pub use error::DataError;
pub use loader::{Loader, LoaderConfig};
pub use report::{Report, ShardFault, SkipReason, Skipped};
pub use transform::Transform;
