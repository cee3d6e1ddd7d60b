//! The DLRM model (Naumov et al., arXiv:1906.00091) on the CPU in `f32`: bottom MLP, interaction,
//! top MLP, loss, and the optimizers of the dense part; and the same on a CUDA device.
//!
//! It opens no file and knows no parameter server: the rows of the embedding tables come in with
//! each step and their gradients go out. The bits of a result depend on the weights and the batch
//! alone, not on the number of threads nor on the largest batch that the model was made for.
//! (Another kind of processor may round otherwise: matrix products use what vector units it has. A
//! device gives other bits, and the same ones again.)

mod architecture;
mod device;
mod error;
mod initial;
mod interaction;
mod kernels;
mod learning_rate;
mod loss;
mod mlp;
mod model;
mod network;
mod optimizer;
mod parameter;
mod pooling;
pub mod reference;
mod row_terms;
mod sheet;
mod step;
mod tile;
mod weights;
mod workers;

/// The matrix products of a step, for whoever measures them alone.
pub mod products {
    pub use crate::kernels::{Finish, Left, PANEL, Right, Term, product};
}

pub use architecture::{Architecture, Interaction, Loss, parse_widths};
pub use device::{
    DeviceModel, DeviceOptions, NextPlace, ResidentBatch, ResidentInput, ResidentTable,
};
pub use error::{Error, Result};
pub use gpu::usual_code_dir;
pub use learning_rate::LearningRate;
pub use model::{Model, TRACE_TARGET};
pub use network::{Found, Network, Place, Precision, device_at};
pub use optimizer::DenseOptimizer;
pub use parameter::Parameter;
pub use step::{FeatureRows, Pooling, PredictInput, PulledInput, StepInput};
pub use weights::Carried;
