//! Batches of pixels, made ahead of the training by threads.
//!
//! It knows neither ranks nor steps: a request names samples, and the same request gives the same pixels on every machine
//! and with any number of threads.

mod ahead;
mod bare;
mod batch;
mod broken;
mod loader;
mod pipeline;
mod queue;
mod slab;

pub use ahead::Beside;
pub use bare::{Bare, BareTimes};
pub use batch::{Batch, BatchRequest, MEAN, Normalise, STD, SampleRequest, pixels_to_tensor};
pub use broken::{BrokenLimit, BrokenSample, OnBroken, Reserve};
pub use loader::{Loader, LoaderConfig};
