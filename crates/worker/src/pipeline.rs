//! Two threads ahead of the step: one reads batches, one finds their unique keys and stages them.
//! Queues between them are bounded, buffers go round. It computes nothing and pulls nothing.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{Builder, Scope};
use std::time::Instant;

use crossbeam::channel::{Receiver, Sender, bounded};
use dataset::{Batch, Reader, Unique, unique};
use table::{Step, TableId};
use wire::Session;

use crate::card::Reached;
use crate::trace::span;
use crate::{Error, Result};

/// Batches read and not yet staged: enough to ride out a slow read, few enough to cost no memory.
const READ_AHEAD: usize = 4;

/// A step whose keys are on their way to the server.
#[derive(Default)]
pub(crate) struct Staged {
    pub step: u64,
    /// Where in the data it is.
    pub at: Reached,
    pub batch: Batch,
    pub unique: Unique,
}

/// What to stage.
pub(crate) struct Course<'a> {
    /// The table of each feature.
    pub tables: &'a [TableId],
    /// Passes over the data.
    pub epochs: u64,
    /// The batch behind which to begin.
    pub after: Reached,
    /// Steps staged ahead of the one that computes.
    pub lookahead: usize,
}

/// What the threads count while they run.
#[derive(Default)]
pub(crate) struct Tally {
    /// Set by the step's side to end the threads early.
    pub cancel: AtomicBool,
    /// Nanoseconds spent on unique keys and on announcing them.
    pub stage_ns: AtomicU64,
    /// Malformed rows passed over.
    pub rows_skipped: AtomicU64,
}

/// The step's side of the pipeline.
pub(crate) struct Ahead {
    /// Staged steps in order; ends after the last, or with an error.
    pub staged: Receiver<Result<Staged>>,
    /// Takes used buffers back.
    pub spare: Sender<Staged>,
}

/// Starts both threads in `scope`. `open` begins a pass over the data, by number.
pub(crate) fn stage_ahead<'scope, 'env>(
    scope: &'scope Scope<'scope, 'env>,
    session: &'env dyn Session,
    course: &'env Course<'env>,
    tally: &'env Tally,
    open: impl Fn(u64) -> Result<Reader> + Send + 'scope,
) -> Result<Ahead> {
    let (read, batches) = bounded(READ_AHEAD);
    // one more is in the stager's hand: staged, and waiting for a place
    let (stage, staged) = bounded(course.lookahead.saturating_sub(1));
    let rounds = READ_AHEAD + course.lookahead + 4; // every buffer that can be under way at once
    let (spare, spares) = bounded::<Staged>(rounds);
    let reading = Reading { tally, epochs: course.epochs, after: course.after, spares };
    spawn(scope, "read", move || reading.run(&open, &read))?;
    spawn(scope, "stage", move || stage_batches(session, course.tables, tally, &batches, &stage))?;
    Ok(Ahead { staged, spare })
}

/// Starts a thread under a name that debuggers and traces show.
pub(crate) fn spawn<'scope>(
    scope: &'scope Scope<'scope, '_>,
    name: &'static str,
    body: impl FnOnce() + Send + 'scope,
) -> Result<()> {
    let thread = Builder::new().name(name.to_owned());
    let started = thread.spawn_scoped(scope, body);
    started.map(drop).map_err(|source| Error::Thread { name, source })
}

struct Reading<'a> {
    tally: &'a Tally,
    epochs: u64,
    after: Reached,
    spares: Receiver<Staged>,
}

impl Reading<'_> {
    fn run(&self, open: &dyn Fn(u64) -> Result<Reader>, read: &Sender<Result<Staged>>) {
        let mut step = 0;
        for epoch in self.after.epoch..self.epochs {
            match open(epoch).and_then(|reader| self.pass(reader, epoch, &mut step, read)) {
                Ok(true) => {}
                Ok(false) => return,
                Err(error) => {
                    let _ = read.send(Err(error)); // the other side may be gone already
                    return;
                }
            }
        }
    }

    /// Reads one pass, whose first batch is `step`'s; false when nobody wants more.
    fn pass(
        &self,
        mut reader: Reader,
        epoch: u64,
        step: &mut u64,
        read: &Sender<Result<Staged>>,
    ) -> Result<bool> {
        let passed_over = if epoch == self.after.epoch { self.after.batch } else { 0 };
        let mut passed = Batch::new();
        for _ in 0..passed_over {
            if self.tally.cancel.load(Ordering::Relaxed) || !reader.next_batch(&mut passed)? {
                break;
            }
        }
        for batch in passed_over + 1.. {
            let mut next = self.spares.try_recv().unwrap_or_default();
            next.at = Reached { epoch, batch };
            let more = {
                let _span = span!("read and parse", *step);
                reader.next_batch(&mut next.batch)?
            };
            if !more {
                break;
            }
            let _span = span!("wait for the stager", *step);
            if self.tally.cancel.load(Ordering::Relaxed) || read.send(Ok(next)).is_err() {
                return Ok(false);
            }
            *step += 1;
        }
        self.tally.rows_skipped.fetch_add(reader.rows_skipped(), Ordering::Relaxed);
        Ok(true)
    }
}

fn stage_batches(
    session: &dyn Session,
    tables: &[TableId],
    tally: &Tally,
    batches: &Receiver<Result<Staged>>,
    staged: &Sender<Result<Staged>>,
) {
    for step in 0.. {
        let read = {
            let _span = span!("wait for a batch", step);
            batches.recv()
        };
        let Ok(read) = read else { return };
        if tally.cancel.load(Ordering::Relaxed) {
            return;
        }
        let started = Instant::now();
        let next = read.and_then(|next| stage_one(session, tables, step, next));
        let ns = u64::try_from(started.elapsed().as_nanos()).unwrap_or(u64::MAX);
        tally.stage_ns.fetch_add(ns, Ordering::Relaxed);
        let failed = next.is_err();
        let waiting = span!("wait for a place ahead", step);
        let sent = staged.send(next);
        drop(waiting);
        if let Err(unsent) = sent {
            if let Ok(next) = unsent.into_inner() {
                let _ = session.release(Step(next.step)); // the step's side has ended with an error
            }
            return;
        }
        if failed {
            return;
        }
    }
}

fn stage_one(
    session: &dyn Session,
    tables: &[TableId],
    step: u64,
    mut next: Staged,
) -> Result<Staged> {
    {
        let _span = span!("unique and inverse", step);
        unique(&next.batch, tables, &mut next.unique)?;
    }
    next.step = step;
    let _span = span!("stage", step);
    session
        .stage(Step(step), &next.unique.keys)
        .map_err(Error::session(format_args!("stage step {step}")))?;
    Ok(next)
}
