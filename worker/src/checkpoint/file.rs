//! One rank's file in the safetensors format, written as a stream and hashed on the way, a piece at a time: what is written goes to
//! storage before much of it has piled up, and out of the page cache, which is the loader's.

use super::{
    CheckpointError, HostCopy, io,
    watch::{Operation, Watch},
};
use crate::torch::cpu_bytes;
use common::manifest::{Part, TensorEntry, paths};
use serde_json::json;
use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, BufWriter, Write},
    num::NonZeroU64,
    path::Path,
};
use tch::{Kind, Tensor};

/// The most that one call writes.
const PIECE: usize = 1 << 20;
/// As much may wait in the page cache for storage. Without a bound the sync at the end keeps every other write of the machine
/// waiting for gigabytes; with one that is too small, storage rests between two pieces.
const UNSYNCED: u64 = 64 << 20;

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

/// Writes a copy as its rank's file of a checkpoint's folder: under a temporary name, synced, renamed, the folder synced. What is
/// half written is removed again.
///
/// # Errors
/// When the file system refuses.
pub fn write(watch: &Watch, folder: &Path, copy: &HostCopy) -> Result<Part, CheckpointError> {
    let HostCopy { rank, generation, tensors } = copy;
    let name = paths::part_file(*rank, *generation);
    let path = folder.join(&name);
    watch.at(Operation::Folder, folder).and_then(|()| std::fs::create_dir_all(folder)).map_err(io("create", folder))?;
    let (header, mut entries) = header(tensors);
    let data_start = header.len() as u64;
    entries.values_mut().for_each(|entry: &mut TensorEntry| entry.offset += data_start);

    watch.at(Operation::Create, &path).map_err(io("create", &path))?;
    let temporary =
        tempfile::Builder::new().prefix(".writing-").tempfile_in(folder).map_err(io("create a file in", folder))?;
    let mut hasher = blake3::Hasher::new();
    let mut bytes = 0;
    let pieces = Pieces { watch, path: &path, file: temporary.as_file(), written: 0, synced: 0 };
    let mut out = BufWriter::with_capacity(PIECE, pieces);
    let mut put = |part: &[u8]| {
        // Hashed while it is in the processor's cache.
        for piece in part.chunks(PIECE) {
            hasher.update(piece);
            out.write_all(piece)?;
        }
        bytes += part.len() as u64;
        Ok(())
    };
    put(&header).map_err(io("write", &path))?;
    for (_, tensor) in tensors {
        put(cpu_bytes(tensor)).map_err(io("write", &path))?;
    }
    out.flush().map_err(io("write", &path))?;
    drop(out);
    watch.at(Operation::Sync, &path).and_then(|()| temporary.as_file().sync_all()).map_err(io("sync", &path))?;
    forget(temporary.as_file(), 0);
    watch.at(Operation::Rename, &path).map_err(io("rename to", &path))?;
    temporary.persist(&path).map_err(|error| io("rename to", &path)(error.error))?;
    sync_folder(watch, Operation::SyncFolder, folder)?;
    Ok(Part { rank: *rank, file: name, bytes, blake3: hasher.finalize().to_hex().to_string(), tensors: entries })
}

/// Makes new names in a folder durable.
pub(super) fn sync_folder(watch: &Watch, operation: Operation, folder: &Path) -> Result<(), CheckpointError> {
    let sync = || File::open(folder).and_then(|folder| folder.sync_all());
    watch.at(operation, folder).and_then(|()| sync()).map_err(io("sync", folder))
}

/// A file that is on storage but for its newest [`UNSYNCED`] bytes.
struct Pieces<'a> {
    watch: &'a Watch,
    path: &'a Path,
    file: &'a File,
    written: u64,
    synced: u64,
}

impl Write for Pieces<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.watch.at(Operation::Write, self.path)?;
        let count = self.file.write(&bytes[..bytes.len().min(PIECE)])?;
        self.written += count as u64;
        if self.written - self.synced >= UNSYNCED {
            self.watch.at(Operation::Sync, self.path)?;
            self.file.sync_data()?;
            forget(self.file, self.synced);
            self.synced = self.written;
        }
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Takes what is on storage out of the page cache, from an offset to the end: nobody reads a checkpoint soon, and the data of the
/// training is read all the time. A file system that cannot do it does not.
fn forget(file: &File, from: u64) {
    let _ = rustix::fs::fadvise(file, from, None::<NonZeroU64>, rustix::fs::Advice::DontNeed);
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
