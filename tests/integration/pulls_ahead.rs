//! A pull of many rows is on its way while the step before it ends, and sees its push all the same.

use std::collections::BTreeSet;
use std::path::Path;

use testkit::Process;

use crate::binaries::{LIMIT, Server, WORKER, json, losses, succeed, text, wait_for_rows_on_ssd};

/// Four ids of 26 features in 1024 rows name more than 4096 keys: of 64 floats they are a MiB.
const MODEL: [[&str; 2]; 6] = [
    ["--arch-mlp-bot", "13-16-64"],
    ["--arch-mlp-top", "16-1"],
    ["--arch-sparse-feature-size", "64"],
    ["--mini-batch-size", "1024"],
    ["--optimizer", "rwsadagrad"],
    ["--learning-rate", "0.05"],
];
const STEPS: usize = 8;

fn train(at: &Path, name: &str, ps: &str, more: &[&str]) -> Vec<f64> {
    let data = format!("synthetic:scale=0.01,rows={},seed=3,indices=4", STEPS * 1024);
    let report = text(&at.join(format!("{name}.json"))).to_owned();
    let arguments = ["train", "--ps", ps, "--data", &data, "--report", &report, "--report-losses"];
    succeed(WORKER, &[&arguments[..], MODEL.as_flattened(), more].concat());
    losses(&json(report.as_ref()))
}

#[test]
fn pulls_ahead_train_as_pulls_one_by_one() {
    let at = tempfile::tempdir().expect("make folder");
    let own = |name: &str| format!("embedded:{}", text(&at.path().join(name)));
    // before a test no pull is sent ahead
    let test = "synthetic:scale=0.01,rows=64,seed=4,indices=4";
    let tested = ["--eval-data", test, "--test-freq", "1"];
    let expected = train(at.path(), "tested", &own("tested"), &tested);
    assert_eq!(expected.len(), STEPS);
    let trace = at.path().join("trace.json");
    let traced = ["--threads", "2", "--trace", text(&trace)];
    assert_eq!(train(at.path(), "ahead", &own("ahead"), &traced), expected);
    for lookahead in ["1", "3"] {
        let name = format!("lookahead-{lookahead}");
        let found = train(at.path(), &name, &own(&name), &["--lookahead", lookahead]);
        assert_eq!(found, expected, "{name}");
    }
    let server = Server::start(&at.path().join("served"), &[]);
    assert_eq!(train(at.path(), "served", &server.grpc, &[]), expected);
    server.stop();

    // all pulls were large enough to be sent ahead
    let (trace, mut threads) = (json(&trace), BTreeSet::new());
    let events = || trace.as_array().expect("a trace is a list").iter();
    for pull in events().filter(|event| event["ph"] == "B" && event["name"] == "pull") {
        let named = |event: &&serde_json::Value| event["ph"] == "M" && event["tid"] == pull["tid"];
        let thread = events().find(named).expect("a thread has a name");
        threads.insert(thread["args"]["name"].as_str().expect("a name"));
    }
    assert_eq!(threads, BTreeSet::from(["push"]));
}

#[test]
fn a_signal_while_pulls_are_ahead_ends_a_training_in_order() {
    let at = tempfile::tempdir().expect("make folder");
    let path = |name: &str| text(&at.path().join(name)).to_owned();
    let (ps, report, model) = (format!("embedded:{}", path("ps")), path("r.json"), path("model"));
    let endless = "synthetic:scale=0.01,rows=100000000,seed=3,indices=4";
    let arguments = ["train", "--ps", &ps, "--data", endless, "--host-ram", "16MiB"];
    let saved = ["--ssd-memory", "4MiB", "--save-model", &model, "--report", &report];
    let arguments = [&arguments[..], MODEL.as_flattened(), &saved].concat();
    let log = at.path().join("worker.log");
    let mut worker = Process::start(WORKER, arguments, log).expect("start worker");
    wait_for_rows_on_ssd(&mut worker, &at.path().join("ps"));
    worker.terminate().expect("send SIGTERM");
    let status = worker.wait(LIMIT).expect("the worker ends");
    assert_eq!(status.code(), Some(130), "{}", worker.log_text());
    let report = json(report.as_ref());
    assert_eq!(report["interrupted"], true);
    assert!(report["steps"].as_u64().is_some_and(|steps| steps > 0), "{report}");
    // what was staged and never pushed was let go of: the next run finds all in order (on other
    // data, for on the same it would go on behind the signal)
    let again = path("again.json");
    let more = ["--load-model", &model, "--num-batches", "2", "--report", &again];
    let data = ["train", "--ps", &ps, "--data", "synthetic:scale=0.01,rows=4096,seed=5,indices=4"];
    succeed(WORKER, &[&data[..], MODEL.as_flattened(), &more].concat());
    assert_eq!(json(again.as_ref())["steps"], 2);
}
