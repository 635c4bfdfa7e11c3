//! Unix sockets at paths of any length.
//!
//! The kernel takes 107 bytes. A longer path is reached through its folder's open descriptor, which is short.

use rustix::fs::{Mode, OFlags};
use std::{
    io,
    os::{
        fd::{AsRawFd as _, OwnedFd},
        unix::net::{UnixListener, UnixStream},
    },
    path::{Path, PathBuf},
};

/// The longest path the kernel takes, in bytes.
const LONGEST: usize = 107;

/// A path short enough for the kernel.
struct Short {
    path: PathBuf,
    /// Held while the path is used; absent when the path is short by itself.
    _folder: Option<OwnedFd>,
}

fn shorten(path: &Path) -> io::Result<Short> {
    if path.as_os_str().len() <= LONGEST {
        return Ok(Short { path: path.to_owned(), _folder: None });
    }
    let (Some(folder), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "the socket's path names no file"));
    };
    let folder = rustix::fs::open(folder, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let path = Path::new("/proc/self/fd").join(folder.as_raw_fd().to_string()).join(name);
    Ok(Short { path, _folder: Some(folder) })
}

/// Listens at a path; a socket that lies there is replaced.
///
/// # Errors
/// When the folder is not there or cannot hold sockets.
pub fn listen(path: &Path) -> io::Result<UnixListener> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let short = shorten(path)?;
    UnixListener::bind(&short.path)
}

/// Connects to a path.
///
/// # Errors
/// When nobody listens there.
pub fn connect(path: &Path) -> io::Result<UnixStream> {
    let short = shorten(path)?;
    UnixStream::connect(&short.path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_longer_than_the_kernel_takes_is_reached() {
        let folder = tempfile::tempdir().unwrap();
        let long = folder.path().join("a".repeat(120));
        std::fs::create_dir(&long).unwrap();
        for folder in [folder.path(), &long] {
            let path = folder.join("0.sock");
            drop(listen(&path).unwrap());
            assert!(connect(&path).is_err());
            let _listener = listen(&path).unwrap();
            connect(&path).unwrap();
        }
    }
}
