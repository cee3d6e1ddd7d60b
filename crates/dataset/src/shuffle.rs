//! Rows in a seeded random order within windows: a window of the source is read, permuted, given
//! out. A window as large as the source permutes it whole. It looks at no value.

use serde::{Deserialize, Serialize};
use table::{GOLDEN, scatter};

use crate::reader::Rows;
use crate::{Batch, Result};

/// How rows are shuffled. Memory is bounded by the window.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shuffle {
    /// Rows of a window, at least 1.
    pub window_rows: usize,
    /// The same seed gives the same order.
    pub seed: u64,
}

/// The rows of another reader, shuffled.
pub(crate) struct ShuffledRows {
    source: Box<dyn Rows + Send>,
    shuffle: Shuffle,
    windows: u64,
    window: Batch,
    dense: Vec<f64>, // [window rows, dense columns]
    order: Vec<u32>, // places in the window
    given: usize,
}

impl ShuffledRows {
    pub(crate) fn new(source: Box<dyn Rows + Send>, shuffle: Shuffle) -> Self {
        let (window, dense, order) = (Batch::new(), Vec::new(), Vec::new());
        Self { source, shuffle, windows: 0, window, dense, order, given: 0 }
    }

    /// Reads the next window; false when the source has ended.
    fn refill(&mut self, features: usize) -> Result<bool> {
        self.window.reset(0, features);
        self.dense.clear();
        self.source.fill(self.shuffle.window_rows, &mut self.window, &mut self.dense)?;
        let rows = self.window.rows();
        self.order.clear();
        self.order.extend(0..rows as u32); // a window has at most 2^24 rows; see `reader`
        let mut state = scatter(self.shuffle.seed ^ scatter(self.windows));
        for last in (1..rows).rev() {
            // Fisher and Yates; the high half of the product maps 64 bits onto 0..=last
            state = state.wrapping_add(GOLDEN);
            let place = (u128::from(scatter(state)) * (last as u128 + 1)) >> 64;
            self.order.swap(last, place as usize);
        }
        self.windows += 1;
        self.given = 0;
        Ok(rows > 0)
    }
}

impl Rows for ShuffledRows {
    fn fill(&mut self, rows_max: usize, batch: &mut Batch, dense: &mut Vec<f64>) -> Result<()> {
        while batch.rows() < rows_max {
            if self.given == self.order.len() && !self.refill(batch.features.len())? {
                return Ok(());
            }
            let columns = self.dense.len() / self.window.rows();
            let take = (rows_max - batch.rows()).min(self.order.len() - self.given);
            for &row in &self.order[self.given..self.given + take] {
                let row = row as usize;
                batch.labels.push(self.window.labels[row]);
                dense.extend_from_slice(&self.dense[row * columns..(row + 1) * columns]);
                for (to, from) in batch.features.iter_mut().zip(&self.window.features) {
                    to.values.extend_from_slice(from.row(row));
                    to.weights.extend_from_slice(from.row_weights(row));
                    to.end_row();
                }
            }
            self.given += take;
        }
        Ok(())
    }

    fn rows_skipped(&self) -> u64 {
        self.source.rows_skipped()
    }

    fn progress(&self) -> f64 {
        self.source.progress()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ReadOptions, Source, open};

    /// The first feature's key and the label of every row, batch after batch.
    fn rows(shuffle: Option<Shuffle>, batch_rows: usize) -> Vec<(Vec<u64>, u32)> {
        let source: Source = "synthetic:scale=0.001,rows=1000,seed=4".parse().unwrap();
        let options = ReadOptions { shuffle, ..ReadOptions::new(batch_rows) };
        let mut reader = open(&source, &options).unwrap();
        let (mut batch, mut all) = (Batch::new(), Vec::new());
        while reader.next_batch(&mut batch).unwrap() {
            assert!(batch.rows() == batch_rows || all.len() + batch.rows() == 1000);
            for row in 0..batch.rows() {
                let keys = batch.features.iter().map(|f| f.row(row)[0].0);
                let dense = &batch.dense[row * batch.dense_width..(row + 1) * batch.dense_width];
                let bits = dense.iter().fold(batch.labels[row].to_bits(), |sum, x| {
                    sum.wrapping_mul(31).wrapping_add(x.to_bits())
                });
                all.push((keys.collect(), bits));
            }
        }
        all
    }

    #[test]
    fn shuffling_permutes_whole_rows_and_loses_none() {
        let plain = rows(None, 64);
        for window_rows in [1, 300, 1000, 5000] {
            let shuffled = rows(Some(Shuffle { window_rows, seed: 9 }), 64);
            assert_eq!(shuffled == plain, window_rows == 1);
            for (window, (mut a, mut b)) in plain
                .chunks(window_rows)
                .zip(shuffled.chunks(window_rows))
                .map(|(a, b)| (a.to_vec(), b.to_vec()))
                .enumerate()
            {
                a.sort();
                b.sort();
                assert_eq!(a, b, "window {window} of {window_rows} rows");
            }
        }
    }

    #[test]
    fn the_order_follows_from_the_seed_alone() {
        let order = |seed, batch_rows| rows(Some(Shuffle { window_rows: 400, seed }), batch_rows);
        assert_eq!(order(1, 64), order(1, 1000));
        assert_ne!(order(1, 64), order(2, 64));
    }

    #[test]
    fn a_window_without_rows_is_refused() {
        let source: Source = "synthetic:scale=0.001,rows=10,seed=4".parse().unwrap();
        let shuffle = Some(Shuffle { window_rows: 0, seed: 1 });
        let options = ReadOptions { shuffle, ..ReadOptions::new(8) };
        let error = open(&source, &options).err().unwrap().to_string();
        assert!(error.contains("shuffle window"), "{error}");
    }
}
