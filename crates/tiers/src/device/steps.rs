//! Pull and push of a step that was resolved: one gather reads rows of the device and of the host's
//! arena alike, one update writes them. Tables that lie side by side in the batch and have one
//! width, and one optimizer, go in one launch.
#![allow(unsafe_code)]

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
        let mut rest = out;
        for side_by_side in runs.chunk_by(|a, b| a.table.layout.dim == b.table.layout.dim) {
            let (dim, range) = (side_by_side[0].table.layout.dim, range_of(side_by_side));
            let (out, after) = rest.split_at_mut(range.len() * dim);
            rest = after;
            let addresses = &plan.embeddings[range];
            // SAFETY: the plan lives, so that its rows stay where they are; the tables' locks are
            // held, so that nobody writes them.
            let gathered = unsafe { exchange.gather(dim as u32, addresses, out) };
            self.lost(gathered)?;
        }
        for (run, device_rows) in runs.iter().zip(&plan.device_rows) {
            let row_bytes = (run.table.layout.dim * size_of::<f32>()) as u64;
            let host_rows = run.range.len() as u64 - device_rows;
            add(&run.table.tally.gpu_bytes_read, device_rows * row_bytes);
            add(&run.table.tally.host_bytes_read, host_rows * row_bytes);
        }
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
        let mut rest = gradients;
        let alike = |a: &Run, b: &Run| {
            a.table.layout.dim == b.table.layout.dim
                && a.table.spec.optimizer == b.table.spec.optimizer
        };
        for side_by_side in runs.chunk_by(alike) {
            let table = &side_by_side[0].table;
            let (dim, range) = (table.layout.dim, range_of(side_by_side));
            let (gradients, after) = rest.split_at(range.len() * dim);
            rest = after;
            let addresses = &plan.embeddings[range.clone()];
            let states = if table.layout.state > 0 { &plan.states[range] } else { &[] };
            let optimizer = &table.spec.optimizer;
            // SAFETY: the plan lives, so that its rows stay where they are; the tables' locks are
            // held exclusively, and a batch has no row twice.
            let updated = unsafe {
                exchange.update(optimizer, dim as u32, addresses, states, gradients, rate)
            };
            self.lost(updated)?;
        }
        for (run, device_rows) in runs.iter().zip(&plan.device_rows) {
            let row_bytes = run.table.layout.bytes() as u64;
            let host_rows = run.range.len() as u64 - device_rows;
            add(&run.table.tally.gpu_bytes_written, device_rows * row_bytes);
            add(&run.table.tally.host_bytes_written, host_rows * row_bytes);
        }
        Ok(())
    }
}

/// The keys of runs that lie side by side.
fn range_of(runs: &[Run]) -> std::ops::Range<usize> {
    runs[0].range.start..runs[runs.len() - 1].range.end
}
