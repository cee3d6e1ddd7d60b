//! `dlrm-worker eval`, and the pass over data that evaluation and prediction share: read, find
//! unique keys, look up, compute. Nothing is staged and no row is created.

use crossbeam::channel::{Receiver, Sender, bounded};
use dataset::{Labels, Reader, unique};
use dlrm::{Network, PredictInput};
use table::{RowStatus, TableId};
use wire::{Code, Session};

use crate::cli::{EvalArgs, Pooling};
use crate::pipeline::Staged;
use crate::progress::Progress;
use crate::quality::{Quality, Scores};
use crate::report::Report;
use crate::setup::{Inference, bayes_of};
use crate::train::feature_rows;
use crate::{Error, Result};

/// Batches looked up ahead of the one that computes.
const LOOKUPS_AHEAD: usize = 2;

/// Evaluates a saved model.
pub fn evaluate_command(args: &EvalArgs, session: &dyn Session) -> Result<(Report, String)> {
    let mut inference = Inference::begin(&args.model, &args.data, Labels::Read, session)?;
    let reader = dataset::open(&inference.source, &inference.read)?;
    let (model, pooling) = (&mut inference.model, inference.card.pooling);
    let quality = evaluate(reader, &inference.tables, session, model, pooling)?;
    let mut report = Report {
        command: "eval",
        quality: Some(quality),
        bayes: bayes_of(&inference.source, &inference.read)?,
        threads: inference.threads,
        seed: inference.card.seed,
        device: inference.device.clone(),
        ..Report::default()
    };
    report.set_store(session.status().map_err(Error::session("ask for status"))?);
    if let Some(path) = &args.report {
        report.write(path)?;
    }
    let lines = report.lines();
    Ok((report, lines))
}

/// The quality of `model` on what `reader` reads.
pub(crate) fn evaluate(
    reader: Reader,
    tables: &[TableId],
    session: &dyn Session,
    model: &mut Network,
    pooling: Pooling,
) -> Result<Quality> {
    let mut scores = Scores::new();
    let add = |probabilities: &[f32], labels: &[f32]| {
        scores.add(probabilities, labels);
        Ok(())
    };
    let rows = for_each_prediction(reader, tables, session, model, pooling, add)?;
    if rows == 0 {
        return Err(Error::Input(
            "no row to evaluate: the selected part of the data is empty".into(),
        ));
    }
    Ok(scores.quality())
}

/// Calls `each` with the probabilities and labels of every batch, in input order; returns the rows.
pub(crate) fn for_each_prediction(
    reader: Reader,
    tables: &[TableId],
    session: &dyn Session,
    model: &mut Network,
    pooling: Pooling,
    mut each: impl FnMut(&[f32], &[f32]) -> Result<()>,
) -> Result<u64> {
    let dim = model.architecture().sparse_feature_size;
    let mut progress = Progress::new("predict", None);
    let mut rows = 0;
    std::thread::scope(|scope| {
        let (found, ready) = bounded(LOOKUPS_AHEAD);
        let (spare, spares) = bounded(LOOKUPS_AHEAD + 2);
        let ahead = LookupAhead { session, tables, dim, spares };
        scope.spawn(move || ahead.run(reader, &found));
        let mut probabilities = Vec::new();
        for looked_up in ready.iter() {
            let looked_up: LookedUp = looked_up?;
            let features = feature_rows(&looked_up.staged, pooling, Vec::new());
            let batch = &looked_up.staged.batch;
            let input =
                PredictInput { dense: &batch.dense, rows: &looked_up.rows, features: &features };
            probabilities.resize(batch.labels.len(), 0.0);
            model.predict(&input, &mut probabilities)?;
            each(&probabilities, &batch.labels)?;
            rows += batch.labels.len() as u64;
            progress.advance(batch.labels.len() as u64, String::new);
            let _ = spare.try_send(looked_up); // a full ring of buffers lets one go
        }
        Ok::<(), Error>(())
    })?;
    progress.finish("");
    Ok(rows)
}

#[derive(Default)]
struct LookedUp {
    staged: Staged,
    rows: Vec<f32>, // [n_unique, dim]
    statuses: Vec<RowStatus>,
}

struct LookupAhead<'a> {
    session: &'a dyn Session,
    tables: &'a [TableId],
    dim: usize,
    spares: Receiver<LookedUp>,
}

impl LookupAhead<'_> {
    fn run(&self, mut reader: Reader, found: &Sender<Result<LookedUp>>) {
        loop {
            let next = self.spares.try_recv().unwrap_or_default();
            let looked_up = self.one(&mut reader, next).transpose();
            let Some(looked_up) = looked_up else { return };
            let failed = looked_up.is_err();
            if found.send(looked_up).is_err() || failed {
                return;
            }
        }
    }

    fn one(&self, reader: &mut Reader, mut next: LookedUp) -> Result<Option<LookedUp>> {
        if !reader.next_batch(&mut next.staged.batch)? {
            return Ok(None);
        }
        unique(&next.staged.batch, self.tables, &mut next.staged.unique)?;
        let keys = &next.staged.unique.keys;
        next.rows.resize(keys.len() * self.dim, 0.0);
        next.statuses.resize(keys.len(), RowStatus::Failed);
        self.session
            .lookup(keys, &mut next.rows, &mut next.statuses)
            .map_err(Error::session("look up rows"))?;
        // a key that is not admitted has the floats of its initial row, as in training
        check_whole(&next.statuses).map_err(Error::session("look up rows"))?;
        Ok(Some(next))
    }
}

/// Refuses rows of which some could not be read: what is computed from others would be wrong.
pub(crate) fn check_whole(statuses: &[RowStatus]) -> wire::Result<()> {
    match statuses.iter().filter(|status| **status == RowStatus::Failed).count() {
        0 => Ok(()),
        failed => {
            let message = format!("{failed} of {} rows can't be read", statuses.len());
            Err(wire::Error::new(Code::Corrupt, message))
        }
    }
}
