//! The index over tars with all that goes wrong in them.

use super::{columns, fixtures, image, member, spec, storage, tar};
use crate::data::{
    DataError, Dataset, SkipReason,
    tar::{End, Member, Walk},
};
use common::{
    ids::SampleIndex,
    recipe::{CaptionTable, DataSet, IndexPlace, Unmatched},
};
use std::path::Path;

fn walk(bytes: &[u8]) -> (Vec<Member>, End) {
    let source = bytes.to_vec();
    let mut walk = Walk::new(&source).unwrap();
    let mut members = Vec::new();
    while let Some(member) = walk.next().unwrap() {
        members.push(member);
    }
    (members, walk.end().unwrap())
}

#[test]
fn long_names_pax_and_gnu() {
    let long = format!("{}/a.jpg", "d".repeat(150));
    let record = format!("path={long}\n");
    let digits = (record.len() + 4).to_string();
    let pax = format!("{digits} {record}");
    assert_eq!(digits, pax.len().to_string());
    let bytes = [
        member("././@PaxHeader", b'x', pax.as_bytes()),
        member("cut", b'0', b"one"),
        member("././@LongLink", b'L', format!("{long}\0").as_bytes()),
        member("cut", b'0', b"three"),
        member("folder", b'5', b""),
        member("plain.txt", b'0', &[7; 600]),
        vec![0; 1024],
    ]
    .concat();
    let (members, end) = walk(&bytes);
    let names: Vec<(&str, u64)> = members.iter().map(|member| (member.name.as_str(), member.size)).collect();
    assert_eq!(names, [(long.as_str(), 3), (long.as_str(), 5), ("plain.txt", 600)]);
    assert_eq!(&bytes[members[1].offset as usize..][..5], b"three");
    assert_eq!(end, End::Whole);
}

#[test]
fn a_tar_is_used_up_to_where_it_breaks() {
    let whole = tar(&[("a.jpg", &[1; 700]), ("b.jpg", &[2; 10])]);
    assert_eq!(walk(&whole).1, End::Whole);
    assert_eq!(walk(&whole[..1536 + 512 + 5]), (walk(&whole).0[..1].to_vec(), End::Truncated(1536)));
    assert_eq!(walk(&whole[..1536 + 100]), (walk(&whole).0[..1].to_vec(), End::Truncated(1536)));
    let mut damaged = whole.clone();
    damaged[1540] ^= 0xff;
    assert_eq!(walk(&damaged), (walk(&whole).0[..1].to_vec(), End::Damaged(1536)));
    assert_eq!(walk(&[0x42; 2048]), (vec![], End::NotATar));
    assert_eq!(walk(b""), (vec![], End::Truncated(0)));
}

fn write(folder: &Path, name: &str, files: &[(&str, &[u8])]) {
    std::fs::write(folder.join(name), tar(files)).unwrap();
}

#[test]
fn broken_samples_are_counted_by_reason() {
    let folder = tempfile::tempdir().unwrap();
    let jpg = image("420.jpg");
    let first: &[(&str, &[u8])] = &[
        ("good.jpg", &jpg),
        ("good.txt", b"a caption"),
        ("good.json", b"{}"),
        ("no-image.txt", b"x"),
        ("no-text.jpg", &jpg),
        ("empty.jpg", b""),
        ("empty.txt", b"x"),
        ("latin.jpg", &jpg),
        ("latin.txt", b"caf\xe9"),
        ("blank.jpg", &jpg),
        ("blank.txt", b" \n"),
        ("good.jpg", &jpg),
        ("notes", b"no extension"),
    ];
    write(folder.path(), "0.tar", first);
    let second: &[(&str, &[u8])] =
        &[("./sub/upper.JPG", &jpg), ("./sub/upper.txt", b"z"), ("b.JPEG", &jpg), ("b.txt", b"B")];
    write(folder.path(), "1.tar", second);
    let bytes = tar(&[("last.jpg", &jpg), ("last.txt", b"kept"), ("cut.jpg", &jpg)]);
    std::fs::write(folder.path().join("2.tar"), &bytes[..bytes.len() - 2048]).unwrap();

    let error = Dataset::open(&storage(), "d", &spec(folder.path(), 0.1)).unwrap_err();
    assert!(matches!(error, DataError::TooManyBroken { skipped: 6, .. }), "{error}");
    assert!(error.to_string().contains("6 of 10 samples are broken"), "{error}");
    assert!(error.to_string().contains("0/latin"), "{error}");

    let data = Dataset::open(&storage(), "d", &spec(folder.path(), 0.8)).unwrap();
    let keys: Vec<String> = (0..data.len()).map(|i| data.key(SampleIndex(i)).unwrap()).collect();
    assert_eq!(keys, ["good", "sub/upper", "b", "last"]);
    assert_eq!(data.caption(SampleIndex(2), 0).unwrap(), "B");
    let ranges: Vec<_> = data.shards().iter().map(|shard| (shard.stem.as_str(), shard.samples.clone())).collect();
    assert_eq!(ranges, [("0", 0..1), ("1", 1..3), ("2", 3..4)]);
    let skipped = &data.report().skipped;
    let counts: Vec<_> =
        skipped.iter().map(|(reason, skipped)| (*reason, skipped.count, skipped.examples[0].as_str())).collect();
    assert_eq!(
        counts,
        [
            (SkipReason::NoImage, 1, "0/no-image"),
            (SkipReason::EmptyImage, 1, "0/empty"),
            (SkipReason::NoText, 1, "0/no-text"),
            (SkipReason::InvalidUtf8, 1, "0/latin"),
            (SkipReason::EmptyCaption, 1, "0/blank"),
            (SkipReason::Duplicate, 1, "0/good"),
        ]
    );
    assert!(data.report().to_string().contains("2.tar is truncated"), "{}", data.report());
}

