//! What every part of a step on a device works with: kernels, products, streams. It holds nothing
//! of a model.

use std::sync::Arc;

use gpu::{Buffer, Device, Kernels, Memory, Precision, Products, Stream};

use crate::Result;

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
}

impl Machine {
    pub(super) fn new(device: Device, kernels: Arc<Kernels>, precision: Precision) -> Result<Self> {
        let products = Products::open(&device)?;
        let [compute, up, down] = [device.stream()?, device.stream()?, device.stream()?];
        let workspace = Memory::take(&device, WORKSPACE_BYTES)?.buffer(WORKSPACE_BYTES)?;
        Ok(Self { device, kernels, products, compute, up, down, workspace, precision })
    }

    /// Whether products are made of 16-bit brain floats.
    pub(super) fn brief(&self) -> bool {
        self.precision == Precision::Bf16
    }
}
