//! A table far beyond the host-RAM budget trains through, in the memory that was promised.

use crate::binaries::{PSCTL, Server, WORKER, json, succeed, text};

/// What a server takes besides its rows and their index (README, "Memory"): 16 MiB that the test
/// gives to RocksDB, 48 MiB for code, threads, RocksDB's own structures and requests under way, and
/// one for each of the 16 threads that read from SSD.
const FIXED_BYTES: u64 = (16 + 48 + 16) << 20;

#[test]
fn a_table_20_times_the_budget_stays_within_it() {
    let budget: u64 = 4 << 20;
    let at = tempfile::tempdir().expect("make folder");
    let server = Server::start(at.path(), &["--host-ram", "4MiB", "--ssd-memory", "16MiB"]);
    let report = at.path().join("report.json");
    let arguments = [
        ["train", "--ps"],
        [&server.grpc, "--data"],
        ["synthetic:scale=1,rows=900000,seed=3", "--mini-batch-size"],
        ["512", "--arch-mlp-bot"],
        ["13-16", "--arch-mlp-top"],
        ["16-1", "--optimizer"],
        ["rwsadagrad", "--learning-rate"],
        ["0.02", "--report"],
    ]
    .concat();
    succeed(WORKER, &[&arguments[..], &[text(&report)]].concat());
    let report = json(&report);
    assert_eq!(report["steps"].as_u64(), Some(900_000_u64.div_ceil(512)));

    let status = succeed(PSCTL, &["--server", &server.grpc, "status", "--json"]);
    let status: serde_json::Value = serde_json::from_str(&status).expect("JSON");
    let rows: u64 = status["tables"]
        .as_array()
        .expect("tables")
        .iter()
        .map(|table| table["rows"].as_u64().expect("rows"))
        .sum();
    let row_bytes = 4 * (16 + 1);
    assert!(rows * row_bytes >= 20 * budget, "{rows} rows");
    assert!(status["host_ram_used_bytes"].as_u64().expect("used") <= budget);

    let peak = server.peak_rss_bytes();
    let allowed = budget + budget / 5 + FIXED_BYTES;
    assert!(peak <= allowed, "peak {peak} bytes, allowed {allowed}");
    server.stop();
}
