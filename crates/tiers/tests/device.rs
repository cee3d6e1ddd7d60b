//! The tier in device memory held to what a store must do, bit for bit: the contract, random
//! operations against the oracle, and runs beside one without it. There is no device here: each
//! test starts itself once more under a pretended CUDA, which runs the kernels' own source.
#![allow(clippy::unwrap_used)] // a test that cannot go on fails

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use gpu::{Buffer, Device, Event, Memory, Stream};
use table::{
    Admission, Counters, DevicePlaces, DeviceSlot, DeviceSlots, Expiry, Initializer, Key, KeyBatch,
    Optimizer, RowStatus, TableId, TableSpec,
};
use tempfile::TempDir;
use testkit::{
    OracleStaged, OracleStore, Outcome, Random, RowStore, ZipfKeys, check_contract,
    random_gradients, random_key_batch, under_pretended_cuda,
};
use tiers::{Error, Places, Staged, Store, StoreConfig};

const TINY: u64 = StoreConfig::HOST_RAM_BYTES_MIN;
const HUGE: u64 = 64 << 20;
/// Larger than all rows of any test.
const ALL: u64 = 256 << 20;

const ADAM: Optimizer = Optimizer::Adam { beta1: 0.9, beta2: 0.999, eps: 1e-8 };
const ADAGRAD: Optimizer = Optimizer::Adagrad { eps: 1e-10, initial_accumulator: 0.1 };
const ROW_WISE: Optimizer = Optimizer::RowWiseAdagrad { eps: 1e-10, initial_accumulator: 0.0 };

/// A store in a directory of its own, with or without a cache on the device.
struct Scratch {
    store: Option<Store>,
    config: StoreConfig,
    _dir: TempDir,
}

impl Scratch {
    fn new(host_ram_bytes: u64, gpu_cache_bytes: u64) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut config = StoreConfig::new(dir.path().join("store"), host_ram_bytes);
        config.ssd_memory_bytes = 8 << 20;
        config.stage_wait = Duration::ZERO;
        config.gpu_cache_bytes = gpu_cache_bytes;
        let store = Some(Store::open(config.clone()).unwrap());
        Self { store, config, _dir: dir }
    }

    fn store(&self) -> &Store {
        self.store.as_ref().unwrap()
    }

    fn reopen(&mut self) {
        self.store = None;
        self.store = Some(Store::open(self.config.clone()).unwrap());
    }

    fn totals(&self) -> Counters {
        self.store().status().totals()
    }
}

impl RowStore for Scratch {
    type Staged = Staged;

    fn create_table(&self, spec: &TableSpec) -> Outcome<TableId> {
        Ok(self.store().create_table(spec)?)
    }

    fn stage(&self, keys: &KeyBatch) -> Outcome<Staged> {
        Ok(self.store().stage(keys)?)
    }

    fn statuses(&self, staged: &Staged) -> Vec<RowStatus> {
        staged.statuses().to_vec()
    }

    fn pull(&self, staged: &Staged) -> Outcome<Vec<f32>> {
        let mut rows = vec![f32::NAN; staged.rows_floats()];
        self.store().pull(staged, &mut rows)?;
        Ok(rows)
    }

    fn push(&self, staged: &Staged, gradients: &[f32], learning_rate: f32) -> Outcome<()> {
        Ok(self.store().push(staged, gradients, learning_rate)?)
    }

    fn lookup(&self, keys: &KeyBatch) -> Outcome<(Vec<f32>, Vec<RowStatus>)> {
        let mut rows = vec![f32::NAN; self.store().rows_floats(keys)?];
        let mut statuses = vec![RowStatus::Failed; keys.len()];
        self.store().lookup(keys, &mut rows, &mut statuses)?;
        Ok((rows, statuses))
    }

    fn assign(&self, keys: &KeyBatch, rows: &[f32]) -> Outcome<()> {
        Ok(self.store().assign(keys, rows)?)
    }

    fn row_count(&self, table: TableId) -> Outcome<u64> {
        Ok(self.store().status().tables[table.0 as usize].rows)
    }
}

fn spec(name: &str, dim: u32, optimizer: Optimizer) -> TableSpec {
    TableSpec::new(name, dim, optimizer, Initializer::Uniform { bound: 0.5 }, 3)
}

fn batch(table: TableId, keys: impl IntoIterator<Item = u64>) -> KeyBatch {
    let keys: Vec<Key> = keys.into_iter().map(Key).collect();
    let mut batch = KeyBatch::new();
    batch.push_run(table, &keys).unwrap();
    batch
}

