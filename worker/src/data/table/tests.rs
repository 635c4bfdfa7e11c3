//! Tables in each format, in the layouts in which people publish them.

use super::read;
use crate::{
    data::{
        DataError,
        blob::{Blob, Found},
        tests::storage,
    },
    storage::Location,
};
use std::path::Path;

fn open(path: &Path) -> Blob {
    Blob::open(&storage(), &Found::File(path.to_owned())).unwrap()
}

fn rows(path: &Path, columns: &[&str]) -> Result<Vec<Vec<Option<String>>>, DataError> {
    let columns: Vec<String> = columns.iter().map(|column| (*column).to_owned()).collect();
    let mut rows = Vec::new();
    read(&open(path), &columns, &mut |texts| {
        rows.push(texts.iter().map(|text| text.map(str::to_owned)).collect());
        Ok(())
    })?;
    Ok(rows)
}

fn check(name: &str, contents: &[u8], columns: &[&str], expected: &[&[Option<&str>]]) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(name);
    std::fs::write(&path, contents).unwrap();
    let read = rows(&path, columns).unwrap();
    let read: Vec<Vec<Option<&str>>> = read.iter().map(|row| row.iter().map(Option::as_deref).collect()).collect();
    assert_eq!(read, expected, "{name}");
}

fn fails(name: &str, contents: &[u8], columns: &[&str], expected: &str) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(name);
    std::fs::write(&path, contents).unwrap();
    let error = rows(&path, columns).unwrap_err().to_string();
    assert!(error.contains(expected) && error.contains(name), "{error}");
}

#[test]
fn csv_fields_hold_commas_quotes_and_line_ends() {
    check(
        "dreamlip.csv",
        "\u{feff}Image Path,raw_caption,longSV_captions\r\nhttp://a/1.jpg,\"one, two\",\"He said \"\"no\"\".\n\nThen left.\"\r\n\
         http://a/2.jpg,,x\n"
            .as_bytes(),
        &["longSV_captions", "Image Path", "raw_caption"],
        &[
            &[Some("He said \"no\".\n\nThen left."), Some("http://a/1.jpg"), Some("one, two")],
            &[Some("x"), Some("http://a/2.jpg"), Some("")],
        ],
    );
    check("t.tsv", b"a\tb\n1\t2,3\n", &["b"], &[&[Some("2,3")]]);
    fails("short.csv", b"a,b\n1,2\n3\n", &["a"], "line: 3");
    fails("t.csv", b"a,b\n1,2\n", &["c"], "no column `c`; it has: a, b");
    check("latin.csv", b"a,b\n1,caf\xe9\n", &["b"], &[&[None]]);
}

#[test]
fn json_lines_are_read_by_path() {
    check(
        "docci.jsonlines",
        br#"{"example_id": "qual_dev_00000", "split": "qual_dev", "image_file": "a.jpg", "description": "d"}

{"example_id": 7, "split": null, "image_file": "b.jpg", "a.b": "flat", "a": {"b": "deep", "c": ["x", "y"]}}
"#,
        &["image_file", "example_id", "split", "a.b", "a.c[1]", "a.c[*]"],
        &[
            &[Some("a.jpg"), Some("qual_dev_00000"), Some("qual_dev"), None, None, None],
            &[Some("b.jpg"), Some("7"), None, Some("flat"), Some("y"), Some(r#"["x","y"]"#)],
        ],
    );
    fails("t.jsonl", b"{\"a\": 1}\n{\"a\": \n", &["a"], "line 2");
    fails("t.jsonl", b"{\"a\": 1, \"b\": 2}\n", &["c"], "no column `c`; it has: a, b");
}

#[test]
fn an_array_of_share_gpt4v_is_read_item_by_item() {
    let item = |i: usize| {
        format!(
            r#"{{"id": "{i}", "image": "sam/images/sa_{i}.jpg", "conversations": [{{"from": "human", "value": "<image>\nWhat?"}},
               {{"from": "gpt", "value": "caption\n{i}"}}]}}"#
        )
    };
    let text = format!("[{},\n{}]\n", item(0), item(1));
    check(
        "sharegpt4v.json",
        text.as_bytes(),
        &["image", "conversations[1].value"],
        &[&[Some("sam/images/sa_0.jpg"), Some("caption\n0")], &[Some("sam/images/sa_1.jpg"), Some("caption\n1")]],
    );
    fails("cut.json", &text.as_bytes()[..text.len() - 30], &["image"], "EOF");
    fails("object.json", b"{\"a\": 1}", &["a"], "one array of objects");
}

#[test]
fn the_first_error_of_the_caller_ends_the_reading() {
    let folder = tempfile::tempdir().unwrap();
    for (name, contents) in
        [("t.json", "[{\"a\":1},{\"a\":2}]"), ("t.jsonl", "{\"a\":1}\n{\"a\":2}"), ("t.csv", "a\n1\n2\n")]
    {
        let path = folder.path().join(name);
        std::fs::write(&path, contents).unwrap();
        let mut seen = 0;
        let error = read(&open(&path), &["a".to_owned()], &mut |_| {
            seen += 1;
            Err(DataError::ShardGone { path: Location::Local("mine".into()) })
        });
        assert!(matches!(error, Err(DataError::ShardGone { .. })) && seen == 1, "{name}");
    }
}

#[test]
fn parquet_columns_of_strings() {
    let emoji = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/data/emoji/emoji-dense-val.parquet");
    let read = rows(&emoji, &["long_caption", "key"]).unwrap();
    assert_eq!(read.len(), 320);
    assert!(read.iter().all(|row| row[0].as_deref().is_some_and(|text| text.len() > 20) && row[1].is_some()));
    fails("a.parquet", b"PAR1 and no more", &["a"], "a.parquet");
    fails("a.xlsx", b"", &["a"], "its name ends in none of");
}
