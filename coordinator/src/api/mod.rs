//! The gRPC services, over a [`crate::runtime::Handle`]. Protobuf types stop here.

mod admission;
mod errors;
mod jobs;
mod serve;
mod sessions;
mod streams;
mod wire;

pub use self::serve::{ServeError, serve};
