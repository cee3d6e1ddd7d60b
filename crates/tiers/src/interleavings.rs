//! Where threads meet, under a scheduler: each test is run in many orders of its threads' steps,
//! chosen at random and by shuttle's rule for rare orders. RocksDB is real; one directory serves
//! all orders of a test, each with keys of its own. `cargo xtask test` runs these after the others:
//!
//!     cargo test --release -p tiers --features shuttle --lib interleavings
//!
//! `EMBEDDING_PS_ORDERS=N` asks for so many orders of each test, of another seed each time. When
//! one fails, shuttle prints its schedule.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use shuttle::scheduler::{PctScheduler, RandomScheduler, Scheduler};
use table::{Expiry, Initializer, Key, KeyBatch, Optimizer, RowStatus, TableId, TableSpec};

use crate::ssd::Ssd;
use crate::store::Inner;
use crate::sync::{channel, thread};
use crate::{Error, Store, StoreConfig};

/// Orders of one test in a usual run: half of them at random.
const ORDERS: usize = 600;
/// The tests' seed in a usual run.
const SEED: u64 = 20_240_607;
/// Changes of thread that make an order rare.
const DEPTH: usize = 3;
/// Stack of a thread: RocksDB wants some of it.
const STACK_BYTES: usize = 512 << 10;
/// Floats of a row: with SGD a KiB, so that few rows fill a budget.
const DIM: u32 = 256;
/// A budget of eight rows and their index.
const EIGHT_ROWS: u64 = 8 * 1028 + 3 * 64;
/// A budget that nothing here fills.
const HUGE: u64 = 16 << 20;

/// A database, and the keys of one order of the threads.
#[derive(Clone)]
struct Order {
    ssd: Arc<Ssd>,
    config: StoreConfig,
    first_key: u64,
}

/// Runs a test in many orders.
fn explore(host_ram_bytes: u64, test: impl Fn(&Order) + Send + Sync + 'static) {
    let dir = tempfile::tempdir().unwrap();
    let mut config = StoreConfig::new(dir.path(), host_ram_bytes);
    config.ssd_memory_bytes = 8 << 20;
    config.stage_wait = Duration::from_secs(600); // no wait ends by itself; see `sync::scheduled`
    config.ssd_read_threads = 2;
    let ssd = Arc::new(Ssd::open(&dir.path().join("rows"), &config).unwrap());
    let orders = Arc::new(AtomicU64::new(0));
    let test = Arc::new(test);
    let (count, seed) = match std::env::var("EMBEDDING_PS_ORDERS") {
        Ok(count) => (count.parse().expect("EMBEDDING_PS_ORDERS is a number"), rand_seed()),
        Err(_) => (ORDERS, SEED),
    };
    let run = |scheduler: Box<dyn Scheduler + Send>| {
        let (ssd, config, orders) = (Arc::clone(&ssd), config.clone(), Arc::clone(&orders));
        let test = Arc::clone(&test);
        let mut shuttle = shuttle::Config::new();
        shuttle.stack_size = STACK_BYTES;
        shuttle::Runner::new(scheduler, shuttle).run(move || {
            let first_key = orders.fetch_add(1, Ordering::Relaxed) << 16;
            test(&Order { ssd: Arc::clone(&ssd), config: config.clone(), first_key });
        });
    };
    run(Box::new(RandomScheduler::new_from_seed(seed, count / 2)));
    run(Box::new(PctScheduler::new_from_seed(seed, DEPTH, count / 2)));
    assert_eq!(orders.load(Ordering::Relaxed), 2 * (count as u64 / 2), "orders that were run");
}

fn rand_seed() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    now.as_nanos() as u64
}

impl Order {
    /// A store over what is on SSD, of one table whose rows begin as zeros.
    fn open(&self, rows_ssd: u64) -> Arc<Store> {
        self.open_expiring(rows_ssd, Expiry::Never)
    }

    fn open_expiring(&self, rows_ssd: u64, expiry: Expiry) -> Arc<Store> {
        let inner = Inner::new(self.config.clone(), Arc::clone(&self.ssd), None, true).unwrap();
        let zeros = Initializer::Uniform { bound: 0.0 };
        let table = TableSpec::new("t", DIM, Optimizer::Sgd, zeros, 1);
        inner.add_tables(vec![TableSpec { expiry, ..table }], &[(TableId(0), rows_ssd)]).unwrap();
        Arc::new(Store::of(inner))
    }

