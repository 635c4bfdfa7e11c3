//! The gRPC services, over the [`crate::runtime::Handle`] of whoever leads. Protobuf types stop here.

mod admission;
mod errors;
mod jobs;
mod serve;
mod sessions;
mod streams;
mod wire;

pub use self::serve::{ServeError, serve, serve_on};
