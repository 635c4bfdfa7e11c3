//! What storage is being asked for at the moment: every operation on a checkpoint's files is announced here first. An alarm says from
//! it what storage hangs in, and faults on purpose happen in it.

use super::faults::Faults;
use common::ids::{Generation, Rank};
use std::{
    fmt, io,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

/// An operation on a checkpoint's files, in the order in which a checkpoint comes about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Operation {
    /// `folder`: the checkpoint's folder is made.
    Folder,
    /// `create`: a rank's file, under a temporary name.
    Create,
    /// `write`: a piece of it.
    Write,
    /// `sync`: it, or its pieces so far.
    Sync,
    /// `rename`: to its name.
    Rename,
    /// `sync-folder`: its name.
    SyncFolder,
    /// `manifest-create`: under a temporary name.
    ManifestCreate,
    /// `manifest-write`.
    ManifestWrite,
    /// `manifest-sync`.
    ManifestSync,
    /// `manifest-rename`: from then on it is a checkpoint.
    ManifestRename,
    /// `manifest-sync-folder`.
    ManifestSyncFolder,
    /// `delete`: a file of an old checkpoint, or of one that failed; its manifest first.
    Delete,
    /// `delete-folder`: when it is empty.
    DeleteFolder,
}

impl Operation {
    /// All of them.
    pub const ALL: [Self; 13] = [
        Self::Folder,
        Self::Create,
        Self::Write,
        Self::Sync,
        Self::Rename,
        Self::SyncFolder,
        Self::ManifestCreate,
        Self::ManifestWrite,
        Self::ManifestSync,
        Self::ManifestRename,
        Self::ManifestSyncFolder,
        Self::Delete,
        Self::DeleteFolder,
    ];

    /// As faults name it, and alarms.
    pub fn name(self) -> &'static str {
        match self {
            Self::Folder => "folder",
            Self::Create => "create",
            Self::Write => "write",
            Self::Sync => "sync",
            Self::Rename => "rename",
            Self::SyncFolder => "sync-folder",
            Self::ManifestCreate => "manifest-create",
            Self::ManifestWrite => "manifest-write",
            Self::ManifestSync => "manifest-sync",
            Self::ManifestRename => "manifest-rename",
            Self::ManifestSyncFolder => "manifest-sync-folder",
            Self::Delete => "delete",
            Self::DeleteFolder => "delete-folder",
        }
    }
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// See the file's text.
#[derive(Debug, Default)]
pub struct Watch {
    current: Mutex<Option<(Operation, PathBuf)>>,
    faults: Faults,
}

impl Watch {
    /// With faults on purpose.
    pub fn new(faults: Faults) -> Self {
        Self { current: Mutex::default(), faults }
    }

    /// What follows is of this rank of this membership.
    pub(super) fn of(&self, rank: Rank, generation: Generation) {
        self.faults.of(rank, generation);
    }

    /// An operation is about to be carried out.
    ///
    /// # Errors
    /// A fault on purpose, in its stead.
    pub(super) fn at(&self, operation: Operation, path: &Path) -> io::Result<()> {
        *self.current.lock().unwrap_or_else(PoisonError::into_inner) = Some((operation, path.to_owned()));
        self.faults.at(operation)
    }

    /// The newest operation.
    pub(super) fn newest(&self) -> Option<(Operation, PathBuf)> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Nothing is asked for any more.
    pub(super) fn rest(&self) {
        *self.current.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}
