//! Rows on their way in: a stage's misses are read from SSD in sorted batches by threads of their
//! own, while the stage's caller goes on. A row is on its way once; who else wants it waits for the
//! same load. It makes no room and decides nothing about who is admitted.

use std::sync::Arc;

use dashmap::DashMap;
use table::{Key, RowStatus};

use crate::arena::Row;
use crate::ssd::Ssd;
use crate::store::Table;
use crate::stored::StoredRow;
use crate::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use crate::sync::channel::{Receiver, Sender, bounded};
use crate::sync::thread::{self, JoinHandle};
use crate::sync::{Condvar, Mutex};
use crate::tally::add;
use crate::{Error, Result};

/// Rows that one thread reads at once, at most.
const TASK_ROWS_MAX: usize = 32;
/// And at least, so that handing them over is worth it; under a scheduler a load has several tasks.
const TASK_ROWS_MIN: usize = if cfg!(feature = "shuttle") { 1 } else { 4 };
/// Tasks that wait for a thread, at most; a stage that brings more waits.
const TASKS_MAX: usize = 1024;

/// A row that a stage has a slot for and no floats yet.
#[derive(Clone)]
pub(crate) struct Missing {
    pub(crate) table: Arc<Table>,
    pub(crate) key: Key,
    pub(crate) hash: u64,
    pub(crate) row: Row,
    pub(crate) position: u32,
    pub(crate) foreseen: bool,
}

/// What came of a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Read { history: Option<u8> },
    New,
    Expired,
    Failed,
}

/// The misses of one stage while they are read.
pub(crate) struct Load {
    tasks_left: AtomicUsize,
    state: Mutex<State>,
    done: Condvar,
}

#[derive(Default)]
struct State {
    rows: Vec<(Missing, Outcome)>,
    error: Option<Error>,    // of the first row that could not be had
    failed: Vec<(u32, Row)>, // class, row: those that could not
    finished: bool,
    statuses: Vec<(u32, RowStatus)>, // by position in the batch of the stage that loads
}

/// Rows of a load that could not be had, and why not.
pub(crate) struct Failure {
    pub(crate) rows: Vec<(u32, Row)>, // class, row; ascending
    pub(crate) error: Error,
}

/// Some rows of one table, keys ascending.
pub(crate) struct Task {
    load: Arc<Load>,
    rows: Vec<Missing>,
}

/// What the threads that read share with the store. They don't hold the store itself, so that it
/// ends when its users let go.
pub(crate) struct Intake {
    pub(crate) ssd: Arc<Ssd>,
    /// Rows on their way in, each with the load that brings it.
    pub(crate) loads: DashMap<(u32, Row), Arc<Load>>,
    /// Stages begun, over all openings of the store: the clock of gains and of expiry by steps.
    pub(crate) stages: AtomicU64,
}

/// The threads that read.
pub(crate) struct Readers {
    tasks: Option<Sender<Task>>,
    threads: Vec<JoinHandle<()>>,
}

impl Load {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self {
            tasks_left: AtomicUsize::new(0),
            state: Mutex::default(),
            done: Condvar::new(),
        })
    }

    /// Waits until every row of the load is there, but for those that could not be had.
    pub(crate) fn wait(&self) -> Option<Failure> {
        let mut state = self.state.lock();
        while !state.finished {
            self.done.wait(&mut state);
        }
        let error = state.error.as_ref()?.again();
        Some(Failure { rows: state.failed.clone(), error })
    }

    /// Where the rows came from, by their positions in the batch, once the load is done.
    pub(crate) fn take_statuses(&self) -> Vec<(u32, RowStatus)> {
        std::mem::take(&mut self.state.lock().statuses)
    }
}

impl Readers {
    pub(crate) fn start(count: u32, intake: &Arc<Intake>) -> Result<Self> {
        let (tasks, queue) = bounded(TASKS_MAX);
        let thread = |number: u32| {
            let (queue, intake): (Receiver<Task>, _) = (queue.clone(), Arc::clone(intake));
            thread::Builder::new()
                .name(format!("ssd-read-{number}"))
                .spawn(move || {
                    for task in queue {
                        intake.run(task);
                    }
                })
                .map_err(|source| Error::Io { context: "start a thread".to_owned(), source })
        };
        let threads = (0..count).map(thread).collect::<Result<Vec<_>>>()?;
        Ok(Self { tasks: Some(tasks), threads })
    }

    /// Starts a load: its rows, in the order of the batch, are cut into tasks.
    pub(crate) fn load(&self, load: &Arc<Load>, rows: Vec<Missing>) {
        let each = rows.len().div_ceil(2 * self.threads.len()).clamp(TASK_ROWS_MIN, TASK_ROWS_MAX);
        let mut tasks = Vec::with_capacity(rows.len() / each + 1);
        for table in rows.chunk_by(|a, b| a.table.id == b.table.id) {
            tasks.extend(table.chunks(each).map(<[Missing]>::to_vec));
        }
        load.tasks_left.store(tasks.len(), Ordering::Release);
        let queue = self.tasks.as_ref().expect("the queue is open until the store is dropped");
        for rows in tasks {
            let sent = queue.send(Task { load: Arc::clone(load), rows });
            sent.unwrap_or_else(|_| panic!("the readers live as long as the store"));
        }
    }
}

