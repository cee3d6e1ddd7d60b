//! What must be seen on a real device: every kernel against its vectors, then how near each comes
//! to what the device can do. The binary `gpu-check` carries it, with the kernels' source inside,
//! to a machine with a GPU and CUDA's libraries. It holds no tier.

pub mod benchmarks;
pub mod children;
pub mod collective;
pub mod correctness;
mod dense_vectors;
mod end;
pub mod fused;
pub mod libraries;
pub mod processes;
pub mod report;
pub mod stages;
mod tensor_vectors;
pub mod tier;
pub mod tiered;
pub mod training;
pub mod vectors;
