//! The only door to CUDA: which devices this machine has, or why it has none. The driver is loaded
//! at run time, so one binary runs with and without a GPU.
//!
//! It holds no rows and runs no kernels yet, and it never decides what is evicted.

mod device;
mod error;

pub use device::{ComputeCapability, Device, probe};
pub use error::NoDevice;
