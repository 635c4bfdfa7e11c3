//! One communicator: non-blocking, polled, aborted from any thread.
//!
//! NCCL allows one thread at a time inside a communicator's calls. Every call here is made under one lock, and as the
//! communicator is non-blocking each is short; waiting is done outside, call by call. So an abort finds the lock free.

use super::{
    error::{IN_PROGRESS, NcclError, SUCCESS},
    library::{Code, Functions, Library},
};
use cudarc::nccl::sys::{cudaStream_t, ncclComm, ncclComm_t, ncclConfig_t, ncclDataType_t, ncclRedOp_t, ncclUniqueId};
use std::{
    ffi::{c_int, c_uint, c_void},
    ptr,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicPtr, Ordering},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

/// How long the caller of an abort waits for NCCL to carry it out; after that it goes on by itself.
const ABORT_WAIT: Duration = Duration::from_secs(1);
/// "Not set" of a configuration's numbers.
const UNSET: c_int = c_int::MIN;

/// The length of an id in bytes.
pub(super) const ID_BYTES: usize = 128;
/// What the ranks of one communicator have in common. Made once for each.
pub(super) type UniqueId = [u8; ID_BYTES];

/// How a call stands that did not fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Progress {
    /// Done; for an operation: on its stream.
    Ready,
    /// To be polled.
    Going,
}

/// One call of an operation. Counts are in elements; pointers are to memory that the stream's device reads and writes.
#[derive(Debug, Clone, Copy)]
pub(super) enum Call {
    AllReduce { buffer: *mut c_void, count: usize },
    AllGather { send: *const c_void, receive: *mut c_void, count: usize },
    ReduceScatter { send: *const c_void, receive: *mut c_void, count: usize },
    Broadcast { send: *const c_void, receive: *mut c_void, count: usize, root: c_int },
    Reduce { send: *const c_void, receive: *mut c_void, count: usize, root: c_int },
}

/// A rank's end of a communicator.
pub(super) struct Communicator(Arc<Inner>);

struct Inner {
    library: Arc<Library>,
    aborted: OnceLock<String>,
    handle: Mutex<Handle>,
}

/// Absent when it was closed or aborted.
struct Handle(Option<ncclComm_t>);

// SAFETY: NCCL's communicators are not bound to a thread, and the lock around this keeps it to one at a time.
unsafe impl Send for Handle {}

/// An id for a new communicator.
///
/// # Errors
/// When NCCL finds no network interface to listen on.
pub(super) fn unique_id(library: &Library) -> Result<UniqueId, NcclError> {
    let mut id = ncclUniqueId { internal: [0; ID_BYTES] };
    // SAFETY: it fills the struct.
    let code = unsafe { (library.functions.get_unique_id)(&raw mut id) };
    match code {
        SUCCESS => Ok(id.internal.map(|byte| byte as u8)),
        code => Err(NcclError::new(&library.functions, "ncclGetUniqueId", code, ptr::null_mut())),
    }
}

fn configuration() -> ncclConfig_t {
    ncclConfig_t {
        size: size_of::<ncclConfig_t>(),
        magic: 0xcafe_beef,
        // Of the fields' layout, not of the library.
        version: 22_400 as c_uint,
        blocking: 0,
        cgaClusterSize: UNSET,
        minCTAs: UNSET,
        maxCTAs: UNSET,
        netName: ptr::null(),
        splitShare: UNSET,
    }
}

/// Of a live communicator: success, in progress, or what failed since the last call.
fn state(functions: &Functions, communicator: ncclComm_t) -> Code {
    let mut state = SUCCESS;
    // SAFETY: called by `Communicator::call`, which gives a live communicator; the state is one number.
    let code = unsafe { (functions.async_error)(communicator, &raw mut state) };
    if code == SUCCESS { state } else { code }
}

