//! What a session promises, in this process and over a connection alike.

use std::sync::Arc;
use std::time::Duration;

use table::{Admission, Expiry, Key, KeyBatch, Limits, Optimizer, RowStatus, Step, TableId};
use wire::{Code, Session};

use crate::{batch, bits, connect, embedded, eventually, look, spec, start, tcp, toml, train};

/// Runs `check` on an embedded session and on one over TCP, each on a store of its own.
fn on_both(limits: Limits, check: impl Fn(&dyn Session)) {
    let dir = tempfile::tempdir().unwrap();
    let here = embedded(&dir.path().join("here"), limits);
    check(&*here.session());
    here.close().unwrap();

    let mut config = toml(dir.path());
    config.limits.staged_steps = limits.staged_steps_max;
    config.limits.batch_keys = limits.batch_keys_max;
    let server = start(config);
    let there = connect(&tcp(&server));
    check(&there);
    drop(there);
    server.stop().unwrap();
}

#[test]
fn a_step_is_staged_pulled_and_pushed() {
    on_both(Limits::DEFAULT, |session| {
        let table = session.create_table(&spec("a", 2, Optimizer::Sgd)).unwrap();
        let keys = batch(&[(table.0, &[1, 9, u64::MAX])]);
        let (before, statuses) = look(session, &keys, 6);
        assert_eq!(statuses, [RowStatus::Initialised; 3]);
        session.stage(Step(5), &keys).unwrap();
        let mut rows = vec![0.0; 6];
        session.pull(Step(5), &mut rows).unwrap();
        assert_eq!(bits(&rows), bits(&before));
        session.push(Step(5), &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0], 0.5).unwrap();
        session.settle().unwrap();
        let (after, statuses) = look(session, &keys, 6);
        assert_eq!(statuses, [RowStatus::Host; 3]);
        for (i, (x, y)) in before.iter().zip(&after).enumerate() {
            assert_eq!(*y, x - 0.5 * (i as f32 + 1.0));
        }
        assert_eq!(session.pull(Step(5), &mut rows).unwrap_err().code(), Code::NotFound);
        assert_eq!(session.status().unwrap().pinned_rows, 0);
    });
}

#[test]
fn a_pull_tells_of_each_row_where_it_came_from() {
    on_both(Limits::DEFAULT, |session| {
        let table = session.create_table(&spec("a", 2, Optimizer::Sgd)).unwrap();
        let pull = |step, keys: &[u64]| {
            session.stage(Step(step), &batch(&[(table.0, keys)])).unwrap();
            let (mut plain, mut rows) = (vec![0.0; 2 * keys.len()], vec![0.0; 2 * keys.len()]);
            let mut statuses = vec![RowStatus::Failed; keys.len()];
            session.pull_with_statuses(Step(step), &mut rows, &mut statuses).unwrap();
            session.pull(Step(step), &mut plain).unwrap();
            assert_eq!(bits(&plain), bits(&rows));
            for wrong in [0, keys.len() - 1, keys.len() + 1] {
                let mut statuses = vec![RowStatus::Failed; wrong];
                let told = session.pull_with_statuses(Step(step), &mut rows, &mut statuses);
                assert_eq!(told.unwrap_err().code(), Code::InvalidArgument);
            }
            session.push(Step(step), &rows, 0.5).unwrap();
            statuses
        };
        assert_eq!(pull(0, &[1, 9]), [RowStatus::Initialised; 2]);
        let expected = [RowStatus::Host, RowStatus::Initialised, RowStatus::Host];
        assert_eq!(pull(1, &[1, 5, 9]), expected);
        session.settle().unwrap();
    });
}

