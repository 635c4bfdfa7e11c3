//! One rank's file in the safetensors format, written as a stream and hashed on the way.

use super::{CheckpointError, io};
use crate::torch::cpu_bytes;
use common::{
    ids::Rank,
    manifest::{Part, TensorEntry, paths},
};
use serde_json::json;
use std::{
    collections::BTreeMap,
    fs::File,
    io::{BufWriter, Write as _},
    path::Path,
};
use tch::{Kind, Tensor};

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

/// Writes the tensors (contiguous, on the CPU) as `rank`'s file of a checkpoint's folder: under a temporary name, synced,
/// renamed, the folder synced.
pub(super) fn write(folder: &Path, rank: Rank, tensors: &[(String, Tensor)]) -> Result<Part, CheckpointError> {
    let name = paths::part_file(rank);
    let path = folder.join(&name);
    std::fs::create_dir_all(folder).map_err(io("create", folder))?;
    let (header, mut entries) = header(tensors);
    let data_start = header.len() as u64;
    entries.values_mut().for_each(|entry: &mut TensorEntry| entry.offset += data_start);

    let temporary =
        tempfile::Builder::new().prefix(".writing-").tempfile_in(folder).map_err(io("create a file in", folder))?;
    let mut hasher = blake3::Hasher::new();
    let mut bytes = 0;
    let mut out = BufWriter::with_capacity(1 << 20, temporary.as_file());
    let mut put = |part: &[u8]| {
        hasher.update(part);
        bytes += part.len() as u64;
        out.write_all(part)
    };
    put(&header).map_err(io("write", &path))?;
    for (_, tensor) in tensors {
        put(cpu_bytes(tensor)).map_err(io("write", &path))?;
    }
    out.flush().map_err(io("write", &path))?;
    drop(out);
    temporary.as_file().sync_all().map_err(io("sync", &path))?;
    temporary.persist(&path).map_err(|error| io("rename to", &path)(error.error))?;
    sync_folder(folder)?;
    Ok(Part { rank, file: name, bytes, blake3: hasher.finalize().to_hex().to_string(), tensors: entries })
}

/// Makes new names in a folder durable.
pub(super) fn sync_folder(folder: &Path) -> Result<(), CheckpointError> {
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(io("sync", folder))
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