impl Communicator {
    /// Begins to join the ranks that have the same id, on the thread's current device. Poll until it is ready.
    ///
    /// # Errors
    /// When NCCL refuses at once.
    pub(super) fn begin(library: Arc<Library>, id: &UniqueId, rank: u32, world: u32) -> Result<Self, NcclError> {
        let id = ncclUniqueId { internal: id.map(|byte| byte as _) };
        let mut configuration = configuration();
        // NCCL's own thread writes here once more when it has joined, even after an abort: so this stays for ever.
        let place: &'static AtomicPtr<ncclComm> = Box::leak(Box::new(AtomicPtr::new(ptr::null_mut())));
        // SAFETY: the configuration is read during the call; the place is written atomically and is never freed.
        let code = unsafe {
            (library.functions.init_rank)(place.as_ptr(), world as c_int, id, rank as c_int, &raw mut configuration)
        };
        let communicator = place.load(Ordering::Acquire);
        if !matches!(code, SUCCESS | IN_PROGRESS) || communicator.is_null() {
            return Err(NcclError::new(&library.functions, "ncclCommInitRankConfig", code, communicator));
        }
        let handle = Mutex::new(Handle(Some(communicator)));
        Ok(Self(Arc::new(Inner { library, aborted: OnceLock::new(), handle })))
    }

    /// Whether what was begun last is done, and whether something failed since.
    ///
    /// # Errors
    /// When something did, or the communicator was aborted.
    pub(super) fn poll(&self) -> Result<Progress, NcclError> {
        self.call("ncclCommGetAsyncError", state)
    }

    /// As `poll`, and going when another thread is in a call: for who must not wait even for a call that hangs.
    ///
    /// # Errors
    /// As for `poll`.
    pub(super) fn peek(&self) -> Result<Progress, NcclError> {
        match self.0.handle.try_lock() {
            Ok(handle) => self.call_with(&handle, "ncclCommGetAsyncError", state),
            Err(_) => Ok(Progress::Going),
        }
    }

    /// Puts the calls of one operation on the stream, as one group when they are several. Poll until it is ready.
    ///
    /// # Errors
    /// When NCCL refuses, or the communicator was aborted.
    ///
    /// # Safety
    /// The pointers are to memory of so many elements of the type, and stay so until the stream has passed the
    /// operation or the communicator's abort; the stream is one of the communicator's device.
    pub(super) unsafe fn submit(
        &self,
        calls: &[Call],
        kind: ncclDataType_t,
        stream: cudaStream_t,
    ) -> Result<Progress, NcclError> {
        if let [call] = calls {
            // SAFETY: `call` gives a live communicator; the rest is the caller's promise.
            return self.call(call.name(), |functions, communicator| unsafe {
                call.make(functions, kind, communicator, stream)
            });
        }
        self.call("ncclGroupEnd", |functions, communicator| {
            // SAFETY: a group is of the calling thread, which opens and closes it here; the rest as above.
            unsafe {
                let code = (functions.group_start)();
                if code != SUCCESS {
                    return code;
                }
                let mut made = calls.iter().map(|call| call.make(functions, kind, communicator, stream));
                let failed = made.find(|code| !matches!(*code, SUCCESS | IN_PROGRESS));
                let ended = (functions.group_end)();
                failed.unwrap_or(ended)
            }
        })
    }

    /// Ends everything that runs on the communicator, and it. Later calls fail with the reason. Waits a second at most.
    pub(super) fn abort(&self, reason: &str) {
        if self.0.aborted.set(reason.to_owned()).is_err() {
            return;
        }
        let (done, wait) = mpsc::channel::<()>();
        let inner = self.0.clone();
        let work = move || {
            let Some(communicator) = inner.lock().0.take() else { return };
            // SAFETY: it was taken out under the lock, so that no other thread is in a call on it, and none will be.
            let code = unsafe { (inner.library.functions.abort)(communicator) };
            if !matches!(code, SUCCESS | IN_PROGRESS) {
                tracing::warn!(code, "NCCL could not abort a communicator in order");
            }
            drop(done);
        };
        // On a thread of its own: NCCL waits for its kernels, and a GPU that hangs must not hang the caller.
        match thread::Builder::new().name("nccl-abort".into()).spawn(work) {
            Ok(_) => match wait.recv_timeout(ABORT_WAIT) {
                Err(mpsc::RecvTimeoutError::Timeout) => tracing::warn!("NCCL takes long to abort a communicator"),
                Ok(()) | Err(mpsc::RecvTimeoutError::Disconnected) => {}
            },
            Err(error) => tracing::warn!(%error, "no thread to abort a communicator on"),
        }
    }

