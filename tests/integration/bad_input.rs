//! Bad input is refused with a message that says what and where, exit code 2 or a status in the
//! stream, and the store is as it was.

use std::io::Write;
use std::path::Path;

use flate2::Compression;
use flate2::write::GzEncoder;
use table::{Initializer, Key, KeyBatch, Optimizer, RowStatus, Step, TableId, TableSpec};
use testkit::Process;
use wire::client::{CONNECT_TIMEOUT, GrpcSession};
use wire::{Code, Session};

use crate::binaries::{LIMIT, PSCTL, SERVER, Server, WORKER, data, fail, refuse, succeed, text};

const MODEL: [&str; 8] = [
    "--arch-mlp-bot",
    "2-8-4",
    "--arch-mlp-top",
    "8-1",
    "--arch-sparse-feature-size",
    "4",
    "--mini-batch-size",
    "2",
];

/// A small file with a header: label, two dense columns, two categorical ones.
const GOOD: &str = "label\ta\tb\tx\ty\n1\t0.5\t2\tred\tone\n0\t\t3\tblue\ttwo\n1\t1\t1\tred\ttwo\n";

fn file(at: &Path, name: &str, content: &[u8]) -> String {
    let path = at.join(name);
    std::fs::write(&path, content).expect("write file");
    format!("tsv:{}", text(&path))
}

fn train<'a>(ps: &'a str, data: &'a str) -> Vec<&'a str> {
    let head = ["train", "--ps", ps, "--data", data, "--dense-columns", "2"];
    [&head[..], &MODEL].concat()
}

#[test]
fn another_dimension_is_refused_and_the_table_keeps_its_own() {
    let at = tempfile::tempdir().expect("make folder");
    let ps = format!("embedded:{}", text(&at.path().join("ps")));
    let good = file(at.path(), "good.tsv", GOOD.as_bytes());
    succeed(WORKER, &train(&ps, &good));
    let mut other = train(&ps, &good);
    other.extend(["--seed", "1"]);
    let other: Vec<&str> = other
        .iter()
        .map(|argument| match *argument {
            "2-8-4" => "2-8-8",
            "4" => "8",
            other => other,
        })
        .collect();
    refuse(WORKER, &other, &["x", "dim", "4", "8"]);
    succeed(WORKER, &train(&ps, &good));
}

#[test]
fn a_truncated_gz_is_told_from_an_end() {
    let at = tempfile::tempdir().expect("make folder");
    let ps = format!("embedded:{}", text(&at.path().join("ps")));
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    let mut content = GOOD.lines().next().expect("header").as_bytes().to_vec();
    for row in 0..5000 {
        write!(content, "\n1\t{row}\t2\tred{row}\tone").expect("write");
    }
    encoder.write_all(&content).expect("compress");
    let whole = encoder.finish().expect("compress");
    let cut = file(at.path(), "cut.tsv.gz", &whole[..whole.len() / 2]);
    refuse(WORKER, &train(&ps, &cut), &["cut.tsv.gz", "truncated"]);
    let whole = file(at.path(), "whole.tsv.gz", &whole);
    succeed(WORKER, &train(&ps, &whole));
}

#[test]
fn a_malformed_line_names_file_line_and_column() {
    let at = tempfile::tempdir().expect("make folder");
    let ps = format!("embedded:{}", text(&at.path().join("ps")));
    let bad = GOOD.replace("0\t\t3\tblue", "0\t\tthree\tblue");
    let bad = file(at.path(), "bad.tsv", bad.as_bytes());
    refuse(WORKER, &train(&ps, &bad), &["bad.tsv", "3", "\"three\""]);
    let skipping = [train(&ps, &bad), vec!["--bad-rows", "skip:1"]].concat();
    let said = succeed(WORKER, &skipping);
    assert!(said.contains("trained 2 rows"), "{said}");
}

#[test]
fn a_header_that_does_not_fit_the_model_is_refused() {
    let at = tempfile::tempdir().expect("make folder");
    let ps = format!("embedded:{}", text(&at.path().join("ps")));
    let model = at.path().join("model");
    let good = file(at.path(), "good.tsv", GOOD.as_bytes());
    let saving = [train(&ps, &good), vec!["--save-model", text(&model)]].concat();
    succeed(WORKER, &saving);
    let other = file(at.path(), "other.tsv", GOOD.replace("\tb\t", "\tc\t").as_bytes());
    let eval = ["eval", "--ps", &ps, "--load-model", text(&model), "--data"];
    refuse(WORKER, &[&eval[..], &[&other]].concat(), &["other.tsv", "b"]);
    succeed(WORKER, &[&eval[..], &[&good]].concat());
}