fn assert_bits(found: &[f32], expected: &[f32]) {
    let bits = |floats: &[f32]| floats.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
    assert_eq!(bits(found), bits(expected));
}

#[test]
fn the_contract_holds_whatever_the_cache_has_room_for() {
    if !under_pretended_cuda("the_contract_holds_whatever_the_cache_has_room_for", &[]) {
        return;
    }
    // one set of each of the four row lengths or few more; all rows; and with rows that leave RAM
    for (host_ram, gpu_cache) in [(HUGE, 64 << 10), (HUGE, ALL), (2 * TINY, 128 << 10)] {
        check_contract(|| Scratch::new(host_ram, gpu_cache));
    }
}

/// A store and the oracle, side by side.
struct Pair {
    scratch: Scratch,
    oracle: OracleStore,
    tables: Vec<TableId>,
    staged: VecDeque<(Staged, OracleStaged)>,
    random: Random,
}

impl Pair {
    fn new(host_ram: u64, gpu_cache: u64, seed: u64) -> Self {
        let (scratch, oracle) = (Scratch::new(host_ram, gpu_cache), OracleStore::new());
        let specs = [
            spec("a", 60, Optimizer::Sgd),
            spec("a_too", 60, ADAM),
            spec("b", 33, ADAGRAD),
            spec("c", 64, ROW_WISE),
            spec("c_too", 64, ROW_WISE),
        ];
        let tables = specs.iter().map(|spec| {
            oracle.create_table(spec).unwrap();
            scratch.create_table(spec).unwrap()
        });
        let tables = tables.collect();
        Self { scratch, oracle, tables, staged: VecDeque::new(), random: Random::new(seed) }
    }

    fn keys(&mut self, universe: u64, keys_max: u64) -> KeyBatch {
        let tables: Vec<TableId> =
            self.tables.iter().copied().filter(|_| self.random.below(3) > 0).collect();
        random_key_batch(&mut self.random, &tables, universe, keys_max)
    }

    fn step(&mut self) {
        match self.random.below(20) {
            0..8 => self.stage(),
            8..15 => {
                let push = self.random.below(6) > 0;
                self.finish(push);
            }
            15 | 16 => {
                let keys = self.keys(400, 40);
                let (rows, _) = self.scratch.lookup(&keys).unwrap();
                assert_bits(&rows, &self.oracle.lookup(&keys).unwrap().0);
            }
            17 => self.assign(),
            18 => self.scratch.store().flush().unwrap(),
            _ => {
                self.staged.clear();
                self.scratch.store().close().unwrap();
                self.scratch.reopen();
                assert!(self.scratch.store().status().opened_clean);
            }
        }
    }

    fn stage(&mut self) {
        let universe = if self.random.below(2) == 0 { 30 } else { 400 };
        let keys = self.keys(universe, 40);
        loop {
            match self.scratch.store().stage(&keys) {
                Ok(staged) => {
                    let mirror = self.oracle.stage(&keys).unwrap();
                    let rows = self.scratch.pull(&staged).unwrap();
                    assert_bits(&rows, &self.oracle.pull(&mirror).unwrap());
                    return self.staged.push_back((staged, mirror));
                }
                Err(Error::SlowDown { .. }) => {
                    assert!(!self.staged.is_empty(), "nothing is held, yet there is no room");
                    self.finish(true);
                }
                Err(Error::BatchTooLarge { .. }) => return,
                Err(error) => panic!("{error}"),
            }
        }
    }

    fn finish(&mut self, push: bool) {
        let Some((staged, mirror)) = self.staged.pop_front() else { return };
        if push {
            let gradients = random_gradients(&mut self.random, staged.rows_floats());
            self.scratch.push(&staged, &gradients, 0.05).unwrap();
            self.oracle.push(&mirror, &gradients, 0.05).unwrap();
        }
        let rows = self.scratch.pull(&staged).unwrap();
        assert_bits(&rows, &self.oracle.pull(&mirror).unwrap());
    }

    /// Rows that staged steps hold too, up there or in RAM.
    fn assign(&mut self) {
        let keys = self.keys(60, 10);
        let oracle_rows = self.oracle.lookup(&keys).unwrap().0;
        let rows = random_gradients(&mut self.random, oracle_rows.len());
        match self.scratch.store().assign(&keys, &rows) {
            Ok(()) => self.oracle.assign(&keys, &rows).unwrap(),
            // some chunks may be set: the same once more, when nothing is held
            Err(Error::SlowDown { .. }) => {
                self.staged.clear();
                self.scratch.assign(&keys, &rows).unwrap();
                self.oracle.assign(&keys, &rows).unwrap();
            }
            Err(error) => panic!("{error}"),
        }
    }

