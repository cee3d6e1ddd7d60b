//! The DLRM worker: reads data, stages keys, pulls rows, computes, pushes gradients.
//!
//! It knows a parameter server only as a [`wire::Session`]: it holds no rows of its own and never
//! imports `tiers` or `server`. The binary opens the session and hands it over.

pub mod cli;

mod cache;
mod card;
mod curves;
mod error;
mod evaluate;
mod generate;
mod pipeline;
mod places;
mod predict;
mod progress;
mod quality;
mod report;
mod setup;
mod tensorboard;
mod trace;
mod train;
mod weights;

pub use cache::cache_command;
pub use error::{Error, Result};
pub use evaluate::evaluate_command;
pub use generate::generate_command;
pub use predict::predict_command;
pub use report::Report;
pub use trace::{TraceFile, trace_to};
pub use train::train_command;
pub use weights::export_command;
#[doc(hidden)] // decoders, for the fuzzer
pub use weights::{embedding_rows, init_from};