#[test]
fn a_saved_models_rows_may_not_expire_while_steps_are_under_way() {
    let at = tempfile::tempdir().expect("make folder");
    let ps = format!("embedded:{}", text(&at.path().join("ps")));
    let model = at.path().join("model");
    let good = file(at.path(), "good.tsv", GOOD.as_bytes());
    let saving = ["--lookahead", "1", "--expire-after", "3steps", "--save-model", text(&model)];
    succeed(WORKER, &[&train(&ps, &good)[..], &saving].concat());
    let loading = ["--lookahead", "4", "--load-model", text(&model)];
    let words = ["table x", "expire after 3steps", "at least 6steps", "--lookahead 4"];
    refuse(WORKER, &[&train(&ps, &good)[..], &loading].concat(), &words);
}

#[test]
fn flags_that_do_not_fit_are_refused() {
    let at = tempfile::tempdir().expect("make folder");
    let ps = format!("embedded:{}", text(&at.path().join("ps")));
    let good = file(at.path(), "good.tsv", GOOD.as_bytes());
    let with = |more: &[&'static str]| [train(&ps, &good), more.to_vec()].concat();
    refuse(WORKER, &with(&["--lookahead", "0"]), &["--lookahead 0"]);
    refuse(WORKER, &with(&["--threads", "0"]), &["--threads 0"]);
    let expiry = ["--lookahead", "4", "--expire-after", "5steps"];
    refuse(WORKER, &with(&expiry), &["--expire-after 5steps", "at least 6steps", "--lookahead 4"]);
    refuse(WORKER, &with(&["--learning-rate=-1"]), &["--learning-rate -1"]);
    refuse(WORKER, &with(&["--embedding-init", "by-rows"]), &["--arch-embedding-size"]);
    refuse(WORKER, &with(&["--dense-transform", "cubed"]), &["cubed", "log1p"]);
    refuse(WORKER, &with(&["--missing-indicator"]), &["--arch-mlp-bot", "4"]);
    refuse(WORKER, &["train", "--ps", "ftp:x", "--data", &good], &["ftp:x", "embedded:"]);
    fail(WORKER, &train("http://127.0.0.1:1", &good), 1, &["127.0.0.1:1"]);
    fail(PSCTL, &["--server", "http://127.0.0.1:1", "status"], 1, &["127.0.0.1:1"]);
    refuse(SERVER, &["--data-dir", text(at.path()), "--host-ram", "1KiB"], &["host_ram"]);
    // more than any GPU has, where there is one
    refuse(SERVER, &["--data-dir", text(at.path()), "--gpu-cache", "4TiB"], &["gpu_cache", "CUDA"]);
    refuse(WORKER, &with(&["--gpu-cache", "4TiB"]), &["--gpu-cache 4TiB", "--device cuda"]);
    let auto = ["--gpu-cache", "4TiB", "--device", "auto"];
    refuse(WORKER, &with(&auto), &["gpu_cache", "CUDA"]);
}

#[test]
fn a_folder_that_is_not_a_store_is_refused_and_left_alone() {
    let at = tempfile::tempdir().expect("make folder");
    std::fs::write(at.path().join("thesis.txt"), "years of work").expect("write");
    refuse(SERVER, &["--data-dir", text(at.path())], &["thesis.txt"]);
    let kept = std::fs::read_to_string(at.path().join("thesis.txt")).expect("read");
    assert_eq!(kept, "years of work");
}

fn connect(server: &Server) -> GrpcSession {
    let endpoint = server.grpc.parse().expect("an endpoint");
    GrpcSession::open(&endpoint, CONNECT_TIMEOUT, "test").expect("connect")
}

fn spec(name: &str) -> TableSpec {
    TableSpec::new(name, 4, Optimizer::Sgd, Initializer::Uniform { bound: 0.5 }, 1)
}

fn keys(table: TableId, keys: impl IntoIterator<Item = u64>) -> KeyBatch {
    let keys: Vec<Key> = keys.into_iter().map(Key).collect();
    let mut batch = KeyBatch::new();
    batch.push_run(table, &keys).expect("ascending keys");
    batch
}

fn rows(session: &dyn Session, keys: &KeyBatch) -> Vec<f32> {
    let mut rows = vec![0.0; keys.len() * 4];
    let mut statuses = vec![RowStatus::Failed; keys.len()];
    session.lookup(keys, &mut rows, &mut statuses).expect("look up");
    rows
}

#[test]
fn a_bad_request_is_answered_in_the_stream_and_the_session_goes_on() {
    let at = tempfile::tempdir().expect("make folder");
    let flags = ["--message-max", "1MiB"];
    let server = Server::start(at.path(), &flags);
    let session = connect(&server);
    let table = session.create_table(&spec("t")).expect("create table");
    let batch = keys(table, [1, 5, u64::MAX]);

    session.stage(Step(0), &batch).expect("stage");
    let mut before = vec![0.0; 12];
    session.pull(Step(0), &mut before).expect("pull");
    let mut gradients = vec![1.0; 12];
    gradients[7] = f32::NAN;
    let refused = session.push(Step(0), &gradients, 0.1).and_then(|()| session.settle());
    let error = refused.expect_err("a gradient is not a number");
    assert_eq!(error.code(), Code::NotFinite, "{error}");
    assert!(error.message().contains('5'), "the message names the key: {error}");
    assert_eq!(rows(&session, &batch), before, "no row changed");
    session.release(Step(0)).expect("release");

    let unknown = session.stage(Step(1), &keys(TableId(77), [1]));
    let unknown = unknown.and_then(|()| session.pull(Step(1), &mut before).map(|_| ()));
    let error = unknown.expect_err("there is no table 77");
    assert_eq!(error.code(), Code::NotFound, "{error}");
    assert!(error.message().contains("77"), "{error}");

    let large = keys(table, 0..1_000_000);
    let error = session.stage(Step(2), &large).expect_err("8 MB of keys");
    assert_eq!(error.code(), Code::TooLarge, "{error}");

    let mut shape = vec![0.0; 11];
    session.stage(Step(3), &batch).expect("stage");
    let error = session.pull(Step(3), &mut shape).expect_err("11 floats for 3 rows of 4");
    assert_eq!(error.code(), Code::InvalidArgument, "{error}");
    let mut after = vec![0.0; 12];
    session.pull(Step(3), &mut after).expect("pull");
    session.push(Step(3), &[1.0; 12], 0.25).expect("push");
    session.settle().expect("settle");
    let moved: Vec<f32> = after.iter().map(|w| w - 0.25).collect();
    assert_eq!(rows(&session, &batch), moved);
    drop(session);
    server.stop();
}

#[test]
fn a_full_disk_is_an_error_and_what_was_stored_stays() {
    let at = tempfile::tempdir().expect("make folder");
    // first a store with rows in it
    let server = Server::start(at.path(), &[]);
    let session = connect(&server);
    let table = session.create_table(&spec("t")).expect("create table");
    let kept = keys(table, 0..1000);
    let values: Vec<f32> = (0..4000_u16).map(f32::from).collect();
    session.assign(&kept, &values).expect("assign");
    drop(session);
    server.stop();

    // then the same store where no file may grow beyond 1 MiB, as on a full disk
    let small = ["sh", "-c", "trap '' XFSZ; ulimit -f 2048; exec \"$0\" \"$@\"", SERVER];
    let flags = ["--host-ram", "1MiB", "--ssd-memory", "4MiB"];
    let server = Server::start_under(&small, at.path(), &flags);
    let session = connect(&server);
    let mut failed = None;
    for step in 0..2000_u64 {
        let batch = keys(table, (0..2000).map(|i| 10_000 + step * 2000 + i));
        let mut buffer = vec![0.0; 8000];
        let stepped = session
            .stage(Step(step), &batch)
            .and_then(|()| session.pull(Step(step), &mut buffer))
            .and_then(|_| session.push(Step(step), &buffer, 0.1))
            .and_then(|()| session.settle());
        if let Err(error) = stepped {
            failed = Some(error);
            break;
        }
    }
    let error = failed.expect("the disk is full at some point");
    assert_eq!(error.code(), Code::Poisoned, "{error}");
    let again = session.lookup(&kept, &mut vec![0.0; 4000], &mut vec![RowStatus::Failed; 1000]);
    assert_eq!(again.expect_err("it refuses work").code(), Code::Poisoned);
    drop(session);
    drop(server);

    // with room again, the store opens and has its rows
    let server = Server::start(at.path(), &[]);
    let session = connect(&server);
    assert_eq!(rows(&session, &kept), values);
    drop(session);
    server.stop();
}

#[test]
fn a_second_server_on_the_same_folder_is_refused() {
    let at = tempfile::tempdir().expect("make folder");
    let server = Server::start(at.path(), &[]);
    let folder = at.path().join("data");
    let arguments = ["--data-dir", text(&folder), "--listen", "127.0.0.1:0", "--http", "off"];
    let mut second =
        Process::start(SERVER, arguments, at.path().join("second.log")).expect("start");
    let status = second.wait(LIMIT).expect("the second server ends");
    assert!(!status.success());
    server.stop();
}

#[test]
fn the_reference_data_is_not_a_model() {
    let path = data("reference/tiny/batches.parquet");
    let at = tempfile::tempdir().expect("make folder");
    let ps = format!("embedded:{}", text(&at.path().join("ps")));
    let good = file(at.path(), "good.tsv", GOOD.as_bytes());
    let arguments = [train(&ps, &good), vec!["--init-from", text(&path)]].concat();
    refuse(WORKER, &arguments, &["batches.parquet", "not a safetensors"]);
}
