//! Sequences and spans over the demo's tokenizer, which puts one special token before a text.

use super::*;
use serde_json::{Value, json};
use std::{fs, path::PathBuf};

const BEGIN: u32 = 1;

fn demo() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs/models/llama-tiny")
}

fn open(template: &str, max_length: usize, pooling: Pooling) -> Result<CaptionTokenizer, ModelError> {
    CaptionTokenizer::open(&demo(), template, max_length, pooling)
}

fn texts(tokenizer: &CaptionTokenizer, ids: &[u32]) -> Vec<String> {
    ids.iter().map(|id| tokenizer.tokenizer.text(&[*id]).unwrap()).collect()
}

#[test]
fn the_special_token_comes_first_and_mean_takes_all() {
    let tokenizer = open("{caption}", 64, Pooling::Mean).unwrap();
    let encoded = tokenizer.encode("Running shoe").unwrap();
    assert_eq!(encoded.ids[0], BEGIN);
    assert_eq!(texts(&tokenizer, &encoded.ids[1..]), [" running", " shoe"]);
    assert_eq!(encoded.span, 0..3);
}

#[test]
fn mean_caption_takes_the_caption_and_what_follows_it() {
    let tokenizer = open("man: {caption} face.", 64, Pooling::MeanCaption).unwrap();
    let encoded = tokenizer.encode("running shoe").unwrap();
    assert_eq!(texts(&tokenizer, &encoded.ids[encoded.span.clone()]), [" running", " shoe", " face", "."]);
    assert_eq!(texts(&tokenizer, &encoded.ids[1..encoded.span.start]), [" man", ":"]);
}

#[test]
fn a_long_caption_loses_its_end_and_no_token_of_the_template() {
    let whole = open("man: {caption} face.", 64, Pooling::MeanCaption).unwrap();
    let cut = open("man: {caption} face.", 8, Pooling::MeanCaption).unwrap();
    let caption = "running shoe, dark skin tone, hand, sport";
    let (all, some) = (whole.encode(caption).unwrap(), cut.encode(caption).unwrap());
    assert_eq!(some.ids.len(), 8);
    assert_eq!(some.ids[..6], all.ids[..6]);
    assert_eq!(texts(&cut, &some.ids[6..]), [" face", "."]);
    assert_eq!(some.span, 3..8);
}

#[test]
fn every_length_from_the_shortest_caption_to_the_limit_holds() {
    let tokenizer = open("({caption})", 12, Pooling::MeanCaption).unwrap();
    for words in 1..40 {
        let encoded = tokenizer.encode(&vec!["grüße 日本"; words].join(" ")).unwrap();
        assert!(encoded.ids.len() <= 12 && encoded.span.end == encoded.ids.len(), "{words} words: {encoded:?}");
    }
}

#[test]
fn an_empty_caption_is_its_template_or_an_error() {
    let tokenizer = open("man {caption}.", 64, Pooling::MeanCaption).unwrap();
    let encoded = tokenizer.encode("").unwrap();
    assert_eq!(texts(&tokenizer, &encoded.ids[encoded.span]).concat().trim(), ".");
    let error = open("man {caption}", 64, Pooling::MeanCaption).unwrap().encode("").unwrap_err();
    assert!(matches!(error, ModelError::EmptyCaption { .. }), "{error}");
}

#[test]
fn a_template_holds_the_caption_once() {
    for (template, found) in [("a photo", 0), ("{caption} {caption}", 2)] {
        let error = open(template, 64, Pooling::Mean).unwrap_err();
        assert!(matches!(error, ModelError::Template { found: n, .. } if n == found), "{error}");
        assert!(error.to_string().contains("{caption}"), "{error}");
    }
}

#[test]
fn a_limit_without_room_says_how_much_is_needed() {
    let message = open("man: {caption} face.", 5, Pooling::Mean).unwrap_err().to_string();
    assert!(message.contains("take 5 tokens") && message.contains("6 or more"), "{message}");
    assert!(open("man: {caption} face.", 6, Pooling::Mean).is_ok());
}