#[test]
fn a_key_that_is_not_admitted_answers_its_initial_row_and_drops_what_is_pushed() {
    on_both(Limits::DEFAULT, |session| {
        let admission = Admission::AfterSights(3);
        let a = table::TableSpec { admission, ..spec("a", 2, Optimizer::Sgd) };
        let table = session.create_table(&a).unwrap();
        let keys = batch(&[(table.0, &[7, 8])]);
        let initial = look(session, &keys, 4).0;
        let pull = |step| {
            session.stage(Step(step), &keys).unwrap();
            let (mut rows, mut statuses) = (vec![0.0; 4], vec![RowStatus::Failed; 2]);
            session.pull_with_statuses(Step(step), &mut rows, &mut statuses).unwrap();
            session.push(Step(step), &[1.0; 4], 0.5).unwrap();
            session.settle().unwrap();
            (bits(&rows), statuses)
        };
        for step in 0..2 {
            assert_eq!(pull(step), (bits(&initial), vec![RowStatus::NotAdmitted; 2]), "{step}");
        }
        assert_eq!(pull(2), (bits(&initial), vec![RowStatus::Initialised; 2]));
        let pushed: Vec<f32> = initial.iter().map(|x| x - 0.5).collect();
        assert_eq!(pull(3), (bits(&pushed), vec![RowStatus::Host; 2]));
        let status = session.status().unwrap();
        assert_eq!((status.totals().not_admitted, status.tables[0].rows), (4, 2));
        assert_eq!(status.pinned_rows, 0);
    });
}

#[test]
fn next_uses_leave_no_trace() {
    on_both(Limits::DEFAULT, |session| {
        let (a, b) = (spec("a", 3, Optimizer::Sgd), spec("b", 3, Optimizer::Sgd));
        let mut seen = vec![];
        for (number, spec) in [a, b].into_iter().enumerate() {
            // the same rows whatever the table's name: by assignment
            let table = session.create_table(&spec).unwrap();
            let keys: Vec<u64> = (0..50).collect();
            let rows: Vec<f32> = (0..150).map(|i| i as f32).collect();
            session.assign(&batch(&[(table.0, &keys)]), &rows).unwrap();
            let mut bits_of = vec![];
            for step in 0..20 {
                let keys: Vec<u64> = (0..50).filter(|key| key % 7 != step % 7).collect();
                let mut batch = batch(&[(table.0, &keys)]);
                if number == 1 {
                    let next = |key: &u64| if key.is_multiple_of(3) { KeyBatch::NEVER } else { 1 };
                    batch.set_next_uses(keys.iter().map(next).collect()).unwrap();
                }
                let step = Step(step + 100 * number as u64);
                session.stage(step, &batch).unwrap();
                let mut rows = vec![0.0; 3 * keys.len()];
                session.pull(step, &mut rows).unwrap();
                session.push(step, &rows, 0.25).unwrap();
                bits_of.extend(bits(&rows));
            }
            seen.push(bits_of);
        }
        session.settle().unwrap();
        assert!(seen[0] == seen[1]);
    });
}

#[test]
fn steps_ascend_and_a_step_not_staged_is_not_found() {
    on_both(Limits::DEFAULT, |session| {
        session.create_table(&spec("a", 1, Optimizer::Sgd)).unwrap();
        let keys = batch(&[(0, &[1])]);
        session.stage(Step(3), &keys).unwrap();
        for step in [3, 2, 0] {
            let error = session.stage(Step(step), &keys).unwrap_err();
            assert_eq!(error.code(), Code::InvalidArgument);
            assert!(error.message().contains("steps ascend"), "{error}");
        }
        for told in [
            session.pull(Step(4), &mut [0.0]).map(|_| ()),
            session.push(Step(4), &[0.0], 1.0),
            session.release(Step(4)),
        ] {
            let error = told.unwrap_err();
            assert_eq!((error.code(), error.message()), (Code::NotFound, "step 4 is not staged"));
        }
        session.pull(Step(3), &mut [0.0]).unwrap();
    });
}

#[test]
fn a_step_too_many_is_told_to_slow_down_and_may_come_again() {
    let limits = Limits { staged_steps_max: 2, ..Limits::DEFAULT };
    on_both(limits, |session| {
        session.create_table(&spec("a", 1, Optimizer::Sgd)).unwrap();
        let keys = batch(&[(0, &[1, 2])]);
        session.stage(Step(0), &keys).unwrap();
        session.stage(Step(1), &keys).unwrap();
        assert_eq!(session.stage(Step(2), &keys).unwrap_err().code(), Code::SlowDown);
        session.push(Step(0), &[0.0; 2], 1.0).unwrap();
        session.stage(Step(2), &keys).unwrap();
        session.pull(Step(2), &mut [0.0; 2]).unwrap();
    });
}

