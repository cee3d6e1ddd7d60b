//! Generated data: written to files and read back it trains to the same bits as straight from the
//! generator.

use serde_json::Value;

use crate::binaries::{WORKER, json, losses, refuse, run, succeed, text};

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
        let of_epochs = |name: &str| -> Vec<Option<u64>> {
            let epochs = report["epochs"].as_array().expect("the report has epochs");
            epochs.iter().map(|epoch| epoch[name].as_u64()).collect()
        };
        assert_eq!(of_epochs("steps"), [Some(32), Some(32)]);
        let stalled: Option<u64> = of_epochs("stalled_pulls").into_iter().sum();
        assert_eq!(stalled, report["stalled_pulls"].as_u64());
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
fn lists_of_ids_train_however_they_are_pooled() {
    let at = tempfile::tempdir().expect("make folder");
    let path = |name: &str| text(&at.path().join(name)).to_owned();
    let data = "synthetic:scale=0.001,rows=600,seed=3";
    let train = |name: &str, data: &str, more: &[&str]| {
        let (ps, report) = (format!("embedded:{}", path(name)), path(&format!("{name}.json")));
        let mut words = vec!["train", "--ps", &ps, "--data", data, "--mini-batch-size", "100"];
        words.extend(["--arch-mlp-bot", "13-16-16", "--arch-mlp-top", "16-1"]);
        words.extend(["--report", &report, "--report-losses"]);
        words.extend(more);
        succeed(WORKER, &words);
        losses(&json(report.as_ref()))
    };
    let one = train("one", data, &[]);
    assert_eq!(one, train("mean_of_one", data, &["--pooling", "mean"]));
    let up_to = ["--num-indices-per-lookup", "4"];
    let random = train("random", data, &up_to);
    assert_eq!(random, train("spelled", &format!("{data},indices=1..4"), &[]));
    let fixed = train("fixed", data, &[&up_to[..], &["--num-indices-per-lookup-fixed"]].concat());
    let mean = train("mean", data, &[&up_to[..], &["--pooling", "mean"]].concat());
    let saved = path("model");
    let mlperf = ["--multi-hot-sizes", "mlperf", "--pooling", "mean", "--save-model", &saved];
    let mlperf = train("mlperf", data, &mlperf);
    let all = [&one, &random, &fixed, &mean, &mlperf];
    assert!((1..all.len()).all(|i| all[..i].iter().all(|other| *other != all[i])));
    let (cache, output) = (format!("cache:{}", path("c")), path("c"));
    let words = ["cache", "--data", data, "--mini-batch-size", "100", "--output", &output];
    succeed(WORKER, &[&words[..], &up_to].concat());
    assert_eq!(mean, train("cached", &cache, &["--pooling", "mean"]));
    let ps = format!("embedded:{}", path("mlperf"));
    let eval = ["eval", "--ps", &ps, "--data", data, "--load-model", &saved];
    succeed(WORKER, &[&eval[..], &["--multi-hot-sizes", "mlperf"]].concat());
}

#[test]
fn a_generator_that_is_not_one_is_refused() {
    refuse(WORKER, &["generate", "--data", "criteo:x"], &["expected synthetic:"]);
    refuse(WORKER, &["generate", "--data", "synthetic:colour=red"], &["colour"]);
}

#[test]
fn tests_on_the_way_change_no_loss_and_end_the_training_at_their_auc() {
    let at = tempfile::tempdir().expect("make folder");
    let path = |name: &str| text(&at.path().join(name)).to_owned();
    let train = |name: &str, more: &[&str]| {
        let (ps, report) = (format!("embedded:{}", path(name)), path(&format!("{name}.json")));
        let model = ["--arch-mlp-bot", "13-32-16", "--arch-mlp-top", "32-1", "--report-losses"];
        let data = ["--mini-batch-size", "256", "--rows", "train", "--eval-rows", "test"];
        let places = ["--ps", &ps, "--report", &report];
        succeed(WORKER, &[&["train", "--data", SPEC][..], &model, &data, &places, more].concat());
        json(report.as_ref())
    };
    let plain = train("plain", &[]);
    let tested = train("tested", &["--test-freq", "5", "--print-freq", "3"]);
    assert_eq!(losses(&plain), losses(&tested));
    assert_eq!(plain["auc"], tested["auc"]);
    let tests = tested["tests"].as_array().expect("the report has tests");
    let steps: Vec<u64> = tests.iter().filter_map(|test| test["step"].as_u64()).collect();
    let end = tested["steps"].as_u64().expect("the report has steps");
    assert_eq!(steps, [5, 10, end], "every five steps, and at the end of the epoch");
    assert_ne!(tests[0]["logloss"], tests[1]["logloss"]);
    let stopped = train("stopped", &["--test-freq", "5", "--mlperf-auc-threshold", "0.01"]);
    assert_eq!(
        (stopped["steps"].as_u64(), stopped["auc_reached"].as_bool()),
        (Some(5), Some(true))
    );
    assert_eq!(stopped["auc"], tests[0]["auc"]);
    assert_eq!(losses(&stopped), losses(&plain)[..5]);
}

