//! Files that are written, read, damaged and of another time.

use super::{numbers, open, provenance, row, storage};
use crate::vectors::{DamagedBlock, ShardWriter, VectorStore, VectorsError, shard_name, write_shard};
use half::bf16;
use std::os::unix::fs::FileExt as _;

/// Row `r` of column `c` has these numbers everywhere.
fn value(column: usize, row: usize) -> bf16 {
    bf16::from_f32(((column * 1000 + row) % 200) as f32)
}

/// Two columns of 700 rows, 2,000 numbers wide: several blocks, of which rows lie across borders. Every seventh row of
/// the second column is null.
fn large(path: &std::path::Path) {
    let mut writer = ShardWriter::create(path, &provenance("mean"), [700, 2000], &["short", "long"]).unwrap();
    for row in (0..700).rev() {
        writer.put(0, row, &[value(0, row); 2000]).unwrap();
        if row % 7 != 0 {
            writer.put(1, row, &[value(1, row); 2000]).unwrap();
        }
    }
    writer.finish().unwrap();
}

#[test]
fn rows_come_back_by_column() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("deep/00000.vectors");
    let columns = [(".txt".to_owned(), numbers(&[1., 2., 3., 4.])), ("long".to_owned(), numbers(&[5., 6., 7., 8.]))];
    write_shard(&path, &provenance("mean"), 2, &columns).unwrap();
    let shard = open(&path, 2, Some(2)).unwrap().unwrap();
    assert_eq!((shard.width(), shard.columns().collect::<Vec<_>>()), (2, vec![".txt", "long"]));
    assert_eq!(row(&shard, "long", 1).unwrap(), numbers(&[7., 8.]));
    assert_eq!(row(&shard, "long", 2), None);
    assert_eq!(row(&shard, "short", 0), None);
}

#[test]
fn rows_across_blocks_and_null_rows_are_told_apart() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.vectors");
    large(&path);
    let shard = open(&path, 700, None).unwrap().unwrap();
    // In an order in which blocks are met for the first time from both ends.
    for r in (0..350).flat_map(|r| [r, 699 - r]) {
        assert_eq!(row(&shard, "short", r as u64), Some(vec![value(0, r); 2000]), "row {r}");
        assert_eq!(row(&shard, "long", r as u64), (r % 7 != 0).then(|| vec![value(1, r); 2000]), "row {r}");
    }
    let mut bytes = 0;
    assert_eq!(shard.verify(|read| bytes += read).unwrap(), []);
    assert_eq!(bytes, 2 * 700 * 4000_u64.next_multiple_of(4096) / 4096 * 4096 - 2 * (700 * 4096 - 2_801_664));
}

#[test]
fn a_flipped_bit_is_found_when_its_block_is_first_read_and_by_verify() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.vectors");
    large(&path);
    let file = std::fs::File::options().read(true).write(true).open(&path).unwrap();
    // In the second block of the data, which holds rows 262 to 524 of the first column.
    let at = file.metadata().unwrap().len() - 2 * 2_801_664 + (1 << 20) + 77;
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 4], at).unwrap();
    let shard = open(&path, 700, None).unwrap().unwrap();
    assert!(row(&shard, "short", 0).is_some());
    let error = shard.read("short", 300, &mut [bf16::ZERO; 2000]).unwrap_err().to_string();
    for part in ["x.vectors", "block 1, rows 262 to 525 of `short`", "run the `embed` stage again"] {
        assert!(error.contains(part), "{error}");
    }
    let damaged = DamagedBlock { block: 1, column: "short".to_owned(), rows: 262..525 };
    assert_eq!(shard.verify(|_| ()).unwrap(), [damaged]);
}

