//! Captions to token ids: the template around the caption, the tokenizer's own special tokens, and which tokens are
//! averaged.
//!
//! Of a caption as many tokens are averaged as it has by itself, with what the template puts behind it: so the reference
//! counts (`llm2vec.py`, `embed_mask`). In its template a caption may have fewer, where its first letters make one token with
//! the template's last; then the average begins that much earlier, there as here.

mod clip;
mod plain;

pub use clip::ClipTokenizer;
pub use plain::TextTokenizer;

use super::ModelError;
use common::recipe::Pooling;
use std::{ops::Range, path::Path};

const PLACEHOLDER: &str = "{caption}";

/// What stands between an instruction and its caption.
const AFTER_INSTRUCTION: &str = "; ";

/// A caption as the LLM reads it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Encoded {
    /// At most `max_length` ids, special tokens and template included.
    pub ids: Vec<u32>,
    /// The positions whose hidden states are averaged; never empty.
    pub span: Range<usize>,
}

/// A tokenizer with a template, a limit and a span.
#[derive(Debug)]
pub struct CaptionTokenizer {
    tokenizer: TextTokenizer,
    before: String,
    after: String,
    /// Tokens of `after` behind a letter.
    after_tokens: usize,
    max_length: usize,
    pooling: Pooling,
}

impl CaptionTokenizer {
    /// Opens `folder/tokenizer.json`. `template` holds `{caption}` exactly once; `max_length` counts all tokens.
    pub fn open(folder: &Path, template: &str, max_length: usize, pooling: Pooling) -> Result<Self, ModelError> {
        let parts: Vec<&str> = template.split(PLACEHOLDER).collect();
        let &[before, after] = parts.as_slice() else {
            return Err(ModelError::Template { template: template.to_owned(), found: parts.len() - 1 });
        };
        let tokenizer = TextTokenizer::open(folder)?;
        // Around a letter, not around nothing: spaces on both sides of nothing would make a token of their own.
        let letter = tokenizer.tokens("a")?.len();
        let after_tokens = tokenizer.tokens(&format!("a{after}"))?.len().saturating_sub(letter);
        let around = tokenizer.tokens(&format!("{before}a{after}"))?.len().saturating_sub(letter);
        let overhead = tokenizer.first().len() + around + tokenizer.last().len();
        if overhead >= max_length {
            return Err(ModelError::MaxLength { max_length, overhead });
        }
        let (before, after) = (before.to_owned(), after.to_owned());
        Ok(Self { tokenizer, before, after, after_tokens, max_length, pooling })
    }

    /// See [`TextTokenizer::within`].
    ///
    /// # Errors
    /// When the vocabulary is larger than the table, or the template has a token beyond it.
    pub fn within(mut self, rows: u32) -> Result<Self, ModelError> {
        self.tokenizer = self.tokenizer.within(rows)?;
        self.encode("a")?;
        Ok(self)
    }

    /// The caption's tokens. One that is too long loses its end; template and special tokens stay.
    pub fn encode(&self, caption: &str) -> Result<Encoded, ModelError> {
        self.encode_behind("", caption)
    }

    /// As [`CaptionTokenizer::encode`], with an instruction before the caption, which is read and not averaged (with
    /// [`Pooling::MeanCaption`]).
    pub fn encode_query(&self, instruction: &str, caption: &str) -> Result<Encoded, ModelError> {
        self.encode_behind(&format!("{instruction}{AFTER_INSTRUCTION}"), caption)
    }

    fn encode_behind(&self, prefix: &str, caption: &str) -> Result<Encoded, ModelError> {
        let Self { before, after, tokenizer, .. } = self;
        let mut ids = tokenizer.tokens_with_ends(&format!("{before}{prefix}{caption}{after}"))?;
        let alone =
            if caption.is_empty() { self.after_tokens } else { tokenizer.tokens(&format!("{caption}{after}"))?.len() };
        let behind = self.after_tokens + tokenizer.last().len();
        let excess = ids.len().saturating_sub(self.max_length);
        let own = alone.saturating_sub(self.after_tokens);
        if excess > own || excess + behind > ids.len() {
            // The template's own tokens may be more than they are around a letter.
            let overhead = ids.len() - own.min(ids.len());
            return Err(ModelError::MaxLength { max_length: self.max_length, overhead });
        }
        let kept = ids.len() - behind - excess;
        ids.drain(kept..kept + excess);
        let span = match self.pooling {
            Pooling::Mean => 0..ids.len(),
            Pooling::MeanCaption => {
                let end = ids.len() - tokenizer.last().len();
                end.saturating_sub(alone - excess).max(tokenizer.first().len())..end
            }
        };
        if span.is_empty() {
            return Err(ModelError::EmptyCaption { caption: caption.to_owned() });
        }
        Ok(Encoded { ids, span })
    }
}

#[cfg(test)]
mod golden;
#[cfg(test)]
mod tests;
