//! Where the text vectors of a data set are: made by the `embed` stage, or there already.

use super::embed;
use crate::{
    data::{Dataset, LLM2CLIP_VECTORS},
    storage::Location,
    trainer::{context::Context, error::TrainerError},
    vectors::{Provenance, VectorStore, VectorsError, shard_folder, shard_name},
};
use std::sync::Arc;

/// Where the vectors of one data set come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Origin {
    /// The LLM reads the captions.
    Encoder,
    /// Another job's `embed/NAME`, read where it lies.
    Store(Location),
    /// A folder of LLM2CLIP's tars, which are made into files of ours.
    Llm2clip(Location),
}

/// The vectors of a stage's data sets.
pub(super) struct TextVectors<'a, 'b> {
    context: &'a Context<'b>,
    /// Of what the LLM makes; absent when it makes nothing.
    encoder: Option<Provenance>,
}

impl<'a, 'b> TextVectors<'a, 'b> {
    /// Of a stage over these data sets. The LLM's weights are read for their digest when any of them needs it.
    ///
    /// # Errors
    /// When the recipe has no LLM and needs one, or its folder cannot be read.
    pub(super) fn of(context: &'a Context<'b>, data: &[String]) -> Result<Self, TrainerError> {
        let recipe = &context.plan.recipe;
        if !recipe.needs_text_model(data) {
            return Ok(Self { context, encoder: None });
        }
        let spec = recipe.encoder();
        let spec = spec.ok_or_else(|| TrainerError::Plan("text vectors need [model.text]".to_owned()))?;
        let encoder = Provenance::of_encoder(&spec, recipe.seed, recipe.embed_precision())?;
        context.trained.map_or(Ok(()), |trained| trained.check_encoder(&encoder))?;
        Ok(Self { context, encoder: Some(encoder) })
    }

    /// What every vector that the LLM makes depends on; absent when it makes none.
    pub(super) fn encoder(&self) -> Option<&Provenance> {
        self.encoder.as_ref()
    }

    /// Where a data set's come from.
    ///
    /// # Errors
    /// When the recipe says that they are there already, and they are not.
    pub(super) fn origin(&self, dataset: &Dataset) -> Result<Origin, TrainerError> {
        let given = self.context.plan.recipe.data.get(dataset.name()).and_then(|spec| spec.vectors.as_ref());
        let Some(given) = given else { return Ok(Origin::Encoder) };
        let folder = Location::try_from(given)?;
        let first = dataset.shards().iter().enumerate().find(|(_, shard)| !shard.samples.is_empty());
        let (index, shard) = first.expect("a data set has samples");
        let there = |name: &str| folder.join(name).and_then(|location| self.context.storage.exists(&location));
        let (ours, theirs) = (shard_name(index, &shard.stem), tar_name(&shard.stem));
        if there(&ours)? {
            return Ok(Origin::Store(folder));
        }
        if there(&theirs)? {
            return Ok(Origin::Llm2clip(folder));
        }
        Err(TrainerError::Plan(format!(
            "`data.{}.vectors` is {folder}, and neither {ours} (of another job's `embed/{}`) nor {theirs} (LLM2CLIP's) is \
             there; leave it out to let the `embed` stage make the vectors",
            dataset.name(),
            dataset.name()
        )))
    }

    /// What a data set's vectors must have been made of.
    pub(super) fn provenance(&self, dataset: &Dataset, origin: &Origin) -> Provenance {
        let encoder = match origin {
            // Which LLM another job had is its own affair: the data must be the same.
            Origin::Store(_) => Provenance::named([]),
            Origin::Llm2clip(folder) => Provenance::named([("vectors", folder.to_string().as_str())]),
            Origin::Encoder => self.encoder.clone().expect("a data set without vectors needs the LLM"),
        };
        encoder.over(dataset.fingerprint())
    }

    /// Opens the vectors of a stage's data sets; returns them and their common width. What LLM2CLIP's tars hold and no
    /// stage has taken over yet is taken over now, by all ranks together.
    ///
    /// # Errors
    /// As [`TextVectors::open`], and when two data sets' vectors are of different encoders.
    pub(super) fn open_all(&self, datasets: &[Arc<Dataset>]) -> Result<(Vec<VectorStore>, usize), TrainerError> {
        embed::take_over_all(datasets, self, self.context)?;
        let stores = datasets.iter().map(|data| self.open(data)).collect::<Result<Vec<_>, _>>()?;
        let named: Vec<(&str, &VectorStore)> = datasets.iter().map(|data| data.name()).zip(&stores).collect();
        comparable(&named)?;
        let width = stores.first().map_or(0, VectorStore::width);
        Ok((stores, width))
    }

    /// Opens a data set's vectors.
    ///
    /// # Errors
    /// When some are missing, damaged, or made of something else.
    pub(super) fn open(&self, dataset: &Dataset) -> Result<VectorStore, TrainerError> {
        let origin = self.origin(dataset)?;
        let provenance = self.provenance(dataset, &origin);
        let theirs = matches!(origin, Origin::Store(_));
        let folder = match origin {
            Origin::Store(folder) => folder,
            Origin::Encoder | Origin::Llm2clip(_) => shard_folder(&self.context.plan.output, dataset.name()).into(),
        };
        let shards = dataset.shards().iter().map(|shard| (shard.stem.as_str(), shard.samples.clone()));
        VectorStore::open(self.context.storage, &folder, dataset.name(), shards, &provenance)
            .map_err(|error| if theirs { of_another_job(dataset.name(), error) } else { error.into() })
    }
}

