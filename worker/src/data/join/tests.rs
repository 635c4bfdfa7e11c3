//! Joins in the layouts of the mission's data: DreamLIP's CSV and cc3m-wds by URL, by key and by digest.

use crate::data::{
    DataError, Dataset, SkipReason,
    tests::{columns, image, spec, storage, tar},
};
use common::{
    ids::SampleIndex,
    recipe::{CaptionTable, DataSet, Unmatched},
};
use std::{fmt::Write as _, path::Path};

/// Two tars as pixparse's cc3m-wds writes them. Sample `i` has the URL `http://x/i.jpg`; `no_json` has none, and 7 and 8
/// share one.
fn cc3m(folder: &Path, no_json: &[usize]) {
    let jpg = image("420.jpg");
    for shard in 0..2 {
        let mut names = Vec::new();
        for i in shard * 5..shard * 5 + 5 {
            let url = if i == 8 { 7 } else { i };
            names.push((format!("{i:09}.jpg"), jpg.clone()));
            names.push((format!("{i:09}.txt"), format!("raw {i}").into_bytes()));
            if !no_json.contains(&i) {
                let json =
                    format!("{{\"url\": \"http://x/{url}.jpg\", \"key\": \"{i:09}\", \"sha256\": \"{i:064x}\"}}");
                names.push((format!("{i:09}.json"), json.into_bytes()));
            }
        }
        let members: Vec<(&str, &[u8])> = names.iter().map(|(name, body)| (name.as_str(), body.as_slice())).collect();
        std::fs::write(folder.join(format!("cc3m-train-000{shard}.tar")), tar(&members)).unwrap();
    }
}

/// DreamLIP's table: seven captions a URL, in another order than the samples, with line ends and quotes.
fn dreamlip(folder: &Path, urls: &[usize]) {
    let mut text = "Image Path,raw_caption,shortIB_captions,longIB_captions,shortSV_captions,longSV_captions,\
                    shortLLA_captions,longLLA_captions\n"
        .to_owned();
    for i in urls {
        writeln!(text, "http://x/{i}.jpg,raw {i},s{i},l{i},\"short, {i}\",\"long \"\"{i}\"\"\nand more\",sl{i},")
            .unwrap();
    }
    std::fs::write(folder.join("dreamlip.csv"), text).unwrap();
}

fn by_url(folder: &Path, unmatched: Unmatched) -> DataSet {
    let mut spec = spec(folder, 0.9);
    let (file, key, join) = (folder.join("dreamlip.csv").into(), "Image Path".to_owned(), "url".to_owned());
    spec.captions.table = Some(CaptionTable { file, key, join, unmatched });
    spec.captions.columns = columns(&[("longSV_captions", 1), (".txt", 1), ("shortSV_captions", 1)]);
    spec
}

fn captions(data: &Dataset, column: usize) -> Vec<String> {
    (0..data.len()).map(|i| data.caption(SampleIndex(i), column).unwrap()).collect()
}

#[test]
fn dreamlip_and_cc3m_meet_by_url_with_a_report_of_what_did_not() {
    let folder = tempfile::tempdir().unwrap();
    cc3m(folder.path(), &[4]);
    dreamlip(folder.path(), &[9, 7, 100, 3, 2, 1, 0, 3, 101]);
    let data = Dataset::open(&storage(), "cc3m", &by_url(folder.path(), Unmatched::Skip)).unwrap();
    assert_eq!(captions(&data, 1), ["raw 0", "raw 1", "raw 2", "raw 3", "raw 7", "raw 8", "raw 9"]);
    let long = |i: u32| format!("long \"{i}\"\nand more");
    assert_eq!(captions(&data, 0), [0, 1, 2, 3, 7, 7, 9].map(long));
    assert_eq!(captions(&data, 2)[1], "short, 1");
    let report = data.report();
    assert_eq!((report.skipped_total(), report.left_out, report.duplicate_rows), (0, 3, 1));
    let join = report.join.as_ref().unwrap();
    let (samples, rows) = (&join.samples, &join.rows);
    assert_eq!(
        (samples.matched, samples.unmatched.count, samples.duplicates.count, samples.without.count),
        (7, 2, 1, 1)
    );
    assert_eq!(samples.unmatched.examples, ["000000005", "000000006"]);
    assert_eq!(
        (&samples.duplicates.examples, &samples.without.examples),
        (&vec!["000000008".to_owned()], &vec!["000000004".to_owned()])
    );
    assert_eq!((rows.matched, rows.unmatched.count, rows.duplicates.count), (6, 2, 1));
    assert_eq!(rows.unmatched.examples, ["http://x/100.jpg", "http://x/101.jpg"]);
    assert_eq!(rows.duplicates.examples, ["http://x/3.jpg"]);
    let text = report.to_string();
    assert!(
        text.contains("joined by url = `Image Path`: samples 7 matched, 2 unmatched (000000005, 000000006)"),
        "{text}"
    );
}

