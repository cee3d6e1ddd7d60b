//! Pull and push of a step that was resolved, for a caller whose floats are the host's: one gather
//! reads rows of the device and of the host's arena alike, one update writes them: of all tables,
//! whatever their widths and optimizers.
#![allow(unsafe_code)]

use gpu::{RowsGathered, RowsUpdated};

use super::Resolved;
use crate::Result;
use crate::staging::Run;
use crate::store::Inner;
use crate::tally::add;

impl Inner {
    /// Gathers the embeddings of a resolved step. Where there is no row nothing is said.
    pub(crate) fn pull_resolved(
        &self,
        plan: &Resolved,
        runs: &[Run],
        out: &mut [f32],
    ) -> Result<()> {
        let Some(tier) = &self.device else { return Ok(()) };
        let _read: Vec<_> = runs.iter().map(|run| run.table.rows.read()).collect();
        let mut exchange = tier.exchange.lock();
        let alike = |a: &Run, b: &Run| a.table.layout.dim == b.table.layout.dim;
        let gathered = runs.chunk_by(alike).map(|side_by_side| RowsGathered {
            floats: side_by_side[0].table.layout.dim as u32,
            addresses: &plan.embeddings[range_of(side_by_side)],
        });
        let gathered: Vec<RowsGathered<'_>> = gathered.collect();
        // SAFETY: the plan lives, so that its rows stay where they are; the tables' locks are held,
        // so that nobody writes them.
        let done = unsafe { exchange.gather_all(&gathered, out) };
        self.lost(done)?;
        plan.count_pull(runs);
        Ok(())
    }

    /// One step of each table's optimizer for the rows of a resolved step.
    pub(crate) fn push_resolved(
        &self,
        plan: &Resolved,
        runs: &[Run],
        gradients: &[f32],
        rate: f32,
    ) -> Result<()> {
        let Some(tier) = &self.device else { return Ok(()) };
        let _write: Vec<_> = runs.iter().map(|run| run.table.rows.write()).collect();
        let mut exchange = tier.exchange.lock();
        for (changed, slots) in &plan.slots {
            slots.iter().for_each(|&slot| changed.set(slot));
        }
        let updated = runs.chunk_by(alike).map(|side_by_side| {
            let (table, range) = (&side_by_side[0].table, range_of(side_by_side));
            RowsUpdated {
                optimizer: &table.spec.optimizer,
                floats: table.layout.dim as u32,
                addresses: &plan.embeddings[range.clone()],
                states: if table.layout.state > 0 { &plan.states[range] } else { &[] },
            }
        });
        let updated: Vec<RowsUpdated<'_>> = updated.collect();
        // SAFETY: the plan lives, so that its rows stay where they are; the tables' locks are held
        // exclusively, and a batch has no row twice.
        let done = unsafe { exchange.update_all(&updated, gradients, rate) };
        self.lost(done)?;
        plan.count_push(runs);
        Ok(())
    }
}

impl Resolved {
    pub(super) fn count_pull(&self, runs: &[Run]) {
        for (run, device_rows) in runs.iter().zip(&self.device_rows) {
            let row_bytes = (run.table.layout.dim * size_of::<f32>()) as u64;
            let host_rows = run.range.len() as u64 - device_rows;
            add(&run.table.tally.gpu_bytes_read, device_rows * row_bytes);
            add(&run.table.tally.host_bytes_read, host_rows * row_bytes);
        }
    }

    pub(super) fn count_push(&self, runs: &[Run]) {
        for (run, device_rows) in runs.iter().zip(&self.device_rows) {
            let row_bytes = run.table.layout.bytes() as u64;
            let host_rows = run.range.len() as u64 - device_rows;
            add(&run.table.tally.gpu_bytes_written, device_rows * row_bytes);
            add(&run.table.tally.host_bytes_written, host_rows * row_bytes);
        }
    }
}

/// Whether rows of two tables are updated alike.
pub(super) fn alike(a: &Run, b: &Run) -> bool {
    a.table.layout.dim == b.table.layout.dim && a.table.spec.optimizer == b.table.spec.optimizer
}

/// The keys of runs that lie side by side.
pub(super) fn range_of(runs: &[Run]) -> std::ops::Range<usize> {
    runs[0].range.start..runs[runs.len() - 1].range.end
}