#[test]
fn a_batch_over_the_limit_is_too_large_whatever_asks_for_it() {
    let limits = Limits { batch_keys_max: 3, ..Limits::DEFAULT };
    on_both(limits, |session| {
        session.create_table(&spec("a", 1, Optimizer::Sgd)).unwrap();
        let keys = batch(&[(0, &[1, 2, 3, 4])]);
        for told in [
            session.stage(Step(0), &keys),
            session.lookup(&keys, &mut [0.0; 4], &mut [RowStatus::Failed; 4]),
            session.assign(&keys, &[0.0; 4]),
        ] {
            let error = told.unwrap_err();
            assert_eq!(error.code(), Code::TooLarge);
            assert!(error.message().contains("4 keys, the limit is 3"), "{error}");
        }
    });
}

#[test]
fn a_refused_push_changes_no_row_and_leaves_its_step_staged() {
    on_both(Limits::DEFAULT, |session| {
        session.create_table(&spec("a", 2, Optimizer::Sgd)).unwrap();
        let keys = batch(&[(0, &[1, 2])]);
        session.stage(Step(0), &keys).unwrap();
        let mut before = vec![0.0; 4];
        session.pull(Step(0), &mut before).unwrap();
        for (gradients, rate, code) in [
            (&[0.0, 0.0, 0.0, f32::NAN][..], 1.0, Code::NotFinite),
            (&[f32::INFINITY, 0.0, 0.0, 0.0], 1.0, Code::NotFinite),
            (&[1.0; 4], f32::NAN, Code::NotFinite),
            (&[1.0; 3], 1.0, Code::InvalidArgument),
            (&[1.0; 5], 1.0, Code::InvalidArgument),
        ] {
            let told = session.push(Step(0), gradients, rate).and_then(|()| session.settle());
            assert_eq!(told.unwrap_err().code(), code);
        }
        let mut rows = vec![0.0; 4];
        session.pull(Step(0), &mut rows).unwrap();
        assert_eq!(bits(&rows), bits(&before));
        session.push(Step(0), &[1.0; 4], 1.0).unwrap();
        session.settle().unwrap();
        assert_eq!(look(session, &keys, 4).0[0], before[0] - 1.0);
    });
}

#[test]
fn a_pull_into_a_buffer_of_another_shape_is_refused() {
    on_both(Limits::DEFAULT, |session| {
        session.create_table(&spec("a", 3, Optimizer::Sgd)).unwrap();
        session.stage(Step(0), &batch(&[(0, &[1, 2])])).unwrap();
        for floats in [0, 5, 7] {
            let error = session.pull(Step(0), &mut vec![0.0; floats]).unwrap_err();
            assert_eq!(error.code(), Code::InvalidArgument);
            assert!(error.message().contains('6'), "{error}");
        }
        session.pull(Step(0), &mut [0.0; 6]).unwrap();
    });
}

#[test]
fn a_stage_of_an_unknown_table_is_told_by_each_pull_until_released() {
    on_both(Limits::DEFAULT, |session| {
        session.stage(Step(0), &batch(&[(7, &[1])])).unwrap();
        for _ in 0..2 {
            let error = session.pull(Step(0), &mut [0.0]).unwrap_err();
            assert_eq!(error.code(), Code::NotFound);
            assert!(error.message().contains("table 7"), "{error}");
        }
        session.release(Step(0)).unwrap();
        session.settle().unwrap();
        let error = session.pull(Step(0), &mut [0.0]).unwrap_err();
        assert_eq!(error.message(), "step 0 is not staged");
        let keys = batch(&[(7, &[1])]);
        let error = session.lookup(&keys, &mut [0.0], &mut [RowStatus::Failed]).unwrap_err();
        assert_eq!(error.code(), Code::NotFound);
    });
}

