//! What every part of a step on a device works with: kernels, products, streams. It holds nothing
//! of a model.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

use gpu::{Buffer, Device, Kernels, Memory, Precision, Products, Stream};

use crate::{Error, Result};

/// What a product may use while it runs, on a device of the newest kind.
const WORKSPACE_BYTES: u64 = 32 << 20;

/// An open device with its code.
#[derive(Debug)]
pub(super) struct Machine {
    pub device: Device,
    pub kernels: Arc<Kernels>,
    pub products: Products,
    /// Where a step is computed.
    pub compute: Stream,
    /// Copies to the device.
    pub up: Stream,
    /// Copies from the device.
    pub down: Stream,
    pub workspace: Buffer,
    pub precision: Precision,
    /// Guards: what the library of products refused, each once. Held for moments.
    refused: Mutex<BTreeSet<String>>,
}

impl Machine {
    pub(super) fn new(device: Device, kernels: Arc<Kernels>, precision: Precision) -> Result<Self> {
        let products = Products::open(&device)?;
        let [compute, up, down] = [device.stream()?, device.stream()?, device.stream()?];
        let workspace = Memory::take(&device, WORKSPACE_BYTES)?.buffer(WORKSPACE_BYTES)?;
        let refused = Mutex::default();
        Ok(Self { device, kernels, products, compute, up, down, workspace, precision, refused })
    }

    /// Takes note of what the library would not do, and tells it once: the step does it another
    /// way, which may be slower.
    pub(super) fn note_refused(&self, what: &str, instead: &str, error: &Error) {
        let text = format!("{what}: {instead} instead, for {error}");
        let mut refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        if refused.insert(text) {
            tracing::warn!(what, instead, %error, "the library of matrix products does not do it");
        }
    }

    /// What the library would not do, in words.
    pub(super) fn refused(&self) -> Vec<String> {
        self.refused.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
    }

    /// Whether products are made of 16-bit brain floats.
    pub(super) fn brief(&self) -> bool {
        self.precision == Precision::Bf16
    }
}
