//! The wire: generated types, and their conversions to and from crate `common`.
//!
//! Prost types stop at the coordinator's `api/`, `cli/` and `store/etcd/`, and at the worker's `agent/`.

pub mod leader;
pub mod version;

/// Generated from `proto/llm2clip.proto`.
#[allow(missing_docs, clippy::all)]
pub mod v1 {
    tonic::include_proto!("llm2clip.v1");
}

/// Generated from `proto/etcd.proto`: as much of etcd's API as the coordinator's store speaks.
#[allow(missing_docs, clippy::all)]
pub mod etcd {
    tonic::include_proto!("etcdserverpb");
}