    fn batch(&self, keys: &[u64]) -> KeyBatch {
        let keys: Vec<Key> = keys.iter().map(|key| Key(self.first_key + key)).collect();
        let mut batch = KeyBatch::new();
        batch.push_run(TableId(0), &keys).unwrap();
        batch
    }

    /// What the rows of these keys say of how often each was pushed.
    fn pushes(&self, store: &Store, keys: &[u64]) -> Vec<u64> {
        let mut rows = vec![f32::NAN; keys.len() * DIM as usize];
        let mut statuses = vec![RowStatus::Failed; keys.len()];
        store.lookup(&self.batch(keys), &mut rows, &mut statuses).unwrap();
        rows.chunks(DIM as usize).map(pushes_of).collect()
    }

    /// Rows that were pushed once, and are on SSD alone.
    fn store_with_rows_on_ssd(&self, keys: &[u64]) -> Arc<Store> {
        let store = self.open(0);
        for keys in keys.chunks(4) {
            push(&store, &self.batch(keys));
        }
        let inner = store.inner();
        inner.evict_all(&mut inner.room.lock());
        store.flush().unwrap();
        assert_eq!(store.status().totals().evictions, keys.len() as u64);
        store
    }
}

/// Each push subtracts one from every float of a row.
fn pushes_of(row: &[f32]) -> u64 {
    assert!(row.iter().all(|float| *float == row[0]), "a row of two pushes: {row:?}");
    (-row[0]) as u64
}

/// Stages, pulls and pushes; tells how often each row had been pushed.
fn push(store: &Store, batch: &KeyBatch) -> Vec<u64> {
    let staged = store.stage(batch).unwrap();
    let mut rows = vec![f32::NAN; staged.rows_floats()];
    store.pull(&staged, &mut rows).unwrap();
    store.push(&staged, &vec![1.0; rows.len()], 1.0).unwrap();
    rows.chunks(DIM as usize).map(pushes_of).collect()
}

/// Threads push rows that don't fit together, so that each leaves, is caught on its way or read
/// again, and comes back: no push is lost.
#[test]
fn a_row_that_left_comes_back_with_every_push() {
    explore(EIGHT_ROWS, |order| {
        let store = order.open(0);
        let batches = [
            [[0, 1, 2], [4, 5, 6], [0, 1, 2], [8, 9, 10]],
            [[2, 3, 4], [6, 7, 8], [9, 10, 11], [2, 3, 4]],
        ];
        let threads = batches.map(|batches| {
            let (store, order) = (Arc::clone(&store), order.clone());
            thread::spawn(move || {
                let mut last = [0; 12];
                for keys in batches {
                    let found = push(&store, &order.batch(&keys));
                    for (&key, pushes) in keys.iter().zip(found) {
                        assert!(pushes >= last[key as usize], "key {key} grew older");
                        last[key as usize] = pushes + 1;
                    }
                }
            })
        });
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        let keys: Vec<u64> = (0..12).collect();
        let count =
            |key: &u64| batches.iter().flatten().filter(|keys| keys.contains(key)).count() as u64;
        let expected: Vec<u64> = keys.iter().map(count).collect();
        assert_eq!(order.pushes(&store, &keys), expected);
        assert_eq!(store.status().pinned_rows, 0);
        assert_eq!(store.status().tables[0].rows, 12, "each row was made once");
        store.close().unwrap();
        assert_eq!(order.pushes(&order.open(12), &keys), expected, "what is on SSD");
    });
}

/// Rows leave, come back, change and leave again while the writer has the older version: it is the
/// newer one that comes back, whatever of the two is written.
#[test]
fn a_row_that_leaves_again_before_it_is_written_is_the_newer_one() {
    explore(EIGHT_ROWS, |order| {
        let store = order.open(0);
        let reader = {
            let (store, order) = (Arc::clone(&store), order.clone());
            thread::spawn(move || {
                let mut last = 0;
                for _ in 0..4 {
                    let now = order.pushes(&store, &[1])[0];
                    assert!(now >= last, "{now} pushes, {last} before");
                    last = now;
                }
            })
        };
        for pushed in 0..4 {
            assert_eq!(push(&store, &order.batch(&[0, 1])), [pushed, pushed]);
            let inner = store.inner();
            inner.evict_all(&mut inner.room.lock());
        }
        reader.join().unwrap();
        assert_eq!(order.pushes(&store, &[0, 1]), [4, 4]);
        store.close().unwrap();
        assert_eq!(order.pushes(&order.open(2), &[0, 1]), [4, 4]);
    });
}

