//! What goes wrong with shards and their indices, each with what then happens.

use super::{columns, image, spec, storage, tar};
use crate::data::{DataError, Dataset, index::Progress};
use common::{ids::SampleIndex, recipe::IndexPlace};
use std::{
    fs,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
    time::SystemTime,
};

/// A tar of `n` samples whose keys begin with `name`.
fn shard(folder: &Path, name: &str, n: usize) -> PathBuf {
    let (jpg, path) = (image("420.jpg"), folder.join(format!("{name}.tar")));
    let names: Vec<(String, String)> = (0..n).map(|i| (format!("{name}{i}.jpg"), format!("{name}{i}.txt"))).collect();
    let members: Vec<(&str, &[u8])> = names
        .iter()
        .flat_map(|(jpg_name, txt)| [(jpg_name.as_str(), jpg.as_slice()), (txt.as_str(), txt.as_bytes())])
        .collect();
    fs::write(&path, tar(&members)).unwrap();
    path
}

/// Opens, and says how many shards had to be read.
fn open(spec: &common::recipe::DataSet) -> (Dataset, u64) {
    let read = AtomicU64::new(0);
    let progress = |progress: Progress| {
        read.fetch_max(progress.read, Ordering::Relaxed);
    };
    let data = Dataset::open_with(&storage(), "d", spec, &progress).unwrap();
    (data, read.into_inner())
}

fn only_file(folder: &Path) -> PathBuf {
    let files: Vec<PathBuf> = fs::read_dir(folder).unwrap().map(|file| file.unwrap().path()).collect();
    assert_eq!(files.len(), 1, "{files:?}");
    files[0].clone()
}

#[test]
fn an_index_is_read_until_the_shard_changes() {
    let folder = tempfile::tempdir().unwrap();
    let path = shard(folder.path(), "a", 3);
    let spec = spec(folder.path(), 0.0);
    assert_eq!(open(&spec).1, 1);
    let (first, read) = open(&spec);
    assert_eq!((first.len(), read), (3, 0));
    shard(folder.path(), "a", 4);
    let (second, read) = open(&spec);
    assert_eq!((second.len(), read), (4, 1));
    assert_ne!(first.fingerprint(), second.fingerprint());
    // The same bytes at another time are another file, and the same data.
    fs::File::options().write(true).open(&path).unwrap().set_modified(SystemTime::UNIX_EPOCH).unwrap();
    let (third, read) = open(&spec);
    assert_eq!((third.fingerprint(), read), (second.fingerprint(), 1));
    assert_eq!(open(&spec).1, 0);
}

#[test]
fn an_index_that_is_cut_flipped_or_foreign_is_made_anew() {
    let folder = tempfile::tempdir().unwrap();
    shard(folder.path(), "a", 300);
    let spec = spec(folder.path(), 0.0);
    let fingerprint = open(&spec).0.fingerprint();
    let path = only_file(&folder.path().join("index"));
    let whole = fs::read(&path).unwrap();
    let mut spoilt: Vec<Vec<u8>> = [0, 20, whole.len() / 2, whole.len() - 1].map(|cut| whole[..cut].to_vec()).to_vec();
    for at in [9, 5000, whole.len() - 300, whole.len() - 60, whole.len() - 1] {
        let mut flipped = whole.clone();
        flipped[at] ^= 4;
        spoilt.push(flipped);
    }
    spoilt.push(b"not ours, and longer than a trailer of fifty-six bytes, so that it is looked at".to_vec());
    for bytes in spoilt {
        fs::write(&path, bytes).unwrap();
        let (data, read) = open(&spec);
        assert_eq!((data.fingerprint(), read), (fingerprint.clone(), 1));
        assert_eq!(fs::read(&path).unwrap(), whole);
    }
}

