//! A batch as it comes from a source: labels, dense values, and a jagged list of keys for each
//! categorical feature. Keys may repeat; `unique` finds the distinct ones.

use table::Key;

/// Rows in the order of the source. A reader fills it anew and keeps its memory.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Batch {
    /// Each within 0 to 1. [rows]
    pub labels: Vec<f32>,
    /// [rows, dense_width]
    pub dense: Vec<f32>,
    /// Columns of `dense`.
    pub dense_width: usize,
    /// One for each categorical column.
    pub features: Vec<Jagged>,
    /// The index in the source of the first row; 0 where rows are shuffled.
    pub first_row: u64,
    /// The distinct keys, where the source knows them.
    pub distinct: Distinct,
}

/// The distinct keys of each feature, found before: a cache has them, with their next uses. Where
/// they are not known, all is empty.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Distinct {
    /// Strictly ascending within a feature, feature after feature. [Σ counts]
    pub keys: Vec<Key>,
    /// In how many batches from this one each is used next: 1 for the batch after this, or
    /// [`table::KeyBatch::NEVER`]. [Σ counts]
    pub next_uses: Vec<u32>,
    /// How many each feature has. [features]
    pub counts: Vec<u32>,
    /// For each value of a feature, the place of its key among the feature's. [features][values]
    pub inverse: Vec<Vec<u32>>,
}

/// The keys of one feature, for each row none, one or several, and how much each counts.
#[derive(Debug, Clone, PartialEq)]
pub struct Jagged {
    /// The keys, row after row.
    pub values: Vec<Key>,
    /// Row r has `values[offsets[r]..offsets[r + 1]]`. [rows + 1]
    pub offsets: Vec<u32>,
    /// The weight of each value, for weighted pooling; empty where the source has none, and each
    /// counts once. [values] or []
    pub weights: Vec<f32>,
}

impl Batch {
    /// An empty batch.
    pub fn new() -> Self {
        Self::default()
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.labels.len()
    }

    /// Forgets the rows, keeps the memory, and takes the shape of a source.
    pub(crate) fn reset(&mut self, dense_width: usize, features: usize) {
        self.labels.clear();
        self.dense.clear();
        self.dense_width = dense_width;
        self.features.resize_with(features, Jagged::default);
        self.features.iter_mut().for_each(Jagged::clear);
        self.first_row = 0;
        self.distinct.clear(features);
    }
}

impl Distinct {
    /// Forgets all and keeps the memory.
    pub(crate) fn clear(&mut self, features: usize) {
        self.keys.clear();
        self.next_uses.clear();
        self.counts.clear();
        self.inverse.resize_with(features, Vec::new);
        self.inverse.iter_mut().for_each(Vec::clear);
    }
}

impl Jagged {
    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.offsets.len() - 1
    }

    /// The keys of one row.
    pub fn row(&self, row: usize) -> &[Key] {
        &self.values[self.offsets[row] as usize..self.offsets[row + 1] as usize]
    }

    /// The weights of one row; empty where there are none.
    pub fn row_weights(&self, row: usize) -> &[f32] {
        let span = self.offsets[row] as usize..self.offsets[row + 1] as usize;
        if self.weights.is_empty() { &[] } else { &self.weights[span] }
    }

    /// Ends a row after the values appended since the one before.
    pub(crate) fn end_row(&mut self) {
        // a batch is bounded to u32::MAX values before it is filled; see `reader`
        self.offsets.push(self.values.len() as u32);
    }

    /// Forgets the values after the last ended row.
    pub(crate) fn undo_row(&mut self) {
        self.values.truncate(self.offsets[self.rows()] as usize);
        self.weights.truncate(self.values.len());
    }

    pub(crate) fn clear(&mut self) {
        self.values.clear();
        self.weights.clear();
        self.offsets.truncate(1);
    }
}

impl Default for Jagged {
    fn default() -> Self {
        Self { values: Vec::new(), offsets: vec![0], weights: Vec::new() }
    }
}
