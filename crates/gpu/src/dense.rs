//! The kernels around a step's matrix products as functions that check what they are told. It
//! orders nothing between streams; what changes between two plays of a recorded step stands in
//! device memory.
#![allow(unsafe_code)]

use crate::device::Stream;
use crate::kernels::{BLOCK, STRETCH, STRETCH_COLUMNS};
use crate::launch::length;
use crate::memory::Buffer;
use crate::module::{Threads, Value};
use crate::{Error, Kernels, Result};

const FLOAT_BYTES: u64 = 4;

/// A matrix of floats by rows.
#[derive(Debug, Clone, Copy)]
pub struct Matrix<'a> {
    /// Its floats.
    pub floats: &'a Buffer, // [rows, width]
    /// Rows.
    pub rows: u64,
    /// Columns.
    pub width: u32,
}

/// Which columns of which rows of a matrix.
#[derive(Debug, Clone, Copy)]
pub struct Columns<'a> {
    /// The matrix.
    pub matrix: Matrix<'a>,
    /// The first column.
    pub first: u32,
}

/// How the dense part moves.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum DenseRule {
    /// `w -= lr g`.
    Sgd,
    /// Adagrad.
    Adagrad {
        /// Added to the root of the accumulator.
        eps: f32,
    },
    /// Adam.
    Adam {
        /// Decay of the first moment.
        beta1: f32,
        /// Decay of the second moment.
        beta2: f32,
        /// Added to the root of the second moment.
        eps: f32,
    },
}

/// Which vectors each row's gradient is the sum of, on the device. Whoever fills the lists vouches
/// that `starts` ascend and end within `places`, and that places are vectors of upstream.
#[derive(Debug, Clone, Copy)]
pub struct RowTerms<'a> {
    /// Where each row's places begin, and the end.
    pub starts: &'a Buffer, // [rows + 1] u32
    /// Places among the vectors of upstream.
    pub places: &'a Buffer, // [terms] u32
    /// What each vector counts; none: once.
    pub weights: Option<&'a Buffer>, // [terms] f32
    /// The rows that have more than [`crate::kernels::FEW`] terms.
    pub many: &'a Buffer, // u32
    /// How many rows there are, and how many of them stand in `many`.
    pub counts: &'a Buffer, // [2] u64
}

/// Which rows each feature of each sample takes, on the device. Whoever fills the lists vouches
/// that `starts` ascend and end within `places`, that places are rows, and that addresses lead to
/// rows.
#[derive(Debug, Clone, Copy)]
pub struct BagTerms<'a> {
    /// Where each row begins.
    pub addresses: &'a Buffer, // [rows] u64
    /// Where each bag's places begin, and the end; a sample's features side by side.
    pub starts: &'a Buffer, // [samples * features + 1] u32, or more
    /// Places among the rows.
    pub places: &'a Buffer, // [terms] u32
    /// What each row counts; none: once.
    pub weights: Option<&'a Buffer>, // [terms] f32
}

impl Matrix<'_> {
    fn bytes(self) -> u64 {
        self.rows * u64::from(self.width) * FLOAT_BYTES
    }

    fn check(self, what: &'static str) -> Result<()> {
        length(what, self.floats, self.bytes())
    }
}

impl Kernels {
    /// Adds a bias to each row, and cuts what is below zero if asked to. Widths are multiples of
    /// four. bias: [width]
    pub fn add_bias(
        &self,
        stream: &Stream,
        values: Matrix<'_>,
        bias: &Buffer,
        rectify: bool,
    ) -> Result<()> {
        values.check("values")?;
        length("bias", bias, u64::from(values.width) * FLOAT_BYTES)?;
        multiple_of_four(values.width)?;
        let arguments = [
            Value::U64(values.floats.address()),
            Value::U64(bias.address()),
            Value::U32(values.width),
            Value::U64(values.rows),
            Value::U32(u32::from(rectify)),
        ];
        let elements = values.rows * u64::from(values.width / 4);
        // SAFETY: the signature's values, lengths checked just above.
        unsafe { self.dense.launch(stream, "add_bias", self.threads(elements), &arguments) }
    }