#[test]
fn a_shard_that_disappears_grows_or_shrinks_while_it_is_used_is_an_error_that_names_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = shard(folder.path(), "a", 3);
    let spec = spec(folder.path(), 0.0);
    let mut bytes = Vec::new();
    let whole = fs::read(&path).unwrap();
    let read = |data: &Dataset, bytes: &mut Vec<u8>| data.read_image(SampleIndex(2), bytes).unwrap_err();

    let data = open(&spec).0;
    data.read_image(SampleIndex(2), &mut bytes).unwrap();
    fs::write(&path, &whole[..2000]).unwrap();
    let error = read(&data, &mut bytes);
    assert!(matches!(&error, DataError::ShardChanged { was, is: 2000, .. } if *was == whole.len() as u64), "{error}");
    assert!(error.to_string().contains("a.tar has changed since it was indexed"), "{error}");

    fs::write(&path, &whole).unwrap();
    let data = open(&spec).0;
    data.read_image(SampleIndex(2), &mut bytes).unwrap();
    fs::write(&path, [whole.as_slice(), &[0; 512]].concat()).unwrap();
    assert!(
        matches!(read(&data, &mut bytes), DataError::ShardChanged { .. }),
        "a shard that is open already and grows"
    );
    assert!(matches!(data.caption(SampleIndex(0), 0), Err(DataError::ShardChanged { .. })));

    fs::write(&path, &whole).unwrap();
    let data = open(&spec).0;
    fs::remove_file(&path).unwrap();
    let error = read(&data, &mut bytes);
    assert!(matches!(error, DataError::ShardGone { .. }), "{error}");
    assert!(error.to_string().contains("a.tar is gone since it was indexed"), "{error}");
}

#[test]
fn an_index_that_is_damaged_while_it_is_used_is_an_error_that_names_it() {
    let folder = tempfile::tempdir().unwrap();
    shard(folder.path(), "a", 300);
    let spec = spec(folder.path(), 0.0);
    let data = open(&spec).0;
    let path = only_file(&folder.path().join("index"));
    let mut bytes = fs::read(&path).unwrap();
    bytes[100] ^= 1;
    fs::write(&path, bytes).unwrap();
    let error = data.read_image(SampleIndex(0), &mut Vec::new()).unwrap_err();
    assert!(matches!(error, DataError::DamagedIndex { .. }) && error.to_string().contains("a.tar-"), "{error}");
}

#[test]
fn where_no_index_can_be_written_it_is_held_in_memory() {
    let folder = tempfile::tempdir().unwrap();
    shard(folder.path(), "a", 3);
    let mut spec = spec(folder.path(), 0.0);
    // A file stands where the folder should be: as full disks and read-only folders, it lets nothing be made.
    let occupied = folder.path().join("occupied");
    fs::write(&occupied, "").unwrap();
    spec.index = IndexPlace::Folder(occupied);
    fs::write(folder.path().join("t.csv"), "key,long\na0,zero\na1,one\na2,two\n").unwrap();
    let (file, key) = (folder.path().join("t.csv").into(), "key".to_owned());
    let (join, unmatched) = (key.clone(), common::recipe::Unmatched::Error);
    spec.captions.table = Some(common::recipe::CaptionTable { file, key, join, unmatched });
    spec.captions.columns = columns(&[(".txt", 1), ("long", 1)]);
    for _ in 0..2 {
        let (data, read) = open(&spec);
        assert_eq!((read, data.caption(SampleIndex(1), 1).unwrap().as_str()), (1, "one"));
        data.read_image(SampleIndex(2), &mut Vec::new()).unwrap();
    }
}

/// Set for a process that may write only so much, `FOLDER`.
const FULL_DISK: &str = "LLM2CLIP_TEST_FULL_DISK";

#[test]
fn on_a_disk_that_fills_up_while_an_index_is_written_it_is_held_in_memory() {
    let folder = tempfile::tempdir().unwrap();
    shard(folder.path(), "a", 2000);
    // 16 blocks of 512 bytes are less than the index: the write breaks off in the middle, as on a full disk.
    let limited = "trap '' XFSZ; ulimit -f 16; exec \"$0\" --exact data::tests::faults::writes_little --nocapture";
    let run = || {
        let mut command = std::process::Command::new("sh");
        let test = std::env::current_exe().unwrap();
        command.args(["-c", limited]).arg(test).env(FULL_DISK, folder.path()).output().unwrap()
    };
    for _ in 0..2 {
        let output = run();
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success() && said.contains("2000 samples, 1 read"), "{output:?}");
    }
    let left: Vec<PathBuf> =
        fs::read_dir(folder.path().join("index")).unwrap().map(|file| file.unwrap().path()).collect();
    assert_eq!(left, Vec::<PathBuf>::new(), "half of an index was left behind");
    assert_eq!(open(&spec(folder.path(), 0.0)).1, 1);
    assert_eq!(open(&spec(folder.path(), 0.0)).1, 0);
}

