//! Rows on their way to SSD: copied when they leave RAM or are flushed, written by a thread of its
//! own in ordered batches. Until a row is written it is found here, so that nobody reads from SSD
//! what is older. It chooses no row.

use std::collections::HashMap;
use std::sync::Arc;

use table::{Key, TableId};

use crate::ssd::Ssd;
use crate::sync::Mutex;
use crate::sync::atomic::{AtomicU64, Ordering};
use crate::sync::channel::{Receiver, Sender, bounded};
use crate::sync::thread::{self, JoinHandle};
use crate::{Error, Result};

/// Bytes after which a batch goes to the writer, at most; less under a small budget.
const BATCH_BYTES_MAX: u64 = 1 << 20;
/// And at least; under a scheduler so few that rows go down while little else happens.
const BATCH_BYTES_MIN: u64 = if cfg!(feature = "shuttle") { 2 << 10 } else { 64 << 10 };
/// Batches that may be in memory at once come to this share of the budget, or less.
const BUDGET_SHARE: u64 = 16;
/// Batches that wait for the writer, at most; whoever brings more waits.
const BATCHES_MAX: usize = 4;

/// Rows that are written together.
#[derive(Default)]
pub(crate) struct Batch {
    number: u64,
    rows: Vec<(TableId, Key, u32)>, // the value's end in `bytes`
    bytes: Vec<u8>,
}

#[derive(Default)]
struct State {
    open: Batch,
    under_way: HashMap<u64, Arc<Batch>>,
    written: u64,                           // batches
    places: HashMap<(TableId, Key), Place>, // the newest version of each row
}

#[derive(Clone, Copy)]
struct Place {
    batch: u64,
    start: u32,
    end: u32,
}

enum Order {
    Write(Arc<Batch>),
    Tell(Sender<()>),
}

/// The queue of rows to be written, and its thread.
pub(crate) struct Down {
    state: Arc<Mutex<State>>,
    rows: Arc<AtomicU64>, // that are not written yet
    batch_bytes: usize,
    orders: Option<Sender<Order>>,
    writer: Option<JoinHandle<()>>,
}

impl Down {
    pub(crate) fn start(ssd: Arc<Ssd>, budget_bytes: u64) -> Result<Self> {
        let batch_bytes = (budget_bytes / BUDGET_SHARE).clamp(BATCH_BYTES_MIN, BATCH_BYTES_MAX);
        let (orders, queue) = bounded(BATCHES_MAX);
        let state = Arc::new(Mutex::new(State::default()));
        let rows = Arc::new(AtomicU64::new(0));
        let writer = {
            let (state, rows) = (Arc::clone(&state), Arc::clone(&rows));
            thread::Builder::new()
                .name("write-back".to_owned())
                .spawn(move || write_all(&ssd, &queue, &state, &rows))
                .map_err(|source| Error::Io { context: "start a thread".to_owned(), source })?
        };
        let batch_bytes = batch_bytes as usize;
        Ok(Self { state, rows, batch_bytes, orders: Some(orders), writer: Some(writer) })
    }

    /// Takes a copy of a row. A batch that is full is given back, to be sent with [`Self::send`]
    /// when the caller holds no section.
    pub(crate) fn put(
        &self,
        table: TableId,
        key: Key,
        write: impl FnOnce(&mut Vec<u8>),
    ) -> Option<Arc<Batch>> {
        let mut state = self.state.lock();
        let start = state.open.bytes.len() as u32;
        write(&mut state.open.bytes);
        let end = state.open.bytes.len() as u32;
        state.open.rows.push((table, key, end));
        let batch = state.open.number;
        if state.places.insert((table, key), Place { batch, start, end }).is_none() {
            self.rows.fetch_add(1, Ordering::Release);
        }
        (end as usize >= self.batch_bytes).then(|| state.seal())
    }

    /// Hands a batch to the writer; waits while too many are there. Batches are sent in the order
    /// in which they were given out: the store's room lock sees to that.
    pub(crate) fn send(&self, batch: Arc<Batch>) {
        let sent = self.orders().send(Order::Write(batch));
        sent.expect("the writer lives as long as the queue");
    }

    /// Sends what was put so far and waits until it is written. The caller holds the room lock
    /// while
    /// `sending`, as for [`Self::send`].
    pub(crate) fn drain(&self) -> Receiver<()> {
        if let Some(batch) = self.seal() {
            self.send(batch);
        }
        let (done, told) = bounded(1);
        self.orders().send(Order::Tell(done)).expect("the writer lives as long as the queue");
        told
    }

