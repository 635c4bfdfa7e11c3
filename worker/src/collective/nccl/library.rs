//! NCCL itself: found, opened, its version and symbols checked.
//!
//! cudarc gives the types (`nccl::sys`). Its own loader is not used: it does not know the name `libnccl.so.2`, which is
//! the only one that the Python wheel has, it panics when a library or a symbol is missing, and it reads results into
//! an enum, where a code that a newer NCCL brings would be undefined. Here results are numbers.

use cudarc::nccl::sys::{cudaStream_t, ncclComm_t, ncclConfig_t, ncclDataType_t, ncclRedOp_t, ncclUniqueId};
use libloading::os::unix::{Library as Handle, RTLD_LOCAL, RTLD_NOW};
use std::{
    ffi::{OsString, c_char, c_int, c_void},
    fmt,
    path::PathBuf,
    sync::{Arc, OnceLock},
};

/// Names the library in place of those that are looked for.
pub const LIBRARY_VARIABLE: &str = "LLM2CLIP_NCCL";
/// libtorch_cuda has opened the first; a name that is loaded already is found without a search.
const NAMES: [&str; 2] = ["libnccl.so.2", "libnccl.so"];
/// The first whose configuration has all fields of the one that is passed here.
const NEEDED: Version = Version(21_800);
/// glibc's: the library's calls to itself stay in it, when libtorch_cuda has brought another NCCL.
const RTLD_DEEPBIND: c_int = 8;

/// What NCCL's functions return.
pub(super) type Code = u32;

/// A version as NCCL counts: 2.28.9 is 22809.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version(pub u32);

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Before 2.9 a thousand was the unit of the major number.
        let unit = if self.0 < 10_000 { 1000 } else { 10_000 };
        write!(f, "{}.{}.{}", self.0 / unit, self.0 % unit / 100, self.0 % 100)
    }
}

/// Why NCCL cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LibraryError {
    /// No file.
    #[error(
        "NCCL is not on this machine: {}; a CUDA PyTorch brings libnccl.so.2, or ${LIBRARY_VARIABLE} names it",
        tried.join("; ")
    )]
    Missing {
        /// What was tried, and what the system said to it.
        tried: Vec<String>,
    },
    /// A file that is no NCCL.
    #[error("{} has no `{name}`: it is no NCCL of {NEEDED} or later", path.display())]
    Symbol {
        /// Which function.
        name: &'static str,
        /// Where it was looked for.
        path: PathBuf,
    },
    /// An old file.
    #[error("{} is NCCL {found}, needed is {NEEDED} or later", path.display())]
    TooOld {
        /// Its version.
        found: Version,
        /// Which file.
        path: PathBuf,
    },
}

/// Declares the functions that are used, and how each is looked up.
macro_rules! functions {
    ($($field:ident: $symbol:literal, fn($($argument:ty),*) -> $result:ty;)*) => {
        /// NCCL's functions.
        #[derive(Clone, Copy)]
        pub(super) struct Functions {
            $(pub $field: unsafe extern "C" fn($($argument),*) -> $result,)*
        }

        impl Functions {
            fn find(handle: &Handle) -> Result<Self, &'static str> {
                Ok(Self {
                    // SAFETY: the signature is that of nccl.h for the symbol, with the result's enum as its number.
                    $($field: *unsafe { handle.get($symbol) }.map_err(|_| $symbol)?,)*
                })
            }
        }
    };
}

functions! {
    get_unique_id: "ncclGetUniqueId", fn(*mut ncclUniqueId) -> Code;
    init_rank: "ncclCommInitRankConfig", fn(*mut ncclComm_t, c_int, ncclUniqueId, c_int, *mut ncclConfig_t) -> Code;
    finalize: "ncclCommFinalize", fn(ncclComm_t) -> Code;
    destroy: "ncclCommDestroy", fn(ncclComm_t) -> Code;
    abort: "ncclCommAbort", fn(ncclComm_t) -> Code;
    async_error: "ncclCommGetAsyncError", fn(ncclComm_t, *mut Code) -> Code;
    error_string: "ncclGetErrorString", fn(Code) -> *const c_char;
    last_error: "ncclGetLastError", fn(ncclComm_t) -> *const c_char;
    group_start: "ncclGroupStart", fn() -> Code;
    group_end: "ncclGroupEnd", fn() -> Code;
    all_reduce: "ncclAllReduce",
        fn(*const c_void, *mut c_void, usize, ncclDataType_t, ncclRedOp_t, ncclComm_t, cudaStream_t) -> Code;
    all_gather: "ncclAllGather", fn(*const c_void, *mut c_void, usize, ncclDataType_t, ncclComm_t, cudaStream_t) -> Code;
    reduce_scatter: "ncclReduceScatter",
        fn(*const c_void, *mut c_void, usize, ncclDataType_t, ncclRedOp_t, ncclComm_t, cudaStream_t) -> Code;
    broadcast: "ncclBroadcast",
        fn(*const c_void, *mut c_void, usize, ncclDataType_t, c_int, ncclComm_t, cudaStream_t) -> Code;
    reduce: "ncclReduce",
        fn(*const c_void, *mut c_void, usize, ncclDataType_t, ncclRedOp_t, c_int, ncclComm_t, cudaStream_t) -> Code;
}