/// Stages of rows that are on SSD, at the same time: each is read once and is one row.
#[test]
fn stages_at_once_fetch_a_row_once() {
    explore(HUGE, |order| {
        let store = order.store_with_rows_on_ssd(&[0, 1, 2, 3, 4, 5]);
        let before = store.status().totals();
        let threads = [[0, 1, 2, 3], [2, 3, 4, 5], [0, 2, 4, 6]].map(|keys| {
            let (store, order) = (Arc::clone(&store), order.clone());
            thread::spawn(move || push(&store, &order.batch(&keys)))
        });
        threads.into_iter().for_each(|thread| drop(thread.join().unwrap()));
        let after = store.status().totals();
        assert_eq!(after.ssd.hits - before.ssd.hits, 6, "rows fetched");
        assert_eq!(after.host.misses - before.host.misses, 7, "rows brought in");
        assert_eq!(store.status().tables[0].rows, 7);
        assert_eq!(order.pushes(&store, &[0, 1, 2, 3, 4, 5, 6]), [3, 2, 4, 3, 3, 2, 1]);
        store.close().unwrap();
    });
}

/// A loader that runs ahead is stopped by the rows that are held, and goes on when one step lets
/// go: the budget is kept, and nobody waits for ever.
#[test]
fn held_rows_stop_the_loader_until_they_are_let_go() {
    explore(EIGHT_ROWS, |order| {
        let store = order.store_with_rows_on_ssd(&[0, 1, 2, 3, 4, 5]);
        let (ahead, staged) = channel::bounded(4);
        let loader = {
            let (store, order) = (Arc::clone(&store), order.clone());
            thread::spawn(move || {
                for first in [0, 3, 6, 1, 4] {
                    let keys = [first, first + 1, first + 2];
                    let staging = store.begin_stage(&order.batch(&keys)).unwrap();
                    ahead.send(staging).unwrap_or_else(|_| panic!("the trainer has gone"));
                }
            })
        };
        for staging in staged {
            let status = store.status();
            assert!(status.host_ram_used_bytes <= status.host_ram_budget_bytes);
            assert!(status.tables[0].host.rows <= 8, "{} rows", status.tables[0].host.rows);
            let staged = staging.wait().unwrap();
            store.push(&staged, &vec![1.0; staged.rows_floats()], 1.0).unwrap();
        }
        loader.join().unwrap();
        assert_eq!(store.status().pinned_rows, 0);
        assert_eq!(order.pushes(&store, &[0, 1, 2, 3, 4, 5, 6, 7, 8]), [2, 3, 3, 3, 3, 3, 2, 1, 1]);
        store.close().unwrap();
    });
}

/// A flush and a lookup beside steps: the lookup never sees a row older than it saw before, and
/// after the flush what had been pushed before it is on SSD.
#[test]
fn a_flush_beside_pushes_writes_what_was_pushed_before_it() {
    explore(EIGHT_ROWS, |order| {
        let store = order.open(0);
        // clean, then pushed and still held: only the flush itself can say that they are dirty
        let held = store.stage(&order.batch(&[0, 1, 2])).unwrap();
        store.flush().unwrap();
        store.push(&held, &vec![1.0; held.rows_floats()], 1.0).unwrap();
        let trainer = {
            let (store, order) = (Arc::clone(&store), order.clone());
            thread::spawn(move || {
                for keys in [[0, 1, 2], [3, 4, 5], [6, 7, 8], [0, 1, 2]] {
                    push(&store, &order.batch(&keys));
                }
            })
        };
        let reader = {
            let (store, order) = (Arc::clone(&store), order.clone());
            thread::spawn(move || {
                let mut last = 1;
                for _ in 0..4 {
                    let now = order.pushes(&store, &[0])[0];
                    assert!(now >= last, "{now} pushes, {last} before");
                    last = now;
                }
            })
        };
        store.flush().unwrap();
        let key = order.first_key;
        order
            .ssd
            .read(TableId(0), 4 * DIM as usize, [Key(key)].into_iter(), |_, _, value| {
                let value = value?.expect("a row that was pushed before a flush is on SSD");
                let first = f32::from_le_bytes(*value.first_chunk().unwrap());
                assert!(first <= -1.0, "{first} is older than the flush");
                Ok(())
            })
            .unwrap();
        drop(held);
        trainer.join().unwrap();
        reader.join().unwrap();
        store.close().unwrap();
        assert_eq!(order.pushes(&order.open(9), &[0, 3, 8]), [3, 1, 1]);
    });
}

