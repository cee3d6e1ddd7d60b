//! Who gets a row, and for how long.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use table::{Admission, Expiry, Key, KeyBatch, Optimizer, RowStatus, TableId, TableSpec};
use testkit::RowStore;

use super::{ADAGRAD, HUGE, Scratch, TINY, batch, spec, step};

fn after_sights(name: &str, sights: u32) -> TableSpec {
    TableSpec { admission: Admission::AfterSights(sights), ..spec(name, 4, ADAGRAD) }
}

fn expiring(name: &str, expiry: Expiry) -> TableSpec {
    TableSpec { expiry, ..spec(name, 600, ADAGRAD) }
}

fn initial(spec: &TableSpec, key: u64) -> Vec<f32> {
    let mut row = vec![0.0; spec.dim as usize];
    spec.initial_embedding(Key(key), &mut row);
    row
}

#[test]
fn a_key_gets_a_row_at_its_kth_sight_and_is_answered_as_not_admitted_before() {
    let mut scratch = Scratch::new(HUGE);
    let spec = after_sights("t", 3);
    let table = scratch.create_table(&spec).unwrap();
    let keys = batch(table, [5, 9]);
    for sight in 1..=2 {
        let staged = scratch.store().stage(&keys).unwrap();
        assert_eq!(staged.statuses(), [RowStatus::NotAdmitted; 2], "sight {sight}");
        let rows = scratch.pull(&staged).unwrap();
        assert_eq!(rows, [initial(&spec, 5), initial(&spec, 9)].concat());
        scratch.store().push(&staged, &[1.0; 8], 0.1).unwrap(); // dropped
    }
    let status = scratch.store().status();
    assert_eq!((status.tables[0].rows, status.tables[0].counters.not_admitted), (0, 4));
    assert_eq!(status.host_ram_used_bytes, 0, "what is not admitted takes no memory");
    scratch.close_and_reopen(); // sights last
    let staged = scratch.store().stage(&keys).unwrap();
    assert_eq!(staged.statuses(), [RowStatus::Initialised; 2]);
    scratch.store().push(&staged, &[1.0; 8], 0.1).unwrap();
    assert_ne!(scratch.pull(&staged).unwrap()[..4], initial(&spec, 5));
    assert_eq!(scratch.store().status().tables[0].rows, 2);
}

#[test]
fn a_row_that_was_admitted_stays_so_when_it_left_ram() {
    let scratch = Scratch::new(TINY);
    let table = scratch.create_table(&after_sights("t", 2)).unwrap();
    let other = scratch.create_table(&spec("other", 600, Optimizer::Sgd)).unwrap();
    for _ in 0..2 {
        step(scratch.store(), &batch(table, 0..50), 1.0);
    }
    for start in (0..500).step_by(50) {
        step(scratch.store(), &batch(other, start..start + 50), 1.0);
    }
    *scratch.store().inner().sketch.lock() = None; // the sketch has forgotten all
    let staged = scratch.store().stage(&batch(table, 0..50)).unwrap();
    let mut found = staged.statuses().to_vec();
    found.dedup();
    assert!(found.iter().all(|s| matches!(s, RowStatus::Ssd | RowStatus::Host)), "{found:?}");
}

/// A gradient must meet its own row when a row before it is missing.
#[test]
fn gradients_meet_their_rows_when_others_are_not_admitted() {
    let scratch = Scratch::new(HUGE);
    let spec = after_sights("t", 2);
    let table = scratch.create_table(&spec).unwrap();
    for _ in 0..2 {
        step(scratch.store(), &batch(table, [2, 4, 6]), 0.0);
    }
    let before = scratch.lookup(&batch(table, [2, 4, 6])).unwrap().0;
    let keys = batch(table, 1..7); // 1, 3 and 5 are new
    let staged = scratch.store().stage(&keys).unwrap();
    let gradients: Vec<f32> = (1..7).flat_map(|key| [key as f32; 4]).collect();
    scratch.store().push(&staged, &gradients, 1.0).unwrap();
    drop(staged);
    let after = scratch.lookup(&batch(table, [2, 4, 6])).unwrap().0;
    for (i, key) in [2.0_f32, 4.0, 6.0].into_iter().enumerate() {
        let moved = key / ((0.1 + key * key).sqrt() + 1e-10);
        for j in 0..4 {
            let (before, after) = (before[i * 4 + j], after[i * 4 + j]);
            assert!((before - moved - after).abs() < 1e-6, "{before} - {moved} is not {after}");
        }
    }
}

