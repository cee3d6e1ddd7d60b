//! What training reaches on real data. The demo's own run is the first of them.

use crate::binaries::{WORKER, data, external_data, json, succeed, text};

#[test]
fn flights_reach_an_auc_of_0775() {
    let at = tempfile::tempdir().expect("make folder");
    let (ps, report) = (at.path().join("ps"), at.path().join("report.json"));
    let ps = format!("embedded:{}", text(&ps));
    let flights = format!("tsv:{}", text(&data("flights.tsv.gz")));
    let where_to = ["--data", &flights, "--ps", &ps, "--report", text(&report)];
    succeed(WORKER, &[&["train"], &where_to[..], &FLIGHTS[..]].concat());
    let report = json(&report);
    let auc = report["auc"].as_f64().expect("the report has an AUC");
    assert!(auc >= 0.775, "AUC {auc}");
    let rate = report["base_rate"].as_f64().expect("the report has a base rate");
    assert!((rate - 0.2375).abs() < 0.01, "base rate {rate}");
    let evictions = report["tiers"]["evictions"].as_u64().expect("evictions");
    assert!(evictions > 0, "the budget is below the tables' size");
}

/// The demo's settings (see `crates/xtask`).
const FLIGHTS: [&str; 24] = [
    "--dense-columns",
    "13",
    "--dense-transform",
    "signed-log1p+standard",
    "--missing-indicator",
    "--rows",
    "train",
    "--eval-rows",
    "test",
    "--arch-mlp-bot",
    "26-64-16",
    "--arch-mlp-top",
    "128-64-1",
    "--shuffle-window",
    "300000",
    "--mini-batch-size",
    "128",
    "--optimizer",
    "adagrad",
    "--learning-rate",
    "0.01",
    "--learning-rate-tables",
    "0.05",
    "--host-ram=512KiB",
];

#[test]
#[ignore = "needs EMBEDDING_PS_DATA"]
fn adult_reaches_an_auc_of_0900() {
    let at = tempfile::tempdir().expect("make folder");
    let (ps, report) = (at.path().join("ps"), at.path().join("report.json"));
    let ps = format!("embedded:{}", text(&ps));
    let train = format!("tsv:{}", text(&external_data("adult/train.tsv.gz")));
    let test = format!("tsv:{}", text(&external_data("adult/test.tsv.gz")));
    let arguments = [
        ["train", "--ps"],
        [&ps, "--data"],
        [&train, "--eval-data"],
        [&test, "--dense-columns"],
        ["5", "--dense-transform"],
        ["signed-log1p+standard", "--arch-mlp-bot"],
        ["5-64-16", "--arch-mlp-top"],
        ["128-64-1", "--mini-batch-size"],
        ["128", "--shuffle-window"],
        ["40000", "--nepochs"],
        ["3", "--optimizer"],
        ["adagrad", "--learning-rate"],
        ["0.01", "--learning-rate-tables"],
        ["0.05", "--report"],
    ]
    .concat();
    succeed(WORKER, &[&arguments[..], &[text(&report)]].concat());
    let report = json(&report);
    assert_eq!(report["rows"].as_u64(), Some(16_281), "the official test set");
    let auc = report["auc"].as_f64().expect("the report has an AUC");
    assert!(auc >= 0.900, "AUC {auc}");
}
