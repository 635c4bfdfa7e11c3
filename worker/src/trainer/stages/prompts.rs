//! The text vectors of a classification: every class in every template, as the LLM reads them.
//!
//! They are kept as captions' vectors are, in `embed/DATA_SET/classes`: a row a class, a column a template, a file for every
//! [`BLOCK`] classes. Files are dealt out to ranks; one that is there, made of the same things, is skipped.

use super::{
    embed::Meter,
    text::{CaptionEncoder, Tokens},
    text_vectors::TextVectors,
};
use crate::{
    data::ClassWords,
    storage::Location,
    trainer::{context::Context, error::TrainerError},
    vectors::{Expected, Provenance, ShardFile, ShardWriter, VectorStore, VectorsError, shard_folder, shard_name},
};
use common::recipe::Recipe;
use half::bf16;
use std::{ops::Range, path::PathBuf};

/// Classes of one file: with 80 templates 5,120 texts.
const BLOCK: usize = 64;
const FOLDER: &str = "classes";
const STEM: &str = "prompts";

/// The texts of one data set's classes, and where their vectors are.
pub(super) struct Prompts {
    /// The data set.
    pub data: String,
    /// Its words.
    pub words: ClassWords,
    provenance: Provenance,
    place: Place,
}

enum Place {
    /// The stage `embed` makes them here.
    Job(PathBuf),
    /// They are there already, in a folder that the recipe names.
    Given(Location),
}

/// A file of vectors that is to be made.
pub(super) struct Block<'a> {
    prompts: &'a Prompts,
    path: &'a PathBuf,
    number: usize,
    classes: Range<usize>,
}

impl Prompts {
    /// The texts of a data set's classes; absent when it has none.
    ///
    /// # Errors
    /// When names or templates cannot be read.
    pub(super) fn of(
        data: &str,
        context: &Context<'_>,
        sources: &TextVectors<'_, '_>,
    ) -> Result<Option<Self>, TrainerError> {
        let set = context.plan.recipe.data.get(data);
        let Some((set, classes)) = set.and_then(|set| Some((set, set.classes.as_ref()?))) else { return Ok(None) };
        let words = ClassWords::read(context.storage, classes)?;
        let (place, encoder) = match &set.vectors {
            // Which LLM another job had is its own affair: the texts must be the same.
            Some(folder) => (Place::Given(Location::try_from(folder)?.join(FOLDER)?), Provenance::named([])),
            None => {
                let encoder = sources.encoder().expect("a data set without vectors needs the LLM").clone();
                (Place::Job(shard_folder(&context.plan.output, data).join(FOLDER)), encoder)
            }
        };
        let provenance = encoder.over(words.fingerprint());
        Ok(Some(Self { data: data.to_owned(), words, provenance, place }))
    }

    /// Of all of a stage's data sets that have classes.
    ///
    /// # Errors
    /// As [`Prompts::of`].
    pub(super) fn of_all(
        data: &[String],
        context: &Context<'_>,
        sources: &TextVectors<'_, '_>,
    ) -> Result<Vec<Self>, TrainerError> {
        data.iter().filter_map(|name| Self::of(name, context, sources).transpose()).collect()
    }

    fn blocks(&self) -> impl Iterator<Item = Range<usize>> {
        let classes = self.words.classes();
        (0..classes).step_by(BLOCK).map(move |first| first..classes.min(first + BLOCK))
    }

