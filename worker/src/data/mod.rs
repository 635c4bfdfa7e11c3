//! Image-text data: what is in the shards, and their pixels in the order that was asked for.
//!
//! Data are read where they lie; `storage` is where: files or objects. `tar`, `scan` and `images` look at each shard once,
//! `index` keeps what they found on disk; `table` and `join` add captions from elsewhere; `select` says which samples are
//! used; `dataset` is all of that behind numbers from 0. `decode`, `crop`, `transform` and `loader` make pixels of it. It
//! knows neither ranks nor steps: a request names samples, and the same request gives the same pixels on every machine and
//! with any number of threads.

pub mod arguments;
pub mod batch;
mod container;
mod crop;
mod dataset;
mod decode;
mod documents;
mod error;
mod files;
mod glob;
mod images;
mod index;
pub mod inspect;
mod join;
mod labels;
mod loader;
mod pipeline;
mod progress;
mod queue;
mod random;
mod report;
mod scan;
mod select;
mod selection;
mod source;
pub mod storage;
mod survey;
mod table;
pub(crate) mod tar;
#[cfg(test)]
mod tests;
mod transform;
pub mod verify;

pub use batch::{Batch, BatchRequest, ReplacedSample, SampleRequest};
pub use common::recipe::CaptionColumn;
pub use dataset::{Dataset, Shard};
pub use documents::Documents;
pub use error::DataError;
pub use index::Places;
pub use labels::Labels;
pub use loader::{Loader, LoaderConfig};
pub use report::{Report, ShardFault, SkipReason, Skipped};
pub use transform::Transform;