#[test]
fn tables_are_made_once_and_a_difference_is_named() {
    on_both(Limits::DEFAULT, |session| {
        let a = spec("a", 4, Optimizer::Sgd);
        assert_eq!(session.create_table(&a), Ok(TableId(0)));
        assert_eq!(session.create_table(&a), Ok(TableId(0)));
        let error = session.create_table(&spec("a", 5, Optimizer::Sgd)).unwrap_err();
        assert_eq!(error.code(), Code::AlreadyExists);
        assert!(error.message().contains("dim"), "{error}");
        let error = session.create_table(&spec("a b", 5, Optimizer::Sgd)).unwrap_err();
        assert_eq!(error.code(), Code::InvalidArgument);
        let b = table::TableSpec {
            admission: Admission::AfterSights(2),
            expiry: Expiry::Seconds(60),
            ..spec("b", 4, Optimizer::Sgd)
        };
        assert_eq!(session.create_table(&b), Ok(TableId(1)));
        for (field, other) in [
            ("admission", table::TableSpec { admission: Admission::FirstSight, ..b.clone() }),
            ("expiry", table::TableSpec { expiry: Expiry::Steps(60), ..b.clone() }),
        ] {
            let error = session.create_table(&other).unwrap_err();
            assert_eq!(error.code(), Code::AlreadyExists);
            assert!(error.message().contains(field), "{error}");
        }
        for (field, bad) in [
            ("admission", table::TableSpec { admission: Admission::AfterSights(16), ..b.clone() }),
            ("expiry", table::TableSpec { expiry: Expiry::Steps(0), ..b.clone() }),
        ] {
            let bad = table::TableSpec { name: "c".to_owned(), ..bad };
            let error = session.create_table(&bad).unwrap_err();
            assert_eq!(error.code(), Code::InvalidArgument);
            assert!(error.message().contains(field), "{error}");
        }
        assert_eq!(session.tables(), Ok(vec![(TableId(0), a), (TableId(1), b)]));
    });
}

#[test]
fn assigned_rows_are_read_back() {
    on_both(Limits::DEFAULT, |session| {
        session.create_table(&spec("a", 2, Optimizer::Sgd)).unwrap();
        let keys = batch(&[(0, &[3, 4])]);
        session.assign(&keys, &[1.0, 2.0, 3.0, 4.0]).unwrap();
        assert_eq!(look(session, &keys, 4).0, [1.0, 2.0, 3.0, 4.0]);
        let error = session.assign(&keys, &[1.0, 2.0, 3.0, f32::NAN]).unwrap_err();
        assert_eq!(error.code(), Code::NotFinite);
        assert_eq!(session.assign(&keys, &[1.0]).unwrap_err().code(), Code::InvalidArgument);
        assert_eq!(look(session, &keys, 4).0, [1.0, 2.0, 3.0, 4.0]);
    });
}

#[test]
fn staging_runs_ahead_from_another_thread() {
    on_both(Limits { staged_steps_max: 64, ..Limits::DEFAULT }, |session| {
        let table = session.create_table(&spec("a", 8, Optimizer::Sgd)).unwrap();
        let (staged, ready) = crossbeam::channel::bounded(16);
        std::thread::scope(|scope| {
            scope.spawn(move || {
                for step in 0..200_u64 {
                    let keys: Vec<Key> = (0..64).map(|i| Key(step * 7 + i)).collect();
                    let mut batch = KeyBatch::new();
                    batch.push_run(table, &keys).unwrap();
                    session.stage(Step(step), &batch).unwrap();
                    staged.send(Step(step)).unwrap();
                }
            });
            for step in ready {
                let mut rows = vec![0.0; 512];
                session.pull(step, &mut rows).unwrap();
                session.push(step, &rows, 0.1).unwrap();
            }
        });
        session.settle().unwrap();
        assert_eq!(session.status().unwrap().pinned_rows, 0);
    });
}

