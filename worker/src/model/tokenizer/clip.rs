//! Captions to the token ids of a CLIP text tower.

use super::{Encoded, TextTokenizer};
use crate::model::{ModelError, clip_text::ClipTextConfig};
use std::path::Path;

/// The tokenizer of a CLIP text tower: a begin token, the text, an end token; a text that is too long loses its last tokens, and
/// keeps the end.
#[derive(Debug)]
pub struct ClipTokenizer {
    tokenizer: TextTokenizer,
    longest: usize,
}

impl ClipTokenizer {
    /// Opens `folder/tokenizer.json`, which must be of this tower: it ends every text where the tower looks for the end.
    ///
    /// # Errors
    /// When the file is missing or of another model.
    pub fn open(folder: &Path, config: &ClipTextConfig) -> Result<Self, ModelError> {
        let rows = u32::try_from(config.vocab_size).expect("a vocabulary has fewer than 2^32 tokens");
        let tokenizer = TextTokenizer::open(folder)?.within(rows)?;
        let longest = usize::try_from(config.max_position_embeddings).expect("it is positive");
        let unusable = |reason: String| ModelError::Tokenizer { path: tokenizer.path().to_owned(), reason };
        let around = tokenizer.first().len() + tokenizer.last().len();
        if around >= longest {
            return Err(unusable(format!(
                "it puts {around} tokens around a text, and config.json has room for {longest}"
            )));
        }
        let text = tokenizer.tokens_with_ends("a")?;
        if tokenizer.last().is_empty() || config.end(&text) + tokenizer.last().len() != text.len() {
            return Err(unusable(format!(
                "it makes {text:?} of the text \"a\", and CLIP's text tower reads what stands at the end token (`eos_token_id` of \
                 config.json is {}): take tokenizer.json and config.json of the same model",
                config.eos_token_id
            )));
        }
        Ok(Self { tokenizer, longest })
    }

    /// A text's tokens, all of which are read.
    ///
    /// # Errors
    /// When the tokenizer fails, or makes a token that the tower does not have.
    pub fn encode(&self, text: &str) -> Result<Encoded, ModelError> {
        let mut ids = self.tokenizer.tokens_with_ends(text)?;
        let behind = self.tokenizer.last().len();
        if ids.len() > self.longest {
            ids.drain(self.longest - behind..ids.len() - behind);
        }
        Ok(Encoded { span: 0..ids.len(), ids })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::config;
    use std::path::PathBuf;

    fn tiny() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs/models/clip-text-tiny")
    }

    #[test]
    fn ids_are_those_of_transformers() {
        let config: ClipTextConfig = config::read(&tiny()).unwrap();
        let tokenizer = ClipTokenizer::open(&tiny(), &config).unwrap();
        let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/text/clip-tokens.json");
        let golden: Vec<(String, Vec<u32>)> = serde_json::from_slice(&std::fs::read(golden).unwrap()).unwrap();
        assert!(golden.len() > 100 && golden.iter().any(|(_, ids)| ids.len() == 77));
        for (text, ids) in golden {
            assert_eq!(tokenizer.encode(&text).unwrap().ids, ids, "{text:?}");
        }
    }

    #[test]
    fn a_tokenizer_of_another_model_is_refused() {
        let config: ClipTextConfig = config::read(&tiny()).unwrap();
        let check = |folder: &Path, config: &ClipTextConfig, expected: &str| {
            let error = ClipTokenizer::open(folder, config).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        };
        check(
            &tiny(),
            &ClipTextConfig { eos_token_id: 1021, ..config.clone() },
            "`eos_token_id` of config.json is 1021",
        );
        check(&tiny(), &ClipTextConfig { vocab_size: 1000, ..config.clone() }, "the model's token table has 1000 rows");
        check(&tiny(), &ClipTextConfig { max_position_embeddings: 2, ..config.clone() }, "config.json has room for 2");
        let llama = tiny().join("../llama-tiny");
        check(&llama, &ClipTextConfig { vocab_size: 4096, ..config }, "the end token");
    }
}
