//! Files and folders that are whole or not there: written under another name, synced, then renamed.

use super::{
    Description, ExportError,
    description::{self, FILE},
    error::io,
};
use safetensors::{Dtype, View};
use serde::Serialize;
use std::{
    borrow::Cow,
    collections::HashMap,
    fs::{self, File},
    io::Write as _,
    path::{Path, PathBuf},
};
use tch::{Kind, Tensor};

/// A folder that is being written, beside the one it will be. Dropped before [`NewFolder::put`], it is gone.
pub(super) struct NewFolder {
    path: PathBuf,
    parent: PathBuf,
    // Holds what is replaced, too, and takes it away at the end.
    _around: tempfile::TempDir,
}

impl NewFolder {
    /// Begins one.
    pub(super) fn beside(target: &Path) -> Result<Self, ExportError> {
        let parent = match target.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
            _ => PathBuf::from("."),
        };
        fs::create_dir_all(&parent).map_err(io("create", &parent))?;
        let around = tempfile::Builder::new()
            .prefix(".export-")
            .tempdir_in(&parent)
            .map_err(io("create a folder in", &parent))?;
        let path = around.path().join("export");
        fs::create_dir(&path).map_err(io("create", &path))?;
        Ok(Self { path, parent, _around: around })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Puts the folder in its place; an export that is there is replaced in one step.
    pub(super) fn put(self, target: &Path) -> Result<(), ExportError> {
        sync(&self.path)?;
        if target.exists() {
            let here = rustix::fs::CWD;
            rustix::fs::renameat_with(here, &self.path, here, target, rustix::fs::RenameFlags::EXCHANGE)
                .map_err(|error| io("replace", target)(error.into()))?;
        } else {
            fs::rename(&self.path, target).map_err(io("rename to", target))?;
        }
        sync(&self.parent)
    }
}

fn sync(folder: &Path) -> Result<(), ExportError> {
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(io("sync", folder))
}

/// What `target` describes if it was made of `made_of`; an error if it is something that must not be replaced.
pub(super) fn same(target: &Path, made_of: &str) -> Result<Option<Description>, ExportError> {
    let empty = |folder: &Path| fs::read_dir(folder).is_ok_and(|mut entries| entries.next().is_none());
    if !target.exists() || empty(target) {
        return Ok(None);
    }
    if !target.join(FILE).is_file() {
        return Err(ExportError::NotAnExport { path: target.to_owned() });
    }
    // One that another version wrote is replaced.
    Ok(description::read(target).ok().filter(|description| description.made_of == made_of))
}

/// Writes a file and syncs it.
pub(super) fn write(path: &Path, bytes: &[u8]) -> Result<(), ExportError> {
    File::create(path)
        .and_then(|mut file| file.write_all(bytes).and_then(|()| file.sync_all()))
        .map_err(io("write", path))
}

/// Writes a document of JSON.
pub(super) fn write_json(path: &Path, document: &impl Serialize) -> Result<(), ExportError> {
    let text = serde_json::to_string_pretty(document).expect("a document is JSON");
    write(path, (text + "\n").as_bytes())
}

fn bytes(tensor: &Tensor) -> Vec<u8> {
    let kind = if tensor.kind() == Kind::Uint8 { Kind::Uint8 } else { Kind::Float };
    let tensor = tensor.to_device(tch::Device::Cpu).to_kind(kind).contiguous();
    let mut bytes = vec![0; tensor.numel() * kind.elt_size_in_bytes()];
    tensor.copy_data_u8(&mut bytes, tensor.numel());
    bytes
}

/// A tensor as it will be in the file; its bytes are made when they are written.
struct Stored {
    tensor: Tensor,
    shape: Vec<usize>,
}

impl View for &Stored {
    fn dtype(&self) -> Dtype {
        if self.tensor.kind() == Kind::Uint8 { Dtype::U8 } else { Dtype::F32 }
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        Cow::Owned(bytes(&self.tensor))
    }

    fn data_len(&self) -> usize {
        self.tensor.numel() * if self.tensor.kind() == Kind::Uint8 { 1 } else { 4 }
    }
}

