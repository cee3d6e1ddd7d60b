//! Generated data: written to files and read back it trains to the same bits as straight from the
//! generator.

use crate::binaries::{WORKER, json, losses, refuse, succeed, text};

const SPEC: &str = "synthetic:scale=0.001,rows=4096,seed=11";

#[test]
fn parquet_written_by_the_generator_trains_to_the_same_losses() {
    let at = tempfile::tempdir().expect("make folder");
    let path = |name: &str| text(&at.path().join(name)).to_owned();
    let parquet = format!("parquet:{}", path("data.parquet"));
    let said = succeed(WORKER, &["generate", "--data", SPEC, "--output", &parquet]);
    assert!(said.contains("4096 rows") && said.contains("AUC 0."), "{said}");
    let train = |data: &str, name: &str| {
        let ps = format!("embedded:{}", path(name));
        let report = path(&format!("{name}.json"));
        let arguments = [
            ["train", "--data"],
            [data, "--ps"],
            [&ps, "--dense-transform"],
            ["log1p", "--embedding-init"],
            ["uniform:0.01", "--arch-mlp-bot"],
            ["13-32-16", "--arch-mlp-top"],
            ["32-1", "--mini-batch-size"],
            ["256", "--report"],
            [&report, "--report-losses"],
        ]
        .concat();
        succeed(WORKER, &arguments);
        losses(&json(report.as_ref()))
    };
    let straight = train(SPEC, "straight");
    assert_eq!(straight.len(), 16);
    assert_eq!(straight, train(&parquet, "parquet"));
}

#[test]
fn how_far_ahead_steps_are_staged_leaves_no_trace() {
    let at = tempfile::tempdir().expect("make folder");
    let path = |name: &str| text(&at.path().join(name)).to_owned();
    let train = |lookahead: &str| {
        let (ps, report) =
            (format!("embedded:{}", path(lookahead)), path(&format!("{lookahead}.json")));
        let model = ["--arch-mlp-bot", "13-32-16", "--arch-mlp-top", "32-1", "--report-losses"];
        let pace = ["--mini-batch-size", "128", "--lookahead", lookahead, "--nepochs", "2"];
        let memory = ["--ps", &ps, "--host-ram", "1MiB", "--report", &report];
        succeed(WORKER, &[&["train", "--data", SPEC][..], &model, &pace, &memory].concat());
        let report = json(report.as_ref());
        assert!(report["tiers"]["evictions"].as_u64() > Some(0), "the budget is too large");
        losses(&report)
    };
    let expected = train("1");
    assert_eq!(expected.len(), 64);
    for lookahead in ["2", "8", "20"] {
        assert_eq!(expected, train(lookahead), "--lookahead {lookahead}");
    }
}

#[test]
fn criteo_tsv_written_by_the_generator_trains() {
    let at = tempfile::tempdir().expect("make folder");
    let path = |name: &str| text(&at.path().join(name)).to_owned();
    let criteo = format!("criteo:{}", path("data.tsv.gz"));
    succeed(WORKER, &["generate", "--data", SPEC, "--output", &criteo]);
    let (ps, report) = (format!("embedded:{}", path("ps")), path("report.json"));
    let arguments = ["train", "--data", &criteo, "--ps", &ps, "--mini-batch-size", "512"];
    let model = ["--arch-mlp-bot", "13-32-16", "--arch-mlp-top", "32-1", "--report", &report];
    succeed(WORKER, &[&arguments[..], &model].concat());
    assert_eq!(json(report.as_ref())["samples"].as_u64(), Some(4096));
}

#[test]
fn a_generator_that_is_not_one_is_refused() {
    refuse(WORKER, &["generate", "--data", "criteo:x"], &["expected synthetic:"]);
    refuse(WORKER, &["generate", "--data", "synthetic:colour=red"], &["colour"]);
}
