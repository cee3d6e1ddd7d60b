//! Update rules as functions over slices: SGD, Adagrad, row-wise Adagrad, Adam, for rows of tables
//! and for the dense part alike.
//!
//! It keeps no state of its own, checks no gradient for NaN and chooses no learning rate: weights,
//! state and rate come with each call.

mod row;
mod rule;

pub use row::{Rule, update_row};
pub use rule::{AdamStep, adagrad, adam, rowwise_adagrad, sgd};
