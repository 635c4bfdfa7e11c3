//! What is on disk of a model.

use safetensors::SafeTensors;
use std::{collections::BTreeMap, fs, path::Path};

/// Every tensor of a checkpoint's or an export's folder, by name, as its bytes.
pub fn tensors(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut all = BTreeMap::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|end| end == "safetensors") {
            let bytes = fs::read(&path).unwrap();
            let file = SafeTensors::deserialize(&bytes).unwrap();
            all.extend(file.iter().map(|(name, tensor)| (name.to_owned(), tensor.data().to_vec())));
        }
    }
    all
}
