//! A weights file of either format, read a tensor at a time.

use crate::model::{ModelError, safetensors_file::SafetensorsFile, torch_file::TorchFile};
use std::path::Path;
use tch::Tensor;

/// An open file.
#[derive(Debug)]
pub(super) enum WeightsFile {
    Safetensors(SafetensorsFile),
    Torch(TorchFile),
}

impl WeightsFile {
    /// By the end of its name.
    pub(super) fn open(path: &Path) -> Result<Self, ModelError> {
        if path.extension().is_some_and(|extension| extension == "safetensors") {
            SafetensorsFile::open(path).map(WeightsFile::Safetensors)
        } else {
            TorchFile::open(path).map(WeightsFile::Torch)
        }
    }

    pub(super) fn path(&self) -> &Path {
        match self {
            WeightsFile::Safetensors(file) => file.path(),
            WeightsFile::Torch(file) => file.path(),
        }
    }

    pub(super) fn names(&self) -> Vec<String> {
        match self {
            WeightsFile::Safetensors(file) => file.names(),
            WeightsFile::Torch(file) => file.names(),
        }
    }

    /// The shape of a tensor of [`names`](Self::names).
    pub(super) fn shape(&self, name: &str) -> Result<Vec<i64>, ModelError> {
        match self {
            WeightsFile::Safetensors(file) => file.shape(name),
            WeightsFile::Torch(file) => file.shape(name),
        }
    }

    /// A tensor on the CPU, in the kind of the file.
    pub(super) fn read(&mut self, name: &str) -> Result<Tensor, ModelError> {
        match self {
            WeightsFile::Safetensors(file) => file.read(name),
            WeightsFile::Torch(file) => file.read(name),
        }
    }
}
