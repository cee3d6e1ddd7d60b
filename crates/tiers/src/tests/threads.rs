//! Several threads: the same bytes, nobody waits for ever, nothing is fetched twice.

use std::sync::Barrier;
use std::sync::mpsc::sync_channel;
use std::thread;

use table::{KeyBatch, Optimizer, TableId};
use testkit::{OracleStore, Random, RowStore, ZipfKeys, random_gradients};

use super::{ADAM, HUGE, Scratch, TINY, batch, spec};

fn batches(tables: [TableId; 2]) -> Vec<KeyBatch> {
    let mut zipf = ZipfKeys::new(9, 400, 0.9);
    (0..200)
        .map(|_| {
            let mut keys = zipf.batch(tables[0], 8);
            let more = zipf.batch(tables[1], 8);
            keys.push_run(tables[1], more.keys()).unwrap();
            keys
        })
        .collect()
}

fn create(store: &impl RowStore) -> [TableId; 2] {
    [
        store.create_table(&spec("a", 500, Optimizer::Sgd)).unwrap(),
        store.create_table(&spec("b", 200, ADAM)).unwrap(),
    ]
}

#[test]
fn staging_ahead_on_another_thread_gives_the_same_bytes() {
    let oracle = OracleStore::new();
    let tables = create(&oracle);
    let batches = batches(tables);
    let mut random = Random::new(4);
    let mut expected = Vec::new();
    let mut gradients = Vec::new();
    for keys in &batches {
        let staged = oracle.stage(keys).unwrap();
        let rows = oracle.pull(&staged).unwrap();
        gradients.push(random_gradients(&mut random, rows.len()));
        oracle.push(&staged, gradients.last().unwrap(), 0.1).unwrap();
        expected.push(rows);
    }
    for budget in [2 * TINY, HUGE] {
        let scratch = Scratch::patient(budget);
        create(&scratch);
        let (send, receive) = sync_channel(6);
        thread::scope(|scope| {
            let (scratch, batches) = (&scratch, &batches);
            scope.spawn(move || {
                for keys in batches {
                    send.send(scratch.store().stage(keys).unwrap()).unwrap();
                }
            });
            // lookups and flushes beside them change nothing
            scope.spawn(move || {
                for keys in batches.iter().step_by(10) {
                    scratch.lookup(keys).unwrap();
                    scratch.store().flush().unwrap();
                }
            });
            for (i, staged) in receive.iter().enumerate() {
                assert_eq!(scratch.pull(&staged).unwrap(), expected[i], "step {i}");
                scratch.push(&staged, &gradients[i], 0.1).unwrap();
            }
        });
        for keys in &batches {
            assert_eq!(scratch.lookup(keys).unwrap().0, oracle.lookup(keys).unwrap().0);
        }
        assert_eq!(scratch.store().status().pinned_rows, 0);
    }
}

#[test]
fn a_waiting_stage_goes_on_when_rows_are_released() {
    let scratch = Scratch::patient(TINY);
    let table = create(&scratch)[0];
    let held = scratch.store().stage(&batch(table, 0..80)).unwrap();
    let started = Barrier::new(2);
    thread::scope(|scope| {
        let waiting = scope.spawn(|| {
            started.wait();
            scratch.store().stage(&batch(table, 100..170)).map(|staged| staged.rows())
        });
        started.wait();
        drop(held);
        assert_eq!(waiting.join().unwrap().unwrap(), 70);
    });
}

#[test]
fn stages_at_the_same_time_fetch_a_row_once() {
    let mut scratch = Scratch::patient(HUGE);
    let table = create(&scratch)[0];
    super::step(scratch.store(), &batch(table, 0..300), 1.0);
    scratch.close_and_reopen();
    let started = Barrier::new(4);
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                started.wait();
                for start in (0..400).step_by(40) {
                    drop(scratch.store().stage(&batch(table, start..start + 40)).unwrap());
                }
            });
        }
    });
    let totals = scratch.store().status().totals();
    assert_eq!((totals.ssd.hits, totals.first_touch, totals.host.misses), (300, 100, 400));
    assert_eq!(scratch.store().status().tables[0].rows, 400);
}

#[test]
fn a_row_that_two_stages_miss_at_once_is_one_row() {
    let scratch = Scratch::patient(HUGE);
    let table = scratch.create_table(&spec("t", 4, Optimizer::Sgd)).unwrap();
    let inner = scratch.store().inner();
    let (begun, begins) = sync_channel(1);
    let (go_on, goes_on) = sync_channel(1);
    *inner.claim_pause.lock() = Some(Box::new(move || {
        begun.send(()).unwrap();
        goes_on.recv().unwrap();
    }));
    thread::scope(|scope| {
        let stage = || scratch.store().stage(&batch(table, 0..100)).unwrap().rows();
        let first = scope.spawn(stage);
        begins.recv().unwrap(); // the first has begun to claim, and claimed nothing
        let second = scope.spawn(stage);
        while inner.live.sets().len() < 2 {
            thread::yield_now(); // until the second has probed as well, and missed
        }
        go_on.send(()).unwrap();
        assert_eq!((first.join().unwrap(), second.join().unwrap()), (100, 100));
    });
    let rows = &scratch.store().status().tables[0];
    assert_eq!((rows.rows, rows.host.rows, rows.counters.first_touch), (100, 100, 100));
    assert_eq!(rows.counters.host.hits, 100);
}

#[test]
fn two_stages_that_want_each_others_rows_both_end() {
    let scratch = Scratch::patient(TINY);
    let table = create(&scratch)[0];
    thread::scope(|scope| {
        for start in [0, 60] {
            let scratch = &scratch;
            scope.spawn(move || {
                for i in 0..50 {
                    let from = (start + i * 7) % 120;
                    super::step(scratch.store(), &batch(table, from..from + 60), 0.1);
                }
            });
        }
    });
    assert_eq!(scratch.store().status().pinned_rows, 0);
}

#[test]
fn lookups_and_flushes_that_pass_by_leave_the_count_of_pins_exact() {
    let scratch = Scratch::patient(HUGE);
    let table = create(&scratch)[0];
    let keys = batch(table, 0..200);
    let done = std::sync::atomic::AtomicBool::new(false);
    let passing = |what: &(dyn Fn() + Sync)| {
        while !done.load(std::sync::atomic::Ordering::Relaxed) {
            what();
        }
    };
    thread::scope(|scope| {
        scope.spawn(|| passing(&|| drop(scratch.lookup(&keys).unwrap())));
        scope.spawn(|| passing(&|| scratch.store().flush().unwrap()));
        for _ in 0..300 {
            super::step(scratch.store(), &keys, 0.5);
        }
        done.store(true, std::sync::atomic::Ordering::Relaxed);
    });
    assert_eq!(scratch.store().status().pinned_rows, 0);
}