#[test]
fn a_missing_or_broken_tokenizer_names_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let open = || CaptionTokenizer::open(folder.path(), "{caption}", 8, Pooling::Mean).unwrap_err().to_string();
    assert!(open().contains("tokenizer.json"));
    fs::write(folder.path().join("tokenizer.json"), "{}").unwrap();
    assert!(open().contains("tokenizer.json cannot be used as a tokenizer"));
}

#[test]
fn cutting_and_padding_of_the_file_are_not_obeyed_and_a_closing_token_is_outside_the_caption() {
    let folder = tempfile::tempdir().unwrap();
    let mut file: Value = serde_json::from_slice(&fs::read(demo().join("tokenizer.json")).unwrap()).unwrap();
    file["truncation"] = json!({ "direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0 });
    file["padding"] = json!({ "strategy": { "Fixed": 32 }, "direction": "Right", "pad_to_multiple_of": null,
        "pad_id": 0, "pad_type_id": 0, "pad_token": "<|end_of_text|>" });
    let special = |id: &str| json!({ "SpecialToken": { "id": id, "type_id": 0 } });
    let template = &mut file["post_processor"]["processors"][1];
    template["single"].as_array_mut().unwrap().push(special("<|end_of_text|>"));
    template["special_tokens"]["<|end_of_text|>"] =
        json!({ "id": "<|end_of_text|>", "ids": [0], "tokens": ["<|end_of_text|>"] });
    fs::write(folder.path().join("tokenizer.json"), file.to_string()).unwrap();
    let tokenizer = CaptionTokenizer::open(folder.path(), "{caption}", 64, Pooling::MeanCaption).unwrap();
    let encoded = tokenizer.encode("running shoe, hand").unwrap();
    assert_eq!((encoded.ids[0], encoded.ids.last(), encoded.ids.len()), (BEGIN, Some(&0), 6));
    assert_eq!(encoded.span, 1..5);
}

#[test]
fn what_tokenizers_1_0_cannot_do_is_told_and_not_done_wrongly() {
    let folder = tempfile::tempdir().unwrap();
    let mut file: Value = serde_json::from_slice(&fs::read(demo().join("tokenizer.json")).unwrap()).unwrap();
    file["pre_tokenizer"]["add_prefix_space"] = json!(true);
    fs::write(folder.path().join("tokenizer.json"), file.to_string()).unwrap();
    let error = TextTokenizer::open(folder.path()).unwrap_err().to_string();
    assert!(error.contains("tokenizer.json cannot be used") && error.contains("add_prefix_space"), "{error}");
}

#[test]
fn a_tokenizer_that_does_not_fit_the_token_table_is_refused_before_a_token_is_looked_up() {
    let whole = || open("{caption}", 64, Pooling::Mean).unwrap();
    assert!(whole().within(4096).is_ok());
    let message = whole().within(4000).unwrap_err().to_string();
    for part in ["tokenizer.json", "the id 4000", "4000 rows, 0 to 3999", "another model's"] {
        assert!(message.contains(part), "{message}");
    }
    // Tokens that were added to the tokenizer are no part of its vocabulary: they count when a text has one.
    let folder = tempfile::tempdir().unwrap();
    let mut file: Value = serde_json::from_slice(&fs::read(demo().join("tokenizer.json")).unwrap()).unwrap();
    let added = json!({ "id": 4096, "content": "<new>", "single_word": false, "lstrip": false, "rstrip": false,
                        "normalized": false, "special": true });
    file["added_tokens"].as_array_mut().unwrap().push(added);
    fs::write(folder.path().join("tokenizer.json"), file.to_string()).unwrap();
    let tokenizer = CaptionTokenizer::open(folder.path(), "{caption}", 64, Pooling::Mean).unwrap();
    let tokenizer = tokenizer.within(4096).unwrap();
    assert!(tokenizer.encode("a running shoe").is_ok());
    let message = tokenizer.encode("a <new> shoe").unwrap_err().to_string();
    assert!(message.contains("a <new> shoe") && message.contains("the id 4096"), "{message}");
}
