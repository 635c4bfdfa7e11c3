//! One rank's file in the safetensors format: a stream of pieces, hashed on the way.

use super::{CheckpointError, HostCopy};
use crate::torch::cpu_bytes;
use common::manifest::{Part, TensorEntry, paths};
use serde_json::json;
use std::collections::BTreeMap;
use tch::{Kind, Tensor};

/// The longest piece.
pub(super) const PIECE: usize = 1 << 20;

/// The name that safetensors gives a type.
///
/// # Panics
/// On a type that no checkpoint holds.
fn dtype(kind: Kind) -> &'static str {
    match kind {
        Kind::Float => "F32",
        Kind::Double => "F64",
        Kind::BFloat16 => "BF16",
        Kind::Half => "F16",
        Kind::Int64 => "I64",
        Kind::Uint8 => "U8",
        other => panic!("a checkpoint holds no {other:?}"),
    }
}

/// A copy as a file that is still to be written.
pub(super) struct Stream<'a> {
    copy: &'a HostCopy,
    header: Vec<u8>,
    entries: BTreeMap<String, TensorEntry>,
}

impl<'a> Stream<'a> {
    /// Of a copy.
    pub(super) fn of(copy: &'a HostCopy) -> Self {
        let (header, mut entries) = header(&copy.tensors);
        let data_start = header.len() as u64;
        entries.values_mut().for_each(|entry| entry.offset += data_start);
        Self { copy, header, entries }
    }

    /// The file's name.
    pub(super) fn name(&self) -> String {
        paths::part_file(self.copy.rank, self.copy.generation)
    }

    /// Its length.
    pub(super) fn bytes(&self) -> u64 {
        self.header.len() as u64 + self.entries.values().map(|entry| entry.bytes).sum::<u64>()
    }

    /// Hands the file over in pieces, in order; what a manifest says of it.
    ///
    /// # Errors
    /// The first that `put` has.
    pub(super) fn through(
        self,
        mut put: impl FnMut(&[u8]) -> Result<(), CheckpointError>,
    ) -> Result<Part, CheckpointError> {
        let mut hasher = blake3::Hasher::new();
        let tensors = self.copy.tensors.iter().map(|(_, tensor)| cpu_bytes(tensor));
        for bytes in std::iter::once(self.header.as_slice()).chain(tensors) {
            // Hashed while it is in the processor's cache.
            for piece in bytes.chunks(PIECE) {
                hasher.update(piece);
                put(piece)?;
            }
        }
        let (file, bytes) = (self.name(), self.bytes());
        let blake3 = hasher.finalize().to_hex().to_string();
        Ok(Part { rank: self.copy.rank, file, bytes, blake3, tensors: self.entries })
    }
}

/// The header's bytes, and every tensor's entry with its offset after the header.
fn header(tensors: &[(String, Tensor)]) -> (Vec<u8>, BTreeMap<String, TensorEntry>) {
    let mut entries = BTreeMap::new();
    let mut document = serde_json::Map::new();
    let mut offset = 0;
    for (name, tensor) in tensors {
        let bytes = cpu_bytes(tensor).len() as u64;
        let shape: Vec<u64> = tensor.size().into_iter().map(|n| n as u64).collect();
        let dtype = dtype(tensor.kind());
        document
            .insert(name.clone(), json!({ "dtype": dtype, "shape": shape, "data_offsets": [offset, offset + bytes] }));
        entries.insert(name.clone(), TensorEntry { dtype: dtype.to_owned(), shape, offset, bytes });
        offset += bytes;
    }
    let mut text = serde_json::to_vec(&document).expect("names and numbers are JSON");
    // The data begins at a multiple of 8, as safetensors asks for.
    text.resize(text.len().next_multiple_of(8), b' ');
    let mut header = (text.len() as u64).to_le_bytes().to_vec();
    header.append(&mut text);
    (header, entries)
}
