//! Shards as other programs write them (`tests/golden/shards/make_golden.py`), read as those programs read them.

use super::{columns, fixtures, spec, storage};
use crate::data::{Dataset, SkipReason, tar::Walk};
use common::{
    ids::SampleIndex,
    recipe::{CaptionTable, DataKind, DataSet, IndexPlace, Unmatched},
};
use serde::Deserialize;
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

#[derive(Deserialize)]
struct Golden {
    /// Per tar: name, offset and size of each member.
    tars: BTreeMap<String, Vec<(String, u64, u64)>>,
    rows: Vec<Vec<String>>,
    bodies: Vec<Vec<u8>>,
}

fn folder() -> PathBuf {
    fixtures().join("golden/shards")
}

fn golden() -> Golden {
    serde_json::from_slice(&std::fs::read(folder().join("golden.json")).unwrap()).unwrap()
}

fn of(cache: &Path, name: &str) -> DataSet {
    let mut spec = spec(cache, 1.0);
    spec.shards = vec![folder().join(name).into()];
    spec.index = IndexPlace::Folder(cache.to_owned());
    spec
}

#[test]
fn members_are_where_python_finds_them() {
    let golden = golden();
    assert_eq!(golden.tars.len(), 4);
    for (name, expected) in golden.tars {
        let bytes = std::fs::read(folder().join(&name)).unwrap();
        let mut walk = Walk::new(&bytes).unwrap();
        let mut found = Vec::new();
        while let Some(member) = walk.next().unwrap() {
            found.push((member.name, member.offset, member.size));
        }
        assert_eq!(found, expected, "{name}");
    }
}

#[test]
fn samples_of_tars_in_every_format() {
    let (golden, cache) = (golden(), tempfile::tempdir().unwrap());
    for name in ["pax.tar", "gnu.tar", "apart.tar", "global.tar"] {
        let mut spec = of(cache.path(), name);
        let captioned = name != "global.tar";
        spec.captions.columns = columns(&[(".txt", u32::from(captioned))]);
        let data = Dataset::open(&storage(), "golden", &spec).unwrap();
        assert_eq!((data.len(), data.report().skipped_total()), (5, 0), "{name}");
        let mut bytes = Vec::new();
        for i in 0..5 {
            let sample = SampleIndex(i);
            data.read_image(sample, &mut bytes).unwrap();
            // In apart.tar image i has the bytes of 4 - i.
            let body = &golden.bodies[if name == "apart.tar" { 4 - i } else { i } as usize];
            assert!(bytes == *body, "{name} {i}");
            if captioned {
                assert_eq!(data.caption(sample, 0).unwrap(), golden.rows[i as usize][1], "{name} {i}");
            }
        }
    }
}

#[test]
fn one_table_as_csv_and_as_parquet_joins_alike() {
    let (golden, cache) = (golden(), tempfile::tempdir().unwrap());
    let mut prints = Vec::new();
    for (file, key, column) in [("table.csv", "Image Path", "longSV_captions"), ("table.parquet", "url", "org_caption")]
    {
        let mut spec = of(cache.path(), "pax.tar");
        let (file, key, join) = (folder().join(file).into(), key.to_owned(), "url".to_owned());
        spec.captions.table = Some(CaptionTable { file, key, join, unmatched: Unmatched::Error });
        spec.captions.columns = columns(&[(column, 1)]);
        let data = Dataset::open(&storage(), "golden", &spec).unwrap();
        let texts: Vec<String> = (0..5).map(|i| data.caption(SampleIndex(i), 0).unwrap()).collect();
        let expected: Vec<String> = golden.rows.iter().map(|row| row[2].clone()).collect();
        assert_eq!(texts, expected);
        prints.push(data.fingerprint());
    }
    assert_ne!(prints[0], prints[1], "another column's name is another data set");
}

#[test]
fn images_of_hugging_faces_own_writer() {
    let (golden, cache) = (golden(), tempfile::tempdir().unwrap());
    let mut spec = DataSet { kind: DataKind::Parquet, ..of(cache.path(), "images.parquet") };
    spec.captions.columns = columns(&[(".caption", 1)]);
    let data = Dataset::open(&storage(), "golden", &spec).unwrap();
    assert_eq!((data.len(), data.report().skipped[&SkipReason::NoImage].count), (4, 1));
    let mut bytes = Vec::new();
    for (sample, row) in [(3, 4), (0, 0), (2, 2), (1, 1)] {
        data.read_image(SampleIndex(sample), &mut bytes).unwrap();
        assert!(bytes == golden.bodies[row], "row {row}");
        assert_eq!(data.caption(SampleIndex(sample), 0).unwrap(), golden.rows[row][1]);
    }
}
