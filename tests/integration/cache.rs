//! A cache of parsed batches: it trains to the same bits as its source, whatever leaves RAM, and a
//! file that is none is bad input.

use std::fs;

use crate::binaries::{WORKER, json, losses, refuse, succeed, text};

const SPEC: &str = "synthetic:scale=0.001,rows=4096,seed=11";
const MODEL: [&str; 6] =
    ["--arch-mlp-bot", "13-32-16", "--arch-mlp-top", "32-1", "--mini-batch-size", "256"];

#[test]
fn a_cache_trains_to_the_same_losses_as_its_source() {
    let at = tempfile::tempdir().expect("make folder");
    let path = |name: &str| text(&at.path().join(name)).to_owned();
    let cache = |name: &str, more: &[&str]| {
        let written = path(name);
        let arguments = ["cache", "--data", SPEC, "--mini-batch-size", "256", "--output", &written];
        let said = succeed(WORKER, &[&arguments[..], more].concat());
        assert!(said.contains("4096 rows in 16 batches of 256"), "{said}");
        format!("cache:{written}")
    };
    let train = |data: &str, name: &str, more: &[&str]| {
        let (ps, report) = (format!("embedded:{}", path(name)), path(&format!("{name}.json")));
        let arguments = ["train", "--data", data, "--ps", &ps, "--report", &report];
        succeed(WORKER, &[&arguments[..], &MODEL, &["--report-losses"], more].concat());
        losses(&json(report.as_ref()))
    };
    let plain = cache("plain.cache", &[]);
    // a budget of rows that they outgrow: next uses decide what stays, and no loss shows it
    let epochs = ["--nepochs", "2", "--host-ram", "1MiB"];
    let straight = train(SPEC, "straight", &epochs);
    assert_eq!(straight.len(), 32);
    assert_eq!(straight, train(&plain, "cached", &epochs));
    let evictions = |name: &str| {
        let report = json(path(&format!("{name}.json")).as_ref());
        report["tiers"]["evictions"].as_u64().expect("count of evictions")
    };
    assert!(evictions("straight") > 0 && evictions("cached") > 0, "the budget is too large");

    let shuffle = ["--shuffle-window", "1000"];
    let shuffled = cache("shuffled.cache", &[&shuffle[..], &["--seed", "3"]].concat());
    let straight = train(SPEC, "straight-shuffled", &[&shuffle[..], &["--seed", "3"]].concat());
    assert_eq!(straight, train(&shuffled, "cached-shuffled", &["--seed", "3"]));

    let indicated = cache("indicated.cache", &["--missing-indicator", "--max-ind-range", "40"]);
    let wide = ["--arch-mlp-bot", "26-16"];
    let asked = ["--missing-indicator", "--max-ind-range", "40"];
    let train_wide = |data: &str, name: &str, flags: &[&str]| {
        let (ps, report) = (format!("embedded:{}", path(name)), path(&format!("{name}.json")));
        let arguments = ["train", "--data", data, "--ps", &ps, "--report", &report];
        let model = [&MODEL[2..], &wide, &["--report-losses"]].concat();
        succeed(WORKER, &[&arguments[..], &model, flags].concat());
        losses(&json(report.as_ref()))
    };
    let straight = train_wide(SPEC, "straight-wide", &asked);
    assert_eq!(straight, train_wide(&indicated, "cached-wide", &[]), "the cache knows how");
}

#[test]
fn a_cache_asked_for_otherwise_or_broken_is_bad_input() {
    let at = tempfile::tempdir().expect("make folder");
    let path = |name: &str| text(&at.path().join(name)).to_owned();
    let (file, ps) = (path("a.cache"), format!("embedded:{}", path("ps")));
    succeed(WORKER, &["cache", "--data", SPEC, "--mini-batch-size", "256", "--output", &file]);
    let data = format!("cache:{file}");
    let train = ["train", "--data", &data, "--ps", &ps];
    let refused = |more: &[&str], told: &[&str]| {
        refuse(WORKER, &[&train[..], &MODEL, more].concat(), told);
    };
    refused(&["--shuffle-window", "9"], &["--shuffle-window 9", "the order of a cache is fixed"]);
    refused(&["--dense-transform", "none"], &["--dense-transform none", "written with log1p"]);
    refused(&["--max-ind-range", "9"], &["max-ind-range", "expected none"]);
    refused(&["--rows", "test"], &["rows", "expected all"]);
    refuse(
        WORKER,
        &[&train[..], &MODEL[..4], &["--mini-batch-size", "512"]].concat(),
        &["batch rows \"512\"", "expected 256"],
    );
    refuse(WORKER, &["cache", "--data", &data, "--output", &path("b")], &["anything but a cache"]);
    assert!(!at.path().join("b").exists());

    let mut bytes = fs::read(&file).expect("read cache");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 4;
    fs::write(&file, &bytes).expect("write cache");
    refused(&[], &["a.cache, byte ", "checksum", "corrupt"]);
    fs::write(&file, &bytes[..middle]).expect("write cache");
    refused(&[], &["a.cache, byte 0", "truncated"]);
    fs::write(&file, b"label\tI1\n").expect("write cache");
    refused(&[], &["a.cache", "expected a cache"]);
}
