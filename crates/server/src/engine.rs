//! The engine behind every session, embedded or served: the store, the limits, the count of
//! sessions. It knows no socket.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use table::units::format_bytes;
use table::{DeviceId, Limits, StoreStatus, TableId, TableSpec};
use tiers::{Durability, Store, StoreConfig, TableShare};
use tokio::sync::watch;
use wire::Code;

use crate::error::session_error;
use crate::metrics::Metrics;
use crate::session::EngineSession;
use crate::{Error, Result};

/// What an engine is given at its opening.
#[derive(Debug, Clone)]
pub struct EngineConfig {
    /// Where the rows live.
    pub data_dir: PathBuf,
    /// Bytes of host RAM for rows.
    pub host_ram_bytes: u64,
    /// Bytes of host RAM for the SSD tier's own caches.
    pub ssd_memory_bytes: u64,
    /// Bytes of GPU memory for rows; 0: no GPU is opened.
    pub gpu_cache_bytes: u64,
    /// The GPU's number.
    pub gpu_device: u32,
    /// A folder that keeps the code that is compiled for the GPU.
    pub gpu_code_dir: Option<PathBuf>,
    /// How long a stage waits for pinned rows to be let go.
    pub stage_wait: Duration,
    /// How the SSD tier is to be used.
    pub ssd: SsdConfig,
    /// Whether rows are locked in physical memory, so that the system can't swap them out.
    pub lock_memory: bool,
    /// Tables whose share of the host RAM is bounded.
    pub shares: Vec<TableShare>,
    /// What a session may ask for.
    pub limits: Limits,
}

/// How the SSD tier is to be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SsdConfig {
    /// Bytes a second that may be written to its files, merging included and its log not; `None`:
    /// as fast as the device takes them.
    pub write_bytes_per_s: Option<u64>,
    /// Threads that read rows: the depth of the device's queue.
    pub read_threads: u32,
    /// When a row that left RAM is safe.
    pub durability: Durability,
}

/// A store open for sessions.
pub struct Engine {
    store: Store,
    dir: PathBuf,
    limits: Limits,
    metrics: Metrics,
    sessions: Mutex<Sessions>, // the count alone; never held while the store works
    sessions_ended: Condvar,
    poisoned: watch::Sender<Option<String>>, // the first fault that ended all work
}

#[derive(Default)]
struct Sessions {
    open: u32,
    opened: u64,
    closing: bool,
}

impl Engine {
    /// Opens the store in `config.data_dir`, or makes one in an empty directory.
    pub fn open(config: EngineConfig, metrics: Metrics) -> Result<Arc<Self>> {
        let EngineConfig {
            data_dir,
            host_ram_bytes,
            ssd_memory_bytes,
            gpu_cache_bytes,
            gpu_device,
            gpu_code_dir,
            stage_wait,
            ssd: SsdConfig { write_bytes_per_s, read_threads, durability },
            lock_memory,
            shares,
            limits,
        } = config;
        let store_config = StoreConfig {
            ssd_memory_bytes,
            gpu_cache_bytes,
            gpu_device,
            gpu_code_dir,
            stage_wait,
            tables_max: limits.tables_max,
            ssd_write_bytes_per_s: write_bytes_per_s,
            ssd_read_threads: read_threads,
            durability,
            lock_memory,
            shares,
            ..StoreConfig::new(&data_dir, host_ram_bytes)
        };
        let store = Store::open(store_config).map_err(|source| {
            let no_gpu = matches!(
                source,
                tiers::Error::NoDevice(_) | tiers::Error::NoDeviceCode(_) | tiers::Error::Device(_)
            );
            if no_gpu {
                return Error::Setting {
                    setting: "gpu_cache",
                    found: format_bytes(gpu_cache_bytes),
                    expected: format!("what this machine has ({source})"),
                };
            }
            Error::Store { dir: data_dir.clone(), source: Box::new(source) }
        })?;
        Ok(Arc::new(Self {
            store,
            dir: data_dir,
            limits,
            metrics,
            sessions: Mutex::default(),
            sessions_ended: Condvar::new(),
            poisoned: watch::Sender::new(None),
        }))
    }

    /// Opens a session, unless there are too many or the engine is closing.
    pub fn open_session(self: &Arc<Self>) -> wire::Result<EngineSession> {
        let number = {
            let mut sessions = self.sessions.lock();
            if sessions.closing {
                return Err(wire::Error::new(Code::Unavailable, "the server is stopping"));
            }
            if sessions.open >= self.limits.sessions_max {
                let message = format!("{} sessions are open, the limit", sessions.open);
                return Err(wire::Error::new(Code::SlowDown, message));
            }
            sessions.open += 1;
            sessions.opened += 1;
            sessions.opened
        };
        self.metrics.session_opened();
        EngineSession::start(Arc::clone(self), number).inspect_err(|_| self.session_ended())
    }

    /// What a session may ask for.
    pub fn limits(&self) -> Limits {
        self.limits
    }

    /// The device whose memory rows are in, where workers of other processes may share slots.
    pub fn device_for_others(&self) -> Option<DeviceId> {
        self.store.device_for_others()
    }

    /// Every table, in the order of their numbers.
    pub fn tables(&self) -> Vec<(TableId, TableSpec)> {
        self.store.tables()
    }

    /// Makes a table, or finds the one of that name.
    pub fn create_table(&self, spec: &TableSpec) -> wire::Result<TableId> {
        self.store.create_table(spec).map_err(|error| self.told(&error))
    }

    /// Rows, bytes and counters of every table and tier.
    pub fn status(&self) -> StoreStatus {
        self.store.status()
    }

    /// Sessions open now.
    pub fn sessions_open(&self) -> u32 {
        self.sessions.lock().open
    }

    /// Why the store refuses all work, once it does.
    pub fn poisoned(&self) -> watch::Receiver<Option<String>> {
        self.poisoned.subscribe()
    }

    /// Refuses new sessions from now on, waits for the open ones to end, at most for `patience`,
    /// and writes everything down.
    pub fn close(&self, patience: Duration) -> Result<()> {
        let deadline = Instant::now() + patience;
        let mut sessions = self.sessions.lock();
        sessions.closing = true;
        while sessions.open > 0 {
            if self.sessions_ended.wait_until(&mut sessions, deadline).timed_out() {
                tracing::warn!(sessions = sessions.open, "closing under open sessions");
                break;
            }
        }
        drop(sessions);
        self.store
            .close()
            .map_err(|source| Error::Store { dir: self.dir.clone(), source: Box::new(source) })
    }

    pub(crate) fn store(&self) -> &Store {
        &self.store
    }

    pub(crate) fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    pub(crate) fn session_ended(&self) {
        self.metrics.session_closed();
        self.sessions.lock().open -= 1;
        self.sessions_ended.notify_all();
    }

    /// The error that tells a session what the tiers met; a store that stops working is noted.
    pub(crate) fn told(&self, error: &tiers::Error) -> wire::Error {
        let error = session_error(error);
        if error.code() == Code::Poisoned {
            self.poisoned.send_if_modified(|cause| {
                let first = cause.is_none();
                if first {
                    tracing::error!(cause = error.message(), "store refuses work");
                    *cause = Some(error.message().to_owned());
                }
                first
            });
        }
        error
    }
}
