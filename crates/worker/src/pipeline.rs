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
    /// Whether it is the last of its pass.
    pub ends_pass: bool,
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
    /// Batches of a pass from one test to the next, where there are tests.
    pub test_every: Option<u64>,
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
    /// To be told once for each test that is over: no step is staged before.
    pub tested: Sender<()>,
}

impl Staged {
    /// Whether a test comes behind it, where they are so many batches apart and one ends each pass.
    pub(crate) fn is_tested(&self, test_every: Option<u64>) -> bool {
        self.ends_pass && test_every.is_some() || self.at.is_tested(test_every)
    }
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
    let rounds = READ_AHEAD + course.lookahead + 5; // every buffer that can be under way at once
    let (spare, spares) = bounded::<Staged>(rounds);
    let reading = Reading { tally, epochs: course.epochs, after: course.after, spares };
    spawn(scope, "read", move || reading.run(&open, &read))?;
    let (tested, tests) = bounded(1);
    let staging = Staging { session, course, tally, tests };
    spawn(scope, "stage", move || staging.run(&batches, &stage))?;
    Ok(Ahead { staged, spare, tested })
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
        let mut before: Option<Staged> = None; // what comes after it tells whether it is the last
        for batch in passed_over + 1.. {
            let mut next = self.spares.try_recv().unwrap_or_default();
            (next.at, next.ends_pass) = (Reached { epoch, batch }, false);
            let more = {
                let _span = span!("read and parse", *step);
                reader.next_batch(&mut next.batch)
            };
            if let Some(mut before) = before.take() {
                before.ends_pass = matches!(more, Ok(false));
                let _span = span!("wait for the stager", *step - 1);
                if self.tally.cancel.load(Ordering::Relaxed) || read.send(Ok(before)).is_err() {
                    return Ok(false);
                }
            }
            if !more? {
                break;
            }
            before = Some(next);
            *step += 1;
        }
        self.tally.rows_skipped.fetch_add(reader.rows_skipped(), Ordering::Relaxed);
        Ok(true)
    }
}

/// The stager. A test asks for rows as the step before it left them: who is admitted and what has
/// expired follows from the stages begun, so that none begins before a test is over.
struct Staging<'a> {
    session: &'a dyn Session,
    course: &'a Course<'a>,
    tally: &'a Tally,
    tests: Receiver<()>,
}

impl Staging<'_> {
    fn run(&self, batches: &Receiver<Result<Staged>>, staged: &Sender<Result<Staged>>) {
        for step in 0.. {
            let read = {
                let _span = span!("wait for a batch", step);
                batches.recv()
            };
            let Ok(read) = read else { return };
            if self.tally.cancel.load(Ordering::Relaxed) {
                return;
            }
            let started = Instant::now();
            let next = read.and_then(|next| self.stage_one(step, next));
            let ns = u64::try_from(started.elapsed().as_nanos()).unwrap_or(u64::MAX);
            self.tally.stage_ns.fetch_add(ns, Ordering::Relaxed);
            let tested = next.as_ref().ok().map(|next| next.is_tested(self.course.test_every));
            let waiting = span!("wait for a place ahead", step);
            let sent = staged.send(next);
            drop(waiting);
            if let Err(unsent) = sent {
                if let Ok(next) = unsent.into_inner() {
                    // the step's side has ended with an error
                    let _ = self.session.release(Step(next.step));
                }
                return;
            }
            match tested {
                Some(false) => {}
                Some(true) => {
                    let _span = span!("wait for a test", step);
                    if self.tests.recv().is_err() {
                        return;
                    }
                }
                None => return, // an error was the last that is sent
            }
        }
    }

    fn stage_one(&self, step: u64, mut next: Staged) -> Result<Staged> {
        {
            let _span = span!("unique and inverse", step);
            unique(&next.batch, self.course.tables, &mut next.unique)?;
        }
        next.step = step;
        let _span = span!("stage", step);
        self.session
            .stage(Step(step), &next.unique.keys)
            .map_err(Error::session(format_args!("stage step {step}")))?;
        Ok(next)
    }
}
