//! The tensors of a file that `torch.save` wrote, read without running anything: `archive` finds the parts, `pickle` reads the
//! names, and only numbers come out. Whatever else such a file may ask for is refused.

mod archive;
mod pickle;

use super::ModelError;
use archive::{Archive, Entry};
use pickle::{Pickle, Stored, Value};
use std::{
    collections::BTreeMap,
    fs::File,
    io::{Read, Seek, SeekFrom},
    path::{Path, PathBuf},
};
use tch::{Kind, Tensor};

// Where training programs put the weights among other things.
const INSIDE: [&str; 3] = ["state_dict", "module", "model"];
// What data-parallel wrappers put before every name.
const WRAPPED: &str = "module.";
// Names and shapes are small; a file that says otherwise is none of weights.
const MAX_PICKLE_BYTES: u64 = 64 << 20;

/// An open file whose tensors are known and lie within it.
#[derive(Debug)]
pub(super) struct TorchFile {
    path: PathBuf,
    file: File,
    tensors: BTreeMap<String, (Stored, Entry)>,
}

impl TorchFile {
    pub(super) fn open(path: &Path) -> Result<Self, ModelError> {
        let mut file = File::open(path).map_err(|source| ModelError::Read { path: path.to_owned(), source })?;
        let tensors = tensors(&mut file).map_err(|reason| ModelError::WeightsFile { path: path.to_owned(), reason })?;
        Ok(Self { path: path.to_owned(), file, tensors })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn names(&self) -> Vec<String> {
        self.tensors.keys().cloned().collect()
    }

    /// The shape of a tensor of [`names`](Self::names).
    pub(super) fn shape(&self, name: &str) -> Result<Vec<i64>, ModelError> {
        Ok(self.find(name)?.0.shape.clone())
    }

    /// A tensor on the CPU, in the kind of the file.
    pub(super) fn read(&mut self, name: &str) -> Result<Tensor, ModelError> {
        let (stored, entry) = self.find(name)?.clone();
        let kind = match stored.storage.kind {
            kind @ (Kind::Double | Kind::Float | Kind::Half | Kind::BFloat16) => kind,
            other => return Err(self.broken(format!("{name} is {other:?}; supported: F64, F32, F16, BF16"))),
        };
        let (first, count, size) = (stored.offset, stored.span, kind.elt_size_in_bytes() as u64);
        let mut bytes = vec![0u8; usize::try_from(count * size).expect("checked: within the file")];
        let io = |source| ModelError::Read { path: self.path.clone(), source };
        self.file.seek(SeekFrom::Start(entry.start + first * size)).map_err(io)?;
        self.file.read_exact(&mut bytes).map_err(io)?;
        let flat = Tensor::f_from_data_size(&bytes, &[count as i64], kind)?;
        Ok(flat.f_as_strided(&stored.shape, &stored.strides, 0)?.f_contiguous()?)
    }

    fn find(&self, name: &str) -> Result<&(Stored, Entry), ModelError> {
        self.tensors.get(name).ok_or_else(|| self.broken(format!("it holds no tensor {name}")))
    }

    fn broken(&self, reason: String) -> ModelError {
        ModelError::WeightsFile { path: self.path.clone(), reason }
    }
}

/// Every tensor of the state dictionary, each with the part of the archive that holds its numbers.
fn tensors(file: &mut (impl Read + Seek)) -> Result<BTreeMap<String, (Stored, Entry)>, String> {
    let archive = Archive::read(file)?;
    let (root, names) = archive.find_suffix("data.pkl").ok_or("it is a zip without data.pkl, and not of torch.save")?;
    if let Some(order) = archive.get(&format!("{root}byteorder"))
        && archive.bytes(file, order, 16)? != b"little"
    {
        return Err("its numbers are not little endian, which is not supported".to_owned());
    }
    let pickle = Pickle::read(&archive.bytes(file, names, MAX_PICKLE_BYTES)?)?;
    let mut found = BTreeMap::new();
    for (name, stored) in state_dict(&pickle)? {
        let key = format!("{root}data/{}", stored.storage.key);
        let entry = *archive.get(&key).ok_or_else(|| format!("{name} is in {key}, which is not in the file"))?;
        let size = stored.storage.kind.elt_size_in_bytes() as u64;
        // An element twice would make a tensor larger than its file.
        let elements = stored.shape.iter().product::<i64>().unsigned_abs();
        let needed = stored.offset.checked_add(stored.span).and_then(|end| end.max(elements).checked_mul(size));
        if needed.is_none_or(|needed| needed > entry.length) {
            return Err(format!("{name} does not lie within {key}, which has {} bytes", entry.length));
        }
        found.insert(name, (stored, entry));
    }
    Ok(found)
}

fn state_dict(pickle: &Pickle) -> Result<Vec<(String, Stored)>, String> {
    let mut items = pickle.items(&pickle.top).ok_or("what it holds is no dictionary of tensors")?;
    let inner = |items: &[(Value, Value)], key: &str| {
        let (_, value) = items.iter().find(|(name, _)| matches!(name, Value::Text(name) if **name == *key))?;
        pickle.items(value)
    };
    if let Some(inside) = INSIDE.iter().find_map(|key| inner(items, key)) {
        items = inside;
    }
    let mut tensors: Vec<(String, Stored)> = Vec::new();
    for (name, value) in items {
        if let (Value::Text(name), Value::Tensor(at)) = (name, value) {
            tensors.push((name.to_string(), pickle.tensor(*at).clone()));
        }
    }
    if tensors.is_empty() {
        return Err("it holds no tensor by a name".to_owned());
    }
    if tensors.iter().all(|(name, _)| name.starts_with(WRAPPED)) {
        tensors.iter_mut().for_each(|(name, _)| _ = name.drain(..WRAPPED.len()));
    }
    Ok(tensors)
}

#[cfg(test)]
mod tests;
