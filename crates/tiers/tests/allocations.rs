//! Pull and push take no memory from the heap: every allocation of this process is counted while
//! threads pull and push steps that are staged. It says nothing of stages, which take some for a
//! batch, and none for a row.
#![allow(clippy::unwrap_used)] // a test that cannot go on fails
#![allow(unsafe_code)] // an allocator is an unsafe trait

use std::alloc::{GlobalAlloc, Layout, System};
use std::hint::black_box;
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use parking_lot::{Condvar, Mutex};
use table::{
    Admission, Expiry, Initializer, Key, KeyBatch, Optimizer, RowStatus, TableId, TableSpec,
};
use tiers::{Staged, Store, StoreConfig};

/// The system's allocator, and a count of what is asked of it.
struct Counting;

static COUNTS: AtomicBool = AtomicBool::new(false);
static TAKEN: AtomicU64 = AtomicU64::new(0);

fn count() {
    if COUNTS.load(Ordering::Relaxed) {
        TAKEN.fetch_add(1, Ordering::Relaxed);
    }
}

// SAFETY: every call goes to the system's allocator as it came; beside it an atomic is added to.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller keeps `alloc`'s contract, which is the system's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, bytes: usize) -> *mut u8 {
        count();
        // SAFETY: as above; `at` came from the system's allocator.
        unsafe { System.realloc(at, layout, bytes) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Allocations of all threads while `work` runs.
fn allocations(work: impl FnOnce()) -> u64 {
    let before = TAKEN.load(Ordering::SeqCst);
    COUNTS.store(true, Ordering::SeqCst);
    work();
    COUNTS.store(false, Ordering::SeqCst);
    TAKEN.load(Ordering::SeqCst) - before
}

/// Threads that pull and push at once, and what each does in a stretch.
const THREADS: u64 = 3;
const ROUNDS: usize = 50;

/// A table of each optimizer, one that keeps keys out and one whose rows expire.
fn specs() -> Vec<TableSpec> {
    let spec = |name: &str, dim, optimizer| {
        TableSpec::new(name, dim, optimizer, Initializer::Uniform { bound: 0.5 }, 3)
    };
    let adagrad = Optimizer::Adagrad { eps: 1e-10, initial_accumulator: 0.1 };
    let row_wise = Optimizer::RowWiseAdagrad { eps: 1e-10, initial_accumulator: 0.0 };
    vec![
        spec("sgd", 16, Optimizer::Sgd),
        spec("adagrad", 16, adagrad),
        spec("row_wise", 33, row_wise),
        spec("adam", 64, Optimizer::Adam { beta1: 0.9, beta2: 0.999, eps: 1e-8 }),
        TableSpec { admission: Admission::AfterSights(3), ..spec("strict", 16, Optimizer::Sgd) },
        TableSpec { expiry: Expiry::Steps(1000), ..spec("brief", 16, Optimizer::Sgd) },
    ]
}

/// Some rows of every table, half of them other threads' too.
fn batch(thread: u64) -> KeyBatch {
    let mut batch = KeyBatch::new();
    for table in 0..specs().len() as u32 {
        let keys: Vec<Key> = (thread * 300..thread * 300 + 600).map(Key).collect();
        batch.push_run(TableId(table), &keys).unwrap();
    }
    batch
}

/// One thread's staged step and its buffers.
struct Worker {
    staged: Staged,
    rows: Vec<f32>,
    gradients: Vec<f32>,
}

impl Worker {
    fn new(store: &Store, thread: u64) -> Self {
        let staged = store.stage(&batch(thread)).unwrap();
        let rows = vec![f32::NAN; staged.rows_floats()];
        let gradients = vec![0.5; rows.len()];
        Self { staged, rows, gradients }
    }

    fn work(&mut self, store: &Store) {
        for _ in 0..ROUNDS {
            store.pull(&self.staged, &mut self.rows).unwrap();
            store.push(&self.staged, &self.gradients, 0.1).unwrap();
        }
    }
}

/// A door before which threads wait, so that what a thread's first wait for a lock takes is taken.
#[derive(Default)]
struct Door {
    state: Mutex<(usize, bool)>, // threads that wait; open
    changed: Condvar,
}

impl Door {
    fn wait(&self) {
        let mut state = self.state.lock();
        state.0 += 1;
        self.changed.notify_all();
        while !state.1 {
            self.changed.wait(&mut state);
        }
    }

    /// Opens it when so many threads wait.
    fn open(&self, threads: usize) {
        let mut state = self.state.lock();
        while state.0 < threads {
            self.changed.wait(&mut state);
        }
        state.1 = true;
        self.changed.notify_all();
    }
}

/// Allocations while `THREADS` threads pull and push, each after a stretch that is not counted;
/// `beside` runs on another thread meanwhile.
fn while_pulling_and_pushing(store: &Store, beside: impl FnOnce() + Send) -> u64 {
    let (door, threads) = (Door::default(), THREADS as usize + 1);
    let barrier = || Barrier::new(threads + 1);
    let (ready, done, counted) = (barrier(), barrier(), barrier());
    thread::scope(|scope| {
        let (door, ready, done, counted) = (&door, &ready, &done, &counted);
        for thread in 0..THREADS {
            let mut worker = Worker::new(store, thread);
            scope.spawn(move || {
                door.wait();
                worker.work(store);
                ready.wait();
                worker.work(store);
                done.wait();
                counted.wait();
            });
        }
        scope.spawn(move || {
            door.wait();
            ready.wait();
            beside();
            done.wait();
            counted.wait();
        });
        door.open(threads);
        let taken = allocations(|| {
            ready.wait();
            done.wait();
        });
        counted.wait();
        taken
    })
}

#[test]
fn pull_and_push_allocate_nothing_on_any_thread() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = StoreConfig::new(dir.path().join("store"), 64 << 20);
    config.ssd_memory_bytes = 8 << 20;
    let store = Store::open(config).unwrap();
    for spec in specs() {
        store.create_table(&spec).unwrap();
    }
    let strict = Worker::new(&store, 0);
    assert!(strict.staged.statuses().contains(&RowStatus::NotAdmitted), "no key is kept out");
    drop(strict);

    let allocated = while_pulling_and_pushing(&store, || {});
    assert_eq!(allocated, 0, "allocations of {THREADS} threads in {ROUNDS} pulls and pushes each");
    let seen = while_pulling_and_pushing(&store, || drop(black_box(Box::new(1_u64))));
    assert_eq!(seen, 1, "one allocation of another thread is counted");
    store.close().unwrap();
}
