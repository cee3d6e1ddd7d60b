//! The only door to CUDA: devices, their memory and streams, the kernels over rows and between the
//! matrix products, and the matrix products themselves. The driver and CUDA's libraries are loaded
//! at run time, so that one binary runs with and without a GPU; without one it says so.
//!
//! It is no tier, and it never decides what is evicted.

mod cache;
mod cache_vectors;
mod collective;
mod compile;
mod dense;
mod device;
mod direct;
mod error;
mod exchange;
mod graph;
pub mod kernels;
mod launch;
mod list;
mod memory;
mod module;
mod probe;
mod products;
mod replay;
mod share;
mod slots;
mod table_vectors;
mod transfer;
pub mod vectors;

pub use cache::{CodeCache, CodeSource, code_in, usual_code_dir};
pub use collective::{Collective, Communicator, UniqueId, has_collective};
pub use compile::{Code, compile, compiler_version, has_compiler};
pub use dense::{BagTerms, Columns, DenseRule, Matrix, RowTerms};
pub use device::{Device, Event, Stream};
pub use direct::{Absent, Direct, DirectLists, DirectRun};
pub use error::{Error, NoCode, NoDevice, Result};
pub use exchange::{Exchange, RowsGathered, RowsUpdated};
pub use graph::Graph;
pub use launch::{Bags, BagsTaken, Kernels, Rows};
pub use memory::{Buffer, BuffersHeld, Memory, Registered, pinned};
pub use module::{Module, Threads, Value};
pub use probe::{ComputeCapability, Description, probe};
pub use products::{
    Epilogue, Operation, Precision, Product, Products, Shape, check_products, has_products,
    mask_bytes, products_version,
};
pub use replay::{Difference, RowsIn, replay};
pub use slots::{Inserted, Mover, PartKeys, RowMoves, SlotKey, SlotTable};
pub use transfer::{Download, Upload};
