//! Rows that look like Criteo's: the same features, cardinalities and skew, and labels from a
//! planted teacher whose own quality is known. Nothing is stored: row i is a function of (seed, i).

mod bayes;
mod counts;
mod features;
mod generator;
mod lookups;
mod random;
mod ranks;
mod rows;
mod scramble;
mod spec;
mod teacher;

pub use bayes::Bayes;
pub use generator::{Generator, RowBlock};
pub use lookups::Lookups;
pub(crate) use rows::{SyntheticRows, selected_rows};
pub use spec::SyntheticSpec;
