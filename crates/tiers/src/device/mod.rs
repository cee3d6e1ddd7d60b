//! The tier in device memory above host RAM: a cache of the host's rows, in sets of 32, of which
//! each class has a part. A row that is up keeps its slot in the host's arena, where it goes back
//! to; what is there meanwhile may be old. So a version is newest in one place: on the device where
//! `changed` says so, else in the arena.
//!
//! `resolve` is called once a stage, when its rows are in RAM: rows come up, others go down, and
//! each gets the one address at which pull and push find it. `steps` pulls and pushes for callers
//! whose floats are the host's, `direct` for workers on the device, whose work is under way when a
//! call returns. Before the host tier reads a row's floats it has `down` bring them.
//!
//! It decides which rows are up, and never which are in RAM. After the first call to the driver
//! that fails the store is poisoned.
//!
//! Who may touch what: a row of a live plan is moved by nobody (`floor`, `held`); changes of a row
//! on the device happen under its table's lock, exclusively; all that moves, under `cache`. A plan
//! lives until its work is done, and who reads or writes rows in RAM on the host has waited, with
//! the table's lock held, for what was ordered before (`quiet`).

mod cache;
mod direct;
mod down;
mod resolve;
mod shares;
mod steps;

use std::sync::Arc;

use gpu::{Device, Direct, Exchange, Kernels};
use table::Latency;

use crate::latency::Times;
use crate::store::Inner;
use crate::sync::Mutex;
use crate::{Error, Result, StoreConfig};
use cache::Cache;

pub(crate) use cache::device_bytes_per_row;
pub use direct::Places;
pub(crate) use resolve::Resolved;

/// The device, what is on it, and how it is reached.
pub(crate) struct DeviceTier {
    device: Device,
    /// Guards: which rows are on the device, and every move of one. Taken after the rows of a
    /// table, for the time of a launch or some.
    cache: Mutex<Cache>,
    /// Guards: the buffers through which rows and gradients go. After the rows of a table.
    exchange: Mutex<Exchange>,
    /// Work that is ordered and not waited for, in the exchange's stream.
    direct: Direct,
    ordered: direct::Ordered,
    budget_bytes: u64,
    stages: Times,     // that were resolved
    moves: Arc<Times>, // of rows, in the cache
}

/// What the tier has done since the store was opened.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct DeviceStatus {
    pub(crate) budget_bytes: u64,
    pub(crate) stages: Latency,
    pub(crate) moves: Latency,
}

impl DeviceTier {
    /// Opens the device and takes its memory, if the configuration wants any.
    pub(crate) fn open(config: &StoreConfig) -> Result<Option<Arc<Self>>> {
        let budget_bytes = config.gpu_cache_bytes;
        if budget_bytes == 0 {
            return Ok(None);
        }
        let device = Device::open(config.gpu_device).map_err(Error::NoDevice)?;
        let capability = device.description().compute_capability;
        let kernels = Kernels::load(&device, |source| {
            let folder = config.gpu_code_dir.as_deref();
            gpu::code_in(folder, source, capability).map_err(Error::NoDeviceCode)
        })?;
        let kernels = Arc::new(kernels);
        let moves = Arc::<Times>::default();
        let cache = Cache::take(&device, &kernels, budget_bytes, Arc::clone(&moves))?;
        let exchange = Exchange::new(&device, Arc::clone(&kernels))?;
        let direct = Direct::new(&device, kernels, Arc::clone(exchange.stream()))?;
        Ok(Some(Arc::new(Self {
            device,
            cache: Mutex::new(cache),
            exchange: Mutex::new(exchange),
            direct,
            ordered: direct::Ordered::default(),
            budget_bytes,
            stages: Times::default(),
            moves,
        })))
    }

    pub(crate) fn status(&self) -> DeviceStatus {
        DeviceStatus {
            budget_bytes: self.budget_bytes,
            stages: self.stages.told(),
            moves: self.moves.told(),
        }
    }
}

impl Inner {
    /// A device that failed may have lost rows: the store does no more.
    fn lost<T>(&self, outcome: gpu::Result<T>) -> Result<T> {
        outcome.map_err(|error| {
            self.ssd.poison(format!("device memory: {error}"));
            self.ssd.check().err().unwrap_or(Error::Device(error))
        })
    }
}
