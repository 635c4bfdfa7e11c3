//! The LLM that read the captions: if it was tuned here, the results are part of the export; if not, it is named.

use super::{ExportError, Trained, error::io};
use std::{
    fs::{self, File},
    path::{Path, PathBuf},
};

/// Where tuned LLMs are in an export.
pub(super) const FOLDER: &str = "llm";

/// What is copied of the LLM: a folder's place in the export, and the folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Llm {
    /// A whole model that the job made.
    pub model: Option<(String, PathBuf)>,
    /// LoRAs in the order in which they are merged.
    pub adapters: Vec<(String, PathBuf)>,
}

impl Llm {
    /// What the text vectors were made with, as far as it is not the base model.
    pub(super) fn of(trained: &Trained) -> Result<Self, ExportError> {
        let spec = trained.encoder()?;
        let made = spec.folder.starts_with(&trained.output);
        let model = made.then(|| (format!("{FOLDER}/model"), spec.folder.clone()));
        let adapter = |(number, folder)| (format!("{FOLDER}/adapter-{number}"), folder);
        Ok(Self { model, adapters: (1..).zip(spec.adapters).map(adapter).collect() })
    }

    fn folders(&self) -> impl Iterator<Item = &(String, PathBuf)> {
        self.model.iter().chain(&self.adapters)
    }

    /// Every file of it, sorted within its folder.
    pub(super) fn files(&self) -> Result<Vec<PathBuf>, ExportError> {
        let mut files = Vec::new();
        for (_, folder) in self.folders() {
            files.extend(plain_files(folder)?);
        }
        Ok(files)
    }

    /// Copies it into an export.
    pub(super) fn copy(&self, export: &Path) -> Result<(), ExportError> {
        for (place, folder) in self.folders() {
            let to = export.join(place);
            fs::create_dir_all(&to).map_err(io("create", &to))?;
            for file in plain_files(folder)? {
                let copy = to.join(file.file_name().expect("a file has a name"));
                fs::copy(&file, &copy).map_err(io("copy", &file))?;
                File::open(&copy).and_then(|file| file.sync_all()).map_err(io("sync", &copy))?;
            }
        }
        Ok(())
    }
}

fn plain_files(folder: &Path) -> Result<Vec<PathBuf>, ExportError> {
    let entries = fs::read_dir(folder).and_then(Iterator::collect::<Result<Vec<_>, _>>).map_err(io("list", folder))?;
    let mut files: Vec<PathBuf> = entries.into_iter().map(|entry| entry.path()).filter(|path| path.is_file()).collect();
    files.sort();
    Ok(files)
}
