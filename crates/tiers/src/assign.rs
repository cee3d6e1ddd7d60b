//! Setting embeddings: how trained weights come in. The optimizer state of an assigned row starts
//! anew, whether the row was there or not. It reads no file; the caller has the rows.

use std::sync::Arc;

use table::KeyBatch;

use crate::Result;
use crate::staging::{check_finite, check_shape, floats_of};
use crate::store::Inner;

/// Rows set at once, at most; no more than a block holds, so that any budget takes them.
const ASSIGN_ROWS_MAX: usize = 4096;

impl Inner {
    /// See [`crate::Store::assign`].
    pub(crate) fn assign(self: &Arc<Self>, keys: &KeyBatch, rows: &[f32]) -> Result<()> {
        let runs = self.runs_of(keys)?;
        check_shape("the rows", rows.len(), floats_of(&runs))?;
        check_finite(&runs, rows, |i| keys.keys()[i])?;
        let mut rest = rows;
        for run in &runs {
            let table = &run.table;
            let dim = table.layout.dim;
            let (rows, after) = rest.split_at(run.range.len() * dim);
            rest = after;
            let chunk = table.rows.geometry().slots.min(ASSIGN_ROWS_MAX);
            let keys = &keys.keys()[run.range.clone()];
            for (keys, rows) in keys.chunks(chunk).zip(rows.chunks(chunk * dim)) {
                let mut batch = KeyBatch::new();
                batch.push_run(table.id, keys)?;
                let staged = self.stage(&batch)?;
                let _gate = self.enter()?;
                staged.set_rows(rows);
            }
        }
        Ok(())
    }
}
