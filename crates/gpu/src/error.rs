//! Why there is no device, no code, or no answer from a device. It decides nothing: the caller may
//! go on without one.

/// Why there is no device: see [`crate::probe`] and [`crate::Device::open`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NoDevice {
    /// The driver's library is not on this machine, or can't be loaded.
    #[error("no CUDA driver library found (libcuda.so)")]
    NoDriver,
    /// The driver is there and sees nothing, as where devices are hidden from a container.
    #[error("CUDA driver found, 0 devices")]
    NoDevices,
    /// The driver lacks functions that are needed.
    #[error("CUDA driver found, of version {found}; 13000 (CUDA 13.0) or later is needed")]
    OldDriver {
        /// Its version, in its own way of counting.
        found: u32,
    },
    /// There are devices, but none of that number.
    #[error("CUDA driver found, {devices} devices: there is no device {ordinal}")]
    NoSuchDevice {
        /// The number that was asked for.
        ordinal: u32,
        /// How many there are, numbered from 0.
        devices: usize,
    },
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
    /// The compiler that the loader finds is older than what it is used for.
    #[error("libnvrtc.so is of version {}.{}, expected 13.0 or later", .found.0, .found.1)]
    OldCompiler {
        /// Its version.
        found: (i32, i32),
    },
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
    /// The folder that keeps code can't be read or written.
    #[error("code cache, {path}: {said}")]
    Cache {
        /// The file.
        path: String,
        /// The system's words.
        said: String,
    },
}

/// Why a device did not do what it was asked to.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The driver refused a call, or tells at this one that earlier work failed.
    #[error("CUDA driver error: {call}: {code}")]
    Driver {
        /// The driver's function.
        call: &'static str,
        /// The name of what it answered.
        code: String,
    },
    /// The device's memory budget is spent.
    #[error("{asked} bytes of device memory asked for, {left} are left of the {budget} taken")]
    OutOfBudget {
        /// Bytes that were asked for.
        asked: u64,
        /// Bytes that are left.
        left: u64,
        /// Bytes that were taken at start.
        budget: u64,
    },
    /// A buffer is not as long as what is to be done with it takes.
    #[error("{what}: {found} bytes, expected {expected}")]
    Length {
        /// The buffer.
        what: &'static str,
        /// Its bytes.
        found: u64,
        /// The bytes that are needed.
        expected: u64,
    },
    /// A row would begin or end outside the buffer that it is said to lie in.
    #[error("row {row} would lie at byte {offset} of a buffer of {bytes}")]
    RowOutside {
        /// Its place in the list.
        row: usize,
        /// Where it would begin.
        offset: u64,
        /// The buffer's bytes.
        bytes: u64,
    },
    /// The device reaches registered memory of the host elsewhere than the host does, so that rows
    /// across two registrations have no one address.
    #[error("the device reaches the host's memory at {found:#x}, the host at {expected:#x}")]
    HostElsewhere {
        /// The device's address.
        found: u64,
        /// The host's.
        expected: u64,
    },
    /// The device lets no other process have its memory and events.
    #[error("the device shares neither memory nor events with other processes")]
    NotShared,
    /// A handle is for other processes than the one that made it.
    #[error("a handle of memory or of an event is for other processes; this one made it")]
    OwnHandle,
    /// A module has no kernel of that name.
    #[error("no kernel {0} in the module")]
    NoKernel(String),
    /// The library of matrix products is not on this machine, or can't be loaded.
    #[error("no library of matrix products found (libcublasLt.so)")]
    NoProducts,
    /// The library that the loader finds is older than what it is used for.
    #[error("libcublasLt.so is of version {found}, expected 13.0 or later")]
    OldProducts {
        /// Its version.
        found: String,
    },
    /// NCCL is not on this machine, or is not as it was expected.
    #[error("no NCCL found ({missing})")]
    NoCollective {
        /// The library, or its function.
        missing: &'static str,
    },
    /// NCCL refused a call.
    #[error("NCCL: {call}: {said}")]
    Collective {
        /// Its function.
        call: &'static str,
        /// Its words.
        said: String,
    },
    /// The library of matrix products refused a call.
    #[error("cuBLASLt: {call}: {code}")]
    Products {
        /// Its function.
        call: &'static str,
        /// The name of what it answered.
        code: String,
    },
}

/// What a call to a device brings.
pub type Result<T> = std::result::Result<T, Error>;
