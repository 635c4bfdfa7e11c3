//! One safetensors file, read a tensor at a time: memory holds the largest tensor, not the file.

use super::ModelError;
use safetensors::tensor::{Dtype, Metadata, TensorInfo};
use std::{
    fs::File,
    io::{Read, Seek, SeekFrom},
    path::{Path, PathBuf},
};
use tch::{Kind, Tensor};

// The format's own limit on the header.
const MAX_HEADER_BYTES: u64 = 100_000_000;

/// An open file whose header has been read and whose length fits it.
#[derive(Debug)]
pub(super) struct SafetensorsFile {
    path: PathBuf,
    file: File,
    header: Metadata,
    // Where the tensors' bytes begin.
    data: u64,
}

impl SafetensorsFile {
    pub(super) fn open(path: &Path) -> Result<Self, ModelError> {
        let io = |source| ModelError::Read { path: path.to_owned(), source };
        let broken = |reason: String| ModelError::WeightsFile { path: path.to_owned(), reason };
        let mut file = File::open(path).map_err(io)?;
        let length = file.metadata().map_err(io)?.len();
        if length < 8 {
            return Err(broken(format!("{length} bytes are too few for a safetensors file")));
        }
        let mut size = [0u8; 8];
        file.read_exact(&mut size).map_err(io)?;
        let size = u64::from_le_bytes(size);
        if size > MAX_HEADER_BYTES.min(length - 8) {
            return Err(broken("it is not a safetensors file, or it is cut".to_owned()));
        }
        let mut text = vec![0u8; usize::try_from(size).expect("a header fits in memory")];
        file.read_exact(&mut text).map_err(io)?;
        let header: Metadata =
            serde_json::from_slice(&text).map_err(|err| broken(format!("its header is damaged ({err})")))?;
        let expected = 8 + size + header.data_len() as u64;
        if length != expected {
            return Err(broken(format!("it has {length} bytes, but its header says {expected}")));
        }
        Ok(Self { path: path.to_owned(), file, header, data: 8 + size })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The names, in the order of the bytes.
    pub(super) fn names(&self) -> Vec<String> {
        self.header.offset_keys()
    }

    /// The shape of a tensor of [`names`](Self::names).
    pub(super) fn shape(&self, name: &str) -> Result<Vec<i64>, ModelError> {
        Ok(self.info(name)?.shape.iter().map(|size| *size as i64).collect())
    }

    /// A tensor on the CPU, in the kind of the file.
    pub(super) fn read(&mut self, name: &str) -> Result<Tensor, ModelError> {
        let shape = self.shape(name)?;
        let (kind, (from, to)) = {
            let info = self.info(name)?;
            let kind = kind(info.dtype)
                .ok_or_else(|| self.broken(format!("{name} is {:?}; supported: F64, F32, F16, BF16", info.dtype)))?;
            (kind, info.data_offsets)
        };
        let mut bytes = vec![0u8; to - from];
        let io = |source| ModelError::Read { path: self.path.clone(), source };
        self.file.seek(SeekFrom::Start(self.data + from as u64)).map_err(io)?;
        self.file.read_exact(&mut bytes).map_err(io)?;
        Ok(Tensor::f_from_data_size(&bytes, &shape, kind)?)
    }

    fn info(&self, name: &str) -> Result<&TensorInfo, ModelError> {
        self.header.info(name).ok_or_else(|| self.broken(format!("it holds no tensor {name}")))
    }

    fn broken(&self, reason: String) -> ModelError {
        ModelError::WeightsFile { path: self.path.clone(), reason }
    }
}

fn kind(dtype: Dtype) -> Option<Kind> {
    match dtype {
        Dtype::F64 => Some(Kind::Double),
        Dtype::F32 => Some(Kind::Float),
        Dtype::F16 => Some(Kind::Half),
        Dtype::BF16 => Some(Kind::BFloat16),
        _ => None,
    }
}