/// Writes tensors in fp32 (those of bytes as they are) with `format: pt`, which Hugging Face asks for, and `metadata`; syncs.
///
/// # Errors
/// When the file cannot be written.
pub fn write_safetensors(
    path: &Path,
    tensors: Vec<(String, Tensor)>,
    metadata: &[(&str, String)],
) -> Result<(), ExportError> {
    let stored = |(name, tensor): (String, Tensor)| {
        let shape = tensor.size().into_iter().map(|size| size as usize).collect();
        (name, Stored { tensor, shape })
    };
    let stored: Vec<(String, Stored)> = tensors.into_iter().map(stored).collect();
    let mut fields = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    fields.extend(metadata.iter().map(|(name, value)| ((*name).to_owned(), value.clone())));
    // The writer's own file is for its owner alone; an export is for everybody who may read the folder.
    let permissions = File::create(path).and_then(|file| file.metadata()).map_err(io("write", path))?.permissions();
    safetensors::serialize_to_file(stored.iter().map(|(name, tensor)| (name, tensor)), Some(fields), path)
        .map_err(|source| ExportError::Safetensors { path: path.to_owned(), source })?;
    fs::set_permissions(path, permissions).map_err(io("set the mode of", path))?;
    File::open(path).and_then(|file| file.sync_all()).map_err(io("sync", path))
}

/// BLAKE3 of a file.
pub(super) fn digest(path: &Path) -> Result<String, ExportError> {
    let file = File::open(path).map_err(io("read", path))?;
    let hashed = blake3::Hasher::new().update_reader(file).map(|hasher| hasher.finalize().to_string());
    hashed.map_err(io("read", path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tensors_are_written_for_everybody_who_may_read_the_folder() {
        use std::os::unix::fs::PermissionsExt as _;
        let folder = tempfile::tempdir().unwrap();
        let (plain, path) = (folder.path().join("plain"), folder.path().join("x.safetensors"));
        fs::write(&plain, "").unwrap();
        let tensors =
            vec![("a".to_owned(), Tensor::from_slice(&[1.0f64, 2.0])), ("b".to_owned(), Tensor::from_slice(&[3u8]))];
        write_safetensors(&path, tensors, &[("said", "so".to_owned())]).unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode();
        assert_eq!(mode(&path), mode(&plain));
        let bytes = fs::read(&path).unwrap();
        let (_, header) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
        let fields = header.metadata().clone().unwrap();
        assert_eq!((fields["format"].as_str(), fields["said"].as_str()), ("pt", "so"));
        let back: HashMap<String, Tensor> = Tensor::read_safetensors(&path).unwrap().into_iter().collect();
        assert_eq!(back["a"], Tensor::from_slice(&[1.0f32, 2.0]), "numbers are fp32, bytes stay bytes");
        assert_eq!(back["b"], Tensor::from_slice(&[3u8]));
    }

    #[test]
    fn a_folder_is_whole_or_as_it_was_and_only_an_export_is_replaced() {
        let around = tempfile::tempdir().unwrap();
        let target = around.path().join("made/export");
        let put = |text: &str| {
            let folder = NewFolder::beside(&target).unwrap();
            write(&folder.path().join(FILE), text.as_bytes()).unwrap();
            folder.put(&target).unwrap();
        };
        put("first");
        drop(NewFolder::beside(&target).unwrap());
        assert_eq!(fs::read_to_string(target.join(FILE)).unwrap(), "first");
        fs::write(target.join("stale"), "").unwrap();
        put("second");
        assert_eq!(fs::read_to_string(target.join(FILE)).unwrap(), "second");
        assert!(!target.join("stale").exists());
        assert_eq!(fs::read_dir(target.parent().unwrap()).unwrap().count(), 1, "nothing is left beside");
        assert_eq!(same(&target, "digest").unwrap(), None, "what is no description is replaced");

        fs::remove_file(target.join(FILE)).unwrap();
        fs::write(target.join("thesis.tex"), "").unwrap();
        let error = same(&target, "digest").unwrap_err().to_string();
        assert!(error.contains("made/export") && error.contains("nothing is written over it"), "{error}");
        assert_eq!(same(&around.path().join("none"), "digest").unwrap(), None);
    }
}
