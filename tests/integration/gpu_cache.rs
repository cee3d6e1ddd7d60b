//! Training with rows in GPU memory, under a pretended CUDA: the bits of a training without, in the
//! worker's own process, where rows stay on the device, and through a server; and a signal in the
//! middle loses nothing.

use std::path::Path;
use std::process::Command;

use serde_json::Value;
use testkit::{PretendedCuda, Process};

use crate::binaries::{LIMIT, PSCTL, SERVER, Server, WORKER, json, losses, succeed, text};

const DATA: &str = "synthetic:scale=0.02,rows=4000,seed=11";
pub(crate) const MODEL: [&str; 14] = [
    "--arch-mlp-bot",
    "13-32-16",
    "--arch-mlp-top",
    "32-1",
    "--mini-batch-size",
    "128",
    "--optimizer",
    "rwsadagrad",
    "--learning-rate",
    "0.02",
    "--seed",
    "5",
    "--report-losses",
    "--save-model",
];

/// Trains under the pretended CUDA: the report, and what was said.
pub(crate) fn train_on(
    data: &str,
    at: &Path,
    name: &str,
    ps: &str,
    flags: &[&str],
    variables: &[(&str, &str)],
) -> (Value, String) {
    let path = |end: &str| text(&at.join(format!("{name}{end}"))).to_owned();
    let (model, report) = (path("-model"), path(".json"));
    let mut worker = Command::new(WORKER);
    worker.args(["train", "--ps", ps, "--data", data]).args(MODEL).arg(&model);
    worker.args(["--report", &report]).args(flags).envs(variables.iter().copied());
    let output = PretendedCuda::get().tell(&mut worker).output().expect("start the worker");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{name}, {ps}: {}\n{said}", output.status);
    (json(report.as_ref()), said)
}

fn train(at: &Path, name: &str, ps: &str, flags: &[&str]) -> Value {
    train_on(DATA, at, name, ps, flags, &[]).0
}

/// What the rows and the network of a training say about other data: no cache is needed for it.
pub(crate) fn predictions(at: &Path, name: &str, ps: &str) -> Vec<u8> {
    let path = |end: &str| text(&at.join(format!("{name}{end}"))).to_owned();
    let (model, output) = (path("-model"), path(".txt"));
    let data = "synthetic:scale=0.02,rows=3000,seed=12";
    let arguments =
        ["predict", "--ps", ps, "--load-model", &model, "--data", data, "--output", &output];
    succeed(WORKER, &arguments);
    std::fs::read(output).expect("predictions")
}

/// A server that finds the pretended CUDA, with further variables.
pub(crate) fn start(dir: &Path, flags: &[&str], variables: &[&str]) -> Server {
    let cuda = PretendedCuda::get().variables();
    let [libraries, caches] =
        cuda.map(|(name, folder)| format!("{name}={}", text(folder.as_ref())));
    let program = [&["env", &libraries, &caches][..], variables, &[SERVER]].concat();
    Server::start_under(&program, dir, flags)
}

fn status(server: &Server) -> Value {
    let text = succeed(PSCTL, &["--server", &server.grpc, "status", "--json"]);
    serde_json::from_str(&text).expect("JSON")
}

