//! What can be wrong with a model's shape, its input or its weights. A loss that is not finite is
//! no error here: the caller sees it and decides.

/// A [`std::result::Result`] with this crate's [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

/// What was wrong, where, and what was expected.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A field of the architecture, the optimizer or the schedule is outside its range.
    #[error("{field} is {found}, expected {expected}")]
    Field {
        /// The offending field.
        field: &'static str,
        /// What was given.
        found: String,
        /// What would have been accepted.
        expected: String,
    },
    /// A buffer of a step has another length than the model and the batch require.
    #[error("{what} has {found} elements, expected {expected}")]
    Shape {
        /// The buffer.
        what: &'static str,
        /// How many elements came.
        found: usize,
        /// How many there must be, and why.
        expected: String,
    },
    /// The batch is empty or over the largest that the model was made for.
    #[error("the batch has {found} samples, expected 1 to {max}")]
    Batch {
        /// Samples of the batch.
        found: usize,
        /// The largest batch of this model.
        max: usize,
    },
    /// The offsets of a feature do not divide its indices among the samples.
    #[error("feature {feature}: offset {sample} is {found}, expected {expected}")]
    Offset {
        /// The feature, counted from 0.
        feature: usize,
        /// The place in the offsets, counted from 0.
        sample: usize,
        /// The offset there.
        found: u32,
        /// What it must be.
        expected: String,
    },
    /// An index names no row.
    #[error("feature {feature}: index {place} is {found}, the step has {rows} rows")]
    Index {
        /// The feature, counted from 0.
        feature: usize,
        /// The place in the indices, counted from 0.
        place: usize,
        /// The index there.
        found: u32,
        /// Rows of the step.
        rows: usize,
    },
    /// A tensor has another type or shape than the model's.
    #[error("tensor {name} is {found}, expected {expected}")]
    Tensor {
        /// Its name.
        name: String,
        /// The type and shape that came.
        found: String,
        /// The type and shape of the model's.
        expected: String,
    },
    /// A tensor that the model needs is not there.
    #[error("no tensor named {name}, which this model has")]
    MissingTensor {
        /// Its name.
        name: String,
    },
    /// A tensor has no place in the model.
    #[error("tensor {name} has no place in this model")]
    UnknownTensor {
        /// Its name.
        name: String,
    },
    /// The bytes are not safetensors.
    #[error("not safetensors: {0}")]
    Safetensors(#[from] safetensors::SafeTensorError),
    /// There is no device to train on.
    #[error("no device: {0}")]
    NoDevice(gpu::NoDevice),
    /// The device's code can't be had.
    #[error("device: {0}")]
    NoCode(gpu::NoCode),
    /// The device refused its work.
    #[error("device: {0}")]
    Device(gpu::Error),
    /// The system gave no threads.
    #[error("start compute threads: {0}")]
    Threads(std::io::Error),
}

// By hand, for each says in its message what its cause says: a chain would say it twice.
impl From<gpu::NoDevice> for Error {
    fn from(cause: gpu::NoDevice) -> Self {
        Self::NoDevice(cause)
    }
}

impl From<gpu::NoCode> for Error {
    fn from(cause: gpu::NoCode) -> Self {
        Self::NoCode(cause)
    }
}

impl From<gpu::Error> for Error {
    fn from(cause: gpu::Error) -> Self {
        Self::Device(cause)
    }
}

impl Error {
    /// Whether a device that is there failed at its work; all else is for whoever asked to change.
    pub fn is_device_failure(&self) -> bool {
        use gpu::Error::{NoProducts, OldProducts};
        matches!(self, Self::Device(error) if !matches!(error, NoProducts | OldProducts { .. }))
    }
}
