//! Writing a shard's file: rows in any order, the whole at once.

use super::{
    Provenance, VectorsError,
    layout::{BLOCK, Bf16, Head, Header, Layout, mark},
};
use half::bf16;
use std::{
    fs::File,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
};

/// A shard's file that is being written, under a temporary name beside the one it will have. Dropped unfinished, it is
/// gone. What it holds in memory is a bit a row.
#[derive(Debug)]
pub struct ShardWriter {
    path: PathBuf,
    file: tempfile::NamedTempFile,
    header: Header,
    layout: Layout,
    present: Vec<Vec<u8>>,
}

impl ShardWriter {
    /// Begins a file of `rows` rows, `width` numbers each, in every one of `columns`.
    ///
    /// # Panics
    /// When there is no width, or more rows than a file may have (2^32).
    pub fn create(
        path: &Path,
        provenance: &Provenance,
        [rows, width]: [usize; 2],
        columns: &[&str],
    ) -> Result<Self, VectorsError> {
        let header = Header {
            dtype: Bf16::Bf16,
            rows: rows as u64,
            width: width as u64,
            columns: columns.iter().map(|name| (*name).to_owned()).collect(),
            provenance: provenance.to_metadata(),
        };
        let (_, layout) = header.layout().expect("a shard has fewer than 2^32 rows, and its vectors have a width");
        let io = |operation| move |source| VectorsError::Io { operation, path: path.to_owned(), source };
        let folder = path.parent().expect("a shard's path has a folder");
        std::fs::create_dir_all(folder).map_err(io("create the folder of"))?;
        let file = tempfile::NamedTempFile::new_in(folder).map_err(io("create a file beside"))?;
        file.as_file().set_len(layout.file).map_err(io("make room for"))?;
        let present = vec![layout.bitmap(); columns.len()];
        Ok(Self { path: path.to_owned(), file, header, layout, present })
    }

    /// Puts a vector in its place. Rows that never come are null.
    ///
    /// # Panics
    /// When there is no such column or row, or the vector has another width.
    pub fn put(&mut self, column: usize, row: usize, vector: &[bf16]) -> Result<(), VectorsError> {
        self.put_rows(column, row, vector)
    }

    /// Puts vectors in a row and those after it.
    ///
    /// # Panics
    /// As [`ShardWriter::put`].
    pub fn put_rows(&mut self, column: usize, first: usize, vectors: &[bf16]) -> Result<(), VectorsError> {
        let (first, width) = (first as u64, self.header.width as usize);
        let rows = first..first + (vectors.len() / width) as u64;
        assert!(
            vectors.len().is_multiple_of(width) && rows.end <= self.header.rows,
            "whole vectors, in rows that there are"
        );
        rows.for_each(|row| {
            mark(&mut self.present[column], row);
        });
        let at = self.layout.data + self.layout.row_start(column, first);
        let written = self.file.as_file().write_all_at(bytemuck::cast_slice(vectors), at);
        written.map_err(|source| VectorsError::Io { operation: "write", path: self.path.clone(), source })
    }

    /// Whether a row has come.
    pub fn has(&self, column: usize, row: usize) -> bool {
        super::layout::has(&self.present[column], row as u64)
    }

    /// Takes the checksums, and gives the file its name when all of it is on the disk.
    pub fn finish(self) -> Result<(), VectorsError> {
        let io = |operation| {
            let path = self.path.clone();
            move |source| VectorsError::Io { operation, path, source }
        };
        let mut buffer = vec![0; BLOCK as usize];
        let mut digests = Vec::new();
        for block in 0..self.layout.blocks() {
            let range = self.layout.block(block);
            let bytes = &mut buffer[..(range.end - range.start) as usize];
            self.file.as_file().read_exact_at(bytes, self.layout.data + range.start).map_err(io("read back"))?;
            digests.push(*blake3::hash(bytes).as_bytes());
        }
        let head = Head { header: self.header, layout: self.layout, present: self.present, digests };
        self.file.as_file().write_all_at(&head.to_bytes(), 0).map_err(io("write"))?;
        self.file.as_file().sync_all().map_err(io("sync"))?;
        self.file.persist(&self.path).map_err(|error| io("rename to")(error.error))?;
        let folder = self.path.parent().expect("a shard's path has a folder");
        File::open(folder).and_then(|folder| folder.sync_all()).map_err(io("sync the folder of"))
    }
}

/// Writes a shard whose vectors are all in memory: per column, `rows * width` numbers.
pub fn write_shard(
    path: &Path,
    provenance: &Provenance,
    width: usize,
    columns: &[(String, Vec<bf16>)],
) -> Result<(), VectorsError> {
    let rows = columns.first().map_or(0, |(_, numbers)| numbers.len() / width);
    let names: Vec<&str> = columns.iter().map(|(name, _)| name.as_str()).collect();
    let mut writer = ShardWriter::create(path, provenance, [rows, width], &names)?;
    for (column, (_, numbers)) in columns.iter().enumerate() {
        writer.put_rows(column, 0, numbers)?;
    }
    writer.finish()
}
