//! What torch wrote is read, what is no tensor is refused by name, and damaged files never panic nor take more memory than
//! they have bytes.

use super::*;
use crate::fuzzing::{Draws, for_a_while};
use std::{collections::HashMap, io::Cursor};

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/model").join(name)
}

fn refused(name: &str) -> String {
    TorchFile::open(&golden("torch-files").join(name)).unwrap_err().to_string()
}

#[test]
fn tensors_of_every_kind_and_layout_are_what_torch_saved() {
    let expected: HashMap<String, Tensor> =
        Tensor::read_safetensors(golden("torch-files/kinds.safetensors")).unwrap().into_iter().collect();
    let mut file = TorchFile::open(&golden("torch-files/kinds.pt")).unwrap();
    assert_eq!(file.names().len(), expected.len() + 1, "numbers and truth values are no tensors");
    for (name, expected) in &expected {
        let found = file.read(name).unwrap();
        assert_eq!((found.kind(), found.size()), (expected.kind(), expected.size()), "{name}");
        assert!(found.equal(expected) && found.is_contiguous(), "{name}");
        assert_eq!(file.shape(name).unwrap(), expected.size());
    }
    let message = file.read("number").unwrap_err().to_string();
    assert!(message.contains("number is Int64") && message.contains("kinds.pt"), "{message}");
}

#[test]
fn what_would_run_code_is_refused_by_its_name() {
    for (name, import) in [("runs.pt", "imports posix.system,"), ("object.pt", "imports __main__.Other,")] {
        let message = refused(name);
        for part in [import, name, "refused", "save the state_dict alone, or as safetensors"] {
            assert!(message.contains(part), "{message}");
        }
    }
    assert!(refused("old.pt").contains("no zip of torch.save"));
}

#[test]
fn other_instructions_and_calls_are_refused() {
    let message = |bytes: &[u8]| Pickle::read(bytes).unwrap_err();
    assert!(message(b"\x80\x02i").contains("instruction 0x69"));
    assert!(message(b"\x80\x04.").contains("protocol 4"));
    assert!(message(b"cbuiltins\neval\n.").contains("builtins.eval"));
    assert!(message(b"cbuiltins\n__import__\n.").contains("builtins.__import__"));
    assert!(message(b"ctorch\nFloatStorage\n)R.").contains("StorageOf(Float)"));
    assert!(message(b"K\x01)R.").contains("calls what is no function"));
    assert!(message(b"K\x01}b.").contains("sets attributes"));
    assert!(message(b"K\x01Q.").contains("where a list should be"));
    assert!(message(b"(((").contains("cut"));
    assert!(message(b".").contains("not there"));
}

fn damage(bytes: &mut Vec<u8>, draws: &mut Draws) {
    for _ in 0..=draws.below(4) {
        let at = draws.below(bytes.len());
        let end = (at + draws.below(60)).min(bytes.len());
        match draws.below(6) {
            0 => bytes.truncate(at),
            1 if at < bytes.len() => bytes[at] ^= 1 << draws.below(8),
            2 if at < bytes.len() => bytes[at] = b"\xff\x00\x80\x7f(tRQbcqh.u"[draws.below(14)],
            3 => _ = bytes.drain(at..end),
            4 => {
                let copy = bytes[at..end].to_vec();
                let to = draws.below(bytes.len());
                bytes.splice(to..to, copy);
            }
            _ => bytes[at..end].iter_mut().for_each(|byte| *byte = draws.below(256) as u8),
        }
    }
}

#[test]
fn fuzz_damaged_files_give_an_error_or_tensors_within_the_file() {
    let files =
        ["kinds.pt", "runs.pt", "object.pt"].map(|name| std::fs::read(golden("torch-files").join(name)).unwrap());
    for_a_while(|draws| {
        let mut bytes = files[draws.below(files.len())].clone();
        damage(&mut bytes, draws);
        let total = bytes.len() as u64;
        for (stored, entry) in tensors(&mut Cursor::new(bytes)).unwrap_or_default().into_values() {
            let size = stored.storage.kind.elt_size_in_bytes() as u64;
            assert!(entry.start + (stored.offset + stored.span) * size <= total);
            assert!(stored.shape.iter().product::<i64>() as u64 * size <= total);
        }
    });
}

#[test]
fn fuzz_damaged_pickles_never_panic() {
    let mut file = File::open(golden("torch-files/kinds.pt")).unwrap();
    let archive = Archive::read(&mut file).unwrap();
    let (_, entry) = archive.find_suffix("data.pkl").unwrap();
    let pickle = archive.bytes(&mut file, entry, MAX_PICKLE_BYTES).unwrap();
    for_a_while(|draws| {
        let mut bytes = pickle.clone();
        damage(&mut bytes, draws);
        if let Ok(pickle) = Pickle::read(&bytes) {
            let _ = state_dict(&pickle);
        }
    });
}
