//! Captions to token ids: the template around the caption, the tokenizer's own special tokens, and which tokens are
//! averaged.

use super::ModelError;
use common::recipe::Pooling;
use std::{
    ops::Range,
    path::{Path, PathBuf},
};
use tokenizers::Tokenizer;

const PLACEHOLDER: &str = "{caption}";

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
    path: PathBuf,
    tokenizer: Tokenizer,
    before: String,
    after: String,
    // What the tokenizer's post-processor puts around a text.
    first: Vec<u32>,
    last: Vec<u32>,
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
        let path = folder.join("tokenizer.json");
        let bytes = std::fs::read(&path).map_err(|source| ModelError::Read { path: path.clone(), source })?;
        let unusable = |reason: String| ModelError::Tokenizer { path: path.clone(), reason };
        let mut tokenizer = Tokenizer::from_bytes(bytes).map_err(|err| unusable(err.to_string()))?;
        // Cutting and padding are done here and by the caller, whatever the file asks for.
        tokenizer.with_truncation(None).map_err(|err| unusable(err.to_string()))?.with_padding(None);
        let (first, last) = special_tokens(&tokenizer).map_err(unusable)?;
        let (before, after) = (before.to_owned(), after.to_owned());
        let opened = Self { path, tokenizer, before, after, first, last, max_length, pooling };
        // Around a letter, not around nothing: spaces on both sides of nothing would make a token of their own.
        let around = opened.pieces("a")?;
        let overhead = around.total() - around.caption.len();
        if overhead >= max_length {
            return Err(ModelError::MaxLength { max_length, overhead });
        }
        Ok(opened)
    }

    /// The caption's tokens. One that is too long loses its end; template and special tokens stay.
    pub fn encode(&self, caption: &str) -> Result<Encoded, ModelError> {
        let mut pieces = self.pieces(caption)?;
        let excess = pieces.total().saturating_sub(self.max_length);
        if excess > pieces.caption.len() {
            // The template's own tokens may be more than they are around a letter.
            return Err(ModelError::MaxLength {
                max_length: self.max_length,
                overhead: pieces.total() - pieces.caption.len(),
            });
        }
        let kept = pieces.caption.len() - excess;
        pieces.caption.truncate(kept);
        let (total, start) = (pieces.total(), pieces.first.len() + pieces.before.len());
        let span = match self.pooling {
            Pooling::Mean => 0..total,
            Pooling::MeanCaption => start..total - pieces.last.len(),
        };
        if span.is_empty() {
            return Err(ModelError::EmptyCaption { caption: caption.to_owned() });
        }
        Ok(Encoded { ids: pieces.concat(), span })
    }

    /// Tokenises the whole text at once, as a model reads it, and cuts the tokens at the caption's bytes. A token that
    /// holds bytes of the caption is the caption's.
    fn pieces(&self, caption: &str) -> Result<Pieces<'_>, ModelError> {
        let text = format!("{}{caption}{}", self.before, self.after);
        let encoding = self
            .tokenizer
            .encode(text, false)
            .map_err(|err| ModelError::Tokenizer { path: self.path.clone(), reason: format!("{caption:?}: {err}") })?;
        let (ids, offsets) = (encoding.get_ids(), encoding.get_offsets());
        let (from, to) = (self.before.len(), self.before.len() + caption.len());
        let start = offsets.iter().take_while(|(_, end)| *end <= from).count();
        let end = start + offsets[start..].iter().take_while(|(begin, _)| *begin < to).count();
        Ok(Pieces {
            first: &self.first,
            before: ids[..start].to_vec(),
            caption: ids[start..end].to_vec(),
            after: ids[end..].to_vec(),
            last: &self.last,
        })
    }
}

/// A sequence's parts in order.
struct Pieces<'a> {
    first: &'a [u32],
    before: Vec<u32>,
    caption: Vec<u32>,
    after: Vec<u32>,
    last: &'a [u32],
}

impl Pieces<'_> {
    fn total(&self) -> usize {
        self.first.len() + self.before.len() + self.caption.len() + self.after.len() + self.last.len()
    }

    fn concat(&self) -> Vec<u32> {
        [self.first, &self.before, &self.caption, &self.after, self.last].concat()
    }
}

/// What the post-processor puts before and after a text's own tokens.
fn special_tokens(tokenizer: &Tokenizer) -> Result<(Vec<u32>, Vec<u32>), String> {
    let ids = |special| {
        let encoding = tokenizer.encode("a", special).map_err(|err| err.to_string())?;
        Ok::<_, String>(encoding.get_ids().to_vec())
    };
    let (plain, whole) = (ids(false)?, ids(true)?);
    if plain.is_empty() {
        return Err("it makes no token of the text \"a\"".to_owned());
    }
    let at = whole
        .windows(plain.len())
        .position(|window| window == plain)
        .ok_or("its post_processor changes the text's own tokens, which is not supported")?;
    Ok((whole[..at].to_vec(), whole[at + plain.len()..].to_vec()))
}

#[cfg(test)]
mod tests;