    fn check_all_rows(&mut self) {
        for (table, key) in self.oracle.row_names() {
            let keys = batch(table, [key.0]);
            let (rows, _) = self.scratch.lookup(&keys).unwrap();
            assert_bits(&rows, &self.oracle.lookup(&keys).unwrap().0);
            // and the optimizer's state, which a step shows
            let staged = self.scratch.stage(&keys).unwrap();
            let mirror = self.oracle.stage(&keys).unwrap();
            let gradients = vec![0.25; staged.rows_floats()];
            self.scratch.push(&staged, &gradients, 0.1).unwrap();
            self.oracle.push(&mirror, &gradients, 0.1).unwrap();
            let rows = self.scratch.pull(&staged).unwrap();
            assert_bits(&rows, &self.oracle.pull(&mirror).unwrap());
        }
    }
}

#[test]
fn random_operations_agree_with_the_oracle() {
    if !under_pretended_cuda("random_operations_agree_with_the_oracle", &[]) {
        return;
    }
    for seed in 0..12 {
        // one set or few for each row length, a part of the rows, all of them; RAM that does not
        // hold all, and that does
        let gpu_cache = [256 << 10, 1 << 20, ALL][seed as usize % 3];
        let host_ram = [2 * TINY, HUGE][seed as usize / 3 % 2];
        println!("seed {seed}, {host_ram} bytes of RAM, {gpu_cache} on the device");
        let mut pair = Pair::new(host_ram, gpu_cache, seed);
        for _ in 0..150 {
            pair.step();
        }
        pair.staged.clear();
        pair.check_all_rows();
    }
}

#[test]
fn caches_of_every_size_give_the_bits_of_none() {
    if !under_pretended_cuda("caches_of_every_size_give_the_bits_of_none", &[]) {
        return;
    }
    let run = |gpu_cache: u64, host_ram: u64| {
        let scratch = Scratch::new(host_ram, gpu_cache);
        let table = scratch.create_table(&spec("t", 16, ADAGRAD)).unwrap();
        let mut keys = ZipfKeys::new(7, 20_000, 1.05);
        let mut random = Random::new(11);
        let mut ahead: VecDeque<Staged> = VecDeque::new();
        let mut pulled = Vec::new();
        for _ in 0..60 {
            ahead.push_back(scratch.stage(&keys.batch(table, 300)).unwrap());
            if ahead.len() == 4 {
                let staged = ahead.pop_front().unwrap();
                pulled.extend(scratch.pull(&staged).unwrap());
                let gradients = random_gradients(&mut random, staged.rows_floats());
                scratch.push(&staged, &gradients, 0.1).unwrap();
            }
        }
        drop(ahead);
        scratch.store().flush().unwrap();
        let totals = scratch.totals();
        scratch.store().close().unwrap();
        (pulled, totals)
    };
    let (expected, none) = run(0, HUGE);
    assert_eq!((none.gpu.hits, none.promotions), (0, 0));
    let rows = none.first_touch;
    let row_bytes = 128 + 17;
    // a set, which is all staged at once and lets rows lie in RAM; 5 % of the rows; all rows; and
    // RAM that does not hold them
    for (gpu_cache, host_ram) in
        [(64 << 10, HUGE), (rows * row_bytes / 20, HUGE), (ALL, HUGE), (256 << 10, 2 * TINY)]
    {
        let (pulled, totals) = run(gpu_cache.max(64 << 10), host_ram);
        assert_bits(&pulled, &expected);
        assert!(totals.gpu.hits > 1000, "{gpu_cache}: {totals:?}");
        assert_eq!(totals.gpu.hits + totals.gpu.misses, totals.host.hits + totals.host.misses);
        assert!(totals.promotions >= totals.demotions, "{totals:?}");
        match gpu_cache {
            ALL if host_ram == HUGE => {
                assert_eq!((totals.demotions, totals.promotions), (0, rows), "{totals:?}");
                assert_eq!(totals.gpu.misses, rows, "after its first touch a row is there");
            }
            _ => assert!(totals.demotions > 1000, "{gpu_cache}: {totals:?}"),
        }
    }
}

