//! A process that is told to stop in mid-training loses nothing: SIGTERM to the server, SIGTERM to
//! a worker with its store inside.

use serde_json::Value;
use testkit::Process;

use crate::binaries::{
    LIMIT, PATIENCE, PSCTL, Server, WORKER, json, run, succeed, text, wait_for_rows_on_ssd,
};

const MODEL: [&str; 12] = [
    "--arch-mlp-bot",
    "13-32-16",
    "--arch-mlp-top",
    "32-1",
    "--mini-batch-size",
    "256",
    "--optimizer",
    "rwsadagrad",
    "--learning-rate",
    "0.02",
    "--seed",
    "5",
];

fn tables(server: &str) -> Value {
    let text = succeed(PSCTL, &["--server", server, "tables", "--json"]);
    serde_json::from_str(&text).expect("JSON")
}

fn rows(tables: &Value) -> Vec<(String, u64)> {
    let list = tables.as_array().or_else(|| tables["tables"].as_array()).expect("a list of tables");
    list.iter()
        .map(|table| {
            let name = table["spec"]["name"].as_str().expect("name").to_owned();
            (name, table["rows"].as_u64().expect("rows"))
        })
        .collect()
}

fn total(rows: &[(String, u64)]) -> u64 {
    rows.iter().map(|(_, rows)| rows).sum()
}

#[test]
fn sigterm_to_the_server_in_mid_training_loses_no_row() {
    let at = tempfile::tempdir().expect("make folder");
    let flags = ["--host-ram", "2MiB", "--ssd-memory", "16MiB"];
    let server = Server::start(at.path(), &flags);
    let endless = "synthetic:scale=0.05,rows=100000000,seed=7";
    let arguments = [&["train", "--ps", &server.grpc, "--data", endless], &MODEL[..]].concat();
    let mut worker =
        Process::start(WORKER, arguments, at.path().join("worker.log")).expect("start worker");
    let seen = worker.wait_for("100,000 rows", PATIENCE, |_| {
        let seen = rows(&tables(&server.grpc));
        (total(&seen) > 100_000).then_some(seen)
    });
    let seen = seen.expect("rows are made and go down");
    let pid = server.id();
    server.stop();
    let status = worker.wait(LIMIT).expect("the worker ends");
    let message = worker.log_text();
    assert_eq!(
        status.code(),
        Some(1),
        "the worker says that its server {pid} went away: {message}"
    );
    assert!(!message.contains("panicked"), "{message}");

    let server = Server::start(at.path(), &flags);
    let found = rows(&tables(&server.grpc));
    for ((name, before), (same, after)) in seen.iter().zip(&found) {
        assert_eq!(name, same);
        assert!(after >= before, "table {name}: {before} rows before, {after} after");
    }
    let status = succeed(PSCTL, &["--server", &server.grpc, "status", "--json"]);
    let status: Value = serde_json::from_str(&status).expect("JSON");
    assert_eq!(status["opened_clean"], true);
    server.stop();

    // nothing changed meanwhile: the next start counts the same rows, each of them on SSD
    let server = Server::start(at.path(), &flags);
    let again = tables(&server.grpc);
    assert_eq!(rows(&again), found);
    let list = again.as_array().or_else(|| again["tables"].as_array()).expect("tables");
    for table in list {
        assert_eq!(table["rows"], table["ssd"]["rows"], "{table}");
    }
    server.stop();
}

#[test]
fn sigterm_to_a_worker_saves_what_was_trained() {
    let at = tempfile::tempdir().expect("make folder");
    let path = |name: &str| text(&at.path().join(name)).to_owned();
    let endless = "synthetic:scale=0.01,rows=100000000,seed=7";
    let ps = format!("embedded:{}", path("stopped"));
    let budget = ["--host-ram", "1MiB", "--ssd-memory", "4MiB"];
    let arguments = [&["train", "--ps", &ps, "--data", endless], &budget[..]].concat();
    let (model, report) = (path("stopped-model"), path("stopped.json"));
    let saved = ["--save-model", &model, "--report", &report, "--report-losses"];
    let arguments = [&arguments[..], &MODEL[..], &saved[..]].concat();
    let mut worker =
        Process::start(WORKER, arguments, at.path().join("worker.log")).expect("start worker");
    wait_for_rows_on_ssd(&mut worker, &at.path().join("stopped"));
    worker.terminate().expect("send SIGTERM");
    let status = worker.wait(LIMIT).expect("the worker ends");
    assert_eq!(status.code(), Some(130), "a signal ended it");
    let stopped = json(report.as_ref());
    assert_eq!(stopped["interrupted"], true);
    let steps = stopped["steps"].as_u64().expect("steps");
    assert!(steps > 0);

    // a run of just as many steps that nothing disturbed ends with the same rows and weights
    let whole = format!("embedded:{}", path("whole"));
    let (whole_model, whole_report) = (path("whole-model"), path("whole.json"));
    let steps_text = steps.to_string();
    let mut undisturbed = vec!["train", "--ps", &whole, "--data", endless];
    undisturbed.extend(["--num-batches", &steps_text, "--save-model", &whole_model]);
    undisturbed.extend(["--report", &whole_report, "--report-losses"]);
    undisturbed.extend(MODEL);
    succeed(WORKER, &undisturbed);
    assert_eq!(stopped["losses"], json(whole_report.as_ref())["losses"]);
    let predictions = |ps: &str, model: &str, output: &str| {
        let data = "synthetic:scale=0.01,rows=20000,seed=8";
        let arguments =
            ["predict", "--ps", ps, "--load-model", model, "--data", data, "--output", output];
        let ended = run(WORKER, &arguments);
        assert!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stderr));
        std::fs::read(output).expect("predictions")
    };
    let ours = predictions(&ps, &model, &path("stopped.txt"));
    let theirs = predictions(&whole, &whole_model, &path("whole.txt"));
    assert!(ours == theirs, "predictions of the interrupted and of the undisturbed run");
}

