//! The only door to CUDA: which devices this machine has, or why it has none, and the kernels over
//! rows. The driver and the compiler are loaded at run time, so one binary runs with and without a
//! GPU.
//!
//! It holds no rows yet, and it never decides what is evicted.

mod compile;
mod device;
mod error;
pub mod kernels;
pub mod vectors;

pub use compile::{Code, compile, has_compiler};
pub use device::{ComputeCapability, Device, probe};
pub use error::{NoCode, NoDevice};