    /// Cuts a gradient where the output of a ReLU is not above zero, and sums it by columns.
    /// scratch: a float for each column of each [`STRETCH`] rows; bias_gradient: [width]
    pub fn cut_and_sum(
        &self,
        stream: &Stream,
        gradient: Matrix<'_>,
        output: Option<&Buffer>,
        scratch: &Buffer,
        bias_gradient: &Buffer,
    ) -> Result<()> {
        gradient.check("gradient")?;
        if let Some(output) = output {
            length("output of a ReLU", output, gradient.bytes())?;
        }
        let width = u64::from(gradient.width);
        let stretches = gradient.rows.div_ceil(u64::from(STRETCH));
        let needed = stretches * width * FLOAT_BYTES;
        if scratch.bytes() < needed {
            let (what, found) = ("sums of stretches", scratch.bytes());
            return Err(Error::Length { what, found, expected: needed });
        }
        length("gradient of a bias", bias_gradient, width * FLOAT_BYTES)?;
        let arguments = [
            Value::U64(gradient.floats.address()),
            Value::U64(output.map_or(0, Buffer::address)),
            Value::U64(scratch.address()),
            Value::U32(gradient.width),
            Value::U64(gradient.rows),
        ];
        let threads = self.threads(stretches * width);
        // SAFETY: the signature's values, lengths checked just above.
        unsafe { self.dense.launch(stream, "cut_and_sum", threads, &arguments) }?;
        let arguments = [
            Value::U64(scratch.address()),
            Value::U64(bias_gradient.address()),
            Value::U32(gradient.width),
            Value::U64(stretches),
        ];
        let blocks = gradient.width.div_ceil(STRETCH_COLUMNS).clamp(1, self.blocks_max.max(1));
        let threads = Threads { grid: blocks, block: BLOCK, shared_bytes: 0 };
        // SAFETY: as above.
        unsafe { self.dense.launch(stream, "sum_stretches", threads, &arguments) }
    }

    /// Each sample's loss, their mean, and the mean's gradient by each logit: the first column of
    /// `logits` and of `gradient`, whose other columns stay as they are. labels: [samples];
    /// losses: [samples] f64; mean: [1]
    pub fn loss(
        &self,
        stream: &Stream,
        logits: Matrix<'_>,
        labels: &Buffer,
        gradient: &Buffer,
        losses: &Buffer,
        mean: &Buffer,
        squared: bool,
    ) -> Result<()> {
        logits.check("logits")?;
        length("gradient of logits", gradient, logits.bytes())?;
        length("labels", labels, logits.rows * FLOAT_BYTES)?;
        length("losses", losses, logits.rows * 2 * FLOAT_BYTES)?;
        length("mean loss", mean, FLOAT_BYTES)?;
        let arguments = [
            Value::U64(logits.floats.address()),
            Value::U64(labels.address()),
            Value::U64(gradient.address()),
            Value::U64(losses.address()),
            Value::U32(logits.width),
            Value::U64(logits.rows),
            Value::U32(u32::from(squared)),
        ];
        let threads = self.threads(logits.rows);
        // SAFETY: the signature's values, lengths checked just above.
        unsafe { self.dense.launch(stream, "loss_of_logits", threads, &arguments) }?;
        let arguments =
            [Value::U64(losses.address()), Value::U64(mean.address()), Value::U64(logits.rows)];
        let threads = Threads { grid: 1, block: BLOCK, shared_bytes: 0 };
        // SAFETY: as above.
        unsafe { self.dense.launch(stream, "mean_of_losses", threads, &arguments) }
    }

    /// What the first column of `logits` stands for. probabilities: [samples]
    pub fn probabilities(
        &self,
        stream: &Stream,
        logits: Matrix<'_>,
        probabilities: &Buffer,
    ) -> Result<()> {
        logits.check("logits")?;
        length("probabilities", probabilities, logits.rows * FLOAT_BYTES)?;
        let arguments = [
            Value::U64(logits.floats.address()),
            Value::U64(probabilities.address()),
            Value::U32(logits.width),
            Value::U64(logits.rows),
        ];
        let threads = self.threads(logits.rows);
        // SAFETY: the signature's values, lengths checked just above.
        unsafe { self.dense.launch(stream, "probabilities_of", threads, &arguments) }
    }