#[test]
fn rows_that_stay_on_the_device_train_as_through_the_host_bit_for_bit() {
    let at = tempfile::tempdir().expect("make folder");
    let embedded = |name: &str| format!("embedded:{}", text(&at.path().join(name)));
    let mut flags = vec!["--device", "cuda", "--host-ram"];
    let plain = embedded("plain");
    let expected = train(at.path(), "plain", &plain, &[&flags[..], &["64MiB"]].concat());
    assert_eq!(expected["tiers"]["gpu"]["hits"], 0);
    assert_eq!(expected["rows_on_device"], false);
    let wanted = predictions(at.path(), "plain", &plain);
    let rows = |report: &Value, tier: &str| -> u64 {
        let tables = report["store"]["tables"].as_array().expect("tables").iter();
        tables.map(|table| table[tier]["rows"].as_u64().expect("rows")).sum()
    };
    // 16 floats and an accumulator, and 17 bytes beside them
    let twentieth = (rows(&expected, "host") * 85 / 20).max(64 << 10).to_string();

    // the smallest cache, next to whose sets what is staged is large; a twentieth of the rows; RAM
    // that does not hold them either; all rows
    for (name, host_ram, gpu_cache) in [
        ("least", "64MiB", "64KiB"),
        ("twentieth", "64MiB", &*twentieth),
        ("small", "1MiB", "256KiB"),
        ("all", "64MiB", "64MiB"),
    ] {
        let ps = embedded(name);
        flags.truncate(3);
        flags.extend([host_ram, "--ssd-memory", "8MiB", "--gpu-cache", gpu_cache]);
        let report = train(at.path(), name, &ps, &flags);
        assert_eq!(report["rows_on_device"], true, "{name}");
        assert_eq!(losses(&report), losses(&expected), "{name}");
        assert!(predictions(at.path(), name, &ps) == wanted, "{name}: predictions differ");
        let count = |name: &str| report["tiers"][name].as_u64().expect("a counter");
        match name {
            "all" => assert_eq!(count("demotions"), 0),
            _ => assert!(count("demotions") > 1000, "{name}: {}", report["tiers"]),
        }
        assert!(count("promotions") >= count("demotions"), "{name}");
        assert!(name != "small" || count("evictions") > 1000, "{}", report["tiers"]);
        let gpu = &report["tiers"]["gpu"];
        for counter in ["hits", "misses", "bytes_read", "bytes_written"] {
            assert!(gpu[counter].as_u64().expect("a counter") > 1000, "{name}, {counter}: {gpu}");
        }
        assert!(report["tiers"]["gpu_stage_us_mean"].as_f64().expect("a time") > 0.0);
        assert!(rows(&report, "gpu") > 0, "rows are in GPU memory at the end");
    }
}

#[test]
fn what_a_training_may_do_beside_it_does_on_the_device_too() {
    // rows that come late and go early, tests on the way, lists that outgrow the room for them
    let flags = [
        "--device",
        "cuda",
        "--host-ram",
        "64MiB",
        "--admit-after",
        "2",
        "--expire-after",
        "10steps",
        "--num-indices-per-lookup",
        "4",
        "--test-freq",
        "7",
        "--eval-data",
        "synthetic:scale=0.02,rows=500,seed=12",
    ];
    let at = tempfile::tempdir().expect("make folder");
    let run = |name: &str, more: &[&str]| {
        let ps = format!("embedded:{}", text(&at.path().join(name)));
        train(at.path(), name, &ps, &[&flags[..], more].concat())
    };
    let (expected, report) = (run("plain", &[]), run("there", &["--gpu-cache", "256KiB"]));
    assert_eq!(report["rows_on_device"], true);
    assert_eq!(losses(&report), losses(&expected));
    let aucs = |report: &Value| -> Vec<f64> {
        let tests = report["tests"].as_array().expect("tests").iter();
        tests.map(|test| test["auc"].as_f64().expect("an AUC")).collect()
    };
    assert_eq!(aucs(&report).len(), 5, "every seven steps, and at the end");
    assert_eq!(aucs(&report), aucs(&expected));
    assert_eq!((&report["steps"], &report["samples"]), (&expected["steps"], &expected["samples"]));
}

#[test]
fn a_wait_that_is_forgotten_is_seen_in_what_comes_out() {
    let at = tempfile::tempdir().expect("make folder");
    let flags = ["--device", "cuda", "--host-ram", "64MiB", "--gpu-cache", "64MiB"];
    let right = train(at.path(), "right", &embedded_in(at.path(), "right"), &flags);
    let mut worker = Command::new(WORKER);
    let (model, report) = (at.path().join("model"), at.path().join("wrong.json"));
    worker.args(["train", "--ps", &embedded_in(at.path(), "wrong"), "--data", DATA]).args(MODEL);
    worker.arg(&model).args(["--report", text(&report)]).args(flags);
    let output = PretendedCuda::get().tell(worker.env("IGNORE_WAITS", "1")).output();
    // it crashes, diverges, or comes out wrong
    if output.expect("start the worker").status.success() {
        assert_ne!(losses(&json(&report)), losses(&right));
    }
}

