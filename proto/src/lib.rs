//! The wire: generated types, and their conversions to and from crate `common`.
//!
//! Prost types stop at the coordinator's `api/` and at the worker's `agent/session.rs`.

/// Generated from `proto/llm2clip.proto`.
#[allow(missing_docs, clippy::all)]
pub mod v1 {
    tonic::include_proto!("llm2clip.v1");
}