/// Rows of one length give their memory to those of another: some leave RAM, others move to other
/// slots of it, and all of them had changed on the device.
#[test]
fn rows_that_move_to_other_slots_in_ram_come_down_first() {
    if !under_pretended_cuda("rows_that_move_to_other_slots_in_ram_come_down_first", &[]) {
        return;
    }
    let (scratch, oracle) = (Scratch::new(TINY, ALL), OracleStore::new());
    let specs = [spec("short", 16, Optimizer::Sgd), spec("long", 64, ROW_WISE)];
    let [short, long] = specs.map(|spec| {
        oracle.create_table(&spec).unwrap();
        scratch.create_table(&spec).unwrap()
    });
    let step = |keys: &KeyBatch| {
        let (staged, mirror) = (scratch.stage(keys).unwrap(), oracle.stage(keys).unwrap());
        let gradients: Vec<f32> = (0..staged.rows_floats()).map(|i| i as f32 * 0.01).collect();
        scratch.push(&staged, &gradients, 0.1).unwrap();
        oracle.push(&mirror, &gradients, 0.1).unwrap();
    };
    let all = batch(short, 0..3000);
    for round in 0..4 {
        for start in (0..3000).step_by(100) {
            step(&batch(short, start..start + 100));
        }
        for start in (0..900).step_by(30) {
            step(&batch(long, round * 900 + start..round * 900 + start + 30));
        }
        assert_bits(&scratch.lookup(&all).unwrap().0, &oracle.lookup(&all).unwrap().0);
    }
    assert!(scratch.totals().evictions > 1000, "{:?}", scratch.totals());
}

#[test]
fn a_row_says_where_it_is_and_is_counted_there() {
    if !under_pretended_cuda("a_row_says_where_it_is_and_is_counted_there", &[]) {
        return;
    }
    let scratch = Scratch::new(HUGE, ALL);
    let table = scratch.create_table(&spec("t", 4, Optimizer::Sgd)).unwrap();
    let staged = scratch.stage(&batch(table, [1, 2])).unwrap();
    assert_eq!(staged.statuses(), [RowStatus::Initialised; 2]);
    let staged_again = scratch.stage(&batch(table, [2, 3])).unwrap();
    assert_eq!(staged_again.statuses(), [RowStatus::Gpu, RowStatus::Initialised]);
    assert_eq!(scratch.lookup(&batch(table, [2, 9])).unwrap().1[0], RowStatus::Gpu);
    scratch.pull(&staged).unwrap();
    scratch.push(&staged, &[1.0; 8], 0.1).unwrap();
    let status = scratch.store().status();
    assert_eq!((status.gpu_cache_bytes, status.gpu_stages), (ALL, 2));
    let of_table = &status.tables[0];
    assert_eq!((of_table.gpu.rows, of_table.gpu.bytes), (3, 3 * (16 + 17)));
    let gpu = of_table.counters.gpu;
    assert_eq!((gpu.hits, gpu.misses), (1, 3));
    // two rows pulled; three came up and two were pushed
    assert_eq!((gpu.bytes_read, gpu.bytes_written), (2 * 16, 5 * 16));
}

/// A stage of more rows than the cache takes finds its sets full of its own.
#[test]
fn a_row_that_finds_its_set_full_of_staged_rows_is_counted() {
    if !under_pretended_cuda("a_row_that_finds_its_set_full_of_staged_rows_is_counted", &[]) {
        return;
    }
    let scratch = Scratch::new(HUGE, StoreConfig::GPU_CACHE_BYTES_MIN);
    let table = scratch.create_table(&spec("t", 16, Optimizer::Sgd)).unwrap();
    let keys = batch(table, 0..2000);
    drop(scratch.stage(&keys).unwrap());
    let made = scratch.totals();
    assert_eq!((made.gpu.misses, made.first_touch, made.conflicts), (2000, 2000, 0));
    let staged = scratch.stage(&keys).unwrap();
    let totals = scratch.totals();
    let on_device = staged.statuses().iter().filter(|status| **status == RowStatus::Gpu).count();
    assert!((100..1900).contains(&on_device), "{on_device} rows are on the device");
    assert_eq!(totals.gpu.hits, on_device as u64);
    assert_eq!(totals.gpu.misses, totals.first_touch + totals.conflicts);
    // one that another step has in RAM is not brought up: no set was full for it
    drop(scratch.stage(&keys).unwrap());
    assert_eq!(scratch.totals().conflicts, totals.conflicts);
}

