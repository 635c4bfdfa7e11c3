//! Fills a model's parameters from the safetensors of a folder. Every parameter must be found, and every tensor that is
//! not known to be of another part must be used.

use super::{ModelError, safetensors_file::SafetensorsFile};
use serde::Deserialize;
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    path::{Path, PathBuf},
};
use tch::{Tensor, nn};

/// How names in the files become names of parameters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NameMap {
    /// A Llama, saved from the body or, with `model.` before each name, from the language model; the head is ignored.
    Llama,
    /// A CLIP vision tower, alone or in a whole CLIP, whose other parts are ignored.
    ClipVision,
}

impl NameMap {
    // `None`: of no use here, and known to be so.
    fn parameter(self, name: &str) -> Option<&str> {
        match self {
            NameMap::Llama => {
                let ignored = name == "lm_head.weight" || name.ends_with(".rotary_emb.inv_freq");
                (!ignored).then(|| name.strip_prefix("model.").unwrap_or(name))
            }
            NameMap::ClipVision => {
                let ignored = name.starts_with("text_model.")
                    || name.ends_with("position_ids")
                    || ["text_projection.weight", "logit_scale"].contains(&name);
                (!ignored).then_some(name)
            }
        }
    }
}

/// Copies the folder's weights into every variable of the store, converted to the variable's kind and device.
///
/// Names without a partner on either side are one error, which comes before any variable changes.
pub fn load(store: &mut nn::VarStore, folder: &Path, names: NameMap) -> Result<(), ModelError> {
    let mut files = files(folder)?.iter().map(|path| SafetensorsFile::open(path)).collect::<Result<Vec<_>, _>>()?;
    let mut variables = store.variables();
    check_names(&files, &variables, folder, names)?;
    for file in &files {
        for name in file.names() {
            let Some(variable) = names.parameter(&name).and_then(|parameter| variables.get(parameter)) else {
                continue;
            };
            let (found, expected) = (file.shape(&name)?, variable.size());
            if found != expected {
                return Err(ModelError::Shape { path: file.path().to_owned(), name, found, expected });
            }
        }
    }
    for file in &mut files {
        for name in file.names() {
            let Some(variable) = names.parameter(&name).and_then(|parameter| variables.get_mut(parameter)) else {
                continue;
            };
            let tensor = file.read(&name)?;
            tch::no_grad(|| variable.f_copy_(&tensor))?;
        }
    }
    Ok(())
}

fn check_names(
    files: &[SafetensorsFile],
    variables: &HashMap<String, Tensor>,
    folder: &Path,
    names: NameMap,
) -> Result<(), ModelError> {
    let mut holder: BTreeMap<String, &Path> = BTreeMap::new();
    let mut unexpected = Vec::new();
    for file in files {
        for name in file.names() {
            let Some(parameter) = names.parameter(&name) else { continue };
            if !variables.contains_key(parameter) {
                unexpected.push(name);
            } else if let Some(first) = holder.insert(parameter.to_owned(), file.path()) {
                let reason = format!("{parameter} is in {} too, and both cannot be right", first.display());
                return Err(ModelError::WeightsFile { path: file.path().to_owned(), reason });
            }
        }
    }
    let mut missing: Vec<String> = variables.keys().filter(|name| !holder.contains_key(*name)).cloned().collect();
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

/// The files that the index names, or every `*.safetensors` of the folder, sorted.
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
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(read)? {
        let path = entry.map_err(read)?.path();
        if path.extension().is_some_and(|extension| extension == "safetensors") {
            found.push(path);
        }
    }
    if found.is_empty() {
        return Err(ModelError::NoWeights { folder: folder.to_owned() });
    }
    found.sort();
    Ok(found)
}

#[cfg(test)]
mod tests;
