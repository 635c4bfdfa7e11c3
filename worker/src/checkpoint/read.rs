//! Reading checkpoints: at any world size, and only what the manifest's digests confirm.

use super::{CheckpointError, Shelf, io};
use common::{
    ids::Step,
    manifest::{Manifest, Part, paths},
};
use std::{
    io::ErrorKind,
    path::{Path, PathBuf},
};
use tch::{Device, Kind, Tensor};

/// A checkpoint whose every byte was verified.
#[derive(Debug)]
pub struct Loaded {
    /// What it holds.
    pub manifest: Manifest,
    place: PathBuf,
    files: Vec<memmap2::Mmap>,
}

impl Loaded {
    /// Its folder or URL.
    pub fn place(&self) -> &Path {
        &self.place
    }

    /// A tensor of any rank's file, copied, on the CPU.
    ///
    /// # Errors
    /// When there is none of that name, or its bytes do not fit its shape.
    pub fn tensor(&self, name: &str) -> Result<Tensor, CheckpointError> {
        let found =
            self.manifest.parts.iter().zip(&self.files).find_map(|(part, file)| Some((part.tensors.get(name)?, file)));
        let Some((entry, file)) = found else {
            return Err(CheckpointError::MissingTensor { folder: self.place.clone(), name: name.to_owned() });
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
        CheckpointError::Damaged { path: self.place.clone(), reason: format!("tensor `{name}`: {reason}") }
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

impl Shelf {
    /// What a checkpoint's manifest says; its files are not looked at.
    ///
    /// # Errors
    /// When it is missing, or does not hold.
    pub fn manifest(&self, step: Step) -> Result<Manifest, CheckpointError> {
        let path = self.place(step).join(paths::MANIFEST_FILE);
        let text = self.0.manifest(step)?;
        let text = text.ok_or_else(|| std::io::Error::from(ErrorKind::NotFound)).map_err(io("read", &path))?;
        Manifest::parse(&text, step).map_err(|source| CheckpointError::Manifest { path, source })
    }

    /// As [`Shelf::read`]; absent when the step has no manifest.
    ///
    /// # Errors
    /// As [`Shelf::read`].
    pub fn find(&self, step: Step) -> Result<Option<Loaded>, CheckpointError> {
        let there = self.0.exists(step, paths::MANIFEST_FILE)?;
        there.then(|| self.read(step)).transpose()
    }

    /// Opens a checkpoint and verifies it: manifest, lengths, digests.
    ///
    /// # Errors
    /// The first thing that does not hold, with the file it is in.
    pub fn read(&self, step: Step) -> Result<Loaded, CheckpointError> {
        let manifest = self.manifest(step)?;
        let files = manifest.parts.iter().map(|part| self.verified(step, part)).collect::<Result<_, _>>()?;
        Ok(Loaded { manifest, place: self.place(step), files })
    }

    fn verified(&self, step: Step, part: &Part) -> Result<memmap2::Mmap, CheckpointError> {
        let path = self.place(step).join(&part.file);
        let map = self.0.open(step, part)?;
        if map.len() as u64 != part.bytes {
            return Err(CheckpointError::other_length(path, map.len() as u64, part));
        }
        let digest = blake3::Hasher::new().update(&map).finalize().to_hex().to_string();
        if digest != part.blake3 {
            let reason = "its BLAKE3 digest is not the manifest's".to_owned();
            return Err(CheckpointError::Damaged { path, reason });
        }
        Ok(map)
    }

    /// The newest checkpoint of the stage that verifies; absent when there is none. One that does not verify is told of
    /// loudly, and the one before is taken.
    ///
    /// # Errors
    /// When there are checkpoints and none of them verifies: the newest one's error; and when storage cannot be asked.
    pub fn newest(&self) -> Result<Option<Loaded>, CheckpointError> {
        let mut newest = None;
        for step in self.0.steps()?.into_iter().rev() {
            // What has no manifest is none.
            if !self.0.exists(step, paths::MANIFEST_FILE)? {
                continue;
            }
            match self.read(step) {
                Ok(loaded) => return Ok(Some(loaded)),
                Err(error) if error.is_unseen() => return Err(error),
                Err(error) => {
                    tracing::error!(step = step.0, %error, "a checkpoint does not verify; trying the one before");
                    newest.get_or_insert(error);
                }
            }
        }
        newest.map_or(Ok(None), Err)
    }
}

#[cfg(test)]
mod tests {
    use super::super::{HostCopy, Watch};
    use super::*;
    use crate::storage::{
        Location,
        tests::{quick, server::Server},
    };
    use common::{
        ids::{Generation, Rank, WorldSize},
        manifest::{DataCursor, FORMAT},
        sampler::OrderSpec,
    };
    use std::sync::Arc;

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
    fn save(shelf: &Shelf, step: u64, world: u32, factor: f64) -> Manifest {
        let share = |rank| HostCopy::take(&state(factor), rank, WorldSize(world), Generation(1));
        let write = |rank| shelf.write(&Watch::default(), Step(step), &share(rank)).unwrap();
        let parts = WorldSize(world).ranks().map(write);
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
        shelf.create_manifest(&Watch::default(), Rank(0), &manifest).unwrap();
        shelf.create_manifest(&Watch::default(), Rank(0), &manifest).unwrap();
        manifest
    }

    /// A shelf, and the folder in which its files are: those of the server, where it is one of objects.
    struct Place {
        shelf: Shelf,
        stage: PathBuf,
        _owner: Box<dyn std::any::Any>,
    }

    /// To which file of a checkpoint, and what.
    type Damage = (&'static str, fn(&Path));

    fn in_a_folder() -> Place {
        let output = tempfile::tempdir().unwrap();
        let stage = output.path().join("clip");
        Place { shelf: Shelf::folder(&stage), stage, _owner: Box::new(output) }
    }

    fn in_a_bucket() -> Place {
        let server = Server::start();
        let storage = Arc::new(server.storage(quick()));
        let shelf = Shelf::open(&storage, Path::new("s3://bucket/runs/demo"), "clip").unwrap();
        Place { shelf, stage: server.bucket().join("runs/demo/clip"), _owner: Box::new(server) }
    }

    #[test]
    fn any_number_of_writers_gives_back_the_same_tensors_and_files_are_safetensors() {
        for place in [in_a_folder(), in_a_bucket()] {
            for (step, world) in [(4, 1), (5, 2), (6, 5)] {
                save(&place.shelf, step, world, 1.5);
                let loaded = place.shelf.newest().unwrap().unwrap();
                assert_eq!((loaded.manifest.step, loaded.manifest.world), (Step(step), WorldSize(world)));
                for (name, tensor) in state(1.5) {
                    assert_eq!(loaded.tensor(&name).unwrap(), tensor, "{name}");
                }
                assert!(matches!(loaded.tensor("param.x"), Err(CheckpointError::MissingTensor { .. })));
            }
            let first = place.stage.join(paths::step_folder(Step(5))).join(paths::part_file(Rank(0), Generation(1)));
            let bytes = std::fs::read(first).unwrap();
            let foreign = safetensors::SafeTensors::deserialize(&bytes).unwrap();
            assert_eq!(foreign.tensor("param.w").unwrap().shape(), [7, 5]);
        }
    }

    #[test]
    fn a_flipped_byte_a_short_file_a_missing_one_and_a_damaged_manifest_fall_back_to_the_one_before() {
        let damages: [Damage; 4] = [
            ("rank-00001-gen-00001.safetensors", |path| {
                let mut bytes = std::fs::read(path).unwrap();
                *bytes.last_mut().unwrap() ^= 1;
                std::fs::write(path, bytes).unwrap();
            }),
            ("rank-00001-gen-00001.safetensors", |path| std::fs::write(path, b"short").unwrap()),
            ("rank-00001-gen-00001.safetensors", |path| std::fs::remove_file(path).unwrap()),
            ("manifest.json", |path| {
                let text = std::fs::read_to_string(path).unwrap();
                std::fs::write(path, text.replace("demo-1", "demo-2")).unwrap();
            }),
        ];
        for place in [in_a_folder, in_a_bucket] {
            for (file, damage) in damages {
                let place = place();
                save(&place.shelf, 4, 2, 1.0);
                save(&place.shelf, 8, 2, 2.0);
                damage(&place.stage.join(paths::step_folder(Step(8))).join(file));
                let error = place.shelf.read(Step(8)).unwrap_err();
                assert!(error.to_string().contains(file) && !error.is_unseen(), "{error}");
                assert_eq!(place.shelf.newest().unwrap().unwrap().manifest.step, Step(4));
                damage(&place.stage.join(paths::step_folder(Step(4))).join(file));
                assert!(place.shelf.newest().is_err(), "never a fresh start");
            }
        }
    }

    #[test]
    fn another_manifest_is_refused_and_later_steps_are_set_aside() {
        for place in [in_a_folder(), in_a_bucket()] {
            let shelf = &place.shelf;
            save(shelf, 4, 1, 1.0);
            let manifest = save(shelf, 8, 1, 3.0);
            let other = Manifest { generation: Generation(2), ..manifest.clone() };
            let refused = shelf.create_manifest(&Watch::default(), Rank(0), &other);
            assert!(matches!(refused, Err(CheckpointError::Exists { .. })));
            shelf.set_aside(Step(4), Generation(2)).unwrap();
            assert_eq!(shelf.committed().unwrap(), [Step(4)]);
            // A user who wants it back finds all of it.
            let aside = place.stage.join("discarded-gen-00002-step-000000008");
            let back = Shelf::folder(&place.stage);
            std::fs::rename(&aside, place.stage.join(paths::step_folder(Step(8)))).unwrap();
            assert_eq!(back.read(Step(8)).unwrap().tensor("param.w").unwrap(), state(3.0)[0].1);
            // What was read of a manifest before says nothing of the one that is there now.
            shelf.set_aside(Step(4), Generation(3)).unwrap();
            save(shelf, 8, 2, 5.0);
            assert_eq!(shelf.manifest(Step(8)).unwrap().world, WorldSize(2));
            assert_eq!(shelf.read(Step(8)).unwrap().tensor("param.w").unwrap(), state(5.0)[0].1);
        }
    }

    #[test]
    fn a_folder_that_cannot_be_written_is_named_with_what_to_do() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let copy = HostCopy::take(&state(1.0), Rank(0), WorldSize(1), Generation(1));
        let error = Shelf::folder(file.path()).write(&Watch::default(), Step(4), &copy).unwrap_err().to_string();
        assert!(error.contains("could not create") && error.contains("step-000000004"), "{error}");
    }

    #[test]
    fn a_bucket_that_cannot_be_asked_is_an_error_and_not_an_empty_one() {
        let server = Server::start();
        let shelf = |storage| Shelf::open(&Arc::new(storage), Path::new("s3://bucket/runs/demo"), "clip").unwrap();
        save(&shelf(server.storage(quick())), 4, 1, 1.0);
        let stranger = shelf(server.stranger(quick()));
        for error in [stranger.newest().map(drop), stranger.committed().map(drop), stranger.read(Step(4)).map(drop)] {
            let error = error.unwrap_err();
            assert!(error.is_unseen() && error.to_string().contains("s3://bucket/runs/demo/clip"), "{error}");
        }
        let elsewhere = Location::parse("s3://bucket/runs/other/clip/x").unwrap();
        let empty = Shelf::at(&Arc::new(server.storage(quick())), Path::new(&elsewhere.folder().to_string())).unwrap();
        assert!(empty.newest().unwrap().is_none() && empty.committed().unwrap().is_empty());
    }
}
