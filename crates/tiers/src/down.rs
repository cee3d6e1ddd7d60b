//! Rows on their way to SSD: copied when they leave RAM or are flushed, gathered by key, and
//! written by a thread of its own, some megabytes at a time in the order of their keys. Until a row
//! is written it is found here, so that nobody reads from SSD what is older; and after that for a
//! while, because what left last comes back first. It chooses no row.

use std::collections::VecDeque;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;

use table::{Key, TableId};

use crate::index;
use crate::ssd::{FILE_BYTES_MAX, Ssd};
use crate::sync::Mutex;
use crate::sync::atomic::{AtomicU64, Ordering};
use crate::sync::channel::{Receiver, Sender, bounded};
use crate::sync::thread::{self, JoinHandle};
use crate::{Error, Result, StoreConfig};

/// A batch that goes through RocksDB's log or limiter takes this share of the budget, within these
/// bounds.
const BUDGET_SHARE: u64 = 16;
const LOGGED_BYTES_MIN: u64 = 64 << 10;
const LOGGED_BYTES_MAX: u64 = 1 << 20;
/// Batches that wait for the writer, at most; whoever brings more waits.
const FILES_MAX: usize = 1;
const LOGGED_MAX: usize = 4;
/// What a row takes in a batch beside its bytes: its name and end, and its place.
const BESIDE_ROW_BYTES: usize = size_of::<(TableId, Key, u32)>() + 8;
/// A batch finds its rows by a table with at least four places for three of them.
const PLACES_MIN: usize = 64;
/// A place has a row's number, from one on, in its lower bits, and above them some of its name's
/// hash, so that hardly any other row is looked at.
const NUMBER_BITS: u32 = 24;
const _: () = assert!(FILE_BYTES_MAX >> NUMBER_BITS < BESIDE_ROW_BYTES as u64);

/// Rows that are written together, each once.
#[derive(Default)]
pub(crate) struct Batch {
    number: u64,
    factor: u64, // odd and by chance, so that no keys can be chosen that share their places
    rows: Vec<(TableId, Key, u32)>, // the value's end in `bytes`
    bytes: Vec<u8>,
    places: Vec<u32>, // by the hash of the name; 0: none
    replaced: bool,   // whether there are older versions of rows
}

struct State {
    open: Batch,
    sealed: VecDeque<Arc<Batch>>, // the oldest first
    written: u64,                 // batches: those with a smaller number are on SSD
    kept: usize,                  // sealed batches that stay when they are written
}

enum Order {
    Write(Arc<Batch>),
    Tell(Sender<()>),
}

/// The queue of rows to be written, and its thread.
pub(crate) struct Down {
    state: Arc<Mutex<State>>,
    rows: Arc<AtomicU64>, // that are found here
    batch_bytes: usize,
    orders: Option<Sender<Order>>,
    writer: Option<JoinHandle<()>>,
}

impl Down {
    pub(crate) fn start(ssd: Arc<Ssd>, config: &StoreConfig) -> Result<Self> {
        // three batches: one that fills, one that is written, one that was
        let (batch_bytes, kept, waiting) = if let Some(bytes) = ssd.bytes_a_file() {
            (bytes, 2, FILES_MAX)
        } else {
            let share = config.host_ram_bytes / BUDGET_SHARE;
            (share.clamp(LOGGED_BYTES_MIN, LOGGED_BYTES_MAX), 0, LOGGED_MAX)
        };
        let batch_bytes = batch_bytes as usize;
        let (orders, queue) = bounded(waiting);
        let state = Arc::new(Mutex::new(State::new(kept)));
        let rows = Arc::new(AtomicU64::new(0));
        let writer = {
            let (state, rows) = (Arc::clone(&state), Arc::clone(&rows));
            thread::Builder::new()
                .name("write-back".to_owned())
                .spawn(move || write_all(&ssd, &queue, &state, &rows))
                .map_err(|source| Error::Io { context: "start a thread".to_owned(), source })?
        };
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
        let open = &mut state.open;
        if open.put(table, key, write) {
            self.rows.fetch_add(1, Ordering::Release);
        }
        (open.memory_bytes() >= self.batch_bytes).then(|| state.seal(&self.rows))
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
        (!state.open.rows.is_empty()).then(|| state.seal(&self.rows))
    }

    /// Rows that are not written yet; one that left again since counts again.
    pub(crate) fn waiting(&self) -> u64 {
        self.state.lock().waiting()
    }

    /// Batches that are on SSD.
    pub(crate) fn batches_written(&self) -> u64 {
        self.state.lock().written
    }