/// The store goes while rows are on their way in and out: its threads end, and no stage waits for
/// them for ever.
#[test]
fn threads_end_with_rows_on_their_way() {
    explore(EIGHT_ROWS, |order| {
        let store = order.store_with_rows_on_ssd(&[0, 1, 2, 3, 4, 5]);
        let staging = store.begin_stage(&order.batch(&[0, 1, 2])).unwrap();
        let other = {
            let (store, order) = (Arc::clone(&store), order.clone());
            thread::spawn(move || {
                let staging = store.begin_stage(&order.batch(&[2, 3, 4])).unwrap();
                drop(store);
                staging.wait().map(|staged| staged.rows()).unwrap()
            })
        };
        let third = {
            let (store, order) = (Arc::clone(&store), order.clone());
            thread::spawn(move || drop(store.begin_stage(&order.batch(&[5, 6]))))
        };
        drop(store); // dirty rows are lost; nobody may hang
        drop(staging);
        assert_eq!(other.join().unwrap(), 3);
        third.join().unwrap();
    });
}

/// A close beside stages: each is whole or refused, and what was let in is on SSD.
#[test]
fn a_close_beside_steps_keeps_what_it_let_in() {
    explore(EIGHT_ROWS, |order| {
        let store = order.open(0);
        let trainers = [[0, 1, 2], [2, 3, 4]].map(|keys| {
            let (store, order) = (Arc::clone(&store), order.clone());
            thread::spawn(move || {
                let mut pushed = 0;
                for _ in 0..2 {
                    let step = store.stage(&order.batch(&keys)).and_then(|staged| {
                        store.push(&staged, &vec![1.0; staged.rows_floats()], 1.0)
                    });
                    match step {
                        Ok(()) => pushed += 1,
                        Err(Error::Closed) => break,
                        Err(error) => panic!("{error}"),
                    }
                }
                pushed
            })
        });
        store.close().unwrap();
        let [first, second] = trainers.map(|trainer| trainer.join().unwrap());
        drop(store);
        let found = order.pushes(&order.open(5), &[0, 2, 4]);
        assert_eq!(found, [first, first + second, second]);
    });
}

/// A row that is staged again and again is as young as its last stage, whatever older versions of
/// it on SSD say, and whether it is in RAM, on its way down or just written; rows that nobody
/// stages go, and the count of rows stays right.
#[test]
fn a_row_that_is_staged_is_never_dropped_as_expired() {
    let dropped = Arc::new(AtomicU64::new(0));
    let of_all = Arc::clone(&dropped);
    explore(EIGHT_ROWS, move |order| {
        let store = order.open_expiring(0, Expiry::Steps(3));
        let other = {
            let (store, order) = (Arc::clone(&store), order.clone());
            thread::spawn(move || {
                push(&store, &order.batch(&[21, 22, 23, 24]));
                push(&store, &order.batch(&[25, 26, 27, 28]));
            })
        };
        for first in [1, 3, 5, 7, 9, 11, 1, 3] {
            push(&store, &order.batch(&[0, first, first + 1]));
            // at most three stages lie between two of these
        }
        other.join().unwrap();
        assert_eq!(order.pushes(&store, &[0]), [8]);
        store.close().unwrap(); // it would find a wrong count
        of_all.fetch_add(store.status().totals().dropped, Ordering::Relaxed);
        assert_eq!(order.pushes(&order.open_expiring(1, Expiry::Steps(3)), &[0]), [8]);
        let keys: Vec<Key> = (0..32).map(|key| Key(order.first_key + key)).collect();
        order.ssd.delete_rows(TableId(0), &keys).unwrap(); // the next order looks at all rows
    });
    assert!(dropped.load(Ordering::Relaxed) > 0, "no order dropped anything");
}
