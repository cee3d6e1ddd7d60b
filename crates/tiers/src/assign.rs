//! Setting embeddings: how trained weights come in. The optimizer state of an assigned row starts
//! anew, whether the row was there or not. It reads no file; the caller has the rows.

use std::sync::Arc;

use table::KeyBatch;

use crate::Result;
use crate::staging::{check_finite, check_shape, floats_of};
use crate::store::Inner;

/// Bytes of rows set at once: few enough that any budget takes them.
const ASSIGN_BYTES: usize = 64 << 10;

impl Inner {
    /// See [`crate::Store::assign`].
    pub(crate) fn assign(self: &Arc<Self>, keys: &KeyBatch, rows: &[f32]) -> Result<()> {
        let runs = self.runs_of(keys)?;
        check_shape("the rows", rows.len(), floats_of(&runs))?;
        check_finite(&runs, rows, keys.keys())?;
        let mut rest = rows;
        for run in &runs {
            let table = &run.table;
            let dim = table.layout.dim;
            let (rows, after) = rest.split_at(run.range.len() * dim);
            rest = after;
            let chunk = (ASSIGN_BYTES / table.layout.bytes()).max(1);
            let keys = &keys.keys()[run.range.clone()];
            for (keys, rows) in keys.chunks(chunk).zip(rows.chunks(chunk * dim)) {
                let mut batch = KeyBatch::new();
                batch.push_run(table.id, keys)?;
                let staged = self.begin(&batch, false)?.wait()?; // assigned is admitted
                let _gate = self.enter()?;
                staged.set_rows(rows)?;
            }
        }
        Ok(())
    }
}
