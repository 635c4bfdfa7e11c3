//! A recipe: what a job is. One TOML file; unknown keys are errors.
//!
//! `raw` is the file as written, each value with its place; `read` and `stages` turn it into the types below, in which
//! nothing that is required is optional and every path is absolute (URLs of data stay as typed); `validate` checks what
//! spans several parts; `order` is the order of samples that a recipe means; `settings` reads other files in the same way. This
//! module reads no file: the caller hands over the text and the folder.

mod classes;
mod data_path;
mod detection;
mod distill;
mod error;
mod eval;
mod evaluation;
mod fingerprint;
mod mix;
mod objective;
mod order;
mod parts;
mod raw;
mod read;
pub mod settings;
mod stages;
mod text_sets;
mod training;
mod tuning;
mod validate;

#[cfg(test)]
mod tests;

pub use classes::{ClassBy, ClassNames, Classes, Templates};
pub use data_path::{DataPath, is_url};
pub use detection::Detection;
pub use distill::{DistillStage, TeacherModel};
pub use error::RecipeError;
pub use eval::{Benchmark, CaptionPair, EvalStage, Every, PeriodicEval};
pub use evaluation::{Evaluation, parse_evaluation};
pub use objective::{Objective, PairLoss, SelfDistillation};
pub use parts::{Ema, Lock};
pub use read::{Source, parse};
pub use text_sets::{TextKind, TextSet};
pub use training::{CheckpointPolicy, Decay, Length, Mix, Optimizer, Precision, Schedule, Training};
pub use tuning::{ContrastStage, Lora, Masking, MntpStage, PairRule, Remainder, Replacement};

use crate::sampler::Shuffle;
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    time::Duration,
};

/// A validated recipe.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Recipe {
    /// What the job is called; a part of its id.
    pub name: String,
    /// The seed of everything that is drawn.
    pub seed: u64,
    /// The job's folder on shared storage, absolute.
    pub output: PathBuf,
    /// Where checkpoints are kept, in a folder a stage; absent means in `output`. A path is absolute.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checkpoints: Option<DataPath>,
    /// The data sets of images by name.
    pub data: BTreeMap<String, DataSet>,
    /// The data sets of texts by name; no name is in both.
    #[serde(default)]
    pub text: BTreeMap<String, TextSet>,
    /// The models.
    pub model: Models,
    /// What to do, in order.
    pub stages: Vec<Stage>,
    /// How many failures to bear.
    pub faults: Faults,
    /// With how many ranks it may run; absent means with as many as it was launched with, always.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub elastic: Option<Elastic>,
}

impl Recipe {
    /// The folder or URL in which each stage that trains keeps its checkpoints in a folder of its name.
    pub fn checkpoint_root(&self) -> &Path {
        self.checkpoints.as_ref().map_or(&self.output, DataPath::as_path)
    }

    /// Whether a stage writes checkpoints.
    pub fn trains(&self) -> bool {
        self.stages.iter().any(|stage| stage.training().is_some())
    }

    /// Whether the LLM must read captions of these data sets.
    pub fn needs_text_model(&self, data: &[String]) -> bool {
        data.iter().any(|name| self.data.get(name).is_none_or(|set| set.vectors.is_none()))
    }

    /// What the text vectors are computed in: `embed`'s precision, fp32 when the recipe has no such stage.
    pub fn embed_precision(&self) -> Precision {
        let of = |stage: &Stage| if let Stage::Embed(embed) = stage { Some(embed.precision) } else { None };
        self.stages.iter().find_map(of).unwrap_or_default()
    }
}