#[test]
fn memory_goes_to_the_rows_that_are_staged() {
    if !under_pretended_cuda("memory_goes_to_the_rows_that_are_staged", &[]) {
        return;
    }
    // 2,000 rows of 16 floats and 17 bytes want 160 KB: more than half of the memory
    const CACHE: u64 = 256 << 10;
    let scratch = Scratch::new(HUGE, CACHE);
    let narrow = scratch.create_table(&spec("narrow", 16, Optimizer::Sgd)).unwrap();
    let wide = scratch.create_table(&spec("wide", 64, Optimizer::Sgd)).unwrap();
    let hits_of = |table: TableId, keys: u64| {
        let hits = || scratch.store().status().tables[table.0 as usize].counters.gpu.hits;
        let before = hits();
        let staged = scratch.stage(&batch(table, 0..keys)).unwrap();
        let found = hits() - before;
        drop(staged);
        found
    };
    // the first stage says how: all but a little is for its rows
    let first = [hits_of(narrow, 2000), hits_of(narrow, 2000)];
    assert_eq!(first[0], 0);
    assert!(first[1] > 1950, "{first:?}: sets are not all as full");
    // a table of wider rows takes its place: 600 rows of 273 bytes want 164 KB
    for _ in 0..100 {
        hits_of(wide, 600);
    }
    assert!(hits_of(wide, 600) > 580, "{:?}", scratch.store().status().tables[1].gpu);
    // and what the other has left is still good for some
    hits_of(narrow, 100);
    assert!(hits_of(narrow, 100) > 50);
    // no bit changed on the way
    let plain = Scratch::new(HUGE, 0);
    for (name, dim) in [("narrow", 16), ("wide", 64)] {
        let table = plain.create_table(&spec(name, dim, Optimizer::Sgd)).unwrap();
        let keys = batch(table, 0..600);
        drop(plain.stage(&keys).unwrap());
        assert_bits(&scratch.lookup(&keys).unwrap().0, &plain.lookup(&keys).unwrap().0);
    }
}

#[test]
fn rows_that_expire_on_the_device_are_made_anew_there() {
    if !under_pretended_cuda("rows_that_expire_on_the_device_are_made_anew_there", &[]) {
        return;
    }
    let run = |gpu_cache: u64| {
        let scratch = Scratch::new(HUGE, gpu_cache);
        let spec = TableSpec { expiry: Expiry::Steps(3), ..spec("t", 8, ADAGRAD) };
        let table = scratch.create_table(&spec).unwrap();
        let mut random = Random::new(3);
        let mut pulled = Vec::new();
        for _ in 0..80 {
            let keys: std::collections::BTreeSet<u64> = (0..20).map(|_| random.below(80)).collect();
            let staged = scratch.stage(&batch(table, keys)).unwrap();
            pulled.extend(scratch.pull(&staged).unwrap());
            let gradients = random_gradients(&mut random, staged.rows_floats());
            scratch.push(&staged, &gradients, 0.1).unwrap();
        }
        scratch.store().close().unwrap();
        let totals = scratch.totals();
        let asked = totals.host.hits + totals.host.misses;
        assert_eq!(totals.host.misses, totals.first_touch + totals.expired_misses());
        assert_eq!(totals.gpu.hits + totals.gpu.misses, if gpu_cache > 0 { asked } else { 0 });
        if gpu_cache == ALL {
            assert_eq!(totals.gpu.misses, totals.host.misses, "nothing else is missed there");
        }
        (pulled, totals.expired)
    };
    let (expected, expired) = run(0);
    assert!(expired > 100, "{expired}");
    for gpu_cache in [64 << 10, ALL] {
        let (pulled, as_many) = run(gpu_cache);
        assert_bits(&pulled, &expected);
        assert_eq!(as_many, expired);
    }
}

#[test]
fn steps_on_several_threads_change_no_bit() {
    if !under_pretended_cuda("steps_on_several_threads_change_no_bit", &[]) {
        return;
    }
    // each thread has a table of its own and the device is shared; meanwhile somebody flushes and
    // looks up
    let run = |gpu_cache: u64, threads: bool| {
        let scratch = Scratch::new(HUGE, gpu_cache);
        let specs = ["a", "b", "c"].map(|name| spec(name, 16, ADAGRAD));
        let tables = specs.map(|spec| scratch.create_table(&spec).unwrap());
        let train = |table: TableId| {
            let mut keys = ZipfKeys::new(u64::from(table.0), 3000, 1.0);
            for _ in 0..60 {
                let staged = scratch.stage(&keys.batch(table, 60)).unwrap();
                let rows = scratch.pull(&staged).unwrap();
                let gradients: Vec<f32> = rows.iter().map(|x| x * 0.5 + 0.01).collect();
                scratch.push(&staged, &gradients, 0.1).unwrap();
            }
        };
        if threads {
            std::thread::scope(|scope| {
                let trained: Vec<_> =
                    tables.iter().map(|&table| scope.spawn(move || train(table))).collect();
                while !trained.iter().all(std::thread::ScopedJoinHandle::is_finished) {
                    scratch.store().flush().unwrap();
                    scratch.lookup(&ZipfKeys::new(9, 3000, 1.0).batch(tables[1], 50)).unwrap();
                }
            });
        } else {
            tables.iter().for_each(|&table| train(table));
        }
        let all = |table: TableId| {
            let keys = (0..3000).map(|rank| Random::new(rank + 1).next_u64());
            let keys: std::collections::BTreeSet<u64> = keys.collect();
            scratch.lookup(&batch(table, keys)).unwrap().0
        };
        let rows = tables.map(all).concat();
        scratch.store().close().unwrap();
        rows
    };
    let expected = run(0, false);
    assert_bits(&run(64 << 10, true), &expected);
    assert_bits(&run(1 << 20, true), &expected);
}

