//! Sums over several devices by NCCL: a communicator, and the sum of everybody's floats, in place.
//! It starts no processes and carries no names of communicators between them.
//!
//! The library is loaded here and not by cudarc, which looks for `libnccl.so` alone: what CUDA's
//! and Python's packages bring is `libnccl.so.2`.
#![allow(unsafe_code)]

use std::ffi::{c_char, c_int, c_void};
use std::ptr;
use std::sync::Arc;

use cudarc::driver::sys::CUstream;

use crate::device::{Context, Device, Stream};
use crate::memory::Buffer;
use crate::{Error, Result};

/// What the loader is asked for.
const NAMES: [&str; 2] = ["libnccl.so.2", "libnccl.so"];

/// Of the library's data types and operations, those that are used.
const FLOAT32: c_int = 7;
const SUM: c_int = 0;

const UNIQUE_ID_BYTES: usize = 128;

/// The name of a communicator. One rank makes it; all are told of it.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct UniqueId([u8; UNIQUE_ID_BYTES]);

type RawCommunicator = *mut c_void;

/// The library.
#[derive(Debug, Clone)]
pub struct Collective {
    symbols: Arc<Symbols>,
}

/// What is called of it.
#[derive(Debug)]
struct Symbols {
    version: unsafe extern "C" fn(*mut c_int) -> c_int,
    unique_id: unsafe extern "C" fn(*mut UniqueId) -> c_int,
    init_rank: unsafe extern "C" fn(*mut RawCommunicator, c_int, UniqueId, c_int) -> c_int,
    all_reduce: unsafe extern "C" fn(
        *const c_void,
        *mut c_void,
        usize,
        c_int,
        c_int,
        RawCommunicator,
        CUstream,
    ) -> c_int,
    destroy: unsafe extern "C" fn(RawCommunicator) -> c_int,
    error_string: unsafe extern "C" fn(c_int) -> *const c_char,
    _library: libloading::Library, // keeps the functions where they are
}

/// One rank's part of a communicator.
#[derive(Debug)]
pub struct Communicator {
    collective: Collective,
    context: Arc<Context>,
    raw: RawCommunicator,
    ranks: u32,
}

// SAFETY: the library's handles may be used from any thread, one at a time: it is not `Sync`.
unsafe impl Send for Communicator {}

/// Whether the library can be loaded here.
pub fn has_collective() -> bool {
    Collective::open().is_ok()
}

impl Collective {
    /// Loads the library.
    pub fn open() -> Result<Self> {
        let open = |name| {
            // SAFETY: the library's initialisers are meant to run in any process.
            unsafe { libloading::Library::new(name) }
        };
        let found = NAMES.into_iter().find_map(|name| open(name).ok());
        let library = found.ok_or(Error::NoCollective { missing: NAMES[0] })?;
        macro_rules! symbol {
            ($name:literal) => {{
                // SAFETY: the function has that signature in every version 2 of the library; it is
                // kept no longer than the library.
                let symbol = unsafe { library.get(concat!($name, "\0").as_bytes()) };
                *symbol.map_err(|_| Error::NoCollective { missing: $name })?
            }};
        }
        let symbols = Symbols {
            version: symbol!("ncclGetVersion"),
            unique_id: symbol!("ncclGetUniqueId"),
            init_rank: symbol!("ncclCommInitRank"),
            all_reduce: symbol!("ncclAllReduce"),
            destroy: symbol!("ncclCommDestroy"),
            error_string: symbol!("ncclGetErrorString"),
            _library: library,
        };
        Ok(Self { symbols: Arc::new(symbols) })
    }

    /// Its version, such as 22707 for 2.27.7.
    pub fn version(&self) -> Result<u32> {
        let mut version = 0;
        // SAFETY: it writes one number.
        self.said("ncclGetVersion", unsafe { (self.symbols.version)(&raw mut version) })?;
        Ok(version.unsigned_abs())
    }

    /// A name for a new communicator.
    pub fn unique_id(&self) -> Result<UniqueId> {
        let mut id = UniqueId([0; UNIQUE_ID_BYTES]);
        // SAFETY: it writes one name.
        self.said("ncclGetUniqueId", unsafe { (self.symbols.unique_id)(&raw mut id) })?;
        Ok(id)
    }

    fn said(&self, call: &'static str, answer: c_int) -> Result<()> {
        if answer == 0 {
            return Ok(());
        }
        // SAFETY: it answers any number with a text that stays, ended by a NUL.
        let said = unsafe {
            let text = (self.symbols.error_string)(answer);
            if text.is_null() {
                answer.to_string()
            } else {
                std::ffi::CStr::from_ptr(text).to_string_lossy().into_owned()
            }
        };
        Err(Error::Collective { call, said })
    }
}

impl UniqueId {
    /// To be told to others.
    pub fn bytes(&self) -> &[u8; UNIQUE_ID_BYTES] {
        &self.0
    }

    /// As somebody told it.
    pub fn from_bytes(bytes: [u8; UNIQUE_ID_BYTES]) -> Self {
        Self(bytes)
    }
}

impl std::fmt::Debug for UniqueId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "UniqueId({:02x?}..)", &self.0[..4])
    }
}

impl Communicator {
    /// Joins with a device: waits, without a limit, until all ranks have. Each has a device of its
    /// own, and a thread or a process.
    pub fn join(
        collective: &Collective,
        device: &Device,
        id: &UniqueId,
        rank: u32,
        ranks: u32,
    ) -> Result<Self> {
        let (found, expected) = (u64::from(rank), u64::from(ranks));
        let (Ok(of_ours), Ok(of_all), true) =
            (c_int::try_from(rank), c_int::try_from(ranks), rank < ranks)
        else {
            return Err(Error::Length {
                what: "a rank, below the number of ranks",
                found,
                expected,
            });
        };
        device.context.enter()?;
        let mut raw = ptr::null_mut();
        // SAFETY: it writes one handle; the context is entered.
        let answer = unsafe { (collective.symbols.init_rank)(&raw mut raw, of_all, *id, of_ours) };
        collective.said("ncclCommInitRank", answer)?;
        let context = Arc::clone(&device.context);
        Ok(Self { collective: collective.clone(), context, raw, ranks })
    }

    /// How many ranks it has.
    pub fn ranks(&self) -> u32 {
        self.ranks
    }

    /// Every rank's floats become the sum of all ranks', in order with the stream's work. All ranks
    /// say so for as many floats, each in a stream of its device; which bits a sum of more than two
    /// has the library decides.
    pub fn sum(&self, stream: &Stream, floats: &Buffer) -> Result<()> {
        let (found, bytes) = (floats.bytes(), size_of::<f32>() as u64);
        if !found.is_multiple_of(bytes) || !Arc::ptr_eq(&self.context, &stream.context) {
            let expected = found.next_multiple_of(bytes);
            let what = "floats, in a stream of the communicator's device";
            return Err(Error::Length { what, found, expected });
        }
        self.context.enter()?;
        let at = floats.address() as *mut c_void;
        // SAFETY: the floats lie within a block that waits for the device before it is freed; a sum
        // in place is what the library calls in place.
        let answer = unsafe {
            let count = (found / bytes) as usize;
            (self.collective.symbols.all_reduce)(at, at, count, FLOAT32, SUM, self.raw, stream.raw)
        };
        self.collective.said("ncclAllReduce", answer)
    }
}

impl Drop for Communicator {
    fn drop(&mut self) {
        if self.context.settle().is_ok() {
            // SAFETY: made in `join`, destroyed here alone, with no work under way.
            let _ = unsafe { (self.collective.symbols.destroy)(self.raw) };
        }
    }
}