/// Another job's vectors are not this job's to delete: what does not fit is told in terms of the recipe.
fn of_another_job(data: &str, error: VectorsError) -> TrainerError {
    let recipe = format!(
        "Its shards, caption columns and caption table must be those that the other job had. Correct `data.{data}`, or \
         leave `data.{data}.vectors` out to let the `embed` stage make the vectors"
    );
    TrainerError::Plan(match error {
        VectorsError::Mismatch { place, field, .. } if field == "data" => {
            format!("the vectors in {place} are of other data than data set `{data}` of this recipe. {recipe}")
        }
        VectorsError::Rows { place, found, expected } => format!(
            "{place} has vectors for {found} samples, and the shard of data set `{data}` has {expected}. {recipe}"
        ),
        VectorsError::Missing { place, .. } => {
            format!("{place} is missing: the other job has no vectors of that shard of data set `{data}`. {recipe}")
        }
        VectorsError::Mismatch { place, field, found, expected } => format!(
            "the vectors in {place} were made with another {field} ({found}) than those of the first shard beside it \
             ({expected}): the folder holds the vectors of two jobs. Let one job write all of them"
        ),
        VectorsError::Width { place, found, expected } => format!(
            "the vectors in {place} are {found} numbers wide, and those of the first shard beside it {expected}: the \
             folder holds the vectors of two jobs. Let one job write all of them"
        ),
        other => return other.into(),
    })
}

/// Whether the vectors of several data sets can stand beside each other: of one width, and of one encoder as far as it
/// is known.
pub(super) fn comparable(stores: &[(&str, &VectorStore)]) -> Result<(), TrainerError> {
    let Some(((first, store), others)) = stores.split_first() else { return Ok(()) };
    for (name, other) in others {
        let what = if store.width() == other.width() {
            let (Some(mine), Some(theirs)) = (store.made_of(), other.made_of()) else { continue };
            let Some((field, mine, theirs)) = mine.other_encoder(theirs) else { continue };
            format!("were made with another {field} ({mine} and {theirs})")
        } else {
            format!("have another width ({} and {})", store.width(), other.width())
        };
        return Err(TrainerError::Plan(format!(
            "the text vectors of data sets `{first}` and `{name}` {what}. Those of one stage must come from one encoder: \
             change `data.{first}.vectors` or `data.{name}.vectors`, or leave both out to let the `embed` stage make them"
        )));
    }
    Ok(())
}

/// The tar in which LLM2CLIP keeps a shard's vectors.
pub(super) fn tar_name(stem: &str) -> String {
    format!("{stem}{LLM2CLIP_VECTORS}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        storage::{Limits, Storage},
        vectors::write_shard,
    };
    use half::bf16;
    use std::path::Path;

    /// Writes two shards of one row each; `pooling` and `width` are those of each.
    fn store(folder: &Path, shards: [(&str, usize); 2]) -> Result<VectorStore, TrainerError> {
        for (index, (pooling, width)) in shards.into_iter().enumerate() {
            let made_of = Provenance::named([("pooling", pooling), ("data", "d")]);
            let columns = [("x".to_owned(), vec![bf16::ONE; width])];
            write_shard(&folder.join(shard_name(index, "s")), &made_of, width, &columns).unwrap();
        }
        let storage = Arc::new(Storage::new(Limits::default(), []));
        let any = Provenance::named([]);
        VectorStore::open(&storage, &folder.to_owned().into(), "train", [("s", 0..1), ("s", 1..2)], &any)
            .map_err(|error| of_another_job("train", error))
    }

    fn check(found: Result<impl Sized, TrainerError>, parts: &[&str]) {
        let text = found.err().unwrap().to_string();
        for part in parts {
            assert!(text.contains(part), "{part} is not in: {text}");
        }
    }

    #[test]
    fn data_sets_of_other_widths_or_encoders_cannot_stand_beside_each_other() {
        let folders = [(); 3].map(|()| tempfile::tempdir().unwrap());
        let shards = [[("mean", 4); 2], [("mean", 6); 2], [("last", 4); 2]];
        let [a, wide, last]: [VectorStore; 3] = std::array::from_fn(|i| store(folders[i].path(), shards[i]).unwrap());
        assert!(comparable(&[("a", &a), ("b", &a)]).is_ok());
        check(comparable(&[("a", &a), ("b", &wide)]), &["`a` and `b`", "width (4 and 6)", "`data.b.vectors`"]);
        check(comparable(&[("a", &a), ("c", &last)]), &["`a` and `c`", "pooling (`mean` and `last`)"]);
    }

    #[test]
    fn a_folder_with_the_vectors_of_two_jobs_is_told() {
        for (second, parts) in [(("last", 4), ["pooling", "00001-s.vectors"]), (("mean", 6), ["6", "00001-s.vectors"])]
        {
            let folder = tempfile::tempdir().unwrap();
            let found = store(folder.path(), [("mean", 4), second]);
            check(found, &[parts[0], parts[1], "two jobs"]);
        }
    }
}