#[test]
fn an_interrupted_training_goes_on_behind_its_last_step() {
    let at = tempfile::tempdir().expect("make folder");
    let path = |name: &str| text(&at.path().join(name)).to_owned();
    let data = "synthetic:scale=0.01,rows=100000000,seed=7";
    let shuffled = ["--shuffle-window", "3000"];
    let (ps, model) = (format!("embedded:{}", path("stopped")), path("model"));
    let train = |ps: &str, data: &str, more: &[&str]| {
        let words = [&["train", "--ps", ps, "--data", data][..], &MODEL, &shuffled, more].concat();
        words.into_iter().map(str::to_owned).collect::<Vec<String>>()
    };
    let saved = ["--save-model", &model, "--host-ram", "1MiB", "--ssd-memory", "4MiB"];
    let arguments = train(&ps, data, &saved);
    let log = at.path().join("worker.log");
    let mut worker = Process::start(WORKER, &arguments, log).expect("start worker");
    wait_for_rows_on_ssd(&mut worker, &at.path().join("stopped"));
    worker.terminate().expect("send SIGTERM");
    assert_eq!(worker.wait(LIMIT).expect("the worker ends").code(), Some(130));
    let card = json(at.path().join("model/model.json").as_ref());
    let steps = card["steps"].as_u64().expect("steps");
    assert_eq!(card["interrupted"]["after"], serde_json::json!({"epoch": 0, "batch": steps}));

    // on to twenty steps more, through a second epoch: as if nothing had been
    let more = (steps + 20).to_string();
    let run_on = |ps: &str, name: &str, flags: &[&str]| {
        let report = path(&format!("{name}.json"));
        let places = ["--save-model", &path(name), "--report", &report, "--report-losses"]
            .map(str::to_owned);
        let places: Vec<&str> = places.iter().map(String::as_str).collect();
        let bounds = ["--num-batches", &more, "--nepochs", "2"];
        let words = train(ps, data, &[&bounds[..], &places, flags].concat());
        succeed(WORKER, &words.iter().map(String::as_str).collect::<Vec<_>>());
        json(report.as_ref())
    };
    let resumed = run_on(&ps, "resumed", &["--load-model", &model]);
    let whole = format!("embedded:{}", path("whole"));
    let straight = run_on(&whole, "straight", &[]);
    let of = |report: &Value| report["losses"].as_array().expect("losses").clone();
    let (resumed, straight) = (of(&resumed), of(&straight));
    assert_eq!(straight.len() as u64, 2 * (steps + 20));
    assert_eq!(resumed, straight[steps as usize..], "the losses of the steps that were left");
    let weights = |name: &str| {
        std::fs::read(at.path().join(name).join("dense.safetensors")).expect("weights")
    };
    assert!(weights("resumed") == weights("straight"));
    let card = json(at.path().join("resumed/model.json").as_ref());
    assert_eq!(card["interrupted"], Value::Null, "it came to its end");

    // other data begins at its first batch
    let other = "synthetic:scale=0.01,rows=1024,seed=9";
    let report = path("other.json");
    let words = train(&ps, other, &["--load-model", &model, "--report", &report]);
    succeed(WORKER, &words.iter().map(String::as_str).collect::<Vec<_>>());
    assert_eq!(json(report.as_ref())["steps"], 4);
}

#[test]
fn the_page_of_a_running_server_tells_health_and_metrics() {
    let at = tempfile::tempdir().expect("make folder");
    let server = Server::start(at.path(), &[]);
    let health = get(&server.http, "/healthz");
    assert!(health.starts_with("HTTP/1.1 200"), "{health}");
    let metrics = get(&server.http, "/metrics");
    for name in ["embedding_ps_", "_seconds_bucket", "_bytes", "_total"] {
        assert!(metrics.contains(name), "no {name} in: {metrics}");
    }
    server.stop();
}

/// A GET by hand, so that no client library stands between the test and the page.
fn get(place: &str, path: &str) -> String {
    use std::io::{Read, Write};
    let address = place.trim_start_matches("http://");
    let mut stream = std::net::TcpStream::connect(address).expect("connect");
    let request = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).expect("send");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("receive");
    answer
}
