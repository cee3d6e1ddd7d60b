//! Training with rows in GPU memory, under a pretended CUDA: the bits of a training without, in the
//! worker's own process and through a server; and a signal in the middle loses nothing.

use std::path::Path;
use std::process::Command;

use serde_json::Value;
use testkit::{PretendedCuda, Process};

use crate::binaries::{LIMIT, PSCTL, SERVER, Server, WORKER, json, losses, succeed, text};

const DATA: &str = "synthetic:scale=0.02,rows=4000,seed=11";
const MODEL: [&str; 14] = [
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

/// Trains, under the pretended CUDA, and returns the report.
fn train(at: &Path, name: &str, ps: &str, flags: &[&str]) -> Value {
    let path = |end: &str| text(&at.join(format!("{name}{end}"))).to_owned();
    let (model, report) = (path("-model"), path(".json"));
    let mut worker = Command::new(WORKER);
    worker.args(["train", "--ps", ps, "--data", DATA]).args(MODEL).arg(&model);
    worker.args(["--report", &report]).args(flags);
    let output = PretendedCuda::get().tell(&mut worker).output().expect("start the worker");
    assert!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stderr));
    json(report.as_ref())
}

/// What the rows and the network of a training say about other data: no cache is needed for it.
fn predictions(at: &Path, name: &str, ps: &str) -> Vec<u8> {
    let path = |end: &str| text(&at.join(format!("{name}{end}"))).to_owned();
    let (model, output) = (path("-model"), path(".txt"));
    let data = "synthetic:scale=0.02,rows=3000,seed=12";
    let arguments =
        ["predict", "--ps", ps, "--load-model", &model, "--data", data, "--output", &output];
    succeed(WORKER, &arguments);
    std::fs::read(output).expect("predictions")
}

/// A server that finds the pretended CUDA.
fn start(dir: &Path, flags: &[&str]) -> Server {
    let libraries = format!("LD_LIBRARY_PATH={}", text(PretendedCuda::get().folder()));
    Server::start_under(&["env", &libraries, SERVER], dir, flags)
}

fn status(server: &Server) -> Value {
    let text = succeed(PSCTL, &["--server", &server.grpc, "status", "--json"]);
    serde_json::from_str(&text).expect("JSON")
}

#[test]
fn a_training_with_rows_in_gpu_memory_is_the_one_without_bit_for_bit() {
    let at = tempfile::tempdir().expect("make folder");
    let embedded = |name: &str| format!("embedded:{}", text(&at.path().join(name)));
    let (plain, small) = (embedded("plain"), embedded("small"));
    let expected = train(at.path(), "plain", &plain, &["--host-ram", "64MiB"]);
    assert_eq!(expected["tiers"]["gpu"]["hits"], 0);
    let wanted = predictions(at.path(), "plain", &plain);

    // rows leave GPU memory and host RAM
    let flags = ["--host-ram", "1MiB", "--ssd-memory", "8MiB", "--gpu-cache", "256KiB"];
    let report = train(at.path(), "small", &small, &flags);
    assert_eq!(losses(&report), losses(&expected));
    assert!(predictions(at.path(), "small", &small) == wanted, "predictions differ");
    let count = |name: &str| report["tiers"][name].as_u64().expect("a counter");
    assert!(count("demotions") > 1000, "{}", report["tiers"]);
    assert!(count("promotions") >= count("demotions") && count("evictions") > 1000);
    assert_eq!(count("gpu_cache_bytes"), 256 << 10);
    let gpu = &report["tiers"]["gpu"];
    for name in ["hits", "misses", "bytes_read", "bytes_written"] {
        assert!(gpu[name].as_u64().expect("a counter") > 1000, "{name}: {gpu}");
    }
    assert!(report["tiers"]["gpu_stage_us_mean"].as_f64().expect("a time") > 0.0);
    let rows: u64 = report["store"]["tables"]
        .as_array()
        .expect("tables")
        .iter()
        .map(|table| table["gpu"]["rows"].as_u64().expect("rows"))
        .sum();
    assert!(rows > 0, "rows are in GPU memory at the end");

    // through a server; all rows find room
    let server = start(&at.path().join("served"), &["--gpu-cache", "64MiB"]);
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
    let server = start(at.path(), &flags);
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
