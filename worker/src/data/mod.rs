//! Image-text data: what is in the shards, and their pixels in the order that was asked for.
//!
//! Data are read where they lie, through the crate's `storage`: files or objects, which `glob` finds and `blob` opens. `tar`,
//! `scan` and `images` look at each shard once, `index` keeps what they found on disk; `table` and `join` add captions from
//! elsewhere; `select` says which samples are used; `dataset` is all of that behind numbers from 0. `pixels` decodes, crops
//! and resizes an image, `loading` makes batches of them ahead of the training.
//! `classes` are the words of a classification. `inspect`, `verify` and `order` answer questions on the command line.

pub mod arguments;
mod blob;
mod chunks;
mod classes;
mod container;
mod dataset;
mod documents;
mod error;
mod files;
pub(crate) mod glob;
mod images;
mod index;
pub mod inspect;
mod join;
mod loading;
pub mod order;
mod pixels;
pub(crate) mod progress;
mod report;
mod scan;
mod select;
mod selection;
mod source;
mod survey;
mod table;
pub(crate) mod tar;
#[cfg(test)]
pub(crate) mod tests;
pub mod verify;

pub use blob::Blob;
pub use classes::{ClassWords, TemplateSet};
pub use common::recipe::CaptionColumn;
pub use dataset::{Dataset, Shard};
pub use documents::Documents;
pub use error::DataError;
pub use glob::LLM2CLIP_VECTORS;
pub use index::Places;
pub use loading::{
    Bare, BareTimes, Batch, BatchRequest, Beside, BrokenLimit, BrokenSample, Loader, LoaderConfig, MEAN, Normalise,
    OnBroken, Reserve, STD, SampleRequest, pixels_to_tensor,
};
pub use pixels::{DecodeError, EvalImages, Transform};
pub use report::{Report, ShardFault, SkipReason, Skipped};
pub use source::ReadAt;
