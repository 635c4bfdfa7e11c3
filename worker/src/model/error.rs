//! What is wrong with a model folder.

use std::path::PathBuf;

/// Why a model cannot be built or read. The message names the file, what is wrong with it, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// A file could not be read.
    #[error("could not read {path}: {source}; a model folder needs this file")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// `config.json` lacks a field, or asks for what is not supported.
    #[error("{path} does not describe a supported model: {source}")]
    Config {
        /// The file.
        path: PathBuf,
        /// The field and what is wrong with it.
        source: serde_json::Error,
    },
    /// A weights file or its index is damaged, or holds numbers of an unsupported type.
    #[error("{path} cannot be used: {reason}; fetch or convert the file again")]
    WeightsFile {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A folder without weights.
    #[error(
        "{folder} holds no *.safetensors, nor a *.pt, *.pth or *.bin of torch.save; put the weights there, or set \
         init = \"random\""
    )]
    NoWeights {
        /// The folder.
        folder: PathBuf,
    },
    /// Names on one side without a partner on the other.
    #[error(
        "the weights in {folder} do not fit config.json: {}; take the weights and the config.json of the same model",
        mismatch(missing, unexpected)
    )]
    Names {
        /// The folder.
        folder: PathBuf,
        /// Parameters of the model that no file holds, sorted.
        missing: Vec<String>,
        /// Tensors in the files that the model does not have, sorted.
        unexpected: Vec<String>,
    },
    /// A tensor of another size than the configuration says.
    #[error(
        "{name} in {path} has shape {found:?}, but config.json asks for {expected:?}; they are of different models"
    )]
    Shape {
        /// The weights file.
        path: PathBuf,
        /// The tensor's name in the file.
        name: String,
        /// Its shape in the file.
        found: Vec<i64>,
        /// The shape that the model needs.
        expected: Vec<i64>,
    },
    /// A file could not be written.
    #[error("could not write {path}: {source}")]
    Write {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// Settings that make no LoRA on this model.
    #[error("no LoRA can be put on this model: {reason}; correct the LoRA's settings")]
    LoraSettings {
        /// What is wrong.
        reason: String,
    },
    /// A folder's LoRA is not of this model, or not supported.
    #[error(
        "the LoRA in {folder} cannot be put on this model: {reason}; take the LoRA that was trained on this model, or \
         merge it with the library that made it"
    )]
    Lora {
        /// The folder.
        folder: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// More unlocked groups than there are.
    #[error(
        "{unlocked} groups of the vision tower are to be unlocked, and it has {groups}; lower `lock.vision_unlocked_groups` of \
         the stage, or leave `lock.vision` out"
    )]
    LockGroups {
        /// As the recipe has it.
        unlocked: u32,
        /// Of the tower.
        groups: i64,
    },
    /// `tokenizer.json` cannot be used.
    #[error("{path} cannot be used as a tokenizer: {reason}")]
    Tokenizer {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The recipe's template is none.
    #[error(
        "the template {template:?} holds {found} times `{{caption}}`; write it exactly once, in [model.text] template"
    )]
    Template {
        /// The template as given.
        template: String,
        /// How often the placeholder occurs.
        found: usize,
    },
    /// No room for a caption.
    #[error(
        "max_length = {max_length} leaves no room for a caption: the template and the special tokens take {overhead} \
         tokens; set max_length in [model.text] to {} or more",
        overhead + 1
    )]
    MaxLength {
        /// The recipe's limit in tokens.
        max_length: usize,
        /// Tokens around the caption.
        overhead: usize,
    },
    /// A model folder with the body alone.
    #[error(
        "{folder} has no lm_head.weight: masked next-token prediction needs the language model, not its body alone; take the \
         folder of the `ForCausalLM` model"
    )]
    NoHead {
        /// The folder.
        folder: PathBuf,
    },
    /// A mask token that the vocabulary does not have.
    #[error("{token:?} is no token of {path}; set `mask.token` of the stage to one of its vocabulary")]
    MaskToken {
        /// The token.
        token: String,
        /// The tokenizer.
        path: PathBuf,
    },
    /// A token that the model has no row for.
    #[error(
        "{path} gives {token:?} the id {id}, and the model's token table has {rows} rows, 0 to {}: the tokenizer is another \
         model's, or tokens were added to it and not to the table; put the model's own tokenizer.json into its folder",
        rows.saturating_sub(1)
    )]
    TokenBeyondTable {
        /// The tokenizer.
        path: PathBuf,
        /// The token, or the text that has it.
        token: String,
        /// Its id.
        id: u32,
        /// Rows of the table.
        rows: u32,
    },
    /// A caption of which nothing can be averaged.
    #[error("the caption {caption:?} has no token to average; leave it out of the data set")]
    EmptyCaption {
        /// The caption.
        caption: String,
    },
    /// libtorch refused an operation.
    #[error("libtorch: {0}")]
    Torch(#[from] tch::TchError),
}

// How many names a message spells out.
const NAMED: usize = 20;

pub(super) fn mismatch(missing: &[String], unexpected: &[String]) -> String {
    let side = |names: &[String], what: &str| {
        let more = names.len().saturating_sub(NAMED);
        let listed = names.iter().take(NAMED).map(String::as_str).collect::<Vec<_>>().join(", ");
        let rest = if more > 0 { format!(" and {more} more") } else { String::new() };
        format!("{} {what}: {listed}{rest}", names.len())
    };
    let mut sides = Vec::new();
    if !missing.is_empty() {
        sides.push(side(missing, "missing"));
    }
    if !unexpected.is_empty() {
        sides.push(side(unexpected, "unexpected"));
    }
    sides.join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_sides_are_listed_up_to_twenty_names() {
        let missing: Vec<String> = (0..23).map(|i| format!("layers.{i}")).collect();
        let message = ModelError::Names { folder: "m".into(), missing, unexpected: vec!["odd".into()] }.to_string();
        assert!(message.contains("23 missing: layers.0, "), "{message}");
        assert!(message.contains("layers.19 and 3 more; 1 unexpected: odd"), "{message}");
        assert!(!message.contains("layers.20"), "{message}");
    }
}