#[test]
fn a_row_that_nobody_stages_expires_in_ram_and_on_ssd() {
    for (budget, tier) in [(HUGE, RowStatus::Host), (TINY, RowStatus::Ssd)] {
        let scratch = Scratch::new(budget);
        let spec = expiring("t", Expiry::Steps(40));
        let table = scratch.create_table(&spec).unwrap();
        let other = scratch.create_table(&super::spec("other", 600, Optimizer::Sgd)).unwrap();
        let pass = |steps: std::ops::Range<u64>| {
            for i in steps {
                step(scratch.store(), &batch(other, i * 40..(i + 1) * 40), 1.0);
            }
        };
        step(scratch.store(), &batch(table, [7]), 1.0);
        let trained = scratch.lookup(&batch(table, [7])).unwrap().0;
        assert_ne!(trained, initial(&spec, 7));
        pass(0..39);
        let (rows, statuses) = scratch.lookup(&batch(table, [7])).unwrap();
        assert_eq!((rows, statuses), (trained.clone(), vec![tier]), "40 steps are not too many");
        let staged = scratch.store().stage(&batch(table, [7])).unwrap(); // young again
        assert_eq!((scratch.pull(&staged).unwrap(), staged.statuses()), (trained, &[tier][..]));
        drop(staged);
        pass(100..141);
        let (rows, statuses) = scratch.lookup(&batch(table, [7])).unwrap();
        assert_eq!((rows, statuses), (initial(&spec, 7), vec![RowStatus::Initialised]));
        let staged = scratch.store().stage(&batch(table, [7])).unwrap();
        assert_eq!(staged.statuses(), [RowStatus::Initialised], "{tier:?}");
        assert_eq!(scratch.pull(&staged).unwrap(), initial(&spec, 7));
        let status = scratch.store().status();
        assert_eq!((status.tables[0].counters.expired, status.tables[0].rows), (1, 1));
        // it was staged three times: made, found, and too old to be found, wherever it was
        let counters = status.tables[0].counters;
        assert_eq!(counters.expired_misses(), 1);
        assert_eq!(counters.ssd.misses, counters.first_touch + counters.expired_misses());
        assert_eq!(counters.ssd.hits, counters.ssd_rereads);
        assert_eq!(counters.host.misses, counters.ssd.hits + counters.ssd.misses);
        assert_eq!(counters.host.hits + counters.host.misses, 3);
        assert_eq!(counters.host.hits, u64::from(tier == RowStatus::Host));
        drop(staged);
        scratch.store().close().unwrap();
    }
}

#[test]
fn a_stage_without_a_push_makes_a_row_young_whatever_the_budget() {
    for (budget, tier) in [(HUGE, RowStatus::Host), (TINY, RowStatus::Ssd)] {
        let scratch = Scratch::new(budget);
        let spec = expiring("t", Expiry::Steps(40));
        let table = scratch.create_table(&spec).unwrap();
        let other = scratch.create_table(&super::spec("other", 600, Optimizer::Sgd)).unwrap();
        let pass = |steps: std::ops::Range<u64>| {
            for i in steps {
                step(scratch.store(), &batch(other, i * 40..(i + 1) * 40), 1.0);
            }
        };
        let look_at_it = || drop(scratch.store().stage(&batch(table, [7])).unwrap());
        step(scratch.store(), &batch(table, [7]), 1.0);
        pass(0..30);
        look_at_it(); // from SSD where the budget is tiny
        look_at_it(); // a hit
        pass(30..60);
        assert_eq!(scratch.lookup(&batch(table, [7])).unwrap().1, [tier]);
    }
}

/// Stages keys of a table that stays young until SSD has been looked at for rows of `expected`
/// expired ones.
fn look_until_dropped(scratch: &Scratch, others: TableId, held: &KeyBatch, expected: u64) {
    for _ in 0..400 {
        step(scratch.store(), &batch(others, 0..8192), 0.1);
        step(scratch.store(), held, 0.1);
        if scratch.store().status().totals().dropped >= expected {
            return;
        }
    }
    panic!("{:?}", scratch.store().status().totals());
}

