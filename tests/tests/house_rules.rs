//! The rules of the house, checked on the source itself.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use common::recipe::{DataPath, Source, parse};
use std::{
    fs,
    path::{Path, PathBuf},
};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// Files of an extension below a folder, sorted.
fn files(folder: &Path, extension: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap().flatten() {
        let path = entry.path();
        if path.is_dir() {
            found.extend(files(&path, extension));
        } else if path.extension().is_some_and(|e| e == extension) {
            found.push(path);
        }
    }
    found.sort();
    found
}

fn sources() -> Vec<PathBuf> {
    ["common", "proto", "coordinator", "worker", "tests"]
        .iter()
        .flat_map(|name| files(&root().join(name), "rs"))
        .collect()
}

/// The part of a file before its tests.
fn product(path: &Path) -> String {
    let text = fs::read_to_string(path).unwrap();
    text.split("#[cfg(test)]").next().unwrap().to_owned()
}

#[test]
fn crates_know_only_those_below_them() {
    let allowed: [(&str, &[&str]); 4] = [
        ("common", &[]),
        ("proto", &["common"]),
        ("coordinator", &["common", "proto"]),
        ("worker", &["common", "proto"]),
    ];
    for (name, below) in allowed {
        let text = fs::read_to_string(root().join(name).join("Cargo.toml")).unwrap();
        for other in ["common", "proto", "coordinator", "worker", "tests"] {
            let known = text
                .lines()
                .any(|line| line.starts_with(&format!("{other}.")) || line.starts_with(&format!("{other} =")));
            assert!(!known || below.contains(&other), "{name} must not know {other}");
        }
    }
    for (name, foreign) in [("coordinator", "tch"), ("common", "tch"), ("common", "prost"), ("proto", "tch")] {
        let text = fs::read_to_string(root().join(name).join("Cargo.toml")).unwrap();
        assert!(!text.lines().any(|line| line.starts_with(&format!("{foreign}."))), "{name} must not know {foreign}");
    }
}

#[test]
fn what_is_pure_reads_no_clock_file_socket_or_environment() {
    let pure = [("common/src", "daemon"), ("coordinator/src/job", ""), ("coordinator/src/rendezvous", "")];
    let banned = ["std::fs", "std::net", "std::env", "Instant::now", "SystemTime", "tokio::", "std::process"];
    for (folder, shell) in pure {
        for path in files(&root().join(folder), "rs") {
            if !shell.is_empty() && path.to_string_lossy().contains(&format!("/{shell}/")) {
                continue;
            }
            let text = product(&path);
            for word in banned {
                assert!(!text.contains(word), "{} is pure and uses {word}", path.display());
            }
        }
    }
}

#[test]
fn wire_types_stop_at_the_edge() {
    for path in sources() {
        let name = path.to_string_lossy().into_owned();
        let edge = ["/proto/", "/coordinator/src/api/", "/coordinator/src/cli/", "/worker/src/agent/", "/tests/"];
        if !edge.iter().any(|edge| name.contains(edge)) {
            assert!(!product(&path).contains("proto::v1"), "{name} uses a wire type");
        }
    }
}

#[test]
fn every_file_says_what_it_is_and_none_is_a_stub() {
    for path in sources() {
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.starts_with("//!"), "{} begins without //!", path.display());
        assert!(
            text.lines().all(|line| line.chars().count() <= 140),
            "{} has a line of more than 140 columns",
            path.display()
        );
        assert!(text.lines().count() <= 500, "{} has more than 500 lines", path.display());
        if !path.ends_with("house_rules.rs") {
            for word in ["todo!", "unimplemented!", "thread::sleep"] {
                assert!(!text.contains(word), "{} has {word}", path.display());
            }
        }
    }
}

#[test]
fn unsafe_stands_where_it_is_argued() {
    for path in sources() {
        let name = path.to_string_lossy().into_owned();
        let text = fs::read_to_string(&path).unwrap();
        let argued = ["/worker/src/torch/", "/worker/src/collective/nccl/", "/worker/src/data/pixels/jpeg/"]
            .iter()
            .any(|folder| name.contains(folder));
        if !argued && !path.ends_with("house_rules.rs") {
            assert!(!text.contains("unsafe {") && !text.contains("unsafe fn"), "{name} has unsafe code");
        }
    }
}

#[test]
fn the_daemons_do_not_link_libtorch() {
    let here = std::env::current_exe().unwrap();
    let folder = here.parent().and_then(Path::parent).unwrap();
    let links = |name: &str| {
        let bytes =
            fs::read(folder.join(name)).unwrap_or_else(|error| panic!("{name}: {error}: build the binaries first"));
        let wanted = b"libtorch_cpu.so\0";
        bytes.windows(wanted.len()).any(|window| window == wanted)
    };
    assert!(links("llm2clip-trainer"), "the trainer computes with libtorch");
    assert!(!links("llm2clip-worker") && !links("llm2clip"));
}

#[test]
fn every_recipe_of_configs_is_valid() {
    let folder = root().join("configs");
    for path in files(&folder, "toml") {
        let text = fs::read_to_string(&path).unwrap();
        let file = path.display().to_string();
        let source = Source { text: &text, file: &file, folder: path.parent().unwrap(), working_directory: &root() };
        let recipe = parse(source, &[]).unwrap_or_else(|error| panic!("{error}"));
        // The paper's data are the user's to bring.
        let name = path.file_name().unwrap().to_str().unwrap();
        let brings_its_data = !["llm2clip-paper-", "llm2clip-proclip-"].iter().any(|papers| name.starts_with(papers));
        for data in recipe.data.values() {
            for pattern in &data.shards {
                let DataPath::Path(path) = pattern else { continue };
                assert!(!brings_its_data || path.parent().unwrap().is_dir(), "{file}: {pattern} leads nowhere");
            }
        }
    }
}
