//! Shards of every kind, inspected.

use super::{spread::Spread, *};
use crate::data::{
    SkipReason,
    survey::Shards,
    tests::{image, storage, tar},
};
use arrow_array::{ArrayRef, BinaryArray, RecordBatch, StringArray};
use common::recipe::IndexPlace;
use std::{fs, path::Path, sync::Arc};

fn open(path: &Path, index: &Path) -> Survey {
    let (paths, index) = (vec![path.to_owned().into()], IndexPlace::Folder(index.to_owned()));
    Survey::open(&storage(), &Shards { paths, index, ..Shards::default() }).unwrap()
}

fn look(path: &Path) -> Summary {
    let index = tempfile::tempdir().unwrap();
    let survey = open(path, index.path());
    inspect(&survey, &survey.caption_columns().unwrap(), EXAMPLES).unwrap()
}

fn emoji(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/data/emoji").join(path)
}

#[test]
fn a_folder_of_tars_is_summed_up() {
    let summary = look(&emoji("emoji-wds/val"));
    assert_eq!((summary.samples, summary.usable, summary.skipped_total), (320, 320, 0));
    assert_eq!(summary.images["jpg"], 320);
    assert_eq!(summary.width_pixels, Some(Spread { min: 102, median: 102, p95: 102, max: 102 }));
    let txt = &summary.captions[0];
    assert_eq!((txt.name.as_str(), txt.captions, txt.samples_without), (".txt", 320, 0));
    assert_eq!(txt.histogram.iter().map(|bucket| bucket.count).sum::<u64>(), 320);
    assert_eq!(summary.examples.len(), 5);
    assert!(summary.examples.iter().all(|example| !example.captions[0].text.is_empty()));
    assert!(summary.text().lines().count() <= 40, "{}", summary.text());
    let json = serde_json::to_value(&summary).unwrap();
    assert_eq!((&json["schema"], &json["skipped"]), (&1.into(), &serde_json::json!({})));
}

#[test]
fn what_is_broken_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let mut bytes = fs::read(emoji("emoji-wds/val/00000.tar")).unwrap();
    // The first image's own bytes, the rest of the tar from the middle of a member on.
    bytes[512..516].copy_from_slice(b"<htm");
    bytes.truncate(100_000);
    let path = folder.path().join("cut.tar");
    fs::write(&path, bytes).unwrap();
    let summary = look(&path);
    assert_eq!(summary.report.skipped[&SkipReason::BrokenImage].count, 1);
    assert_eq!(summary.images["unknown"], 1);
    let text = summary.text();
    assert!(text.contains("cut.tar is truncated: used up to byte"), "{text}");
    assert!(text.contains("1 x image that cannot be decoded: cut/"), "{text}");
    assert!(text.contains("broken image"), "{text}");
}

#[test]
fn captions_of_tars_are_members_and_texts_of_their_json() {
    let folder = tempfile::tempdir().unwrap();
    let pixels = image("444.jpg");
    let json = br#"{"key": "a", "long_caption": "as long as this", "captions": ["x", "yy"], "width": 3}"#;
    let path = folder.path().join("a.tar");
    let files: [(&str, &[u8]); 5] =
        [("a.jpg", &pixels), ("a.txt", "Senjō".as_bytes()), ("a.json", json), ("b.jpg", &pixels), ("b.txt", b" ")];
    fs::write(&path, tar(&files)).unwrap();
    let summary = look(&path);
    let columns: Vec<_> = summary
        .captions
        .iter()
        .map(|c| (c.name.as_str(), c.captions, c.samples_without, c.characters.map(|s| s.max)))
        .collect();
    let expected =
        [(".txt", 1, 1, Some(5)), (".json:captions[*]", 2, 1, Some(2)), (".json:long_caption", 1, 1, Some(15))];
    assert_eq!(columns, expected);
}