#[test]
fn expired_rows_leave_ssd_and_give_its_space_back() {
    let mut scratch = Scratch::new(HUGE);
    let of = |name: &str, expiry| TableSpec { expiry, ..spec(name, 16, ADAGRAD) };
    let brief_spec = of("brief", Expiry::Steps(30));
    let brief = scratch.create_table(&brief_spec).unwrap();
    let patient = scratch.create_table(&of("patient", Expiry::Steps(1 << 20))).unwrap();
    let strict_spec =
        TableSpec { admission: Admission::AfterSights(1), ..of("strict", Expiry::Steps(30)) };
    let strict = scratch.create_table(&strict_spec).unwrap();
    let others = scratch.create_table(&spec("others", 4, Optimizer::Sgd)).unwrap();
    for start in (0..40_000).step_by(4000) {
        step(scratch.store(), &batch(brief, start..start + 4000), 1.0);
    }
    step(scratch.store(), &batch(patient, 0..5000), 1.0);
    step(scratch.store(), &batch(strict, 0..500), 1.0);
    scratch.close_and_reopen(); // rows are on SSD alone
    let bytes = scratch.store().inner().ssd.live_bytes();
    let held = batch(brief, (0..40_000).step_by(400));
    let (rows_patient, _) = scratch.lookup(&batch(patient, 0..5000)).unwrap();
    look_until_dropped(&scratch, others, &held, 39_900);
    let trained = scratch.lookup(&held).unwrap().0;
    let tables = scratch.store().status().tables;
    let counted = |table: TableId| {
        let table = &tables[table.0 as usize];
        (table.rows, table.counters.expired, table.counters.dropped)
    };
    assert_eq!(counted(brief), (100, 39_900, 39_900));
    assert_eq!((counted(patient), counted(strict)), ((5000, 0, 0), (500, 0, 0)));
    // the files shrink by themselves, once what was deleted is flushed
    for wait in 0.. {
        scratch.store().flush().unwrap();
        let left = scratch.store().inner().ssd.live_bytes();
        if left < bytes / 3 {
            break;
        }
        assert!(wait < 3000, "{left} of {bytes} bytes are left");
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    scratch.close_and_reopen(); // a clean close finds its counts right
    let status = scratch.store().status();
    assert!(status.opened_clean);
    assert_eq!(status.tables[0].rows, 100);
    assert_eq!(scratch.lookup(&held).unwrap(), (trained, vec![RowStatus::Ssd; 100]));
    let (rows, statuses) = scratch.lookup(&batch(patient, 0..5000)).unwrap();
    assert!(rows == rows_patient && statuses == [RowStatus::Ssd; 5000]);
    let staged = scratch.store().stage(&batch(brief, [1, 2])).unwrap();
    assert_eq!(staged.statuses(), [RowStatus::Initialised; 2]);
    let made = [initial(&brief_spec, 1), initial(&brief_spec, 2)].concat();
    assert_eq!(scratch.pull(&staged).unwrap(), made);
    assert_eq!(scratch.store().status().tables[0].rows, 102);
}

#[test]
fn a_row_in_ram_is_not_dropped_for_the_old_one_on_ssd() {
    let mut scratch = Scratch::new(HUGE);
    let expiry = Expiry::Steps(30);
    let brief = scratch.create_table(&TableSpec { expiry, ..spec("t", 16, ADAGRAD) }).unwrap();
    let others = scratch.create_table(&spec("others", 4, Optimizer::Sgd)).unwrap();
    step(scratch.store(), &batch(brief, 0..1000), 1.0);
    scratch.close_and_reopen();
    let held = batch(brief, 0..10);
    step(scratch.store(), &held, 1.0); // young in RAM; what is on SSD expires
    look_until_dropped(&scratch, others, &held, 990);
    let (trained, statuses) = scratch.lookup(&held).unwrap();
    assert_eq!(statuses, [RowStatus::Host; 10]);
    scratch.close_and_reopen();
    assert_eq!(scratch.lookup(&held).unwrap(), (trained, vec![RowStatus::Ssd; 10]));
    assert_eq!(scratch.store().status().tables[0].rows, 10);
}

#[test]
fn the_clock_of_steps_goes_on_where_it_stopped() {
    let mut scratch = Scratch::new(HUGE);
    let spec = expiring("t", Expiry::Steps(5));
    let table = scratch.create_table(&spec).unwrap();
    step(scratch.store(), &batch(table, [1]), 1.0);
    for _ in 0..3 {
        scratch.close_and_reopen();
        step(scratch.store(), &batch(table, [2]), 1.0);
    }
    assert_eq!(scratch.lookup(&batch(table, [1])).unwrap().1, [RowStatus::Ssd]);
    for _ in 0..3 {
        step(scratch.store(), &batch(table, [2]), 1.0);
    }
    assert_eq!(scratch.lookup(&batch(table, [1])).unwrap().1, [RowStatus::Initialised]);
}

/// A store whose clock the test winds, in seconds.
fn wound(host_ram_bytes: u64) -> (Scratch, Arc<AtomicU64>) {
    // near the end of what a stamp's 32 bits tell, so that they wrap
    let seconds = Arc::new(AtomicU64::new(u64::from(u32::MAX) - 100));
    let mut scratch = Scratch::new(host_ram_bytes);
    let told = Arc::clone(&seconds);
    scratch.config.clock =
        crate::Clock::of(move || Duration::from_secs(told.load(Ordering::Relaxed)));
    scratch.close_and_reopen();
    (scratch, seconds)
}

#[test]
fn a_row_expires_by_seconds_in_ram_and_on_ssd_however_many_stages_pass() {
    for (budget, tier) in [(HUGE, RowStatus::Host), (TINY, RowStatus::Ssd)] {
        let (mut scratch, seconds) = wound(budget);
        let spec = expiring("t", Expiry::Seconds(60));
        let table = scratch.create_table(&spec).unwrap();
        let other = scratch.create_table(&super::spec("other", 600, Optimizer::Sgd)).unwrap();
        let pass = |scratch: &Scratch, after_s: u64| {
            for i in 0..100 {
                step(scratch.store(), &batch(other, i * 40..(i + 1) * 40), 1.0);
            }
            seconds.fetch_add(after_s, Ordering::Relaxed);
        };
        step(scratch.store(), &batch(table, [7]), 1.0);
        let trained = scratch.lookup(&batch(table, [7])).unwrap().0;
        pass(&scratch, 60);
        let (rows, statuses) = scratch.lookup(&batch(table, [7])).unwrap();
        assert_eq!((rows, statuses), (trained.clone(), vec![tier]), "60 seconds are not too many");
        let staged = scratch.store().stage(&batch(table, [7])).unwrap(); // young again
        assert_eq!(
            (scratch.pull(&staged).unwrap(), staged.statuses()),
            (trained.clone(), &[tier][..])
        );
        drop(staged);
        pass(&scratch, 60);
        scratch.close_and_reopen(); // what was young at the close is as old at the open
        let (rows, statuses) = scratch.lookup(&batch(table, [7])).unwrap();
        assert_eq!((rows, statuses), (trained.clone(), vec![RowStatus::Ssd]));
        seconds.fetch_sub(1000, Ordering::Relaxed); // a clock that is put back makes no row old
        assert_eq!(scratch.lookup(&batch(table, [7])).unwrap().0, trained);
        seconds.fetch_add(1001, Ordering::Relaxed);
        let (rows, statuses) = scratch.lookup(&batch(table, [7])).unwrap();
        assert_eq!((rows, statuses), (initial(&spec, 7), vec![RowStatus::Initialised]));
        let staged = scratch.store().stage(&batch(table, [7])).unwrap();
        assert_eq!(staged.statuses(), [RowStatus::Initialised], "{tier:?}");
        assert_eq!(scratch.pull(&staged).unwrap(), initial(&spec, 7));
        drop(staged);
        let status = scratch.store().status();
        assert_eq!((status.tables[0].counters.expired, status.tables[0].rows), (1, 1));
        // in RAM, where the stage brought it
        seconds.fetch_add(61, Ordering::Relaxed);
        let staged = scratch.store().stage(&batch(table, [7])).unwrap();
        assert_eq!(staged.statuses(), [RowStatus::Initialised], "{tier:?}");
        assert_eq!(scratch.store().status().tables[0].counters.expired, 2);
        drop(staged);
        scratch.store().close().unwrap();
    }
}

#[test]
fn rows_that_expired_by_seconds_leave_ssd() {
    let (mut scratch, seconds) = wound(HUGE);
    let expiry = Expiry::Seconds(3600);
    let brief = scratch.create_table(&TableSpec { expiry, ..spec("t", 16, ADAGRAD) }).unwrap();
    let others = scratch.create_table(&spec("others", 4, Optimizer::Sgd)).unwrap();
    step(scratch.store(), &batch(brief, 0..1000), 1.0);
    seconds.fetch_add(3600, Ordering::Relaxed);
    step(scratch.store(), &batch(brief, 1000..2000), 1.0);
    scratch.close_and_reopen();
    for _ in 0..20 {
        step(scratch.store(), &batch(others, 0..8192), 0.1);
    }
    assert_eq!(scratch.store().status().totals().dropped, 0, "an hour is not too long");
    seconds.fetch_add(3600, Ordering::Relaxed);
    let held = batch(brief, 1000..1010);
    look_until_dropped(&scratch, others, &held, 1000);
    assert_eq!(scratch.store().status().tables[0].rows, 1000);
    assert_eq!(scratch.lookup(&batch(brief, [1, 1500])).unwrap().1[1], RowStatus::Ssd);
}

#[test]
fn statuses_say_which_tier_had_each_row() {
    let mut scratch = Scratch::new(HUGE);
    let table = scratch.create_table(&spec("t", 3, ADAGRAD)).unwrap();
    let strict = scratch.create_table(&after_sights("strict", 2)).unwrap();
    step(scratch.store(), &batch(table, [1, 2]), 1.0);
    scratch.close_and_reopen();
    step(scratch.store(), &batch(table, [2]), 1.0);
    let mut keys = batch(table, [1, 2, 3]);
    keys.push_run(strict, &[Key(8)]).unwrap();
    let staged = scratch.store().stage(&keys).unwrap();
    use RowStatus::{Host, Initialised, NotAdmitted, Ssd};
    assert_eq!(staged.statuses(), [Ssd, Host, Initialised, NotAdmitted]);
    let totals = scratch.store().status().totals();
    assert_eq!((totals.host.hits, totals.ssd.hits, totals.not_admitted), (1, 2, 1));
}

#[test]
fn a_tables_share_of_ram_has_a_floor_and_a_ceiling() {
    let mut scratch = Scratch::new(TINY);
    let row_bytes = crate::host_bytes_per_row(spec("t", 600, Optimizer::Sgd).layout());
    let share = |table: &str, min: u64, max: u64| crate::TableShare {
        table: table.to_owned(),
        host_bytes_min: min * row_bytes,
        host_bytes_max: max * row_bytes,
    };
    scratch.config.shares = vec![share("kept", 20, 1000), share("bounded", 0, 30)];
    scratch.close_and_reopen();
    let create = |name| scratch.create_table(&spec(name, 600, Optimizer::Sgd)).unwrap();
    let [kept, bounded, free] = ["kept", "bounded", "free"].map(create);
    step(scratch.store(), &batch(kept, 0..20), 1.0);
    for start in (0..600).step_by(30) {
        step(scratch.store(), &batch(bounded, start..start + 30), 1.0);
        assert!(scratch.store().status().tables[1].host.rows <= 30);
        step(scratch.store(), &batch(free, start..start + 30), 1.0);
        assert_eq!(scratch.store().status().tables[0].host.rows, 20);
    }
    let keys: KeyBatch = batch(TableId(kept.0), 0..20);
    assert_eq!(scratch.lookup(&keys).unwrap().1, [RowStatus::Host; 20]);
    // a batch beyond the ceiling can't be staged while its own rows are all that there is
    let error = scratch.store().stage(&batch(bounded, 0..40)).err().unwrap();
    assert!(matches!(error, crate::Error::ShareTooSmall { .. }), "{error}");
}

#[test]
fn what_a_table_has_at_least_is_not_for_rows_of_another_length_either() {
    let mut scratch = Scratch::new(TINY);
    let row_bytes = crate::host_bytes_per_row(spec("kept", 600, Optimizer::Sgd).layout());
    scratch.config.shares = vec![crate::TableShare {
        table: "kept".to_owned(),
        host_bytes_min: 20 * row_bytes,
        host_bytes_max: u64::MAX,
    }];
    scratch.close_and_reopen();
    let kept = scratch.create_table(&spec("kept", 600, Optimizer::Sgd)).unwrap();
    let other = scratch.create_table(&spec("other", 8, Optimizer::Sgd)).unwrap();
    step(scratch.store(), &batch(kept, 0..60), 1.0);
    // of rows that come again and again, more than there is room for
    for start in (0..200_000).step_by(500) {
        step(scratch.store(), &batch(other, start % 6000..start % 6000 + 500), 1.0);
    }
    let [kept_rows, other_rows] = [0, 1].map(|i| scratch.store().status().tables[i].host.rows);
    assert_eq!(kept_rows, 20, "beside {other_rows} of the other");
}