fn embedded_in(at: &Path, name: &str) -> String {
    format!("embedded:{}", text(&at.join(name)))
}

#[test]
fn a_step_that_diverges_on_the_device_is_named_and_changes_no_row() {
    let at = tempfile::tempdir().expect("make folder");
    let ps = embedded_in(at.path(), "ps");
    let path = |name: &str| text(&at.path().join(name)).to_owned();
    let mut worker = Command::new(WORKER);
    worker.args(["train", "--ps", &ps, "--data", DATA, "--arch-mlp-bot", "13-16"]);
    worker.args(["--arch-mlp-top", "1", "--learning-rate", "1e30", "--loss-function", "mse"]);
    worker.args(["--device", "cuda", "--gpu-cache", "1MiB", "--host-ram", "64MiB"]);
    worker.args(["--save-model", &path("model")]);
    let output = PretendedCuda::get().tell(&mut worker).output().expect("start the worker");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && said.contains("loss"), "{said}");
}

#[test]
fn a_server_with_rows_in_gpu_memory_trains_as_one_without_bit_for_bit() {
    let at = tempfile::tempdir().expect("make folder");
    let plain = embedded_in(at.path(), "plain");
    let expected = train(at.path(), "plain", &plain, &["--host-ram", "64MiB"]);
    let wanted = predictions(at.path(), "plain", &plain);
    // all rows find room
    let server = start(&at.path().join("served"), &["--gpu-cache", "64MiB"], &[]);
    let report = train(at.path(), "served", &server.grpc, &[]);
    assert_eq!(losses(&report), losses(&expected));
    assert!(predictions(at.path(), "served", &server.grpc) == wanted, "predictions differ");
    assert_eq!(report["tiers"]["demotions"], 0);
    let said = succeed(PSCTL, &["--server", &server.grpc, "status"]);
    assert!(said.contains("GPU memory     64MiB; ") && said.contains("\ngpu "), "{said}");
    server.stop();
}

#[test]
fn sigterm_writes_down_what_changed_in_gpu_memory() {
    let at = tempfile::tempdir().expect("make folder");
    let flags = ["--host-ram", "8MiB", "--ssd-memory", "16MiB", "--gpu-cache", "1MiB"];
    let server = start(at.path(), &flags, &[]);
    let endless = "synthetic:scale=0.02,rows=100000000,seed=7";
    let model = text(&at.path().join("model")).to_owned();
    let report = text(&at.path().join("report.json")).to_owned();
    let arguments = [
        &["train", "--ps", &server.grpc, "--data", endless, "--report", &report],
        &MODEL[..],
        &[&model],
    ];
    let mut worker = Process::start(WORKER, arguments.concat(), at.path().join("worker.log"))
        .expect("start worker");
    let demotions = |status: &Value| -> u64 {
        let tables = status["tables"].as_array().expect("tables").iter();
        tables.map(|table| table["counters"]["demotions"].as_u64().expect("demotions")).sum()
    };
    let seen = worker
        .wait_for("1,000 demotions", LIMIT, |_| (demotions(&status(&server)) > 1000).then_some(()));
    seen.expect("rows go up and down");
    // the worker stops first, so that what the rows are is known
    worker.terminate().expect("send SIGTERM");
    assert_eq!(worker.wait(LIMIT).expect("the worker ends").code(), Some(130));
    let before = predictions_of(&server, &model, &at.path().join("before.txt"));
    server.stop();

    let server = Server::start(at.path(), &["--host-ram", "8MiB", "--ssd-memory", "16MiB"]);
    assert_eq!(status(&server)["opened_clean"], true);
    let after = predictions_of(&server, &model, &at.path().join("after.txt"));
    assert!(before == after, "predictions differ after the restart without GPU memory");
    server.stop();
}

fn predictions_of(server: &Server, model: &str, output: &Path) -> Vec<u8> {
    let data = "synthetic:scale=0.02,rows=3000,seed=8";
    let output = text(output);
    let ps = &server.grpc;
    let arguments =
        ["predict", "--ps", ps, "--load-model", model, "--data", data, "--output", output];
    succeed(WORKER, &arguments);
    std::fs::read(output).expect("predictions")
}
