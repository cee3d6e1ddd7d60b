//! Why there is no device to work on. It is an answer, not a fault: the caller goes on without one.

/// Why [`crate::probe`] found no device.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NoDevice {
    /// The driver's library is not on this machine, or can't be loaded.
    #[error("no CUDA driver library found (libcuda.so)")]
    NoDriver,
    /// The driver is there and sees nothing, as where devices are hidden from a container.
    #[error("CUDA driver found, 0 devices")]
    NoDevices,
    /// The driver refused a call.
    #[error("CUDA driver error: {call}: {code}")]
    Driver {
        /// The driver's function.
        call: &'static str,
        /// The name of what it answered.
        code: String,
    },
}
