//! Fills a model's parameters from the weights files of a folder. Every parameter must be found, and every tensor that is
//! not known to be of another part must be used.

mod file;
mod names;
mod resize;

pub use names::NameMap;

use super::ModelError;
use file::WeightsFile;
use names::Use;
use serde::Deserialize;
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    ops::Range,
    path::{Path, PathBuf},
};
use tch::{Tensor, nn};

/// Copies the folder's weights into every variable of the store, converted to the variable's kind and device. Position
/// tables and patch kernels of another image or patch size are resized as the architecture's reference does.
///
/// Names without a partner on either side are one error, which comes before any variable changes; so are wrong shapes.
pub fn load(store: &mut nn::VarStore, folder: &Path, names: NameMap) -> Result<(), ModelError> {
    load_files(store, &files(folder)?, folder, names)
}

/// As [`load`], from one file.
pub(crate) fn load_file(store: &mut nn::VarStore, path: &Path, names: NameMap) -> Result<(), ModelError> {
    load_files(store, &[path.to_owned()], path, names)
}

/// The tensor of this name in a model folder; absent when there is none.
pub(super) fn tensor(folder: &Path, name: &str) -> Result<Option<Tensor>, ModelError> {
    for path in files(folder)? {
        let mut file = WeightsFile::open(&path)?;
        if file.names().iter().any(|found| found == name) {
            return file.read(name).map(Some);
        }
    }
    Ok(None)
}

fn load_files(store: &mut nn::VarStore, paths: &[PathBuf], folder: &Path, names: NameMap) -> Result<(), ModelError> {
    let mut files = paths.iter().map(|path| WeightsFile::open(path)).collect::<Result<Vec<_>, _>>()?;
    let variables = store.variables();
    check_names(&files, &variables, folder, names)?;
    for file in &files {
        for name in file.names() {
            for used in names.uses(&name) {
                check_shape(file, &name, &used, &variables[&used.parameter], names)?;
            }
        }
    }
    for file in &mut files {
        for name in file.names() {
            let uses = names.uses(&name);
            if uses.is_empty() {
                continue;
            }
            let tensor = file.read(&name)?;
            for used in uses {
                let resize = names.resize(&used.parameter);
                used.copy(&tensor, &variables[&used.parameter], resize)?;
            }
        }
    }
    Ok(())
}

fn check_shape(
    file: &WeightsFile,
    name: &str,
    used: &Use,
    variable: &Tensor,
    names: NameMap,
) -> Result<(), ModelError> {
    let (found, whole) = (file.shape(name)?, variable.size());
    let resizable = names.resize(&used.parameter).is_some_and(|resize| resize.can(&found, &whole));
    match used.expected(&whole) {
        expected if expected != found && !resizable => {
            Err(ModelError::Shape { path: file.path().to_owned(), name: name.to_owned(), found, expected })
        }
        _ => Ok(()),
    }
}

fn check_names(
    files: &[WeightsFile],
    variables: &HashMap<String, Tensor>,
    folder: &Path,
    names: NameMap,
) -> Result<(), ModelError> {
    // What of a parameter has been found, in thirds, and where.
    let mut holders: BTreeMap<String, Vec<(Range<i64>, &Path)>> = BTreeMap::new();
    let mut unexpected = Vec::new();
    for file in files {
        for name in file.names() {
            for used in names.uses(&name) {
                if !variables.contains_key(&used.parameter) {
                    unexpected.push(name.clone());
                    break;
                }
                let held = holders.entry(used.parameter.clone()).or_default();
                let overlaps =
                    |(thirds, _): &&(Range<i64>, &Path)| thirds.start < used.to.end && used.to.start < thirds.end;
                if let Some((_, first)) = held.iter().find(overlaps) {
                    let reason = format!("{} is in {} too, and both cannot be right", used.parameter, first.display());
                    return Err(ModelError::WeightsFile { path: file.path().to_owned(), reason });
                }
                held.push((used.to, file.path()));
            }
        }
    }
    let whole = |name: &String| {
        holders.get(name).is_some_and(|held| held.iter().map(|(thirds, _)| thirds.end - thirds.start).sum::<i64>() == 3)
    };
    let mut missing: Vec<String> = variables.keys().filter(|name| !whole(name)).cloned().collect();
    if missing.is_empty() && unexpected.is_empty() {
        return Ok(());
    }
    missing.sort();
    unexpected.sort();
    Err(ModelError::Names { folder: folder.to_owned(), missing, unexpected })
}

const INDEX: &str = "model.safetensors.index.json";

// The part of the index that says where a tensor is.
#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

/// The files that the index names, or every `*.safetensors` of the folder, or, without any, what `torch.save` wrote; sorted.
fn files(folder: &Path) -> Result<Vec<PathBuf>, ModelError> {
    let index = folder.join(INDEX);
    if index.is_file() {
        let text =
            std::fs::read_to_string(&index).map_err(|source| ModelError::Read { path: index.clone(), source })?;
        let parsed: Index = serde_json::from_str(&text).map_err(|err| ModelError::WeightsFile {
            path: index,
            reason: format!("it is no index of weights ({err})"),
        })?;
        let named: BTreeSet<String> = parsed.weight_map.into_values().collect();
        return Ok(named.into_iter().map(|name| folder.join(name)).collect());
    }
    let read = |source| ModelError::Read { path: folder.to_owned(), source };
    let (mut found, mut saved) = (Vec::new(), Vec::new());
    for entry in std::fs::read_dir(folder).map_err(read)? {
        let path = entry.map_err(read)?.path();
        match path.extension().and_then(|extension| extension.to_str()) {
            Some("safetensors") => found.push(path),
            Some("pt" | "pth" | "bin") => saved.push(path),
            _ => {}
        }
    }
    if found.is_empty() {
        found = saved;
    }
    if found.is_empty() {
        return Err(ModelError::NoWeights { folder: folder.to_owned() });
    }
    found.sort();
    Ok(found)
}

#[cfg(test)]
mod tests;
