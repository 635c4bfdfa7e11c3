//! LLM2CLIP's own tars of vectors, against what webdataset and torch make of them.

use super::{open, provenance, row, storage};
use crate::data::Blob;
use crate::fuzzing::{Draws, for_a_while};
use crate::vectors::{ImportReport, Named, VectorsError, import};
use half::bf16;
use serde::Deserialize;
use std::{
    collections::HashMap,
    path::{Path, PathBuf},
};

#[derive(Deserialize)]
struct Golden {
    width: usize,
    keys: Vec<String>,
    columns: Vec<String>,
    webdataset: HashMap<String, Vec<Option<Vec<u16>>>>,
    gnu: HashMap<String, Vec<Option<Vec<u16>>>>,
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/vectors")
}

fn golden() -> Golden {
    serde_json::from_slice(&std::fs::read(folder().join("golden.json")).unwrap()).unwrap()
}

fn imported(tar: &Path, keys: &[String], out: &Path) -> Result<ImportReport, VectorsError> {
    let tar = Blob::named(&storage(), &tar.to_owned().into()).unwrap();
    import(&tar, keys.iter().map(String::as_str), &["shortSV_captions", "longSV_captions"], &provenance("mean"), out)
}

/// Imports a golden tar and compares every row.
fn check(name: &str, expected: &HashMap<String, Vec<Option<Vec<u16>>>>) -> ImportReport {
    let golden = golden();
    let output = tempfile::tempdir().unwrap();
    let out = output.path().join("x.vectors");
    let report = imported(&folder().join(name), &golden.keys, &out).unwrap();
    assert_eq!(report.width, golden.width);
    let shard = open(&out, golden.keys.len(), Some(golden.width)).unwrap().unwrap();
    for column in &golden.columns {
        for (at, bits) in expected[column].iter().enumerate() {
            let wanted = bits.as_ref().map(|bits| bits.iter().map(|bits| bf16::from_bits(*bits)).collect::<Vec<_>>());
            assert_eq!(row(&shard, column, at as u64), wanted, "{column} of {}", golden.keys[at]);
        }
    }
    report
}

fn named(examples: &[&str]) -> Named {
    Named { count: examples.len() as u64, examples: examples.iter().map(|name| (*name).to_owned()).collect() }
}

#[test]
fn what_webdataset_wrote_comes_in_by_key_and_without_a_bit_lost() {
    let report = check("webdataset_text_embeddings.tar", &golden().webdataset);
    assert!(report.is_clean(), "{report}");
    assert_eq!((report.taken, report.rounded), (8, 0));
}

#[test]
fn what_is_missing_twice_of_no_sample_or_no_bf16_is_counted_and_named() {
    let report = check("gnu_text_embeddings.tar", &golden().gnu);
    assert_eq!(report.taken, 2);
    assert_eq!(report.duplicates, named(&["000000000.shortSV_captions"]));
    assert_eq!(report.unmatched, named(&["000000099.shortSV_captions", "a.b/000000005.longSV_captions"]));
    assert_eq!(report.not_finite, named(&["000000002.longSV_captions"]));
    assert_eq!((report.missing.count, report.missing.examples.len()), (6, 3));
    assert_eq!(report.missing.examples[0], "000000000.longSV_captions");
    assert_eq!(report.rounded, 4, "1 + 2^-8, 1 + 3 * 2^-8, 1 + 2^-8 + 2^-20 and -0.1");
    assert!(report.to_string().contains("4 numbers are no bf16"), "{report}");
}

#[test]
fn a_tar_that_breaks_off_gives_what_is_there_and_says_so() {
    let golden = golden();
    let output = tempfile::tempdir().unwrap();
    let tar = output.path().join("cut.tar");
    let whole = std::fs::read(folder().join("webdataset_text_embeddings.tar")).unwrap();
    std::fs::write(&tar, &whole[..whole.len() / 2]).unwrap();
    let report = imported(&tar, &golden.keys, &output.path().join("x.vectors")).unwrap();
    assert!(report.taken > 0 && report.taken + report.missing.count == 8, "{report}");
    assert!(report.fault.as_ref().is_some_and(|fault| fault.contains("breaks off")), "{report}");
}

