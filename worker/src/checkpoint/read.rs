//! Reading checkpoints: at any world size, and only what the manifest's digests confirm.

use super::{CheckpointError, committed_steps, io};
use common::manifest::{Manifest, Part, paths};
use std::{
    fs::File,
    path::{Path, PathBuf},
};
use tch::{Device, Kind, Tensor};

/// A checkpoint whose every byte was verified.
#[derive(Debug)]
pub struct Loaded {
    /// What it holds.
    pub manifest: Manifest,
    folder: PathBuf,
    files: Vec<memmap2::Mmap>,
}

impl Loaded {
    /// A tensor of any rank's file, copied, on the CPU.
    ///
    /// # Errors
    /// When there is none of that name, or its bytes do not fit its shape.
    pub fn tensor(&self, name: &str) -> Result<Tensor, CheckpointError> {
        let found =
            self.manifest.parts.iter().zip(&self.files).find_map(|(part, file)| Some((part.tensors.get(name)?, file)));
        let Some((entry, file)) = found else {
            return Err(CheckpointError::MissingTensor { folder: self.folder.clone(), name: name.to_owned() });
        };
        let kind = kind(&entry.dtype).ok_or_else(|| self.damaged(name, "its type is unknown"))?;
        let shape: Vec<i64> = entry.shape.iter().map(|n| *n as i64).collect();
        let elements = entry.shape.iter().product::<u64>();
        if elements * kind.elt_size_in_bytes() as u64 != entry.bytes {
            return Err(self.damaged(name, "its bytes do not fit its shape"));
        }
        // The manifest was checked: every entry ends within its file.
        let bytes = &file[entry.offset as usize..][..entry.bytes as usize];
        Tensor::f_from_data_size(bytes, &shape, kind)
            .and_then(|tensor| tensor.f_to_device(Device::Cpu))
            .map_err(|error| self.damaged(name, &error.to_string()))
    }

    fn damaged(&self, name: &str, reason: &str) -> CheckpointError {
        CheckpointError::Damaged { path: self.folder.clone(), reason: format!("tensor `{name}`: {reason}") }
    }
}

fn kind(dtype: &str) -> Option<Kind> {
    Some(match dtype {
        "F32" => Kind::Float,
        "F64" => Kind::Double,
        "BF16" => Kind::BFloat16,
        "F16" => Kind::Half,
        "I64" => Kind::Int64,
        "U8" => Kind::Uint8,
        _ => return None,
    })
}

/// What a checkpoint's manifest says; its files are not looked at.
///
/// # Errors
/// When it is missing, or does not hold.
pub fn manifest(folder: &Path) -> Result<Manifest, CheckpointError> {
    let path = folder.join(paths::MANIFEST_FILE);
    let text = std::fs::read_to_string(&path).map_err(io("read", &path))?;
    let name = folder.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let step = paths::parse_step_folder(name).ok_or_else(|| CheckpointError::Damaged {
        path: folder.to_owned(),
        reason: "its name is no checkpoint's, such as step-000001200".to_owned(),
    })?;
    Manifest::parse(&text, step).map_err(|source| CheckpointError::Manifest { path, source })
}

/// Opens a checkpoint and verifies it: manifest, lengths, digests.
///
/// # Errors
/// The first thing that does not hold, with the file it is in.
pub fn read(folder: &Path) -> Result<Loaded, CheckpointError> {
    let manifest = manifest(folder)?;
    let files = manifest.parts.iter().map(|part| verified(folder, part)).collect::<Result<_, _>>()?;
    Ok(Loaded { manifest, folder: folder.to_owned(), files })
}

fn verified(folder: &Path, part: &Part) -> Result<memmap2::Mmap, CheckpointError> {
    let path = folder.join(&part.file);
    let file = File::open(&path).map_err(io("open", &path))?;
    let map = crate::torch::map_file(&file).map_err(io("map", &path))?;
    let damaged = |reason: String| CheckpointError::Damaged { path: path.clone(), reason };
    if map.len() as u64 != part.bytes {
        return Err(damaged(format!("it has {} bytes, its manifest says {}", map.len(), part.bytes)));
    }
    let digest = blake3::Hasher::new().update(&map).finalize().to_hex().to_string();
    if digest != part.blake3 {
        return Err(damaged("its BLAKE3 digest is not the manifest's".to_owned()));
    }
    Ok(map)
}

/// The newest checkpoint of a stage that verifies; absent when there is none. One that does not verify is told of
/// loudly, and the one before is taken.
///
/// # Errors
/// When there are checkpoints and none of them verifies: the newest one's error.
pub fn newest(output: &Path, stage: &str) -> Result<Option<Loaded>, CheckpointError> {
    let stage_folder = paths::stage_folder(output, stage);
    let mut newest = None;
    for step in committed_steps(&stage_folder).into_iter().rev() {
        match read(&stage_folder.join(paths::step_folder(step))) {
            Ok(loaded) => return Ok(Some(loaded)),
            Err(error) => {
                tracing::error!(step = step.0, %error, "a checkpoint does not verify; trying the one before");
                newest.get_or_insert(error);
            }
        }
    }
    newest.map_or(Ok(None), Err)
}