/// A worker on the device: two slots, and a stream that takes rows as they are for gradients.
struct Worker {
    stream: Stream,
    slots: Vec<WorkerSlot>,
    history: Buffer, // what was pulled, step after step
    written: u64,    // bytes of it
    places: Places,
}

struct WorkerSlot {
    rows: Buffer,
    gradients: Buffer,
    worker_done: Event,
    session_done: Event,
}

impl Worker {
    fn new(store: &Store, floats: u64, history_bytes: u64) -> Self {
        let device = Device::open(0).unwrap();
        let mut memory = Memory::take(&device, 4 * 4 * floats + history_bytes + 8192).unwrap();
        let slots = [(); 2].map(|()| WorkerSlot {
            rows: memory.buffer(4 * floats).unwrap(),
            gradients: memory.buffer(4 * floats).unwrap(),
            worker_done: device.event().unwrap(),
            session_done: device.event().unwrap(),
        });
        let place = |slot: &WorkerSlot| DeviceSlot {
            rows: slot.rows.address(),
            gradients: slot.gradients.address(),
            floats,
            worker_done: slot.worker_done.word(),
            session_done: slot.session_done.word(),
        };
        let slots_shared = DeviceSlots::Here(slots.iter().map(place).collect());
        let places = DevicePlaces { device: device.description().id, slots: slots_shared };
        Self {
            stream: device.stream().unwrap(),
            places: store.lend_places(&places).unwrap(),
            slots: slots.into(),
            history: memory.buffer(history_bytes).unwrap(),
            written: 0,
        }
    }

    /// One step, none of whose work is waited for.
    fn step(&mut self, store: &Store, staged: Staged, step: usize) {
        let (staged, number) = (Arc::new(staged), step as u32 % 2);
        let slot = &self.slots[number as usize];
        let bytes = 4 * staged.rows_floats() as u64;
        store.pull_on_device(&staged, &self.places, number).unwrap();
        self.stream.wait_for(&slot.session_done).unwrap();
        let [rows, gradients] = [&slot.rows, &slot.gradients].map(|of| of.part(0, bytes).unwrap());
        self.history.part(self.written, bytes).unwrap().copy_from(&self.stream, &rows).unwrap();
        self.written += bytes;
        gradients.copy_from(&self.stream, &rows).unwrap();
        self.stream.record(&slot.worker_done).unwrap();
        store.push_on_device(&staged, &self.places, number, 0.05).unwrap();
    }
}

/// What a run pulled, looked up and counted.
type Ran = (Vec<f32>, Vec<f32>, Counters);

