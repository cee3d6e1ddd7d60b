//! The model from outside: gradients against finite differences, the same bits on any number of
//! threads, weights in and out, what is refused, and the reference runs. Nothing here is timed.

#![allow(clippy::unwrap_used, clippy::print_stdout)] // as in any test

mod batch;
mod gradients;
mod oracle;
mod pytorch;
mod reference;
mod refusals;
mod same_bits;
mod weights;