#[test]
fn keys_reach_to_the_first_dot_of_the_last_component() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), "0.tar", &[("./v1.0/k.extra.jpg", b"x"), ("./v1.0/k.jpg", b"x"), ("._k.jpg", b"x")]);
    let mut spec = spec(folder.path(), 1.0);
    spec.captions.columns[0].weight = 0;
    let data = Dataset::open(&storage(), "d", &spec).unwrap();
    assert_eq!((data.len(), data.key(SampleIndex(0)).unwrap().as_str()), (1, "v1.0/k"));
}

fn emoji(index: &Path, wanted: &[(&str, u32)], key: &str) -> DataSet {
    let folder = fixtures().join("data/emoji");
    let mut spec = spec(&folder.join("emoji-wds/train"), 0.0);
    let (file, key, join) = (folder.join("emoji-dense-train.parquet").into(), key.to_owned(), "key".to_owned());
    spec.captions.table = Some(CaptionTable { file, key, join, unmatched: Unmatched::Broken });
    spec.captions.columns = columns(wanted);
    spec.index = IndexPlace::Folder(index.to_owned());
    spec
}

#[test]
fn captions_are_joined_by_key() {
    let cache = tempfile::tempdir().unwrap();
    let data = Dataset::open(
        &storage(),
        "emoji",
        &emoji(cache.path(), &[("raw_caption", 1), (".txt", 1), ("long_caption", 2)], "key"),
    )
    .unwrap();
    assert_eq!((data.len(), data.shards().len(), data.report().skipped_total()), (3335, 7, 0));
    for i in [0, 1, 1000, 3334].map(SampleIndex) {
        assert_eq!(data.caption(i, 0).unwrap(), data.caption(i, 1).unwrap(), "the raw caption is that of the tar");
        assert_ne!(data.caption(i, 0).unwrap(), data.caption(i, 2).unwrap());
    }
    assert_eq!(data.shards().last().unwrap().samples.end, 3335);
    assert_eq!(data.fingerprint().len(), 64);
    let other = Dataset::open(&storage(), "emoji", &emoji(cache.path(), &[("raw_caption", 1)], "key")).unwrap();
    assert_ne!(data.fingerprint(), other.fingerprint());
    let again = Dataset::open(&storage(), "other name", &emoji(cache.path(), &[("raw_caption", 7)], "key")).unwrap();
    assert_eq!(again.fingerprint(), other.fingerprint(), "weights and the set's name are no part of it");
}

#[test]
fn a_missing_column_is_named_beside_those_there_are() {
    let cache = tempfile::tempdir().unwrap();
    for spec in [emoji(cache.path(), &[("dense", 1)], "key"), emoji(cache.path(), &[("raw_caption", 1)], "dense")] {
        let error = Dataset::open(&storage(), "emoji", &spec).unwrap_err().to_string();
        assert!(error.contains("no column `dense`; it has: key, url, raw_caption, long_caption"), "{error}");
        assert!(error.contains("emoji-dense-train.parquet"), "{error}");
    }
}

#[test]
fn what_is_no_tar_or_not_there_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let error = Dataset::open(&storage(), "d", &spec(folder.path(), 1.0)).unwrap_err().to_string();
    assert!(error.contains("*.tar"), "{error}");
    std::fs::write(folder.path().join("0.tar"), vec![b'<'; 4096]).unwrap();
    assert!(matches!(Dataset::open(&storage(), "d", &spec(folder.path(), 1.0)), Err(DataError::NotATar { .. })));
    let mut no_table = spec(folder.path(), 1.0);
    no_table.captions.columns[0].name = "long".to_owned();
    let _ = std::fs::remove_file(folder.path().join("0.tar"));
    write(folder.path(), "1.tar", &[]);
    assert!(matches!(Dataset::open(&storage(), "d", &no_table), Err(DataError::NoTable { .. })));
    assert!(matches!(Dataset::open(&storage(), "d", &spec(folder.path(), 1.0)), Err(DataError::Empty { .. })));
}