#[cfg(test)]
mod tests {
    use super::super::{HostCopy, Watch, create_manifest, set_aside, write};
    use super::*;
    use common::{
        ids::{Generation, Rank, Step, WorldSize},
        manifest::{DataCursor, FORMAT},
        sampler::OrderSpec,
    };

    fn state(factor: f64) -> Vec<(String, Tensor)> {
        let numbers = |shape: &[i64]| {
            Tensor::arange(shape.iter().product::<i64>(), (Kind::Float, Device::Cpu)).view(shape) * factor
        };
        vec![
            ("param.w".to_owned(), numbers(&[7, 5])),
            ("param.b".to_owned(), numbers(&[7])),
            ("param.scale".to_owned(), Tensor::from(2.5f32)),
        ]
    }

    /// Writes a checkpoint with `world` ranks as a job would.
    fn save(output: &Path, step: u64, world: u32, factor: f64) -> Manifest {
        let folder = paths::checkpoint_folder(output, "clip", Step(step));
        let share = |rank| HostCopy::take(&state(factor), rank, WorldSize(world), Generation(1));
        let parts = WorldSize(world).ranks().map(|rank| write(&Watch::default(), &folder, &share(rank)).unwrap());
        let manifest = Manifest {
            format: FORMAT,
            job: "demo-1".parse().unwrap(),
            generation: Generation(1),
            step: Step(step),
            world: WorldSize(world),
            stage: "clip".to_owned(),
            recipe_fingerprint: String::new(),
            data: DataCursor::new(&OrderSpec::plain(0, &[], 1), 0, |_| String::new()),
            parts: parts.collect(),
        };
        create_manifest(&Watch::default(), &folder, Rank(0), &manifest).unwrap();
        create_manifest(&Watch::default(), &folder, Rank(0), &manifest).unwrap();
        manifest
    }

    #[test]
    fn any_number_of_writers_gives_back_the_same_tensors_and_files_are_safetensors() {
        for world in [1, 2, 5] {
            let output = tempfile::tempdir().unwrap();
            save(output.path(), 4, world, 1.5);
            let loaded = newest(output.path(), "clip").unwrap().unwrap();
            for (name, tensor) in state(1.5) {
                assert_eq!(loaded.tensor(&name).unwrap(), tensor, "{name}");
            }
            assert!(matches!(loaded.tensor("param.x"), Err(CheckpointError::MissingTensor { .. })));
            let first =
                paths::checkpoint_folder(output.path(), "clip", Step(4)).join(paths::part_file(Rank(0), Generation(1)));
            let bytes = std::fs::read(first).unwrap();
            let foreign = safetensors::SafeTensors::deserialize(&bytes).unwrap();
            assert_eq!(foreign.tensor("param.w").unwrap().shape(), [7, 5]);
        }
    }

    #[test]
    fn a_flipped_byte_a_short_file_and_a_missing_one_fall_back_to_the_one_before() {
        let damages: [fn(&Path); 3] = [
            |path| {
                let mut bytes = std::fs::read(path).unwrap();
                *bytes.last_mut().unwrap() ^= 1;
                std::fs::write(path, bytes).unwrap();
            },
            |path| std::fs::write(path, b"short").unwrap(),
            |path| std::fs::remove_file(path).unwrap(),
        ];
        for damage in damages {
            let output = tempfile::tempdir().unwrap();
            save(output.path(), 4, 2, 1.0);
            save(output.path(), 8, 2, 2.0);
            let folder = paths::checkpoint_folder(output.path(), "clip", Step(8));
            damage(&folder.join(paths::part_file(Rank(1), Generation(1))));
            assert!(read(&folder).unwrap_err().to_string().contains("rank-00001-gen-00001.safetensors"));
            assert_eq!(newest(output.path(), "clip").unwrap().unwrap().manifest.step, Step(4));
            damage(
                &paths::checkpoint_folder(output.path(), "clip", Step(4))
                    .join(paths::part_file(Rank(0), Generation(1))),
            );
            assert!(newest(output.path(), "clip").is_err(), "never a fresh start");
        }
    }

    #[test]
    fn another_manifest_is_refused_and_later_steps_are_set_aside() {
        let output = tempfile::tempdir().unwrap();
        save(output.path(), 4, 1, 1.0);
        let manifest = save(output.path(), 8, 1, 1.0);
        let other = Manifest { generation: Generation(2), ..manifest };
        let folder = paths::checkpoint_folder(output.path(), "clip", Step(8));
        assert!(matches!(
            create_manifest(&Watch::default(), &folder, Rank(0), &other),
            Err(CheckpointError::Exists { .. })
        ));
        let stage = paths::stage_folder(output.path(), "clip");
        set_aside(&stage, Step(4), Generation(2)).unwrap();
        assert_eq!(committed_steps(&stage), [Step(4)]);
        assert!(stage.join("discarded-gen-00002-step-000000008/manifest.json").exists());
    }

    #[test]
    fn a_folder_that_cannot_be_written_is_named_with_what_to_do() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let copy = HostCopy::take(&state(1.0), Rank(0), WorldSize(1), Generation(1));
        let error = write(&Watch::default(), &file.path().join("step-000000004"), &copy).unwrap_err().to_string();
        assert!(error.contains("could not create") && error.contains("step-000000004"), "{error}");
    }
}
