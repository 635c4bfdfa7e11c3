//! An S3 server of its own for each test: the process `s3s-fs`, on a port of the system's choosing.

use crate::storage::{Limits, Storage};
use std::{
    io::{BufRead as _, BufReader},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::mpsc,
    time::Duration,
};

const KEY: &str = "tester";
const SECRET: &str = "of storage";

/// A running server over an empty folder, with one bucket, `bucket`. Dropped, it ends.
pub struct Server {
    process: Child,
    folder: tempfile::TempDir,
    /// Where it listens.
    pub address: SocketAddr,
}

impl Server {
    /// Starts it and waits until it listens.
    pub fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("bucket")).unwrap();
        let mut process = Command::new(binary())
            .args(["--host", "127.0.0.1", "--port", "0", "--access-key", KEY, "--secret-key", SECRET])
            .arg(folder.path())
            .env("RUST_LOG", "s3s_fs=info")
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap_or_else(|error| panic!("{}: {error}; `make s3-server` fetches it", binary().display()));
        let output = BufReader::new(process.stdout.take().unwrap());
        let (found, address) = mpsc::channel();
        // Reads on after the address has come, so that the server never waits for its pipe.
        std::thread::spawn(move || {
            for line in output.lines().map_while(Result::ok) {
                if let Some((_, address)) = line.split_once("http://") {
                    let _ = found.send(address.trim().parse::<SocketAddr>().unwrap());
                }
            }
        });
        let address = address.recv_timeout(Duration::from_secs(30)).expect("the server says where it listens");
        Self { process, folder, address }
    }

    /// The folder that holds the bucket's objects as files.
    pub fn bucket(&self) -> PathBuf {
        self.folder.path().join("bucket")
    }

    /// Storage that talks to the server.
    pub fn storage(&self, limits: Limits) -> Storage {
        storage(self.address, SECRET, limits)
    }

    /// The variables with which a process reaches it.
    pub fn environment(&self) -> Vec<(String, String)> {
        environment(self.address, SECRET)
    }

    /// Storage that talks to `address` in its place.
    pub fn storage_through(address: SocketAddr, limits: Limits) -> Storage {
        storage(address, SECRET, limits)
    }

    /// Storage that has the wrong secret.
    pub fn stranger(&self, limits: Limits) -> Storage {
        storage(self.address, "a guess", limits)
    }
}

fn storage(address: SocketAddr, secret: &str, limits: Limits) -> Storage {
    Storage::new(limits, environment(address, secret))
}

fn environment(address: SocketAddr, secret: &str) -> Vec<(String, String)> {
    let endpoint = format!("http://{address}");
    let variables = [
        ("AWS_ACCESS_KEY_ID", KEY),
        ("AWS_SECRET_ACCESS_KEY", secret),
        ("AWS_ENDPOINT_URL", endpoint.as_str()),
        ("AWS_REGION", "us-east-1"),
    ];
    variables.map(|(name, value)| (name.to_owned(), value.to_owned())).into()
}

fn binary() -> PathBuf {
    let ours = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../.deps/s3s-fs-0.14.1/bin/s3s-fs");
    std::env::var_os("LLM2CLIP_S3_SERVER").map_or_else(ours, PathBuf::from)
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