/// Steps of four tables, some staged ahead, with all that a store may be asked meanwhile.
fn run_beside_all_else(gpu_cache: u64, host_ram: u64, on_device: bool) -> Ran {
    let scratch = Scratch::new(host_ram, gpu_cache);
    let late = TableSpec { admission: Admission::AfterSights(2), ..spec("late", 7, ADAGRAD) };
    let specs = [spec("a", 16, ADAGRAD), spec("b", 16, ROW_WISE), spec("c", 33, ADAM), late];
    let tables = specs.map(|spec| scratch.create_table(&spec).unwrap());
    let mut zipf = tables.map(|table| ZipfKeys::new(u64::from(table.0), 3000, 1.05));
    let (steps, step_keys) = (60, 60);
    let floats = (step_keys * (16 + 16 + 33 + 7)) as u64;
    let mut worker =
        on_device.then(|| Worker::new(scratch.store(), floats, steps as u64 * floats * 4));
    let mut ahead: VecDeque<Staged> = VecDeque::new();
    let (mut pulled, mut looked_up) = (Vec::new(), Vec::new());
    for step in 0..steps {
        let mut keys = KeyBatch::new();
        for (table, zipf) in tables.iter().zip(&mut zipf) {
            let batch = zipf.batch(*table, step_keys);
            keys.push_run(*table, batch.keys()).unwrap();
        }
        ahead.push_back(scratch.stage(&keys).unwrap());
        if ahead.len() == 4 {
            let staged = ahead.pop_front().unwrap();
            match &mut worker {
                Some(worker) => worker.step(scratch.store(), staged, step),
                None => {
                    let rows = scratch.pull(&staged).unwrap();
                    scratch.push(&staged, &rows, 0.05).unwrap();
                    pulled.extend(rows);
                }
            }
        }
        match step % 9 {
            2 => scratch.store().flush().unwrap(),
            4 => looked_up.extend(scratch.lookup(&keys).unwrap().0),
            6 if host_ram == HUGE => {
                let (table, range) = keys.runs().nth(1).unwrap();
                let some = batch(table, keys.keys()[range][..9].iter().map(|key| key.0));
                scratch.assign(&some, &[0.25; 9 * 16]).unwrap();
            }
            8 => drop(ahead.pop_back()),
            _ => {}
        }
    }
    drop(ahead);
    if let Some(worker) = &worker {
        scratch.store().settle_on_device(&worker.places).unwrap();
        pulled.resize(worker.written as usize / 4, 0.0);
        worker.history.part(0, worker.written).unwrap().read(0, &mut pulled).unwrap();
    }
    for (table, mut zipf) in tables.iter().zip(zipf) {
        looked_up.extend(scratch.lookup(&zipf.batch(*table, 2000)).unwrap().0);
    }
    let totals = scratch.totals();
    assert_eq!(scratch.store().status().pinned_rows, 0);
    scratch.store().close().unwrap();
    (pulled, looked_up, totals)
}

#[test]
fn rows_handed_over_on_the_device_are_those_of_the_host() {
    if !under_pretended_cuda("rows_handed_over_on_the_device_are_those_of_the_host", &[]) {
        return;
    }
    let expected = run_beside_all_else(0, HUGE, false);
    // next to no room on the device, a part of the rows, all of them
    for gpu_cache in [64 << 10, 256 << 10, ALL] {
        let (pulled, looked_up, totals) = run_beside_all_else(gpu_cache, HUGE, true);
        assert_bits(&pulled, &expected.0);
        assert_bits(&looked_up, &expected.1);
        assert!(totals.gpu.hits > 100, "{gpu_cache}: {totals:?}");
        assert_eq!(totals.demotions == 0, gpu_cache == ALL, "{totals:?}");
    }
    // RAM that does not hold the rows either: what may leave it waits for pushes under way
    let expected = run_beside_all_else(0, 2 * TINY, false);
    let (pulled, looked_up, totals) = run_beside_all_else(128 << 10, 2 * TINY, true);
    assert_bits(&pulled, &expected.0);
    assert_bits(&looked_up, &expected.1);
    assert!(totals.evictions > 100 && totals.demotions > 100, "{totals:?}");
}