/// An open NCCL.
pub struct Library {
    pub(super) functions: Functions,
    version: Version,
    path: PathBuf,
}

impl fmt::Debug for Library {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Library").field("version", &self.version).field("path", &self.path).finish_non_exhaustive()
    }
}

impl Library {
    /// This process's NCCL, opened at the first call: that of [`LIBRARY_VARIABLE`], else the one that libtorch_cuda has
    /// loaded, else the system's.
    ///
    /// # Errors
    /// When there is none that can be used; the same at every call.
    pub fn of_this_process() -> Result<Arc<Self>, LibraryError> {
        static LIBRARY: OnceLock<Result<Arc<Library>, LibraryError>> = OnceLock::new();
        LIBRARY.get_or_init(|| Self::open(&candidates(std::env::var_os(LIBRARY_VARIABLE))).map(Arc::new)).clone()
    }

    /// Opens the first of the candidates that there is.
    ///
    /// # Errors
    /// When there is none, or it cannot be used.
    pub fn open(candidates: &[PathBuf]) -> Result<Self, LibraryError> {
        let mut tried = Vec::new();
        for path in candidates {
            // SAFETY: what is run on loading is the library's own start, as for any program that links it.
            match unsafe { Handle::open(Some(path), RTLD_NOW | RTLD_LOCAL | RTLD_DEEPBIND) } {
                Ok(handle) => return Self::check(handle, path.clone()),
                Err(error) => tried.push(std::error::Error::source(&error).unwrap_or(&error).to_string()),
            }
        }
        Err(LibraryError::Missing { tried })
    }

    fn check(handle: Handle, path: PathBuf) -> Result<Self, LibraryError> {
        let symbol = |name| LibraryError::Symbol { name, path: path.clone() };
        // The version first, with the one symbol that every NCCL has: what an old one lacks says less than its number.
        // SAFETY: the signature is that of nccl.h.
        let get_version = *unsafe { handle.get::<unsafe extern "C" fn(*mut c_int) -> Code>("ncclGetVersion") }
            .map_err(|_| symbol("ncclGetVersion"))?;
        let mut found = 0;
        // SAFETY: it writes one int and needs no communicator.
        let code = unsafe { get_version(&raw mut found) };
        let version = Version(u32::try_from(found).unwrap_or(0));
        if code != 0 || version < NEEDED {
            return Err(LibraryError::TooOld { found: version, path });
        }
        let functions = Functions::find(&handle).map_err(symbol)?;
        // Never closed: NCCL has threads of its own, and `functions` are called from anywhere.
        std::mem::forget(handle);
        Ok(Self { functions, version, path })
    }

    /// Its version.
    pub fn version(&self) -> Version {
        self.version
    }

    /// The name or path under which it was opened.
    pub fn path(&self) -> &std::path::Path {
        &self.path
    }
}

fn candidates(named: Option<OsString>) -> Vec<PathBuf> {
    match named.filter(|name| !name.is_empty()) {
        Some(name) => vec![name.into()],
        None => NAMES.iter().map(PathBuf::from).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_read_as_people_write_them() {
        let text = [21_800, 22_809, 23_003, 2_708].map(|code| Version(code).to_string());
        assert_eq!(text, ["2.18.0", "2.28.9", "2.30.3", "2.7.8"]);
    }

    #[test]
    fn what_is_named_is_the_only_candidate() {
        assert_eq!(candidates(Some("/opt/nccl.so".into())), [PathBuf::from("/opt/nccl.so")]);
        assert_eq!(candidates(Some(OsString::new())), candidates(None));
        assert_eq!(candidates(None)[0], PathBuf::from("libnccl.so.2"));
    }
}