#[test]
fn lists_are_inspected_with_files_that_are_missing() {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("images")).unwrap();
    for name in ["0.jpg", "1.jpg"] {
        fs::write(folder.path().join("images").join(name), image("gray.jpg")).unwrap();
    }
    let rows: Vec<String> =
        (0..3).map(|i| format!(r#"{{"image": "images/{i}.jpg", "caption": ["caption {i}", "another"]}}"#)).collect();
    for (name, text) in [("a.json", format!("[{}]", rows.join(","))), ("b.jsonl", rows.join("\n"))] {
        let path = folder.path().join(name);
        fs::write(&path, text).unwrap();
        let summary = look(&path);
        assert_eq!((summary.samples, summary.usable, summary.skipped_total), (3, 2, 1), "{name}");
        assert_eq!((summary.captions[0].name.as_str(), summary.captions[0].captions), (".caption[*]", 6), "{name}");
        assert!(summary.report.skipped[&SkipReason::BrokenImage].examples[0].ends_with("images/2.jpg"));
    }
    let csv = folder.path().join("c.csv");
    fs::write(&csv, "image,description\n0.jpg,\"one, two\"\n").unwrap();
    let (paths, images) = (vec![csv.into()], Some(folder.path().join("images").into()));
    let index = IndexPlace::Folder(folder.path().join("index"));
    let survey = Survey::open(&storage(), &Shards { paths, images, index, ..Shards::default() }).unwrap();
    let summary = inspect(&survey, &survey.caption_columns().unwrap(), 5).unwrap();
    assert_eq!((summary.usable, summary.captions[0].name.as_str()), (1, ".description"));
    let found = look(&folder.path().join("images"));
    assert_eq!((found.samples, found.usable, found.captions[0].samples_without), (2, 2, 2), "a folder is a list, too");
}

#[test]
fn parquet_files_are_inspected() {
    let folder = tempfile::tempdir().unwrap();
    let jpg: BinaryArray =
        [Some(image("444.jpg")), None, Some(image("gray.png"))].iter().map(Option::as_deref).collect();
    let columns = ["key", "caption", "status"].map(|name| {
        let texts: StringArray = (0..3).map(|i| Some(format!("{name} {i}"))).collect();
        (name, Arc::new(texts) as ArrayRef)
    });
    let batch = RecordBatch::try_from_iter(columns.into_iter().chain([("jpg", Arc::new(jpg) as ArrayRef)])).unwrap();
    let path = folder.path().join("a.parquet");
    let mut writer =
        parquet::arrow::ArrowWriter::try_new(fs::File::create(&path).unwrap(), batch.schema(), None).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
    let summary = look(&path);
    assert_eq!((summary.samples, summary.usable, summary.skipped_total), (3, 2, 1));
    assert_eq!((summary.captions.len(), summary.captions[0].name.as_str()), (1, ".caption"));
    assert_eq!(summary.examples[2].captions[0].text, "caption 2");
}

#[test]
fn the_page_stands_alone_and_shows_texts_as_texts() {
    let folder = tempfile::tempdir().unwrap();
    let (pixels, evil) = (image("444.jpg"), b"<script>alert(1)</script> & \"quotes\"".as_slice());
    let path = folder.path().join("<b>.tar");
    let files: [(&str, &[u8]); 4] =
        [("a<i>.jpg", &pixels), ("a<i>.txt", evil), ("b.jpg", b"<html>"), ("b.txt", b"no image here")];
    fs::write(&path, tar(&files)).unwrap();
    let survey = open(&path, folder.path());
    let summary = inspect(&survey, &[".txt".to_owned()], 24).unwrap();
    let page = html::page("<b>.tar", &summary, &pictures(&survey, &summary));
    assert_eq!(page.matches("<figure>").count(), 2);
    assert_eq!(page.matches("src=\"data:image/jpeg;base64,").count(), 1);
    assert!(page.contains("neither JPEG nor PNG"), "{page}");
    assert!(page.contains("&lt;script&gt;alert(1)&lt;/script&gt; &amp; &quot;quotes&quot;"), "{page}");
    for markup in ["<script", "<i>", "<b>", "http://", "https://", "url("] {
        assert!(!page.contains(markup), "{markup}: {page}");
    }
}

#[test]
fn samples_are_spread_evenly() {
    assert_eq!(picks(100, 4), [0, 25, 50, 75]);
    assert_eq!(picks(3, 24), [0, 1, 2]);
    assert_eq!(picks(0, 5), Vec::<u64>::new());
}
