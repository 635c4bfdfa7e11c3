//! One shard's file: written once and as a whole, read by row.

use super::{Provenance, VectorsError};
use half::bf16;
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use std::{
    collections::BTreeMap,
    fs::File,
    io::Write as _,
    path::{Path, PathBuf},
};

/// The vectors of one data shard, in memory.
#[derive(Debug)]
pub struct ShardFile {
    rows: usize,
    width: usize,
    /// Per caption column, `rows * width` numbers.
    columns: BTreeMap<String, Vec<bf16>>,
}

/// Writes a shard's vectors: to a temporary name, synced, then renamed, so that a file with the right name is whole.
pub fn write_shard(
    path: &Path,
    provenance: &Provenance,
    width: usize,
    columns: &[(String, Vec<bf16>)],
) -> Result<(), VectorsError> {
    let io = |operation| move |source| VectorsError::Io { operation, path: path.to_owned(), source };
    let folder = path.parent().expect("a shard's path has a folder");
    std::fs::create_dir_all(folder).map_err(io("create the folder of"))?;
    let views = columns.iter().map(|(name, numbers)| {
        let view = TensorView::new(Dtype::BF16, vec![numbers.len() / width, width], bytemuck::cast_slice(numbers));
        (name.clone(), view.expect("the shape is that of the numbers"))
    });
    let bytes = safetensors::serialize(views, Some(provenance.to_metadata()))
        .map_err(|error| VectorsError::Damaged { path: path.to_owned(), reason: error.to_string() })?;
    let mut file = tempfile::NamedTempFile::new_in(folder).map_err(io("create a file beside"))?;
    file.write_all(&bytes).and_then(|()| file.as_file().sync_all()).map_err(io("write"))?;
    file.persist(path).map_err(|error| io("rename to")(error.error))?;
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(io("sync the folder of"))
}

impl ShardFile {
    /// Reads a shard's vectors; `None` when there is no such file.
    ///
    /// # Errors
    /// When the file cannot be read, is damaged, or was made of something else than `provenance`.
    pub fn open(path: &Path, provenance: &Provenance, rows: usize) -> Result<Option<Self>, VectorsError> {
        let bytes = match std::fs::read(path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(VectorsError::Io { operation: "read", path: path.to_owned(), source }),
        };
        let damaged = |reason: String| VectorsError::Damaged { path: path.to_owned(), reason };
        let (_, header) = SafeTensors::read_metadata(&bytes).map_err(|error| damaged(error.to_string()))?;
        if let Some((field, found, expected)) = provenance.difference(header.metadata().as_ref()) {
            return Err(VectorsError::Mismatch { path: path.to_owned(), field, found, expected });
        }
        let tensors = SafeTensors::deserialize(&bytes).map_err(|error| damaged(error.to_string()))?;
        let mut width = None;
        let mut columns = BTreeMap::new();
        for (name, view) in tensors.iter() {
            let &[n, d] = view.shape() else { return Err(damaged(format!("`{name}` has shape {:?}", view.shape()))) };
            if view.dtype() != Dtype::BF16 || n != rows || *width.get_or_insert(d) != d {
                return Err(damaged(format!(
                    "`{name}` is {:?} {n} x {d}, and {rows} rows of bf16 are due",
                    view.dtype()
                )));
            }
            columns.insert(name.to_owned(), bytemuck::pod_collect_to_vec::<u8, bf16>(view.data()));
        }
        let width = width.ok_or_else(|| damaged("it holds no tensor".to_owned()))?;
        Ok(Some(Self { rows, width, columns }))
    }

    /// The vectors' width.
    pub fn width(&self) -> usize {
        self.width
    }

    /// One caption's vector; `None` when the shard has no such column or row.
    pub fn row(&self, column: &str, row: usize) -> Option<&[bf16]> {
        let numbers = self.columns.get(column)?;
        (row < self.rows).then(|| &numbers[row * self.width..(row + 1) * self.width])
    }
}

/// The path of a shard that is missing, as an error.
pub(super) fn missing(path: PathBuf, data: &str) -> VectorsError {
    VectorsError::Missing { path, data: data.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn provenance(pooling: &str) -> Provenance {
        Provenance::of(&[("pooling", pooling)])
    }

    fn numbers(values: &[f32]) -> Vec<bf16> {
        values.iter().map(|v| bf16::from_f32(*v)).collect()
    }

    #[test]
    fn rows_come_back_by_column() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("deep/00000.safetensors");
        let columns =
            [(".txt".to_owned(), numbers(&[1., 2., 3., 4.])), ("long".to_owned(), numbers(&[5., 6., 7., 8.]))];
        write_shard(&path, &provenance("mean"), 2, &columns).unwrap();
        let shard = ShardFile::open(&path, &provenance("mean"), 2).unwrap().unwrap();
        assert_eq!(shard.width(), 2);
        assert_eq!(shard.row("long", 1).unwrap(), numbers(&[7., 8.]));
        assert_eq!(shard.row("long", 2), None);
        assert_eq!(shard.row("short", 0), None);
    }

    #[test]
    fn absent_foreign_and_damaged_files_are_told_apart() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("00000.safetensors");
        assert!(ShardFile::open(&path, &provenance("mean"), 1).unwrap().is_none());
        write_shard(&path, &provenance("mean"), 2, &[(".txt".to_owned(), numbers(&[1., 2.]))]).unwrap();
        let error = ShardFile::open(&path, &provenance("last"), 1).unwrap_err();
        assert!(matches!(&error, VectorsError::Mismatch { field, .. } if field == "pooling"), "{error}");
        assert!(matches!(ShardFile::open(&path, &provenance("mean"), 7), Err(VectorsError::Damaged { .. })));
        let whole = std::fs::read(&path).unwrap();
        std::fs::write(&path, &whole[..whole.len() - 1]).unwrap();
        assert!(matches!(ShardFile::open(&path, &provenance("mean"), 1), Err(VectorsError::Damaged { .. })));
    }
}