/// A data set: where its samples lie, what describes them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DataSet {
    /// How the shards are laid out.
    pub kind: DataKind,
    /// Glob patterns of the shards; their sorted matches, one pattern after the other, are the shards in order.
    pub shards: Vec<DataPath>,
    /// The captions of each image.
    pub captions: Captions,
    /// The largest share of broken samples to bear, 0 to 1.
    pub broken_limit: f64,
    /// How its samples are shuffled when it is trained on.
    #[serde(default)]
    pub shuffle: Shuffle,
    /// Where images are that a list names by relative paths; absent means beside the list. Of `list` alone.
    #[serde(default)]
    pub images: Option<DataPath>,
    /// The column or field that holds an image's path (`list`) or bytes (`parquet`); absent means that it is found by the
    /// names that are usual.
    #[serde(default)]
    pub image_column: Option<String>,
    /// How many samples at the beginning are left out, and after how many the set ends.
    #[serde(default)]
    pub rows: RowRange,
    /// Samples whose own field has another text than this are left out: DOCCI's `split`. Of `list` and `parquet`.
    #[serde(default)]
    pub only: BTreeMap<String, String>,
    /// Where the index of the shards is kept.
    #[serde(default)]
    pub index: IndexPlace,
    /// The folder in which the captions' text vectors lie already: another job's `embed/NAME`, or one of LLM2CLIP's
    /// `SHARD_text_embeddings.tar`. Absent means that the `embed` stage makes them.
    #[serde(default)]
    pub vectors: Option<DataPath>,
    /// Which benchmark it is: `eval` shows the paper's rows beside its own.
    #[serde(default)]
    pub benchmark: Option<Benchmark>,
    /// What its images are classified as; absent of data sets that are no classification.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub classes: Option<Classes>,
}

/// A part of a data set's samples, in their order.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RowRange {
    /// The first that is used.
    pub from: u64,
    /// The first after them; absent means the end.
    pub to: Option<u64>,
}

/// Where what is known of shards is kept between jobs.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum IndexPlace {
    /// In the user's cache folder on each machine. Data folders are often shared or read only, and nobody is surprised.
    #[default]
    Cache,
    /// Beside each shard, so that every machine finds it; in the cache folder where the data cannot be written. Of an
    /// object it is copied from there to the cache folder.
    Beside,
    /// In this folder, absolute.
    Folder(PathBuf),
}

/// The layout of a data set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DataKind {
    /// Tars of `key.jpg|png|webp`, `key.txt`, `key.json`, as img2dataset writes them.
    Webdataset,
    /// Parquet files with a column of images: `jpg: binary`, or `image: struct{bytes, path}`.
    Parquet,
    /// Files that list images by path, with their captions: JSON, JSON lines, CSV or parquet.
    List,
}

/// Where captions come from and how often each is drawn.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Captions {
    /// A table with more captions, joined by key or another field; absent means that the shards hold all of them.
    pub table: Option<CaptionTable>,
    /// Caption columns and their sampling weights, in the order of the recipe. A name that begins with a dot is the
    /// shards' own: of tars a member (`.txt`, `.cls`) or a field of the `.json` (`.json:long_caption`), of the other
    /// kinds a column (`.txt`, `.caption`). Every other name is a column of the table.
    pub columns: Vec<CaptionColumn>,
}

/// A table of captions: parquet, CSV, JSON lines, or one JSON array.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CaptionTable {
    /// The file, or a pattern of several.
    pub file: DataPath,
    /// The column by which a row is found.
    pub key: String,
    /// What of a sample is looked up there: `key`, or a field of its metadata such as `url` or `sha256`.
    #[serde(default = "join_by_key")]
    pub join: String,
    /// What becomes of samples without a row, and of rows without a sample.
    #[serde(default)]
    pub unmatched: Unmatched,
}

fn join_by_key() -> String {
    "key".to_owned()
}

/// What becomes of what a join leaves over.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Unmatched {
    /// A sample without a row is a broken one, and `broken_limit` bounds how many there may be.
    #[default]
    Broken,
    /// A sample without a row is an error.
    Error,
    /// Samples without a row are left out, however many.
    Skip,
    /// As `skip`, and rows without a sample are kept as text for the stages that read text alone.
    CaptionOnly,
}