    /// So many columns of one matrix into another of as many rows.
    pub fn copy_columns(
        &self,
        stream: &Stream,
        from: Columns<'_>,
        to: Columns<'_>,
        columns: u32,
    ) -> Result<()> {
        let rows = from.matrix.rows;
        for (what, side) in [("source of columns", from), ("target of columns", to)] {
            side.matrix.check(what)?;
            let end = u64::from(side.first) + u64::from(columns);
            let width = u64::from(side.matrix.width);
            if end > width || side.matrix.rows != rows {
                return Err(Error::Length { what, found: width, expected: end });
            }
        }
        let address =
            |side: Columns<'_>| side.matrix.floats.address() + u64::from(side.first) * FLOAT_BYTES;
        let arguments = [
            Value::U64(address(from)),
            Value::U64(u64::from(from.matrix.width)),
            Value::U64(address(to)),
            Value::U64(u64::from(to.matrix.width)),
            Value::U32(columns),
            Value::U64(rows),
        ];
        let threads = self.threads(rows * u64::from(columns));
        // SAFETY: the signature's values, lengths and columns checked just above.
        unsafe { self.dense.launch(stream, "copy_columns", threads, &arguments) }
    }

    /// Floats to the nearest 16-bit brain floats. brains: two bytes for each float
    pub fn to_brain(&self, stream: &Stream, floats: &Buffer, brains: &Buffer) -> Result<()> {
        length("brain floats", brains, floats.bytes() / 2)?;
        let n = floats.bytes() / FLOAT_BYTES;
        let arguments = [Value::U64(floats.address()), Value::U64(brains.address()), Value::U64(n)];
        // SAFETY: the signature's values, lengths checked just above.
        unsafe { self.dense.launch(stream, "to_brain", self.threads(n), &arguments) }
    }

    /// One step of the dense part. weights, gradient and each of the states are as long as each
    /// other; rates: [2], the learning rate (of Adam: over its first correction), and the root of
    /// Adam's second correction
    pub fn step_dense(
        &self,
        stream: &Stream,
        rule: DenseRule,
        weights: &Buffer,
        states: &[Buffer],
        gradient: &Buffer,
        rates: &Buffer,
    ) -> Result<()> {
        let n = weights.bytes() / FLOAT_BYTES;
        length("gradient of the dense part", gradient, weights.bytes())?;
        length("rates", rates, 2 * FLOAT_BYTES)?;
        for state in states {
            length("state of the dense part", state, weights.bytes())?;
        }
        let (kernel, states_needed, rest) = match rule {
            DenseRule::Sgd => ("step_sgd", 0, vec![]),
            DenseRule::Adagrad { eps } => ("step_adagrad", 1, vec![eps]),
            DenseRule::Adam { beta1, beta2, eps } => ("step_adam", 2, vec![beta1, beta2, eps]),
        };
        if states.len() != states_needed {
            let (found, expected) = (states.len() as u64, states_needed as u64);
            return Err(Error::Length { what: "states of the dense part", found, expected });
        }
        let mut arguments = vec![Value::U64(weights.address())];
        arguments.extend(states.iter().map(|state| Value::U64(state.address())));
        arguments.push(Value::U64(gradient.address()));
        arguments.extend([Value::U64(n), Value::U64(rates.address())]);
        arguments.extend(rest.into_iter().map(Value::F32));
        // SAFETY: the signature's values, lengths checked just above.
        unsafe { self.dense.launch(stream, kernel, self.threads(n), &arguments) }
    }

