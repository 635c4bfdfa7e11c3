//! Captions to the token ids of a CLIP text tower.
//!
//! CLIP splits a text into words by an expression of its own, which the library's reader of files does not run, and a word's last
//! symbol is another than the same one within it (`a</w>`), which the library forgets of a byte that it merges with nothing. Here the
//! file's expression runs before the library, which is given a word at a time, and such a last byte is put right. So a text that
//! spells `<|endoftext|>` has no end there: it is read as the letters that it is.

use super::{Encoded, TextTokenizer};
use crate::model::{ModelError, clip_text::ClipTextConfig};
use serde_json::{Value, json};
use std::{collections::HashMap, path::Path};
use tokenizers::utils::{SysRegex, recognize};

/// What a file's split looks for once its expression is taken out: of the code points that mean nothing to anybody.
const MARK: char = '\u{e000}';

/// The tokenizer of a CLIP text tower: a begin token, the text, an end token; a text that is too long loses its last tokens, and
/// keeps the end.
#[derive(Debug)]
pub struct ClipTokenizer {
    tokenizer: TextTokenizer,
    /// Absent where the library splits texts itself.
    words: Option<Words>,
    longest: usize,
}

impl ClipTokenizer {
    /// Opens `folder/tokenizer.json`, which must be of this tower: it ends every text where the tower looks for the end.
    ///
    /// # Errors
    /// When the file is missing or of another model.
    pub fn open(folder: &Path, config: &ClipTextConfig) -> Result<Self, ModelError> {
        let rows = u32::try_from(config.vocab_size).expect("a vocabulary has fewer than 2^32 tokens");
        let mut found = None;
        let tokenizer = TextTokenizer::open_changed(folder, |json| {
            let mut document: Value = serde_json::from_str(&json).map_err(|error| error.to_string())?;
            let suffix = document["model"]["end_of_word_suffix"].as_str().unwrap_or_default().to_owned();
            let Some(words) = split_at_marks(&mut document) else { return Ok(json) };
            found = Some((SysRegex::new(&words).map_err(|error| error.to_string())?, suffix));
            Ok(document.to_string())
        });
        let tokenizer = tokenizer?.within(rows)?;
        let words = found.map(|(expression, suffix)| {
            let vocabulary = tokenizer.vocabulary(rows);
            let bytes = vocabulary.iter().filter(|(token, _)| !suffix.is_empty() && token.chars().count() == 1);
            let ending = |(token, id): (&String, &u32)| Some((*id, *vocabulary.get(&format!("{token}{suffix}"))?));
            Words { expression, endings: bytes.filter_map(ending).collect() }
        });
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
        Ok(Self { tokenizer, words, longest })
    }

    /// A text's tokens, all of which are read.
    ///
    /// # Errors
    /// When the tokenizer fails, or makes a token that the tower does not have.
    pub fn encode(&self, text: &str) -> Result<Encoded, ModelError> {
        let mut ids = match &self.words {
            None => self.tokenizer.tokens_with_ends(text)?,
            Some(words) => words.encode(text, &self.tokenizer)?,
        };
        let behind = self.tokenizer.last().len();
        if ids.len() > self.longest {
            ids.drain(self.longest - behind..ids.len() - behind);
        }
        Ok(Encoded { span: 0..ids.len(), ids })
    }
}

/// How a text becomes words, and a word's last byte another token.
#[derive(Debug)]
struct Words {
    expression: SysRegex,
    /// From a byte's token to that of the same byte at a word's end.
    endings: HashMap<u32, u32>,
}

impl Words {
    fn encode(&self, text: &str, tokenizer: &TextTokenizer) -> Result<Vec<u32>, ModelError> {
        let text = tokenizer.normalised(text)?;
        let mut ids = tokenizer.first().to_vec();
        for (start, end) in self.expression.find_iter(&text) {
            ids.extend(tokenizer.tokens(&text[start..end])?);
            if let Some(last) = ids.last_mut()
                && let Some(ending) = self.endings.get(last)
            {
                *last = *ending;
            }
        }
        ids.extend(tokenizer.last());
        Ok(ids)
    }
}

/// Puts a split at marks in the place of the first one of a file, if that keeps what an expression matches and the library does not
/// run it; returns the expression.
fn split_at_marks(document: &mut Value) -> Option<String> {
    let steps = &mut document["pre_tokenizer"];
    let split = if steps["type"] == "Sequence" { steps["pretokenizers"].get_mut(0)? } else { steps };
    let keeps = split["type"] == "Split" && split["behavior"] == "Removed" && split["invert"] == true;
    let words = split["pattern"]["Regex"].as_str().filter(|words| keeps && recognize(words).is_none())?.to_owned();
    *split = json!({ "type": "Split", "pattern": { "String": MARK }, "behavior": "Removed", "invert": false });
    Some(words)
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
