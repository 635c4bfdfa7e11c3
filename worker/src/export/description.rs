//! `llm2clip.json`: what is not in the weights, and makes features right or wrong: how captions are read, which LLM's vectors
//! the adapter takes, how images are cut.

use super::{ExportError, Trained, error::io, files, llm::Llm};
use crate::{
    data::{MEAN, STD},
    model::vision::VisionConfig,
    vectors::Provenance,
};
use common::{
    ids::Step,
    manifest::SourceFingerprint,
    recipe::{Attention, Init, Pooling, Precision, TextModel},
};
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

/// The file's name.
pub const FILE: &str = "llm2clip.json";
/// The version that this program writes.
const SCHEMA: u32 = 1;

/// The document, version 1.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Description {
    /// The version of this document: 1.
    pub schema: u32,
    /// BLAKE3 of this document with an empty fingerprint; the weights' digest is in it.
    pub fingerprint: String,
    /// BLAKE3 of all that the export was made of: recipe, checkpoint, results, tuned LLM.
    pub made_of: String,
    /// BLAKE3 of `model.safetensors`.
    pub weights_blake3: String,
    /// Where the weights are from.
    pub checkpoint: Origin,
    /// How images are read.
    pub image: Images,
    /// How captions are read.
    pub text: Texts,
    /// The network between the LLM's vectors and the shared space.
    pub adapter: AdapterSizes,
    /// Width of the shared space.
    pub shared_width: i64,
    /// What cosines are multiplied by.
    pub logit_scale: f64,
    /// What is added to the products, after the sigmoid loss; absent after the softmax loss.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub logit_bias: Option<f64>,
}

/// A checkpoint.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Origin {
    /// The job.
    pub job: String,
    /// The committed step.
    pub step: Step,
    /// The recipe's fingerprint.
    pub recipe_fingerprint: String,
    /// The data sets that were trained on.
    pub data: Vec<SourceFingerprint>,
}

/// What is done to an image: its shorter side is resized to `size` by Pillow's bicubic filter, the middle is cut out, and each
/// channel, from 0 to 1, is normalised.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Images {
    /// `clip`, `eva02` or `siglip`.
    pub architecture: String,
    /// The side in pixels.
    pub size: i64,
    /// The channels' mean.
    pub mean: [f32; 3],
    /// Their standard deviation.
    pub std: [f32; 3],
    /// The activation of the tower's MLPs.
    pub activation: String,
}

/// What is done to a caption.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Texts {
    /// The text around a caption: `{caption}` stands for it.
    pub template: String,
    /// Which tokens' hidden states are averaged.
    pub pooling: Pooling,
    /// Whether a token sees those after it.
    pub attention: Attention,
    /// The most tokens, with those of the template.
    pub max_length: usize,
    /// BLAKE3 of `tokenizer.json`.
    pub tokenizer_blake3: String,
    /// Width of the LLM's vectors.
    pub width: i64,
    /// What the LLM computed in.
    pub precision: Precision,
    /// The LLM's folder: in the export when it begins with `llm/`, else where it was when the model was trained.
    pub model: PathBuf,
    /// Whether its weights are in the folder or drawn from `seed`.
    pub init: Init,
    /// The seed of weights that are drawn.
    pub seed: u64,
    /// LoRAs in this folder, in the order in which they are put on the LLM.
    pub adapters: Vec<String>,
    /// Everything that the vectors of the training depended on, by name; `weights` is the digest of the LLM's.
    pub provenance: BTreeMap<String, String>,
}

/// The adapter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AdapterSizes {
    /// Residual blocks.
    pub blocks: i64,
    /// The hidden width of a block relative to the input.
    pub expansion: i64,
    /// Whether the LLM's vector is normalised first.
    pub l2_norm: bool,
}