#[test]
fn a_tar_of_other_keys_or_of_mixed_widths_is_refused() {
    let golden = golden();
    let output = tempfile::tempdir().unwrap();
    let out = output.path().join("x.vectors");
    let other: Vec<String> = golden.keys.iter().map(|key| format!("x{key}")).collect();
    let error = imported(&folder().join("webdataset_text_embeddings.tar"), &other, &out).unwrap_err().to_string();
    for part in ["webdataset_text_embeddings.tar", "`KEY.shortSV_captions`", "8 have another key", "`000000002."] {
        assert!(error.contains(part), "{error}");
    }
    let mut bytes = std::fs::read(folder().join("gnu_text_embeddings.tar")).unwrap();
    // The first member's size, 24 bytes, becomes 20, and the header's checksum with it.
    assert_eq!(&bytes[124..136], b"00000000030\0");
    bytes[124..136].copy_from_slice(b"00000000024\0");
    let sum: u64 = (0..512).map(|i| if (148..156).contains(&i) { 32 } else { u64::from(bytes[i]) }).sum();
    bytes[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    let tar = output.path().join("mixed.tar");
    std::fs::write(&tar, bytes).unwrap();
    let error = imported(&tar, &golden.keys, &out).unwrap_err().to_string();
    assert!(error.contains("has 24 bytes") && error.contains("20 bytes each"), "{error}");
    assert!(!out.exists(), "a refused tar leaves no file");
}

/// Damages a tar: bytes, and sizes with their header's checksum made right again.
fn damage(bytes: &mut Vec<u8>, draws: &mut Draws) {
    for _ in 0..=draws.below(3) {
        let at = draws.below(bytes.len());
        match draws.below(4) {
            0 => bytes.truncate(at.max(1)),
            1 => bytes[at] ^= 1 << draws.below(8),
            2 => bytes[at] = draws.next() as u8,
            _ => {
                let Some(block) = bytes.get_mut(at / 512 * 512..at / 512 * 512 + 512) else { continue };
                if draws.below(2) == 0 {
                    block[124] = 0x80;
                    block[125..136].iter_mut().for_each(|byte| *byte = draws.next() as u8 >> draws.below(9).min(7));
                } else {
                    block[124..135].iter_mut().for_each(|byte| *byte = b'0' + draws.below(8) as u8);
                }
                let sum: u64 = (0..512).map(|i| if (148..156).contains(&i) { 32 } else { u64::from(block[i]) }).sum();
                block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
            }
        }
    }
}

#[test]
fn fuzz_damaged_tars_of_vectors_are_refused_or_give_no_more_than_they_hold() {
    let golden = golden();
    let output = tempfile::tempdir().unwrap();
    let whole = ["webdataset_text_embeddings.tar", "gnu_text_embeddings.tar"]
        .map(|name| std::fs::read(folder().join(name)).unwrap());
    let (tar, out) = (output.path().join("x.tar"), output.path().join("x.vectors"));
    for_a_while(|draws| {
        let mut bytes = whole[draws.below(2)].clone();
        damage(&mut bytes, draws);
        std::fs::write(&tar, &bytes).unwrap();
        if let Ok(report) = imported(&tar, &golden.keys, &out) {
            assert!(report.taken as usize * report.width * 4 <= bytes.len(), "{report}");
            assert!(open(&out, golden.keys.len(), Some(report.width)).unwrap().is_some());
        }
    });
}

#[test]
fn a_member_too_long_to_be_a_vector_is_refused_and_not_believed() {
    let output = tempfile::tempdir().unwrap();
    let (tar, out) = (output.path().join("long.tar"), output.path().join("x.vectors"));
    let body = vec![0; (1 << 22) + 4];
    std::fs::write(&tar, crate::data::tests::tar(&[("000000000.shortSV_captions", body.as_slice())])).unwrap();
    let error = imported(&tar, &golden().keys, &out).unwrap_err().to_string();
    assert!(
        error.contains("`000000000.shortSV_captions` has 4194308 bytes") && error.contains("4 to 4194304"),
        "{error}"
    );
}