/// One column of captions.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CaptionColumn {
    /// `.txt` or a column's name.
    pub name: String,
    /// How often it is drawn, relative to the others; integers, so that the choice is exact.
    pub weight: u32,
}

/// The models of a recipe; a stage that needs an absent one is an error of validation.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Models {
    /// The LLM that reads captions.
    pub text: Option<TextModel>,
    /// The vision tower.
    pub vision: Option<VisionModel>,
    /// The network between the LLM's vectors and the shared space.
    pub adapter: Option<AdapterModel>,
    /// A model that was trained before, in the place of the two above; `text` is its LLM unless it is given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trained: Option<TrainedModel>,
    /// CLIP's text tower, whose space the adapter is taught by stage `distill`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub teacher: Option<TeacherModel>,
}

/// A model to be evaluated: both towers, and the LLM whose vectors the adapter takes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TrainedModel {
    /// What `llm2clip export` wrote, another job's output folder (its newest checkpoint), or one checkpoint's; absolute.
    pub folder: PathBuf,
    /// Where the LLM lies, when it is not where the model says; absolute.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub llm: Option<PathBuf>,
}

/// Where weights come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Init {
    /// Drawn from the recipe's seed; the folder needs a `config.json` only.
    Random,
    /// Read from the folder's safetensors.
    Pretrained,
}

/// A Llama body as a caption encoder.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TextModel {
    /// `config.json`, `tokenizer.json` and, unless `init` is random, safetensors; absolute.
    pub folder: PathBuf,
    /// Where the weights come from.
    pub init: Init,
    /// Whether a token sees those after it.
    pub attention: Attention,
    /// The text around a caption: `{caption}` stands for it.
    pub template: String,
    /// The tokens whose hidden states are averaged.
    pub pooling: Pooling,
    /// The longest sequence in tokens; longer captions are cut.
    pub max_length: usize,
    /// PEFT folders of LoRAs that are merged into the weights, one after the other; absolute.
    #[serde(default)]
    pub adapters: Vec<PathBuf>,
}

/// Which tokens a token sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Attention {
    /// All of them.
    Bidirectional,
    /// Those before it.
    Causal,
}

/// What is averaged into the text vector.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Pooling {
    /// Every token of the sequence.
    Mean,
    /// The caption's own tokens and what the template puts after it.
    MeanCaption,
}

/// A CLIP vision tower.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct VisionModel {
    /// `config.json` of `CLIPVisionModelWithProjection` and, unless `init` is random, safetensors; absolute.
    pub folder: PathBuf,
    /// Where the weights come from.
    pub init: Init,
}

/// The LLM2CLIP adapter: `blocks` residual MLPs, a LayerNorm and a linear layer (research code `TextProj`).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AdapterModel {
    /// How many residual blocks; 4 in the paper.
    pub blocks: usize,
    /// The hidden width of a block relative to the input; 2 in the paper.
    pub expansion: usize,
    /// Whether the text vector is normalised first.
    pub l2_norm: bool,
}

/// One stage.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Stage {
    /// Teach the LLM to see both ways: masked next-token prediction.
    Mntp(Box<MntpStage>),
    /// Tune the LLM to tell captions apart.
    Contrast(Box<ContrastStage>),
    /// Write the text vectors of every caption.
    Embed(EmbedStage),
    /// Teach the adapter what CLIP's text tower makes of captions.
    Distill(Box<DistillStage>),
    /// Train the vision tower and the adapter.
    Clip(Box<ClipStage>),
    /// Measure retrieval.
    Eval(EvalStage),
    /// Write the result as other libraries take it.
    Export,
}

impl Stage {
    /// The stage's name in the recipe, in paths and on the screen.
    pub fn kind(&self) -> &'static str {
        match self {
            Stage::Mntp(_) => "mntp",
            Stage::Contrast(_) => "contrast",
            Stage::Embed(_) => "embed",
            Stage::Distill(_) => "distill",
            Stage::Clip(_) => "clip",
            Stage::Eval(_) => "eval",
            Stage::Export => "export",
        }
    }
}