    /// The files that the LLM makes, whether they are there or not.
    pub(super) fn to_make(&self) -> Vec<Block<'_>> {
        let Place::Job(folder) = &self.place else { return Vec::new() };
        let block = |(number, classes)| Block { prompts: self, path: folder, number, classes };
        self.blocks().enumerate().map(block).collect()
    }

    /// Where the vectors are, for people.
    pub(super) fn origin(&self) -> String {
        match &self.place {
            Place::Job(_) => "the LLM".to_owned(),
            Place::Given(folder) => folder.to_string(),
        }
    }

    /// Opens the vectors: a sample is a class there, a column a template.
    ///
    /// # Errors
    /// When some are missing, damaged, or made of something else.
    pub(super) fn open(&self, context: &Context<'_>) -> Result<VectorStore, TrainerError> {
        let (folder, given) = match &self.place {
            Place::Job(folder) => (Location::Local(folder.clone()), false),
            Place::Given(folder) => (folder.clone(), true),
        };
        let blocks = self.blocks().map(|classes| (STEM, classes.start as u64..classes.end as u64));
        let opened = VectorStore::open(context.storage, &folder, &self.data, blocks, &self.provenance);
        opened.map_err(|error| if given { self.not_given(&error) } else { self.not_made(error) })
    }

    /// This job's vectors do not fit.
    fn not_made(&self, error: VectorsError) -> TrainerError {
        match error {
            VectorsError::Mismatch { place, field, .. } if field == "data" => TrainerError::Plan(format!(
                "the vectors in {place} are of other names or templates than `data.{}.classes`; choose another `output`, or \
                 delete the folder that it is in to embed again",
                self.data
            )),
            other => other.into(),
        }
    }

    /// Vectors that are not this job's do not fit: what to do is told in terms of the recipe.
    fn not_given(&self, error: &VectorsError) -> TrainerError {
        let data = &self.data;
        let what = match error {
            VectorsError::Missing { place, .. } => format!("{place} is missing"),
            VectorsError::Mismatch { place, field, .. } if field == "data" => {
                format!("the vectors in {place} are of other names or templates than `data.{data}.classes`")
            }
            other => other.to_string(),
        };
        TrainerError::Plan(format!(
            "`data.{data}.vectors` must hold the vectors of the classes' texts, too, as another job's `embed/{data}` does, and \
             {what}. Write `data.{data}.classes` as that job had it, or leave `data.{data}.vectors` out to let the `embed` \
             stage make the vectors"
        ))
    }
}

impl Block<'_> {
    /// How many texts it has.
    pub(super) fn texts(&self) -> u64 {
        (self.classes.len() * self.prompts.words.templates().len()) as u64
    }

    /// Lets the LLM read the texts, unless their vectors are there.
    ///
    /// # Errors
    /// When vectors are there that were made of something else, or the disk refuses.
    pub(super) fn make(
        &self,
        encoder: Option<&CaptionEncoder>,
        batch_tokens: usize,
        context: &Context<'_>,
        meter: &mut Meter,
    ) -> Result<(), TrainerError> {
        let encoder = encoder.ok_or_else(|| TrainerError::Plan("text vectors need [model.text]".to_owned()))?;
        let Self { prompts, classes, .. } = self;
        let path = self.path.join(shard_name(self.number, STEM));
        let (rows, width) = (classes.len(), encoder.width());
        let expected = Expected { provenance: &prompts.provenance, rows, width: Some(width) };
        let there = ShardFile::open(context.storage, &path.clone().into(), expected);
        if there.map_err(|error| prompts.not_made(error))?.is_some() {
            meter.passed(self.texts(), context);
            return Ok(());
        }
        let templates = prompts.words.templates();
        let names: Vec<&str> = templates.iter().map(String::as_str).collect();
        let mut writer = ShardWriter::create(&path, &prompts.provenance, [rows, width], &names)?;
        let text = |place: usize| prompts.words.text(classes.start + place % rows, &templates[place / rows]);
        let tokens = (0..rows * templates.len()).map(|place| encoder.tokens(place, &text(place)));
        let tokens: Vec<Tokens> = tokens.collect::<Result<_, _>>()?;
        let mut out = vec![bf16::ZERO; rows * templates.len() * width];
        for batch in CaptionEncoder::batches(tokens, batch_tokens) {
            encoder.encode_into(&batch, &mut out)?;
            meter.read(batch.len() as u64, encoder.flops(&batch), context);
        }
        for (column, numbers) in out.chunks_exact(rows * width).enumerate() {
            writer.put_rows(column, 0, numbers)?;
        }
        writer.finish()?;
        Ok(())
    }
}

/// The data sets of these whose images have captions.
pub(super) fn with_captions(recipe: &Recipe, data: &[String]) -> Vec<String> {
    data.iter().filter(|name| recipe.data.get(*name).is_none_or(|set| set.has_captions())).cloned().collect()
}
