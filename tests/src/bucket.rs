//! An S3 server with a bucket, and how programs reach it.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

/// An S3 server over an empty folder with a bucket, `bucket`. Dropped, it ends.
pub struct Bucket {
    process: Child,
    folder: tempfile::TempDir,
    address: String,
}

impl Bucket {
    /// Starts it, and waits until it listens.
    pub fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("bucket")).unwrap();
        let (process, address) = serve(folder.path(), "0");
        Self { process, folder, address }
    }

    /// Kills the server; what it holds stays.
    pub fn kill(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }

    /// Starts it again, where it was.
    pub fn restart(&mut self) {
        let port = self.address.rsplit_once(':').unwrap().1.to_owned();
        (self.process, self.address) = serve(self.folder.path(), &port);
    }

    /// The variables with which a program reaches it.
    pub fn environment(&self) -> Vec<(String, String)> {
        let endpoint = format!("http://{}", self.address);
        let variables = [
            ("AWS_ACCESS_KEY_ID", "tester"),
            ("AWS_SECRET_ACCESS_KEY", "of storage"),
            ("AWS_REGION", "us-east-1"),
            ("AWS_ENDPOINT_URL", endpoint.as_str()),
        ];
        variables.map(|(name, value)| (name.to_owned(), value.to_owned())).into()
    }

    /// The folder whose files are the bucket's objects.
    pub fn objects(&self) -> PathBuf {
        self.folder.path().join("bucket")
    }

    /// Copies a folder's files into one of the bucket.
    pub fn take(&self, files: &Path, name: &str) {
        let folder = self.objects().join(name);
        fs::create_dir_all(&folder).unwrap();
        for file in fs::read_dir(files).unwrap().map(|file| file.unwrap().path()).filter(|path| path.is_file()) {
            fs::copy(&file, folder.join(file.file_name().unwrap())).unwrap();
        }
    }
}

impl Drop for Bucket {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn serve(folder: &Path, port: &str) -> (Child, String) {
    let ours = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../.deps/s3s-fs-0.14.1/bin/s3s-fs");
    let binary = std::env::var_os("LLM2CLIP_S3_SERVER").map_or_else(ours, PathBuf::from);
    let mut process = Command::new(&binary)
        .args(["--host", "127.0.0.1", "--port", port, "--access-key", "tester", "--secret-key", "of storage"])
        .arg(folder)
        .env("RUST_LOG", "s3s_fs=info")
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap_or_else(|error| panic!("{}: {error}; `make s3-server` fetches it", binary.display()));
    let mut lines = BufReader::new(process.stdout.take().unwrap()).lines().map_while(Result::ok);
    let address = lines.find_map(|line| Some(line.split_once("http://")?.1.trim().to_owned())).unwrap();
    // Reads on, so that the server never waits for its pipe.
    std::thread::spawn(move || lines.for_each(drop));
    (process, address)
}