    /// Sums of rows into vectors 1 on of each sample. vectors: [samples, 1 + features, dim]
    pub fn pool_terms(
        &self,
        stream: &Stream,
        terms: BagTerms<'_>,
        vectors: &Buffer,
        dim: u32,
        features: u32,
        samples: u64,
    ) -> Result<()> {
        let bags = samples * u64::from(features);
        let needed = (bags + 1) * FLOAT_BYTES;
        if terms.starts.bytes() < needed {
            let (what, found) = ("starts of bags", terms.starts.bytes());
            return Err(Error::Length { what, found, expected: needed });
        }
        if let Some(weights) = terms.weights {
            length("weights of bags", weights, terms.places.bytes())?;
        }
        let floats = samples * (u64::from(features) + 1) * u64::from(dim);
        length("pooled rows", vectors, floats * FLOAT_BYTES)?;
        let by_four = dim.is_multiple_of(4);
        let kernel = if by_four { "pool_rows_by_four" } else { "pool_rows" };
        let arguments = [
            Value::U64(terms.addresses.address()),
            Value::U64(terms.starts.address()),
            Value::U64(terms.places.address()),
            Value::U64(terms.weights.map_or(0, Buffer::address)),
            Value::U64(vectors.address()),
            Value::U32(dim),
            Value::U32(features),
            Value::U64(samples),
        ];
        let threads = self.threads(bags * u64::from(if by_four { dim / 4 } else { dim }));
        // SAFETY: the signature's values; lengths checked just above; for what stands in the lists
        // whoever filled them vouches.
        unsafe { self.network.launch(stream, kernel, threads, &arguments) }
    }

    /// Each row's gradient: the sum of its terms in a fixed order. Rows of few terms and of many
    /// are summed by launches of their own. upstream: [vectors, dim]; gradients: [rows at most,
    /// dim]
    pub fn sum_row_gradients(
        &self,
        stream: &Stream,
        upstream: Matrix<'_>,
        terms: RowTerms<'_>,
        gradients: &Buffer,
    ) -> Result<()> {
        upstream.check("gradients by vectors")?;
        let dim = upstream.width;
        let rows_max = (terms.starts.bytes() / FLOAT_BYTES).saturating_sub(1);
        length("counts of rows", terms.counts, 16)?;
        length("gradients of rows", gradients, rows_max * u64::from(dim) * FLOAT_BYTES)?;
        if let Some(weights) = terms.weights {
            length("weights of terms", weights, terms.places.bytes())?;
        }
        let by_four = dim.is_multiple_of(4);
        let (few, many) = if by_four {
            ("sum_rows_of_few_by_four", "sum_rows_of_many_by_four")
        } else {
            ("sum_rows_of_few", "sum_rows_of_many")
        };
        let lists = [
            Value::U64(upstream.floats.address()),
            Value::U64(terms.starts.address()),
            Value::U64(terms.places.address()),
            Value::U64(terms.weights.map_or(0, Buffer::address)),
            Value::U64(gradients.address()),
        ];
        let rest = [Value::U64(terms.counts.address()), Value::U32(dim)];
        let elements = rows_max * u64::from(if by_four { dim / 4 } else { dim });
        let arguments = [&lists[..], &rest].concat();
        // SAFETY: the signature's values; lengths checked just above; for what stands in the lists
        // whoever filled them vouches.
        unsafe { self.dense.launch(stream, few, self.threads(elements), &arguments) }?;
        let many_max = terms.many.bytes() / FLOAT_BYTES;
        if many_max == 0 {
            return Ok(());
        }
        let arguments = [&lists[..], &[Value::U64(terms.many.address())], &rest].concat();
        let blocks = many_max.clamp(1, u64::from(self.blocks_max.max(1))) as u32;
        let threads = Threads { grid: blocks, block: BLOCK, shared_bytes: 0 };
        // SAFETY: as above.
        unsafe { self.dense.launch(stream, many, threads, &arguments) }
    }
}

fn multiple_of_four(width: u32) -> Result<()> {
    if width.is_multiple_of(4) {
        return Ok(());
    }
    let (found, expected) = (u64::from(width), u64::from(width.next_multiple_of(4)));
    Err(Error::Length { what: "width", found, expected })
}