#[test]
fn the_policies_of_what_is_left_over() {
    let folder = tempfile::tempdir().unwrap();
    cc3m(folder.path(), &[]);
    dreamlip(folder.path(), &[0, 1, 2, 3, 4, 50, 51]);
    let open = |unmatched| Dataset::open(&storage(), "cc3m", &by_url(folder.path(), unmatched));
    let error = open(Unmatched::Error).unwrap_err();
    assert!(matches!(error, DataError::Unmatched { count: 5, .. }), "{error}");
    assert!(error.to_string().contains("000000005, 000000006, 000000007"), "{error}");
    let broken = open(Unmatched::Broken).unwrap();
    assert_eq!((broken.len(), broken.report().skipped[&SkipReason::NoRow].count), (5, 5));
    let mut strict = by_url(folder.path(), Unmatched::Broken);
    strict.broken_limit = 0.1;
    assert!(matches!(Dataset::open(&storage(), "cc3m", &strict), Err(DataError::TooManyBroken { skipped: 5, .. })));
    strict.captions.table.as_mut().unwrap().unmatched = Unmatched::Skip;
    assert_eq!(
        Dataset::open(&storage(), "cc3m", &strict).unwrap().len(),
        5,
        "what is skipped on purpose is not broken"
    );
    let only = open(Unmatched::CaptionOnly).unwrap();
    assert_eq!((only.len(), only.unpaired()), (5, 2));
    assert_eq!(only.unpaired_caption(1, 0).unwrap(), "long \"51\"\nand more");
    assert_eq!(only.unpaired_caption(0, 1).unwrap(), "", "a row has no member of a tar");
}

#[test]
fn the_second_opening_reads_neither_tars_nor_table() {
    let folder = tempfile::tempdir().unwrap();
    cc3m(folder.path(), &[]);
    dreamlip(folder.path(), &[0, 1, 2, 3, 4, 5, 6, 7, 9]);
    let spec = by_url(folder.path(), Unmatched::Error);
    let first = Dataset::open(&storage(), "cc3m", &spec).unwrap();
    let kept = || {
        let files = std::fs::read_dir(folder.path().join("index")).unwrap();
        let mut files: Vec<_> = files
            .map(|file| (file.as_ref().unwrap().file_name(), file.unwrap().metadata().unwrap().modified().unwrap()))
            .collect();
        files.sort();
        files
    };
    let before = kept();
    assert_eq!(before.len(), 3, "an index a tar, and the join");
    let read = std::sync::atomic::AtomicU64::new(0);
    let progress =
        |progress: crate::data::index::Progress| read.store(progress.read, std::sync::atomic::Ordering::Relaxed);
    let second = Dataset::open_with(&storage(), "cc3m", &spec, &progress).unwrap();
    assert_eq!((kept(), read.into_inner()), (before, 0));
    assert_eq!(first.fingerprint(), second.fingerprint());
    assert_eq!(captions(&first, 0), captions(&second, 0));
    // Another table is another join, and another data set.
    dreamlip(folder.path(), &[1, 0, 2, 3, 4, 5, 6, 7, 9, 11]);
    let third = Dataset::open(&storage(), "cc3m", &spec).unwrap();
    assert_eq!(captions(&first, 0), captions(&third, 0));
    assert_eq!(kept().len(), 4);
}

#[test]
fn a_damaged_join_is_computed_anew() {
    let folder = tempfile::tempdir().unwrap();
    cc3m(folder.path(), &[]);
    dreamlip(folder.path(), &[0, 1, 2, 3, 4, 5, 6, 7, 9]);
    let spec = by_url(folder.path(), Unmatched::Error);
    let first = captions(&Dataset::open(&storage(), "cc3m", &spec).unwrap(), 0);
    let is_join = |path: &std::path::PathBuf| path.file_name().unwrap().to_str().unwrap().starts_with("join-");
    let files = std::fs::read_dir(folder.path().join("index")).unwrap();
    let path = files.map(|file| file.unwrap().path()).find(is_join).unwrap();
    let whole = std::fs::read(&path).unwrap();
    for cut in [0, 10, whole.len() / 2, whole.len() - 1] {
        std::fs::write(&path, &whole[..cut]).unwrap();
        assert_eq!(captions(&Dataset::open(&storage(), "cc3m", &spec).unwrap(), 0), first);
        assert_eq!(std::fs::read(&path).unwrap(), whole);
    }
}

#[test]
fn captions_in_the_json_and_digests_to_join_by() {
    let folder = tempfile::tempdir().unwrap();
    cc3m(folder.path(), &[6]);
    let mut lines = String::new();
    (0..10).rev().for_each(|i| writeln!(lines, "{{\"sha256\": \"{i:064x}\", \"re_caption\": \"recap {i}\"}}").unwrap());
    std::fs::write(folder.path().join("recap.jsonl"), lines).unwrap();
    let mut spec = spec(folder.path(), 0.5);
    let file = folder.path().join("recap.jsonl").into();
    let (key, join) = ("sha256".to_owned(), "sha256".to_owned());
    spec.captions.table = Some(CaptionTable { file, key, join, unmatched: Unmatched::Broken });
    spec.captions.columns = columns(&[(".json:url", 1), ("re_caption", 1)]);
    let data = Dataset::open(&storage(), "recap", &spec).unwrap();
    assert_eq!((data.len(), data.report().skipped[&SkipReason::NoJoinField].count), (9, 1));
    assert_eq!(captions(&data, 0)[6], "http://x/7.jpg");
    assert_eq!(captions(&data, 1)[6], "recap 7");
    // The same captions in another order are the same data set but for the file's own order of records.
    spec.captions.table = None;
    spec.captions.columns = columns(&[(".json:nothing", 1)]);
    assert!(matches!(Dataset::open(&storage(), "recap", &spec), Err(DataError::TooManyBroken { skipped: 10, .. })));
    spec.captions.columns = columns(&[(".json:nothing", 0), (".txt", 1)]);
    let labels = Dataset::open(&storage(), "recap", &spec).unwrap();
    assert_eq!((labels.len(), labels.caption(SampleIndex(0), 0).unwrap().as_str()), (10, ""));
}