    /// Ends the communicator in order, when all ranks do; aborts it when that takes longer than `deadline`.
    pub(super) fn close(&self, deadline: Duration) {
        let end = Instant::now() + deadline;
        // SAFETY: `call` gives a live communicator.
        let finalize = |functions: &Functions, communicator| unsafe { (functions.finalize)(communicator) };
        let mut progress = self.call("ncclCommFinalize", finalize);
        while progress == Ok(Progress::Going) && Instant::now() < end {
            thread::park_timeout(Duration::from_millis(1));
            progress = self.poll();
        }
        match progress {
            Ok(Progress::Ready) => {
                let Some(communicator) = self.0.lock().0.take() else { return };
                // SAFETY: finalized, taken out under the lock, and not used again.
                let code = unsafe { (self.0.library.functions.destroy)(communicator) };
                if !matches!(code, SUCCESS | IN_PROGRESS) {
                    tracing::warn!(code, "NCCL could not destroy a communicator in order");
                }
            }
            Ok(Progress::Going) => self.abort("its end took too long"),
            Err(error) => self.abort(&error.to_string()),
        }
    }

    fn call(
        &self,
        name: &'static str,
        body: impl FnOnce(&Functions, ncclComm_t) -> Code,
    ) -> Result<Progress, NcclError> {
        self.call_with(&self.0.lock(), name, body)
    }

    fn call_with(
        &self,
        handle: &Handle,
        name: &'static str,
        body: impl FnOnce(&Functions, ncclComm_t) -> Code,
    ) -> Result<Progress, NcclError> {
        if let Some(reason) = self.0.aborted.get() {
            return Err(NcclError::Aborted { reason: reason.clone() });
        }
        let Some(communicator) = handle.0 else {
            return Err(NcclError::Aborted { reason: "it was closed".to_owned() });
        };
        let functions = &self.0.library.functions;
        match body(functions, communicator) {
            SUCCESS => Ok(Progress::Ready),
            IN_PROGRESS => Ok(Progress::Going),
            code => Err(NcclError::new(functions, name, code, communicator)),
        }
    }
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, Handle> {
        self.handle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Communicator {
    fn drop(&mut self) {
        let left = self.0.handle.try_lock().is_ok_and(|handle| handle.0.is_some());
        if left {
            self.abort("it was dropped");
        }
    }
}

impl Call {
    fn name(&self) -> &'static str {
        match self {
            Self::AllReduce { .. } => "ncclAllReduce",
            Self::AllGather { .. } => "ncclAllGather",
            Self::ReduceScatter { .. } => "ncclReduceScatter",
            Self::Broadcast { .. } => "ncclBroadcast",
            Self::Reduce { .. } => "ncclReduce",
        }
    }

    /// Makes the call; its sums are plain sums.
    ///
    /// # Safety
    /// As for [`Communicator::submit`], with a live communicator.
    unsafe fn make(
        &self,
        functions: &Functions,
        kind: ncclDataType_t,
        communicator: ncclComm_t,
        stream: cudaStream_t,
    ) -> Code {
        let sum = ncclRedOp_t::ncclSum;
        // SAFETY: the caller's promise.
        unsafe {
            match *self {
                Self::AllReduce { buffer, count } => {
                    (functions.all_reduce)(buffer, buffer, count, kind, sum, communicator, stream)
                }
                Self::AllGather { send, receive, count } => {
                    (functions.all_gather)(send, receive, count, kind, communicator, stream)
                }
                Self::ReduceScatter { send, receive, count } => {
                    (functions.reduce_scatter)(send, receive, count, kind, sum, communicator, stream)
                }
                Self::Broadcast { send, receive, count, root } => {
                    (functions.broadcast)(send, receive, count, kind, root, communicator, stream)
                }
                Self::Reduce { send, receive, count, root } => {
                    (functions.reduce)(send, receive, count, kind, sum, root, communicator, stream)
                }
            }
        }
    }
}