#[test]
fn a_test_sees_rows_as_the_step_before_it_left_them_however_far_is_staged_ahead() {
    let at = tempfile::tempdir().expect("make folder");
    let path = |name: &str| text(&at.path().join(name)).to_owned();
    let train = |lookahead: &str| {
        let (ps, report) = (format!("embedded:{}", path(lookahead)), path("report.json"));
        let model = ["--arch-mlp-bot", "13-32-16", "--arch-mlp-top", "32-1", "--report-losses"];
        let data = ["--mini-batch-size", "64", "--rows", "train", "--eval-rows", "test"];
        // the stages that were begun decide which rows there are
        let rows = ["--admit-after", "2", "--expire-after", "9steps", "--test-freq", "4"];
        let places = ["--ps", &ps, "--report", &report, "--lookahead", lookahead, "--nepochs", "2"];
        succeed(WORKER, &[&["train", "--data", SPEC][..], &model, &data, &rows, &places].concat());
        json(report.as_ref())
    };
    let (near, far) = (train("1"), train("7"));
    assert_eq!(losses(&near), losses(&far));
    let quality = |report: &Value| {
        let tests = report["tests"].as_array().expect("the report has tests").iter();
        tests.map(|test| (test["step"].clone(), test["logloss"].clone())).collect::<Vec<_>>()
    };
    assert_eq!(quality(&near), quality(&far));
}

#[test]
fn lines_tell_what_facebookresearch_dlrms_tell_when_its_do() {
    let at = tempfile::tempdir().expect("make folder");
    let path = |name: &str| text(&at.path().join(name)).to_owned();
    let (ps, report) = (format!("embedded:{}", path("ps")), path("report.json"));
    let model = ["--arch-mlp-bot", "13-32-16", "--arch-mlp-top", "32-1", "--report-losses"];
    let data = ["--mini-batch-size", "256", "--rows", "train", "--eval-rows", "test"];
    let lines = ["--print-freq", "4", "--test-freq", "5", "--nepochs", "2"];
    let places = ["--ps", &ps, "--report", &report];
    let train = [&["train", "--data", SPEC][..], &model, &data, &lines, &places].concat();
    let output = run(WORKER, &train);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{said}");
    let report = json(report.as_ref());
    let (losses, samples) = (losses(&report), report["samples"].as_u64().expect("samples") / 2);
    let batches = samples.div_ceil(256);
    assert_eq!(
        (losses.len() as u64, samples % 256 > 0),
        (2 * batches, true),
        "a last, smaller batch"
    );
    let size = |batch: u64| if batch == batches { samples % 256 } else { 256 };

    // a line after every fourth batch of an epoch, before each test, and at the end
    let (mut expected, mut begun) = (Vec::new(), 1);
    for (epoch, of) in [(0, String::new()), (1, format!("/{batches}"))] {
        for batch in 1..=batches {
            let tested = batch % 5 == 0 || batch == batches;
            if batch % 4 == 0 || tested {
                let of_batch = |batch: u64| losses[(epoch * batches + batch - 1) as usize];
                let sum: f64 = (begun..=batch).map(|b| of_batch(b) * size(b) as f64).sum();
                let loss = sum / (begun..=batch).map(size).sum::<u64>() as f64;
                let of = if batch == batches { format!("/{batches}") } else { of.clone() };
                expected.push((format!("it {batch}{of} of epoch {epoch}"), loss));
                begun = batch % batches + 1;
            }
        }
    }
    let told = said.lines().filter_map(|line| line.split_once("Finished training "));
    let told: Vec<(String, f64)> = told
        .map(|(_, line)| {
            let parts: Vec<&str> = line.split(", ").collect();
            assert!(parts[1].ends_with(" ms/it"), "{line}");
            let loss = parts[2].strip_prefix("loss ").expect("a loss").parse();
            (parts[0].to_owned(), loss.expect("a number"))
        })
        .collect();
    assert_eq!(told.len(), expected.len(), "{told:?} {expected:?}");
    for (told, expected) in told.iter().zip(&expected) {
        assert_eq!(told.0, expected.0);
        assert!((told.1 - expected.1).abs() < 2e-6, "{told:?}, expected {expected:?}");
    }
    let tests = said.lines().filter(|line| line.contains("Testing at - "));
    let tests: Vec<&str> = tests.collect();
    assert_eq!(tests.len() as u64, 2 * batches.div_ceil(5), "{said}");
    for part in ["accuracy ", "auc 0.", "logloss 0.", "normalised entropy ", "calibration "] {
        assert!(tests.iter().all(|line| line.contains(part)), "{part}: {tests:?}");
    }
}

#[test]
fn tests_on_the_way_need_rows_to_test_on() {
    let at = tempfile::tempdir().expect("make folder");
    let ps = format!("embedded:{}", text(&at.path().join("ps")));
    let arguments = ["train", "--data", SPEC, "--ps", &ps, "--test-freq", "5"];
    refuse(WORKER, &arguments, &["--test-freq 5", "--eval-rows"]);
}