#[test]
fn ending_a_session_releases_what_it_staged() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(toml(dir.path()));
    let other = connect(&tcp(&server));
    other.create_table(&spec("a", 4, Optimizer::Sgd)).unwrap();
    for _ in 0..3 {
        let session = connect(&tcp(&server));
        for step in 0..20 {
            session.stage(Step(step), &batch(&[(0, &[step, step + 1, step + 2])])).unwrap();
        }
        session.pull(Step(19), &mut [0.0; 12]).unwrap();
        assert_eq!(other.status().unwrap().pinned_rows, 20 * 3);
        drop(session);
        eventually("the rows are unpinned", || other.status().unwrap().pinned_rows == 0);
    }
    eventually("one session is left", || server.engine().sessions_open() == 1);

    let here = server.engine().open_session().unwrap();
    for step in 0..20 {
        here.stage(Step(step), &batch(&[(0, &[step])])).unwrap();
    }
    drop(here); // some stages are still to come
    assert_eq!(other.status().unwrap().pinned_rows, 0);
    drop(other);
    server.stop().unwrap();
}

#[test]
fn ram_full_of_pinned_rows_is_told_by_the_pull_and_frees_by_release() {
    let dir = tempfile::tempdir().unwrap();
    let config = server::EmbeddedConfig {
        stage_wait: Duration::from_millis(20),
        ..server::EmbeddedConfig::new(dir.path(), 8 << 20)
    };
    let here = server::open_embedded(config).unwrap();
    let session = here.session();
    let table = session.create_table(&spec("a", 256, Optimizer::Sgd)).unwrap();
    let keys = |from: u64| {
        let keys: Vec<Key> = (from..from + 5000).map(Key).collect(); // 5 MB of rows
        let mut batch = KeyBatch::new();
        batch.push_run(table, &keys).unwrap();
        batch
    };
    let mut rows = vec![0.0; 5000 * 256];
    session.stage(Step(0), &keys(0)).unwrap();
    session.pull(Step(0), &mut rows).unwrap();
    session.stage(Step(1), &keys(10_000)).unwrap();
    assert_eq!(session.pull(Step(1), &mut rows).unwrap_err().code(), Code::SlowDown);
    session.release(Step(1)).unwrap();
    session.release(Step(0)).unwrap();
    session.stage(Step(2), &keys(10_000)).unwrap();
    session.pull(Step(2), &mut rows).unwrap();
    session.release(Step(2)).unwrap();
    here.close().unwrap();
}

#[test]
fn a_closed_store_refuses_and_its_rows_are_found_again() {
    let dir = tempfile::tempdir().unwrap();
    let here = embedded(dir.path(), Limits::DEFAULT);
    let session = here.session();
    let seen = train(&*session, 10, 4);
    session.stage(Step(100), &batch(&[(0, &[1])])).unwrap();
    here.close().unwrap();
    assert_eq!(session.pull(Step(100), &mut [0.0; 4]).unwrap_err().code(), Code::Unavailable);
    let error = session.stage(Step(101), &batch(&[(0, &[1])])).unwrap_err();
    assert_eq!(error.code(), Code::Unavailable);
    drop(session);

    let here = embedded(dir.path(), Limits::DEFAULT);
    let session = here.session();
    assert!(session.status().unwrap().opened_clean);
    let every: Vec<u64> = (0..200).collect();
    let (rows, _) = look(&*session, &batch(&[(0, &every), (1, &every)]), 200 * 11);
    assert_eq!(bits(&rows), seen[seen.len() - rows.len()..]);
    drop(session);
    here.close().unwrap();
}

#[test]
fn sessions_are_counted() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = toml(dir.path());
    config.limits.sessions = 2;
    let server = start(config);
    let a = Arc::new(server.engine().open_session().unwrap());
    let b = connect(&tcp(&server));
    let refused = wire::client::GrpcSession::open(&tcp(&server), crate::TIMEOUT, "c");
    let error = refused.err().unwrap();
    assert_eq!(error.code(), Code::SlowDown);
    assert_eq!(error.message(), "2 sessions are open, the limit");
    assert_eq!(server.engine().open_session().err().unwrap().code(), Code::SlowDown);
    drop(b);
    eventually("the session is closed", || server.engine().sessions_open() == 1);
    let b = connect(&tcp(&server));
    drop((a, b));
    server.stop().unwrap();
}