impl Description {
    /// Of what is being exported. `digests` are those of what it is made of and of its weights.
    pub(super) fn new(
        trained: &Trained,
        config: &VisionConfig,
        llm: &Llm,
        (made_of, weights_blake3): (String, String),
    ) -> Result<Self, ExportError> {
        let manifest = &trained.checkpoint.manifest;
        let adapter = trained.adapter()?;
        let mut description = Self {
            schema: SCHEMA,
            fingerprint: String::new(),
            made_of,
            weights_blake3,
            checkpoint: Origin {
                job: manifest.job.to_string(),
                step: manifest.step,
                recipe_fingerprint: manifest.recipe_fingerprint.clone(),
                data: manifest.data.sources.clone(),
            },
            image: Images {
                architecture: config.architecture().to_owned(),
                size: config.image_size(),
                mean: MEAN,
                std: STD,
                activation: config.activation().to_owned(),
            },
            text: texts(trained, llm)?,
            adapter: AdapterSizes {
                blocks: adapter.blocks as i64,
                expansion: adapter.expansion as i64,
                l2_norm: adapter.l2_norm,
            },
            shared_width: config.width(),
            logit_scale: trained.parameter("logit_scale")?.exp().double_value(&[]),
            logit_bias: trained.logit_bias()?.map(|bias| bias.double_value(&[])),
        };
        description.fingerprint = description.digest();
        Ok(description)
    }

    /// BLAKE3 of all but the fingerprint.
    fn digest(&self) -> String {
        let bare = Self { fingerprint: String::new(), ..self.clone() };
        blake3::hash(&serde_json::to_vec(&bare).expect("a description is JSON")).to_string()
    }

    pub(super) fn write(&self, folder: &Path) -> Result<(), ExportError> {
        files::write_json(&folder.join(FILE), self)
    }

    /// The LLM's settings, with `llm` or the folder that the export names; relative ones are of the export.
    pub fn text_model(&self, export: &Path, llm: Option<&Path>) -> TextModel {
        let text = &self.text;
        let folder = match llm {
            Some(folder) => folder.to_owned(),
            None if text.model.starts_with(super::llm::FOLDER) => export.join(&text.model),
            None => text.model.clone(),
        };
        let adapters = text.adapters.iter().map(|place| export.join(place)).collect();
        TextModel {
            folder,
            init: text.init,
            attention: text.attention,
            template: text.template.clone(),
            pooling: text.pooling,
            max_length: text.max_length,
            adapters,
        }
    }
}

fn texts(trained: &Trained, llm: &Llm) -> Result<Texts, ExportError> {
    let (recipe, spec) = (&trained.recipe, trained.encoder()?);
    let provenance = Provenance::of_encoder(&spec, recipe.seed, recipe.embed_precision())?;
    Ok(Texts {
        tokenizer_blake3: files::digest(&spec.folder.join("tokenizer.json"))?,
        template: spec.template,
        pooling: spec.pooling,
        attention: spec.attention,
        max_length: spec.max_length,
        width: trained.text_width()?,
        precision: recipe.embed_precision(),
        model: llm.model.as_ref().map_or(spec.folder, |(place, _)| PathBuf::from(place)),
        init: spec.init,
        seed: recipe.seed,
        adapters: llm.adapters.iter().map(|(place, _)| place.clone()).collect(),
        provenance: provenance.to_metadata().into_iter().collect(),
    })
}

/// Reads an export's description.
///
/// # Errors
/// When there is none, or it is damaged, was changed, or is of another version.
pub fn read(folder: &Path) -> Result<Description, ExportError> {
    let path = folder.join(FILE);
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Err(ExportError::NotDescribed { path: folder.to_owned() });
        }
        Err(error) => return Err(io("read", path)(error)),
    };
    let unfit = |reason: String| ExportError::Document { path: path.clone(), reason };
    let document: serde_json::Value = serde_json::from_str(&text).map_err(|error| unfit(error.to_string()))?;
    if document["schema"] != SCHEMA {
        return Err(unfit(format!("its schema is {}, this program reads {SCHEMA}: update it", document["schema"])));
    }
    let description: Description = serde_json::from_value(document).map_err(|error| unfit(error.to_string()))?;
    if description.fingerprint != description.digest() {
        return Err(unfit(
            "it was changed since it was written, and its fingerprint does not fit any more. Export the model again; where \
             the LLM lies is said by --llm"
                .to_owned(),
        ));
    }
    Ok(description)
}
