//! A server that is killed (SIGKILL) while a worker trains: with `--durability log` every row that
//! had left RAM is there again, as it left or newer, and none is half of one version and half of
//! another.

use std::time::{Duration, Instant};

use table::{Initializer, Key, KeyBatch, Optimizer, RowStatus, Step, StoreStatus, TableId};
use wire::client::GrpcSession;
use wire::{Code, Session};

use crate::binaries::{LIMIT, Server};

const DIM: usize = 16;
const KEYS: u64 = 40_000;
/// Keys of a step: a thousandth of a second of writing to SSD, a tenth of the RAM.
const STEP_KEYS: u64 = 250;
/// Rows that are to leave RAM before the server is killed.
const ROWS_DOWN: u64 = 30_000;
/// Rows for a fifth of a table, and memtables that hold all of it: only the log can save a row.
const FLAGS: [&str; 6] = ["--durability", "log", "--host-ram", "512KiB", "--ssd-memory", "256MiB"];

fn connect(server: &Server) -> GrpcSession {
    let endpoint = server.grpc.parse().expect("an endpoint");
    GrpcSession::open(&endpoint, Duration::from_secs(10), "test").expect("connect")
}

fn batch(table: TableId, keys: impl Iterator<Item = u64>) -> KeyBatch {
    let mut batch = KeyBatch::new();
    batch.push_run(table, &keys.map(Key).collect::<Vec<_>>()).expect("ascending keys");
    batch
}

/// Every row's version, which all its floats tell, and where it is.
fn versions(session: &dyn Session, table: TableId) -> Vec<(u64, RowStatus)> {
    let mut rows = vec![f32::NAN; KEYS as usize * DIM];
    let mut statuses = vec![RowStatus::Failed; KEYS as usize];
    session.lookup(&batch(table, 0..KEYS), &mut rows, &mut statuses).expect("look up");
    let version = |(row, status): (&[f32], RowStatus)| {
        let version = row[0] as u64;
        assert!(row.iter().all(|x| *x == version as f32), "a row of two versions: {row:?}");
        (version, status)
    };
    rows.chunks_exact(DIM).zip(statuses).map(version).collect()
}

/// Pushes to one stretch of keys after the other, from `first` on, while `go_on` says so; each push
/// makes a row one version newer. Counts the pushes of each key, which the server may have applied.
fn train(
    session: &dyn Session,
    table: TableId,
    first: Step,
    pushes: &mut [u64],
    mut go_on: impl FnMut() -> bool,
) -> Result<Step, wire::Error> {
    let mut step = first;
    while go_on() {
        let start = step.0 * 7 % (KEYS / STEP_KEYS) * STEP_KEYS;
        session.stage(step, &batch(table, start..start + STEP_KEYS))?;
        session.pull(step, &mut vec![0.0; STEP_KEYS as usize * DIM])?;
        for pushes in &mut pushes[start as usize..(start + STEP_KEYS) as usize] {
            *pushes += 1;
        }
        session.push(step, &vec![-1.0; STEP_KEYS as usize * DIM], 1.0)?;
        step = Step(step.0 + 1);
    }
    session.settle()?;
    Ok(step)
}

fn wait_for(what: &str, session: &dyn Session, holds: impl Fn(&StoreStatus) -> bool) {
    let deadline = Instant::now() + LIMIT;
    loop {
        let status = session.status().expect("status");
        if holds(&status) {
            return;
        }
        assert!(Instant::now() < deadline, "{what}: {status:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_server_that_is_killed_in_mid_training_keeps_every_row_that_went_through_its_log() {
    let at = tempfile::tempdir().expect("make folder");
    let zeros = table::TableSpec::new("t", DIM as u32, Optimizer::Sgd, Initializer::Zeros, 1);
    let mut kept: Vec<u64> = vec![0; KEYS as usize]; // versions that must be there
    let mut pushed: Vec<u64> = vec![0; KEYS as usize]; // versions that may be
    for round in 0..3 {
        let server = Server::start(at.path(), &FLAGS);
        let session = connect(&server);
        let table = session.create_table(&zeros).expect("create table");
        let status = session.status().expect("status");
        assert_eq!(status.opened_clean, round == 0, "the rounds before ended by a kill");
        let found = versions(&session, table);
        for (key, (version, _)) in found.iter().enumerate() {
            let (least, most) = (kept[key], pushed[key]);
            let text = "was safe, and no more than so many were pushed";
            assert!(
                (least..=most).contains(version),
                "key {key}: {version}; {least} {text}: {most}"
            );
            pushed[key] = *version; // what was newer in RAM is gone
        }
        let lost = found.iter().filter(|row| row.1 == RowStatus::Initialised).count();
        assert!(round == 0 || lost < KEYS as usize / 4, "{lost} rows were never safe");

        // until a row has left RAM for most keys; and then what left is written
        let mut steps = 0..2 * KEYS / STEP_KEYS;
        let more = || steps.next().is_some();
        let next = train(&session, table, Step(0), &mut pushed, more).expect("train");
        wait_for("all is written", &session, |status| status.going_down_rows == 0);
        for (key, (version, status)) in versions(&session, table).into_iter().enumerate() {
            assert_eq!(version, pushed[key], "a pull sees every push");
            if status == RowStatus::Ssd {
                kept[key] = version;
            }
        }
        let safe = kept.iter().filter(|version| **version > 0).count();
        assert!(safe > KEYS as usize * 3 / 4, "{safe} rows are safe");

        // the server is killed while rows go down and pushes are under way
        let before = session.status().expect("status").totals().writebacks;
        let ended = std::thread::scope(|scope| {
            let worker = scope.spawn(|| train(&session, table, next, &mut pushed, || true));
            let watcher = connect(&server);
            wait_for("rows go down", &watcher, |status| {
                status.totals().writebacks > before + ROWS_DOWN
            });
            server.kill();
            worker.join().expect("no panic")
        });
        let error = ended.expect_err("the server is gone");
        assert_eq!(error.code(), Code::Unavailable, "{error}");
    }
}
