//! The generator as a source of batches. It makes the rows on the reader's thread, as it goes.

use table::Key;

use super::generator::{Generator, RowBlock};
use crate::reader::Rows;
use crate::{Batch, Error, Lookups, ReadOptions, Result, RowSelection, Schema, SyntheticSpec};

/// Rows made at a time: their columns, 400 bytes a row, stay in the second-level cache.
const BLOCK_ROWS: usize = 512;

const DENSE: usize = super::features::COUNTS.len();

pub(crate) struct SyntheticRows {
    generator: Generator,
    selection: RowSelection,
    max_ind_range: Option<u64>,
    next: u64,
    block: RowBlock,
}

impl SyntheticRows {
    pub(crate) fn open(spec: &SyntheticSpec, options: &ReadOptions) -> Result<(Self, Schema)> {
        let schema = spec.schema();
        let wrong = |what, found: String, expected: &str| {
            Err(Error::Argument { what, found, expected: expected.to_owned() })
        };
        if options.schema.as_ref().is_some_and(|wanted| *wanted != schema) {
            return wrong("columns", format!("{:?}", options.schema), "Criteo's columns");
        }
        if spec.test_rows > 0 && options.rows == RowSelection::Valid {
            let expected = "all, train or test: with test-rows there are no validation rows";
            return wrong("rows", options.rows.to_string(), expected);
        }
        let rows = Self {
            generator: Generator::new(spec)?,
            selection: options.rows,
            max_ind_range: options.max_ind_range,
            next: 0,
            block: RowBlock::new(),
        };
        Ok((rows, schema))
    }

    /// Appends the block that was just made.
    fn append(&self, batch: &mut Batch, dense: &mut Vec<f64>) {
        let block = &self.block;
        batch.labels.extend_from_slice(&block.labels);
        for row in 0..block.rows.len() {
            dense.extend((0..DENSE).map(|column| match block.counts(column)[row] {
                RowBlock::MISSING => f64::NAN,
                count => count as f64,
            }));
        }
        let key = |&id: &u64| Key(self.max_ind_range.map_or(id, |range| id % range));
        let one = self.generator.spec().lookups == Lookups::One;
        for (feature, jagged) in batch.features.iter_mut().enumerate() {
            if one {
                for id in block.ids(feature) {
                    jagged.values.push(key(id));
                    jagged.end_row();
                }
            } else {
                let (ids, offsets) = block.bags(feature);
                for row in offsets.windows(2) {
                    let ids = &ids[row[0] as usize..row[1] as usize];
                    jagged.values.extend(ids.iter().map(key));
                    jagged.end_row();
                }
            }
        }
    }
}

impl Rows for SyntheticRows {
    fn fill(&mut self, rows_max: usize, batch: &mut Batch, dense: &mut Vec<f64>) -> Result<()> {
        while batch.rows() < rows_max {
            let wanted = BLOCK_ROWS.min(rows_max - batch.rows());
            let spec = self.generator.spec();
            self.block.rows.clear();
            self.block.rows.extend(selected_rows(spec, self.selection, self.next).take(wanted));
            let Some(&last) = self.block.rows.last() else { break };
            self.next = last + 1;
            self.generator.fill(&mut self.block);
            if self.generator.spec().lookups != Lookups::One {
                self.generator.fill_bags(&mut self.block);
            }
            if batch.labels.is_empty() {
                batch.first_row = self.block.rows[0];
            }
            self.append(batch, dense);
        }
        Ok(())
    }

    fn rows_skipped(&self) -> u64 {
        0
    }

    fn progress(&self) -> f64 {
        let spec = self.generator.spec();
        let (start, end) = bounds(spec, self.selection);
        (self.next.saturating_sub(start) as f64 / (end - start) as f64).min(1.0)
    }
}

/// The indices of the selected rows from `start` on.
pub(crate) fn selected_rows(
    spec: &SyntheticSpec,
    selection: RowSelection,
    start: u64,
) -> impl Iterator<Item = u64> + '_ {
    let (first, end) = bounds(spec, selection);
    (start.max(first)..end).filter(move |&index| spec.selects(selection, index))
}

/// Bounds of the selected rows; test rows of their own stand behind all others.
fn bounds(spec: &SyntheticSpec, selection: RowSelection) -> (u64, u64) {
    match selection {
        RowSelection::Test if spec.test_rows > 0 => (spec.rows, spec.rows_total()),
        RowSelection::All => (0, spec.rows_total()),
        RowSelection::Train | RowSelection::Valid | RowSelection::Test => (0, spec.rows),
    }
}