#[test]
fn a_gradient_on_the_device_that_is_not_finite_changes_no_row_and_is_named() {
    let name = "a_gradient_on_the_device_that_is_not_finite_changes_no_row_and_is_named";
    if !under_pretended_cuda(name, &[]) {
        return;
    }
    let scratch = Scratch::new(HUGE, ALL);
    let store = scratch.store();
    let specs = [spec("a", 4, Optimizer::Sgd), spec("b", 8, ADAM)];
    let [a, b] = specs.map(|spec| scratch.create_table(&spec).unwrap());
    let mut keys = KeyBatch::new();
    keys.push_run(a, &[1, 2, 3].map(Key)).unwrap();
    keys.push_run(b, &[7, 8, 9].map(Key)).unwrap();
    let mut worker = Worker::new(store, 36, 36 * 4);
    let before = scratch.lookup(&keys).unwrap().0;
    let staged = Arc::new(scratch.stage(&keys).unwrap());
    let mut gradients = vec![1.0_f32; 36];
    (gradients[12 + 8 + 5], gradients[35]) = (f32::NAN, f32::INFINITY);
    worker.slots[0].gradients.write(0, &gradients).unwrap();
    store.push_on_device(&staged, &worker.places, 0, 0.1).unwrap();
    drop(staged);
    assert_eq!(store.status().pinned_rows, 6, "its work is under way");
    assert_bits(&scratch.lookup(&keys).unwrap().0, &before);
    // another worker's calls say nothing of it
    let other = Worker::new(store, 36, 36 * 4);
    store.settle_on_device(&other.places).unwrap();
    assert_eq!(store.status().pinned_rows, 0);
    let error = store.settle_on_device(&worker.places).unwrap_err();
    let key = Key(8);
    assert!(
        matches!(error, Error::NotFinite { table, key: k, position: 5 } if table == b && k == key),
        "{error}"
    );
    store.settle_on_device(&worker.places).unwrap();
    // the next one goes through, and so does the one after a pull that told of another
    let staged = scratch.stage(&keys).unwrap();
    worker.step(store, staged, 1);
    let after = scratch.lookup(&keys).unwrap().0;
    assert!(after.iter().zip(&before).all(|(after, before)| after != before), "{after:?}");
    let staged = Arc::new(scratch.stage(&keys).unwrap());
    worker.slots[0].gradients.write(0, &gradients).unwrap();
    store.push_on_device(&staged, &worker.places, 0, 0.1).unwrap();
    scratch.lookup(&keys).unwrap(); // waits
    let staged = Arc::new(scratch.stage(&keys).unwrap());
    let error = store.pull_on_device(&staged, &worker.places, 1).unwrap_err();
    assert!(matches!(error, Error::NotFinite { .. }), "{error}");
    store.pull_on_device(&staged, &worker.places, 1).unwrap();
    drop(staged); // without a push: the gather is waited for

    for (slot, floats, what) in [(2, 36, "the slots"), (0, 35, "the floats of a slot")] {
        let small = Worker::new(store, floats, 4);
        let staged = Arc::new(scratch.stage(&keys).unwrap());
        let error = store.pull_on_device(&staged, &small.places, slot).unwrap_err().to_string();
        assert!(error.contains(what), "{error}");
    }
    let nowhere =
        DevicePlaces { device: table::DeviceId([1; 16]), slots: DeviceSlots::Here(Vec::new()) };
    let error = store.lend_places(&nowhere).err().unwrap().to_string();
    assert!(error.contains("GPU-01010101-"), "{error}");
}

#[test]
fn a_device_that_fails_ends_all_work_and_loses_nothing_that_was_flushed() {
    let name = "a_device_that_fails_ends_all_work_and_loses_nothing_that_was_flushed";
    if !under_pretended_cuda(name, &[("FAIL_AFTER_LAUNCHES", "400")]) {
        return;
    }
    let mut scratch = Scratch::new(HUGE, 64 << 10);
    let table = scratch.create_table(&spec("t", 16, ADAGRAD)).unwrap();
    let train = |scratch: &Scratch, step: u64| -> Outcome<()> {
        let keys = batch(
            table,
            (0..200).map(|i| (step * 31 + i * 7) % 2000).collect::<std::collections::BTreeSet<_>>(),
        );
        let staged = scratch.stage(&keys)?;
        let rows = scratch.pull(&staged)?;
        scratch.push(&staged, &vec![0.5; rows.len()], 0.1)
    };
    for step in 0..20 {
        train(&scratch, step).unwrap();
    }
    scratch.store().flush().unwrap();
    let all = batch(table, 0..2000);
    let flushed = scratch.lookup(&all).unwrap().0;
    let failed = (20..1000).find_map(|step| train(&scratch, step).err()).unwrap();
    assert!(failed.to_string().contains("device memory: CUDA driver error"), "{failed}");
    for refused in [
        scratch.stage(&all).err().unwrap().to_string(),
        scratch.lookup(&all).unwrap_err().to_string(),
        scratch.store().flush().unwrap_err().to_string(),
        scratch.store().close().unwrap_err().to_string(),
    ] {
        assert!(refused.contains("refuses work"), "{refused}");
    }
    scratch.config.gpu_cache_bytes = 0;
    scratch.reopen();
    assert!(!scratch.store().status().opened_clean, "rows after the flush are lost");
    assert_bits(&scratch.lookup(&all).unwrap().0, &flushed);
}

#[test]
fn without_a_device_a_cache_is_refused_and_makes_no_directory() {
    if gpu::probe().is_ok() {
        return; // this machine has one
    }
    let dir = tempfile::tempdir().unwrap();
    let mut config = StoreConfig::new(dir.path().join("store"), TINY);
    config.gpu_cache_bytes = 1 << 20;
    let error = Store::open(config.clone()).err().unwrap();
    assert!(matches!(error, Error::NoDevice(_)), "{error}");
    assert!(!config.data_dir.exists());
    config.gpu_cache_bytes = 1000;
    let error = Store::open(config).err().unwrap();
    assert!(matches!(error, Error::Config { field: "gpu_cache_bytes", .. }), "{error}");
}