    /// What was put so far, if anything, to be sent with [`Self::send`].
    pub(crate) fn seal(&self) -> Option<Arc<Batch>> {
        let mut state = self.state.lock();
        (!state.open.rows.is_empty()).then(|| state.seal())
    }

    /// Rows that are not written yet.
    pub(crate) fn waiting(&self) -> u64 {
        self.rows.load(Ordering::Acquire)
    }

    /// Batches that are on SSD and no longer found here.
    pub(crate) fn batches_written(&self) -> u64 {
        self.state.lock().written
    }

    /// Whether any row is on its way.
    pub(crate) fn is_empty(&self) -> bool {
        self.waiting() == 0
    }

    /// Reads a row that is on its way.
    pub(crate) fn read<T>(
        &self,
        table: TableId,
        key: Key,
        read: impl FnOnce(&[u8]) -> T,
    ) -> Option<T> {
        if self.is_empty() {
            return None;
        }
        let state = self.state.lock();
        let place = *state.places.get(&(table, key))?;
        let batch = if place.batch == state.open.number {
            &state.open
        } else {
            &state.under_way[&place.batch]
        };
        Some(read(&batch.bytes[place.start as usize..place.end as usize]))
    }

    fn orders(&self) -> &Sender<Order> {
        self.orders.as_ref().expect("the queue is open until it is dropped")
    }
}

impl Drop for Down {
    fn drop(&mut self) {
        self.orders = None; // the writer ends when it has written what waits
        if let Some(writer) = self.writer.take()
            && writer.join().is_err()
        {
            tracing::error!("the thread that writes rows back panicked");
        }
    }
}

impl State {
    fn seal(&mut self) -> Arc<Batch> {
        let next = Batch { number: self.open.number + 1, ..Batch::default() };
        let batch = Arc::new(std::mem::replace(&mut self.open, next));
        self.under_way.insert(batch.number, Arc::clone(&batch));
        batch
    }
}

impl Batch {
    /// The rows in the order of the SSD's keys; the newest version of each alone.
    fn sorted(&self) -> Vec<(TableId, Key, &[u8])> {
        let starts = std::iter::once(0).chain(self.rows.iter().map(|row| row.2));
        let mut rows: Vec<_> = self
            .rows
            .iter()
            .zip(starts)
            .map(|(row, start)| (row.0, row.1, &self.bytes[start as usize..row.2 as usize]))
            .collect();
        rows.sort_by_key(|row| (row.0, row.1)); // stable: the newest comes last
        rows.reverse();
        rows.dedup_by_key(|row| (row.0, row.1));
        rows.reverse();
        rows
    }
}

fn write_all(ssd: &Ssd, queue: &Receiver<Order>, state: &Mutex<State>, rows: &AtomicU64) {
    for order in queue {
        match order {
            Order::Write(batch) => {
                if ssd.write_rows(&batch.sorted()).is_err() {
                    continue; // the tier is poisoned and says so to all; the rows stay readable
                }
                let mut state = state.lock();
                for (table, key, _) in &batch.rows {
                    let newest = state.places.get(&(*table, *key));
                    if newest.is_some_and(|place| place.batch == batch.number) {
                        state.places.remove(&(*table, *key));
                        rows.fetch_sub(1, Ordering::Release);
                    }
                }
                state.under_way.remove(&batch.number);
                state.written += 1;
            }
            // who waits may have gone
            Order::Tell(done) => drop(done.try_send(())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_is_written_in_order_with_the_newest_version_of_each_row() {
        let mut state = State::default();
        for (key, value) in [(5, "five"), (1, "one"), (5, "FIVE"), (3, "three"), (1, "ONE")] {
            state.open.bytes.extend_from_slice(value.as_bytes());
            let end = state.open.bytes.len() as u32;
            state.open.rows.push((TableId(0), Key(key), end));
        }
        let batch = state.seal();
        let sorted: Vec<_> = batch.sorted().into_iter().map(|row| (row.1.0, row.2)).collect();
        assert_eq!(sorted, [(1, &b"ONE"[..]), (3, b"three"), (5, b"FIVE")]);
        assert_eq!((batch.number, state.open.number), (0, 1));
    }
}