impl Drop for Readers {
    fn drop(&mut self) {
        self.tasks = None; // the threads end when they have read what waits
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                tracing::error!("a thread that reads rows panicked");
            }
        }
    }
}

impl Intake {
    /// Reads the rows of one task; whoever does a load's last task finishes the load.
    fn run(&self, task: Task) {
        let Task { load, rows } = task;
        let mut outcomes = vec![Outcome::Failed; rows.len()];
        let read = self.read_task(&rows, &mut outcomes);
        {
            let mut state = load.state.lock();
            if let Err(error) = read
                && state.error.is_none()
            {
                state.error = Some(error);
            }
            state.rows.extend(rows.into_iter().zip(outcomes));
        }
        if load.tasks_left.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.finish(&load);
        }
    }

    fn read_task(&self, rows: &[Missing], outcomes: &mut [Outcome]) -> Result<()> {
        let table = &rows[0].table;
        let now = table.clock(&self.stages);
        let keys = rows.iter().map(|row| row.key);
        let mut failed = None;
        self.ssd.read(table.id, table.layout.bytes(), keys, |i, key, value| {
            let row = rows[i].row;
            let decode = |bytes| StoredRow::decode(table, key, bytes);
            let stored = match value.and_then(|value| value.map(decode).transpose()) {
                Ok(stored) => stored,
                Err(error) => {
                    failed.get_or_insert(error);
                    return Ok(()); // the others come in
                }
            };
            outcomes[i] = match stored {
                Some(stored) if table.is_expired(stored.stamp, now) => {
                    table.class.arena.write(row, |embedding, state| {
                        table.initialise(key, embedding, state);
                    });
                    Outcome::Expired
                }
                Some(stored) => {
                    let arena = &table.class.arena;
                    arena.write(row, |embedding, state| stored.copy_to(embedding, state));
                    Outcome::Read { history: stored.history }
                }
                None => {
                    table.class.arena.write(row, |embedding, state| {
                        table.initialise(key, embedding, state);
                    });
                    Outcome::New
                }
            };
            Ok(())
        })?;
        failed.map_or(Ok(()), Err)
    }

    /// Makes the rows of a load rows like others, and forgets those that could not be had.
    fn finish(&self, load: &Load) {
        let mut state = load.state.lock();
        let mut rows = std::mem::take(&mut state.rows);
        rows.sort_unstable_by_key(|(row, _)| (row.table.class.number, row.row));
        for (missing, outcome) in &rows {
            let class = &missing.table.class;
            let number = class.section_of(missing.hash) as usize;
            let mut section = class.sections[number].lock();
            let at = section.find(missing.hash, missing.table.id);
            let at = at.expect("a row on its way in stays");
            if *outcome == Outcome::Failed {
                section.forget(at);
                state.failed.push((class.number, missing.row));
            } else {
                let meta = section.entry(at).meta;
                let on_ssd = !matches!(outcome, Outcome::New);
                section.set_meta(at, meta.loading(false).on_ssd(on_ssd));
                if let Outcome::Read { history: Some(history) } = *outcome
                    && !missing.foreseen
                {
                    section.recall(at, history);
                }
                // a new stamp has to reach SSD like new floats, or the row would grow old there
                let as_stored = matches!(outcome, Outcome::Read { .. }) && !missing.table.stamped();
                class.arena.set_dirty(missing.row, !as_stored);
            }
            self.loads.remove(&(class.number, missing.row));
        }
        for (missing, outcome) in &rows {
            let status = self.count_load(&missing.table, *outcome);
            state.statuses.push((missing.position, status));
        }
        if let Some(error) = &state.error {
            tracing::warn!(rows = state.failed.len(), %error, "rows can't be read");
        }
        state.finished = true;
        load.done.notify_all();
    }

    fn count_load(&self, table: &Table, outcome: Outcome) -> RowStatus {
        let tally = &table.tally;
        if outcome == Outcome::Failed {
            add(&tally.failed, 1);
            return RowStatus::Failed;
        }
        add(&tally.host_misses, 1);
        add(&tally.rows_host, 1);
        match outcome {
            Outcome::Read { .. } => {
                add(&tally.ssd_hits, 1);
                add(&tally.ssd_rereads, 1);
                add(&tally.ssd_bytes_read, table.layout.bytes() as u64);
                RowStatus::Ssd
            }
            Outcome::New => {
                add(&tally.ssd_misses, 1);
                add(&tally.first_touch, 1);
                add(&tally.rows, 1);
                RowStatus::Initialised
            }
            Outcome::Expired => {
                add(&tally.ssd_misses, 1);
                add(&tally.ssd_bytes_read, table.layout.bytes() as u64);
                add(&tally.expired, 1);
                RowStatus::Initialised
            }
            Outcome::Failed => RowStatus::Failed,
        }
    }
}
