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

/// Why [`crate::compile`] made no code.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NoCode {
    /// The compiler's library is not on this machine, or can't be loaded.
    #[error("no CUDA run-time compiler found (libnvrtc.so)")]
    NoCompiler,
    /// The source is not what the compiler takes.
    #[error("{source_name} does not compile:\n{log}")]
    Refused {
        /// The source.
        source_name: &'static str,
        /// What the compiler said.
        log: String,
    },
    /// The compiler failed at something else.
    #[error("CUDA run-time compiler, {source_name}: {call}: {said}")]
    Compiler {
        /// The compiler's function.
        call: &'static str,
        /// The source.
        source_name: &'static str,
        /// The name of what it answered.
        said: String,
    },
}
