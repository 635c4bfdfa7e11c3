//! The networks, one architecture a file, each read like its paper: configuration, blocks, model; parameter names are
//! those of the checkpoints that users have.
//!
//! Knows tensors, weights and tokenizers. Must not know ranks, stages, data sets or how a tensor is reduced.

pub mod adapter;
pub mod clip_text;
pub mod config;
mod error;
pub mod eva02;
pub mod init;
mod layers;
pub mod llama;
pub mod lock;
pub mod lora;
mod patches;
pub mod pooling;
mod safetensors_file;
pub mod siglip;
pub mod size;
pub mod tokenizer;
mod torch_file;
pub mod vision;
pub mod vit;
pub mod weights;

pub use error::ModelError;

#[cfg(test)]
mod golden;
