//! Starts, watches and ends trainer processes. No tensors here.

pub mod ipc;