/// Not a test: the process that may write only so much.
#[test]
fn writes_little() {
    let Some(folder) = std::env::var_os(FULL_DISK) else { return };
    let (data, read) = open(&spec(Path::new(&folder), 0.0));
    data.read_image(SampleIndex(1999), &mut Vec::new()).unwrap();
    println!("{} samples, {read} read", data.len());
}

#[test]
fn indices_beside_the_shards_or_where_the_recipe_says() {
    let folder = tempfile::tempdir().unwrap();
    shard(folder.path(), "a", 3);
    let mut spec = spec(folder.path(), 0.0);
    spec.index = IndexPlace::Beside;
    assert_eq!((open(&spec).1, open(&spec).1), (1, 0));
    assert!(folder.path().join("a.tar.l2c").is_file());
    assert!(!folder.path().join("index").exists());
}

#[test]
fn a_tar_without_samples_is_legal_and_a_file_without_bytes_is_not() {
    let folder = tempfile::tempdir().unwrap();
    shard(folder.path(), "a", 2);
    fs::write(folder.path().join("b.tar"), tar(&[])).unwrap();
    shard(folder.path(), "c", 1);
    let spec = spec(folder.path(), 0.0);
    let data = open(&spec).0;
    let ranges: Vec<_> = data.shards().iter().map(|shard| shard.samples.clone()).collect();
    assert_eq!(ranges, [0..2, 2..2, 2..3]);
    assert_eq!(data.key(SampleIndex(2)).unwrap(), "c0");
    fs::write(folder.path().join("b.tar"), b"").unwrap();
    let error = Dataset::open(&storage(), "d", &spec).unwrap_err();
    assert!(
        matches!(error, DataError::EmptyFile { .. }) && error.to_string().contains("b.tar has zero bytes"),
        "{error}"
    );
}

#[test]
fn an_interrupted_indexing_goes_on_where_it_stopped() {
    let folder = tempfile::tempdir().unwrap();
    shard(folder.path(), "a", 2);
    fs::write(folder.path().join("b.tar"), b"no tar at all, but text of some length").unwrap();
    shard(folder.path(), "c", 2);
    let spec = spec(folder.path(), 0.0);
    let mut broken = spec.clone();
    broken.broken_limit = 1.0;
    fs::write(folder.path().join("b.tar"), vec![b'<'; 600]).unwrap();
    assert!(matches!(Dataset::open(&storage(), "d", &spec), Err(DataError::NotATar { .. })));
    shard(folder.path(), "b", 2);
    let (data, read) = open(&spec);
    assert_eq!((data.len(), read), (6, 1), "the others' indices were kept");
}

#[test]
fn broken_rows_and_a_range_of_rows_together_number_the_rest() {
    // The second half of a shard without its odd rows, whose captions are blank.
    let folder = tempfile::tempdir().unwrap();
    let names: Vec<(String, String)> = (0..200).map(|i| (format!("{i:05}.jpg"), format!("{i:05}.txt"))).collect();
    let jpg = image("420.jpg");
    let text = |i: usize| if i % 2 == 1 { b" ".as_slice() } else { b"x" };
    let members: Vec<(&str, &[u8])> = names
        .iter()
        .enumerate()
        .flat_map(|(i, (jpg_name, txt))| [(jpg_name.as_str(), jpg.as_slice()), (txt.as_str(), text(i))])
        .collect();
    fs::write(folder.path().join("0.tar"), tar(&members)).unwrap();
    let mut spec = spec(folder.path(), 0.6);
    spec.rows = common::recipe::RowRange { from: 100, to: Some(190) };
    let data = open(&spec).0;
    assert_eq!((data.len(), data.report().left_out, data.report().skipped_total()), (45, 110, 45));
    let keys: Vec<String> = (0..45).map(|i| data.key(SampleIndex(i)).unwrap()).collect();
    let expected: Vec<String> = (50..95).map(|i| format!("{:05}", 2 * i)).collect();
    assert_eq!(keys, expected);
}
