//! The ids of every text of the repository, beside those of the release that models are trained with
//! (`tests/golden/text/make_tokens.py`).

use super::*;
use crate::data::{Documents, Places, tests::storage};
use common::recipe::IndexPlace;
use serde::Deserialize;
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

#[derive(Deserialize)]
struct Golden {
    #[serde(rename = "llama3-style")]
    llama3_style: Ids,
    demo: Ids,
    rendered: Vec<Rendered>,
}

#[derive(Deserialize)]
struct Ids {
    plain: BTreeMap<String, Digest>,
    special: BTreeMap<String, Digest>,
    hard: Vec<(String, Vec<u32>)>,
}

#[derive(Debug, PartialEq, Eq, Deserialize)]
struct Digest {
    texts: usize,
    bytes: usize,
    tokens: usize,
    crc32: Vec<u32>,
}

/// A caption in a template, as the reference makes it.
#[derive(Deserialize)]
struct Rendered {
    template: String,
    instruction: Option<String>,
    caption: String,
    ids: Vec<u32>,
    own: usize,
}

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests")
}

fn golden() -> Golden {
    serde_json::from_slice(&std::fs::read(fixtures().join("golden/text/tokens.json")).unwrap()).unwrap()
}

fn corpora(hard: &[(String, Vec<u32>)]) -> BTreeMap<String, Vec<String>> {
    let index = tempfile::tempdir().unwrap();
    let read = |file: &str, column: &str| -> Vec<String> {
        let places = Places::new(&IndexPlace::Folder(index.path().to_owned()));
        let documents =
            Documents::open(&storage(), &[fixtures().join("data/emoji").join(file).into()], column, &places).unwrap();
        (0..documents.len()).map(|row| documents.text(row).unwrap()).collect()
    };
    let glosses = read("text-train.parquet", "text");
    let texts = [
        ("joined", vec![glosses.concat()]),
        ("text-train", glosses),
        ("text-validation", read("text-validation.parquet", "text")),
        ("raw_caption", read("emoji-dense-train.parquet", "raw_caption")),
        ("long_caption", read("emoji-dense-train.parquet", "long_caption")),
        ("hard", hard.iter().map(|(text, _)| text.clone()).collect()),
    ];
    texts.into_iter().map(|(name, texts)| (name.to_owned(), texts)).collect()
}

fn digest(texts: &[String], encode: impl Fn(&str) -> Vec<u32>) -> Digest {
    let mut tokens = 0;
    let mut sum = |texts: &[String]| {
        let mut hasher = crc32fast::Hasher::new();
        for text in texts {
            let ids = encode(text);
            tokens += ids.len();
            hasher.update(&(ids.len() as u32).to_le_bytes());
            ids.iter().for_each(|id| hasher.update(&id.to_le_bytes()));
        }
        hasher.finalize()
    };
    let crc32 = texts.chunks(1000).map(&mut sum).collect();
    Digest { texts: texts.len(), bytes: texts.iter().map(String::len).sum(), tokens, crc32 }
}

fn check(folder: &Path, golden: &Ids) {
    let tokenizer = TextTokenizer::open(folder).unwrap();
    for (text, expected) in &golden.hard {
        assert_eq!(&tokenizer.tokens(text).unwrap(), expected, "{text:?}");
    }
    let corpora = corpora(&golden.hard);
    assert_eq!(corpora.len(), golden.plain.len());
    for (name, texts) in &corpora {
        assert_eq!(digest(texts, |text| tokenizer.tokens(text).unwrap()), golden.plain[name], "{name}");
        assert_eq!(digest(texts, |text| tokenizer.tokens_with_ends(text).unwrap()), golden.special[name], "{name}");
    }
}

#[test]
fn a_tokenizer_of_llama_3s_kind_gives_the_ids_of_0_22_for_every_text() {
    check(&fixtures().join("golden/text"), &golden().llama3_style);
}

#[test]
fn the_demos_tokenizer_gives_the_ids_of_0_22_for_every_text() {
    check(&fixtures().join("../configs/models/llama-tiny"), &golden().demo);
}

#[test]
fn captions_in_templates_average_as_many_tokens_as_the_reference_counts() {
    let golden = golden();
    assert!(golden.rendered.len() > 100);
    for Rendered { template, instruction, caption, ids, own } in &golden.rendered {
        let tokenizer =
            CaptionTokenizer::open(&fixtures().join("golden/text"), template, 4096, Pooling::MeanCaption).unwrap();
        let encoded = match instruction {
            Some(instruction) => tokenizer.encode_query(instruction, caption),
            None => tokenizer.encode(caption),
        };
        let encoded = encoded.unwrap();
        assert_eq!(&encoded.ids, ids, "{caption:?}");
        assert_eq!(encoded.span, ids.len() - own..ids.len(), "{caption:?} behind {instruction:?}");
    }
    let shorter = golden.rendered.iter().filter(|rendered| rendered.caption.starts_with('\n'));
    assert!(shorter.count() > 0, "captions that lose a token to their template are among them");
}
