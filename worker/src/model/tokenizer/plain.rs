//! Texts to token ids, and nothing around them.

use crate::model::ModelError;
use std::{
    collections::HashMap,
    path::{Path, PathBuf},
};
use tokenizers::pipeline::{
    EncodeOptions, Normalizer as _, NormalizerChain, Override, PipelineToken, PipelineTokenizer,
};

/// The tokenizer of a model folder. Cutting and padding are the caller's, whatever the file asks for.
#[derive(Clone)]
pub struct TextTokenizer {
    path: PathBuf,
    pipeline: PipelineTokenizer,
    // What the file's post-processor puts around a text.
    first: Vec<u32>,
    last: Vec<u32>,
    // Ids from here on have no row in the model's token table.
    rows: u32,
}

impl std::fmt::Debug for TextTokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TextTokenizer").field("path", &self.path).finish_non_exhaustive()
    }
}

impl TextTokenizer {
    /// Opens `folder/tokenizer.json`.
    ///
    /// # Errors
    /// When the file is missing, or describes a tokenizer that is not supported.
    pub fn open(folder: &Path) -> Result<Self, ModelError> {
        Self::open_changed(folder, Ok)
    }

    /// As [`TextTokenizer::open`], of what `change` makes of the file's text.
    pub(super) fn open_changed(
        folder: &Path,
        change: impl FnOnce(String) -> Result<String, String>,
    ) -> Result<Self, ModelError> {
        let path = folder.join("tokenizer.json");
        let json = std::fs::read_to_string(&path).map_err(|source| ModelError::Read { path: path.clone(), source })?;
        let unusable = |reason: String| ModelError::Tokenizer { path: path.clone(), reason };
        // Files of older versions of the library say some things in other ways.
        let json = tokenizers::canonicalize_str(&json).map_err(|error| unusable(error.to_string()))?;
        let json = change(json).map_err(unusable)?;
        let pipeline = tokenizers::from_json(&json).map_err(|error| unusable(error.to_string()))?;
        let mut opened = Self { path: path.clone(), pipeline, first: Vec::new(), last: Vec::new(), rows: u32::MAX };
        (opened.first, opened.last) = opened.around()?;
        Ok(opened)
    }

    /// The tokenizer for a model whose token table has `rows` rows: from now on a token without one is an error, before a device
    /// looks it up.
    ///
    /// # Errors
    /// When the vocabulary is larger than the table: then it is another model's.
    pub fn within(mut self, rows: u32) -> Result<Self, ModelError> {
        self.rows = rows;
        if let Some(token) = self.pipeline.get_model().id_to_token(rows) {
            return Err(self.beyond(&token, rows));
        }
        let around = self.first.iter().chain(&self.last);
        around.copied().try_for_each(|id| self.check(id, "a token around every text"))?;
        Ok(self)
    }

    fn check(&self, id: u32, what: &str) -> Result<(), ModelError> {
        if id < self.rows { Ok(()) } else { Err(self.beyond(what, id)) }
    }

    fn beyond(&self, token: &str, id: u32) -> ModelError {
        ModelError::TokenBeyondTable { path: self.path.clone(), token: token.to_owned(), id, rows: self.rows }
    }

    /// Every token of the first `rows` ids.
    pub(super) fn vocabulary(&self, rows: u32) -> HashMap<String, u32> {
        let model = self.pipeline.get_model();
        (0..rows).filter_map(|id| Some((model.id_to_token(id)?.to_string(), id))).collect()
    }

    /// A text as it is before it is split.
    pub(super) fn normalised(&self, text: &str) -> Result<String, ModelError> {
        let normalised = NormalizerChain(self.pipeline.get_normalizers()).normalize(text, 0);
        Ok(normalised.map_err(|error| self.failed(text, error.as_ref()))?.into_owned())
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What belongs before a text's own tokens, such as Llama 3's begin token.
    pub fn first(&self) -> &[u32] {
        &self.first
    }

    /// What belongs after them.
    pub fn last(&self) -> &[u32] {
        &self.last
    }

    /// A text's own tokens.
    pub fn tokens(&self, text: &str) -> Result<Vec<u32>, ModelError> {
        self.encode(text, false)
    }

    /// A text's tokens with what belongs around them.
    pub fn tokens_with_ends(&self, text: &str) -> Result<Vec<u32>, ModelError> {
        Ok([self.first.as_slice(), &self.tokens(text)?, &self.last].concat())
    }

    /// The id of a token of the vocabulary, spelt as the vocabulary spells it, or of a text that is one token. `vocabulary` is
    /// how many ids there are.
    pub fn id(&self, token: &str, vocabulary: u32) -> Option<u32> {
        let model = self.pipeline.get_model();
        let spelt = (0..vocabulary).find(|id| model.id_to_token(*id).is_some_and(|found| found == token));
        spelt.or_else(|| match self.tokens(token).ok()?[..] {
            [id] => Some(id),
            _ => None,
        })
    }

    /// The text of tokens, special ones too.
    pub fn text(&self, ids: &[u32]) -> Result<String, ModelError> {
        self.pipeline.decode(ids, false).map_err(|error| self.failed(&format!("{ids:?}"), error.as_ref()))
    }

    fn encode(&self, text: &str, add_special_tokens: bool) -> Result<Vec<u32>, ModelError> {
        let options = EncodeOptions {
            add_special_tokens,
            padding: Override::Off,
            truncation: Override::Off,
            ..EncodeOptions::default()
        };
        // English has about four bytes a token.
        let mut ids = Vec::with_capacity(text.len() / 3 + 2);
        self.pipeline.encode_into(text, &options, &mut ids).map_err(|error| self.failed(text, error.as_ref()))?;
        let ids: Vec<u32> = ids.into_iter().map(PipelineToken::id).collect();
        let highest = ids.iter().copied().max().unwrap_or(0);
        self.check(highest, text)?;
        Ok(ids)
    }

    fn failed(&self, what: &str, error: &dyn std::fmt::Display) -> ModelError {
        ModelError::Tokenizer { path: self.path.clone(), reason: format!("{what:?}: {error}") }
    }

    /// What the post-processor puts before and after a text's own tokens.
    fn around(&self) -> Result<(Vec<u32>, Vec<u32>), ModelError> {
        let unusable = |reason: &str| ModelError::Tokenizer { path: self.path.clone(), reason: reason.to_owned() };
        let (plain, whole) = (self.encode("a", false)?, self.encode("a", true)?);
        if plain.is_empty() {
            return Err(unusable("it makes no token of the text \"a\""));
        }
        let at = whole.windows(plain.len()).position(|window| window == plain);
        let at =
            at.ok_or_else(|| unusable("its post_processor changes the text's own tokens, which is not supported"))?;
        Ok((whole[..at].to_vec(), whole[at + plain.len()..].to_vec()))
    }
}