    /// Whether a row is on its way and not on SSD yet.
    pub(crate) fn is_on_its_way(&self, table: TableId, key: Key) -> bool {
        let state = self.state.lock();
        state.find(table, key).is_some_and(|(batch, _)| batch.number >= state.written)
    }

    /// Forgets what is on SSD, because some of it is deleted there.
    pub(crate) fn forget_written(&self) {
        self.state.lock().let_go(0, &self.rows);
    }

    /// Reads a row that is on its way, or was a while ago.
    pub(crate) fn read<T>(
        &self,
        table: TableId,
        key: Key,
        read: impl FnOnce(&[u8]) -> T,
    ) -> Option<T> {
        if self.rows.load(Ordering::Acquire) == 0 {
            return None;
        }
        let state = self.state.lock();
        let (batch, row) = state.find(table, key)?;
        Some(read(batch.value(row)))
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
    fn new(kept: usize) -> Self {
        let factor = RandomState::new().hash_one(0) | 1;
        let open = Batch { factor, ..Batch::default() };
        Self { open, sealed: VecDeque::new(), written: 0, kept }
    }

    fn seal(&mut self, rows: &AtomicU64) -> Arc<Batch> {
        let next = Batch {
            number: self.open.number + 1,
            factor: self.open.factor,
            rows: Vec::with_capacity(self.open.rows.len()),
            bytes: Vec::with_capacity(self.open.bytes.len()),
            places: vec![0; self.open.places.len()],
            replaced: false,
        };
        let batch = Arc::new(std::mem::replace(&mut self.open, next));
        self.sealed.push_back(Arc::clone(&batch));
        self.let_go(self.kept, rows);
        batch
    }

    fn waiting(&self) -> u64 {
        let sealed = self.sealed.iter().map(|batch| &**batch);
        let waiting = sealed.filter(|batch| batch.number >= self.written);
        waiting.chain([&self.open]).map(|batch| batch.rows.len() as u64).sum()
    }

    /// Lets go of the oldest batches that are written, so that so many stay.
    fn let_go(&mut self, kept: usize, rows: &AtomicU64) {
        while self.sealed.len() > kept && self.sealed[0].number < self.written {
            let gone = self.sealed.pop_front().map_or(0, |batch| batch.rows.len());
            rows.fetch_sub(gone as u64, Ordering::Release);
        }
    }

    /// The newest version of a row: its batch, and its number there.
    fn find(&self, table: TableId, key: Key) -> Option<(&Batch, usize)> {
        let hash = index::hash(table, key);
        let sealed = self.sealed.iter().rev().map(|batch| &**batch);
        std::iter::once(&self.open)
            .chain(sealed)
            .find_map(|batch| batch.find(hash, table, key).map(|row| (batch, row)))
    }
}

impl Batch {
    /// Takes a row in, or its newer version; whether it takes more memory for it.
    fn put(&mut self, table: TableId, key: Key, write: impl FnOnce(&mut Vec<u8>)) -> bool {
        let start = self.bytes.len();
        write(&mut self.bytes);
        let hash = index::hash(table, key);
        let before = self.find(hash, table, key);
        if let Some(row) = before
            && self.range(row).len() == self.bytes.len() - start
        {
            let target = self.range(row).start;
            self.bytes.copy_within(start.., target);
            self.bytes.truncate(start);
            return false;
        }
        self.rows.push((table, key, self.bytes.len() as u32));
        if 4 * self.rows.len() > 3 * self.places.len() {
            self.places = vec![0; (2 * self.places.len()).max(PLACES_MIN)];
            for row in 0..self.rows.len() {
                self.enter(row);
            }
        } else {
            self.enter(self.rows.len() - 1);
        }
        true
    }

    /// Notes where a row is; one of the same name is found no more.
    fn enter(&mut self, row: usize) {
        let (table, key, _) = self.rows[row];
        let hash = index::hash(table, key);
        let at = self.place(hash, table, key);
        self.replaced |= self.places[at] != 0;
        self.places[at] = tag(hash) | (row as u32 + 1);
    }

    fn find(&self, hash: u64, table: TableId, key: Key) -> Option<usize> {
        if self.places.is_empty() {
            return None;
        }
        number(self.places[self.place(hash, table, key)])
    }

    /// Where a name is, or would be.
    fn place(&self, hash: u64, table: TableId, key: Key) -> usize {
        let mask = self.places.len() - 1; // a power of two less one
        let mut at = (hash.wrapping_mul(self.factor) >> mask.leading_zeros()) as usize;
        while let Some(row) = number(self.places[at]) {
            let may_be = self.places[at] >> NUMBER_BITS == tag(hash) >> NUMBER_BITS;
            if may_be && (self.rows[row].0, self.rows[row].1) == (table, key) {
                break;
            }
            at = (at + 1) & mask;
        }
        at
    }