#[test]
fn absent_foreign_and_damaged_files_are_told_apart() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("00000.vectors");
    assert!(open(&path, 1, None).unwrap().is_none());
    write_shard(&path, &provenance("last"), 2, &[(".txt".to_owned(), numbers(&[1., 2.]))]).unwrap();
    let error = open(&path, 1, None).unwrap_err();
    assert!(matches!(&error, VectorsError::Mismatch { field, .. } if field == "pooling"), "{error}");
    let text = error.to_string();
    assert!(text.contains("they have `last`, this recipe has `mean`") && text.contains("00000.vectors"), "{text}");
    write_shard(&path, &provenance("mean"), 2, &[(".txt".to_owned(), numbers(&[1., 2.]))]).unwrap();
    let text = open(&path, 7, None).unwrap_err().to_string();
    assert!(text.contains("for 1 samples") && text.contains("has 7"), "{text}");
    let text = open(&path, 1, Some(4096)).unwrap_err().to_string();
    assert!(text.contains("are 2 numbers wide") && text.contains("width 4096"), "{text}");
    let whole = std::fs::read(&path).unwrap();
    for length in [whole.len() - 1, 5000, 63, 0] {
        std::fs::write(&path, &whole[..length]).unwrap();
        let error = open(&path, 1, None).unwrap_err();
        assert!(matches!(error, VectorsError::Damaged { .. }), "{length} bytes: {error}");
    }
}

#[test]
fn a_file_that_was_not_finished_is_not_there() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.vectors");
    let mut writer = ShardWriter::create(&path, &provenance("mean"), [2, 2], &["x"]).unwrap();
    writer.put(0, 0, &numbers(&[1., 2.])).unwrap();
    drop(writer);
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[test]
fn a_file_of_version_1_is_read_where_it_lies() {
    let folder = tempfile::tempdir().unwrap();
    let values = numbers(&[1., 2., 3., 4., 5., 6.]);
    let view = |numbers| {
        safetensors::tensor::TensorView::new(safetensors::Dtype::BF16, vec![2, 3], bytemuck::cast_slice(numbers))
            .unwrap()
    };
    let tensors = [("long".to_owned(), view(&values)), ("short".to_owned(), view(&values))];
    let bytes = safetensors::serialize(tensors, Some(provenance("mean").to_metadata().into_iter().collect())).unwrap();
    std::fs::write(folder.path().join("00000-a.safetensors"), &bytes).unwrap();
    let path = folder.path().join("00000-a.vectors");
    let shard = open(&path, 2, Some(3)).unwrap().unwrap();
    assert_eq!(row(&shard, "short", 1).unwrap(), numbers(&[4., 5., 6.]));
    assert_eq!((row(&shard, "short", 2), row(&shard, "x", 0)), (None, None));
    assert_eq!(shard.verify(|_| ()).unwrap(), []);
    // Made anew, the new one is read.
    write_shard(&path, &provenance("mean"), 3, &[("short".to_owned(), vec![bf16::ONE; 6])]).unwrap();
    assert_eq!(row(&open(&path, 2, None).unwrap().unwrap(), "short", 1).unwrap(), [bf16::ONE; 3]);
}

#[test]
fn a_store_finds_a_samples_shard_and_refuses_shards_of_different_widths() {
    let output = tempfile::tempdir().unwrap();
    let write = |index, name, width, value| {
        let path = output.path().join(shard_name(index, name));
        let columns = [("x".to_owned(), vec![bf16::from_f32(value); 2 * width])];
        write_shard(&path, &provenance("mean"), width, &columns).unwrap();
    };
    write(0, "a", 3, 1.0);
    write(2, "c", 3, 2.0);
    let shards = [("a", 0..2), ("b", 2..2), ("c", 2..4)];
    let open = |shards: &[(&'static str, std::ops::Range<u64>)]| {
        VectorStore::open(
            &storage(),
            &output.path().to_owned().into(),
            "data",
            shards.iter().cloned(),
            &provenance("mean"),
        )
    };
    let store = open(&shards).unwrap();
    let mut out = [bf16::ZERO; 3];
    for (sample, value) in [(0, 1.0), (1, 1.0), (2, 2.0), (3, 2.0)] {
        assert!(store.read(sample, "x", &mut out).unwrap());
        assert_eq!(out, [bf16::from_f32(value); 3], "sample {sample}");
    }
    assert!(!store.read(4, "x", &mut out).unwrap() && !store.read(0, "y", &mut out).unwrap());
    let missing = open(&[("a", 0..2), ("z", 2..4)]).unwrap_err().to_string();
    assert!(missing.contains("00001-z.vectors is missing") && missing.contains("`data`"), "{missing}");
    write(2, "c", 4, 2.0);
    assert!(matches!(open(&shards), Err(VectorsError::Width { found: 4, expected: 3, .. })));
}
