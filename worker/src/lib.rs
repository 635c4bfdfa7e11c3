//! The worker of llm2clip: the daemon of one machine (`agent`, `supervisor`), and the trainer that computes on one
//! device (everything else).
//!
//! `agent` and `supervisor` never touch a tensor: a CUDA fault kills a child, not the daemon. `trainer` knows `model`,
//! `objective`, `collective`, `data` and `checkpoint`, and none of them knows it.

#![allow(non_snake_case, reason = "shape legends: B batch, L length, D width, N samples, P shared width")]

pub mod agent;
pub mod bench;
pub mod checkpoint;
pub mod collective;
pub mod data;
pub mod encode;
pub mod export;
pub mod forecast;
#[cfg(test)]
mod fuzzing;
pub mod model;
pub mod objective;
pub mod recipe_args;
pub mod storage;
pub mod supervisor;
pub mod text;
pub mod torch;
pub mod trainer;
pub mod vectors;