    fn range(&self, row: usize) -> std::ops::Range<usize> {
        let start = if row == 0 { 0 } else { self.rows[row - 1].2 };
        start as usize..self.rows[row].2 as usize
    }

    fn value(&self, row: usize) -> &[u8] {
        &self.bytes[self.range(row)]
    }

    fn memory_bytes(&self) -> usize {
        self.bytes.len() + self.rows.len() * BESIDE_ROW_BYTES
    }

    /// The rows in the order of the SSD's keys; the newest version of each alone.
    fn sorted(&self) -> Vec<(TableId, Key, &[u8])> {
        let newest = (0..self.rows.len()).filter_map(|row| {
            let (table, key, _) = self.rows[row];
            let is_newest = || self.find(index::hash(table, key), table, key) == Some(row);
            (!self.replaced || is_newest()).then(|| (table, key, self.value(row)))
        });
        let mut rows: Vec<_> = newest.collect();
        rows.sort_unstable_by_key(|row| (row.0, row.1));
        rows
    }
}

fn tag(hash: u64) -> u32 {
    ((hash >> 32) as u32) & !((1 << NUMBER_BITS) - 1)
}

fn number(place: u32) -> Option<usize> {
    ((place & ((1 << NUMBER_BITS) - 1)) as usize).checked_sub(1)
}

fn write_all(ssd: &Ssd, queue: &Receiver<Order>, state: &Mutex<State>, rows: &AtomicU64) {
    for order in queue {
        match order {
            Order::Write(batch) => {
                if ssd.write_rows(&batch.sorted()).is_err() {
                    continue; // the tier is poisoned and says so to all; the rows stay readable
                }
                let mut state = state.lock();
                state.written = batch.number + 1;
                let kept = state.kept;
                state.let_go(kept, rows);
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
        let mut state = State::new(0);
        for (key, value) in
            [(5, "five"), (1, "one"), (5, "FIVE"), (3, "three"), (1, "a longer one")]
        {
            state.open.put(TableId(0), Key(key), |bytes| bytes.extend_from_slice(value.as_bytes()));
        }
        let rows = AtomicU64::new(4);
        let batch = state.seal(&rows);
        let sorted: Vec<_> = batch.sorted().into_iter().map(|row| (row.1.0, row.2)).collect();
        assert_eq!(sorted, [(1, &b"a longer one"[..]), (3, b"three"), (5, b"FIVE")]);
        assert_eq!((batch.number, state.open.number), (0, 1));
    }

    #[test]
    #[cfg(not(feature = "shuttle"))]
    fn a_written_row_is_found_until_newer_batches_took_its_place_or_rows_are_deleted() {
        const TABLE: TableId = TableId(3);
        let dir = tempfile::tempdir().unwrap();
        let config = StoreConfig::new(dir.path(), 1 << 20);
        let ssd = Arc::new(Ssd::open(&dir.path().join("rows"), &config).unwrap());
        let down = Down::start(Arc::clone(&ssd), &config).unwrap();
        let found = |key| down.read(TABLE, Key(key), <[u8]>::to_vec);
        let bring = |key: u64, value: u8| {
            assert!(down.put(TABLE, Key(key), |bytes| bytes.extend([value; 8])).is_none());
            assert!(down.is_on_its_way(TABLE, Key(key)));
            assert_eq!(down.waiting(), 1, "rows that are kept wait for nothing");
            down.drain().recv().unwrap();
            assert!(!down.is_on_its_way(TABLE, Key(key)));
            assert_eq!(down.waiting(), 0);
            let mut stored = None;
            ssd.read(TABLE, 8, std::iter::once(Key(key)), |_, _, row| {
                stored = row?.map(<[u8]>::to_vec);
                Ok(())
            })
            .unwrap();
            assert_eq!((stored, found(key)), (Some(vec![value; 8]), Some(vec![value; 8])));
        };
        bring(1, 10);
        bring(2, 20);
        bring(1, 11); // the newest is found, on SSD too
        bring(3, 30);
        assert_eq!(found(2), None, "two batches stay");
        assert_eq!((found(1), found(3)), (Some(vec![11; 8]), Some(vec![30; 8])));
        down.forget_written();
        assert_eq!((found(1), found(3)), (None, None));
        assert_eq!(down.batches_written(), 4);
    }
}