/// Settings of `clip`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ClipStage {
    /// What every training has.
    #[serde(flatten)]
    pub training: Training,
    /// How images are cropped.
    pub augment: Augment,
    /// How near to Pillow's their pixels are.
    #[serde(default)]
    pub pixels: PixelMode,
    /// When they become RGB.
    #[serde(default)]
    pub convert_to_rgb: ConvertToRgb,
    /// The share of an image's patches that a step does not see, drawn anew for each sample and epoch.
    #[serde(default)]
    pub patch_dropout: f64,
    /// The start of the logit scale's logarithm: ln(1/0.07) in CLIP.
    pub logit_scale_init: f64,
    /// What is minimised.
    #[serde(flatten)]
    pub objective: Objective,
    /// What of the towers is not trained.
    #[serde(default, skip_serializing_if = "objective::is_default")]
    pub lock: Lock,
    /// Low-rank updates beside the vision tower's layers, which are trained in its place; absent means that the tower is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lora: Option<Lora>,
    /// The average that is kept of what is trained.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ema: Option<Ema>,
    /// When and on what the weights are evaluated on the way; it changes no step.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub eval: Option<PeriodicEval>,
}

/// Settings of `embed`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EmbedStage {
    /// Data sets whose captions are read.
    pub data: Vec<String>,
    /// How many tokens a batch may have.
    pub batch_tokens: usize,
    /// The number format of the LLM's weights and of its forward pass.
    #[serde(default)]
    pub precision: Precision,
}

/// Random crops, with torchvision's `RandomResizedCrop` semantics.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Augment {
    /// The crop's area as a share of the image: lower and upper end.
    pub scale: (f64, f64),
    /// The crop's aspect ratio: lower and upper end.
    pub ratio: (f64, f64),
}

/// How near to Pillow's an image's pixels are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PixelMode {
    /// The resize's weights have 16 bits: one or two bytes in a hundred are a level beside Pillow's, in less time.
    Fast,
    /// Pillow's bytes.
    #[default]
    PillowExact,
}

/// When an image that is not RGB becomes it; of RGB and gray images both make the same.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ConvertToRgb {
    /// Before it is resized, as webdataset's `pilrgb` does: the way of LLM2CLIP's training.
    #[default]
    BeforeResize,
    /// After it was resized, as open_clip's transforms do: alpha, CMYK, palettes, single bits and 16 bits of gray are
    /// resized as they are.
    AfterResize,
}

/// What a job bears before it stops.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Faults {
    /// Restarts after a trainer's failure, from the newest checkpoint.
    pub max_failures: u32,
    /// Restarts in a row without a newer committed step; then the job stops with exit code 93.
    pub max_no_progress: u32,
    /// What counts as a fault of a rank that lives.
    #[serde(default, skip_serializing_if = "objective::is_default")]
    pub detect: Detection,
    /// How long a stage's last checkpoint, and that of a stop, is tried again before the job ends without it.
    #[serde(default = "storage_wait", skip_serializing_if = "is_storage_wait")]
    pub storage_wait: Duration,
}

/// Five minutes: longer than a file server takes to start again.
fn storage_wait() -> Duration {
    Duration::from_secs(300)
}

/// What is not said stays out of fingerprints, which are as they were before there was this key.
fn is_storage_wait(wait: &Duration) -> bool {
    *wait == storage_wait()
}

/// With how many ranks a job may run when machines come and go. The global batch and the order of samples are the same with
/// any number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Elastic {
    /// With fewer it waits.
    pub min_ranks: u32,
    /// With more it does not run; absent means with no more than it was launched with.
    pub max_ranks: Option<u32>,
    /// How long it waits for a place in a lost one's stead, or for those it was launched for, before it runs with fewer.
    pub grace: Duration,
    /// Trainers that are kept started beside the ranks, on places that are free, to take a lost one's rank at once.
    pub spares: u32,
}
