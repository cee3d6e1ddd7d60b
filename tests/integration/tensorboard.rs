//! `train --tensor-board-filename`: an event file with the figures of the report, whose steps go on
//! where a saved model was.

use std::path::Path;

use serde_json::Value as Json;
use tfrecord::protobuf::Event;
use tfrecord::protobuf::event::What;
use tfrecord::protobuf::summary::value::Value;
use tfrecord::{RecordIter, RecordReaderConfig};

use crate::binaries::{WORKER, json, losses, refuse, succeed, text};

/// Steps of a run.
const STEPS: usize = 10;
const EVERY: usize = 4;

/// Step and value of each point of a tag, over all event files of a folder.
fn points(folder: &Path, tag: &str) -> Vec<(i64, f32)> {
    let mut found = Vec::new();
    for file in std::fs::read_dir(folder).expect("list events") {
        let path = file.expect("list events").path();
        assert!(text(&path).contains("tfevents"), "TensorBoard passes over {}", path.display());
        let config = RecordReaderConfig { check_integrity: true };
        for event in RecordIter::<Event, _>::open(&path, config).expect("open events") {
            let event = event.expect("read event");
            let Some(What::Summary(summary)) = event.what else { continue };
            for value in summary.value.into_iter().filter(|value| value.tag == tag) {
                let Some(Value::SimpleValue(scalar)) = value.value else { panic!("{value:?}") };
                found.push((event.step, scalar));
            }
        }
    }
    found.sort_unstable_by_key(|(step, _)| *step);
    found
}

fn train(at: &Path, report: &str, more: &[&str]) -> Json {
    let path = |name: &str| text(&at.join(name)).to_owned();
    let ps = format!("embedded:{}", path("ps"));
    let (events, model, report) = (path("events"), path("model"), path(report));
    let rows = format!("synthetic:scale=0.001,rows={},seed=3", STEPS * 128);
    let places = ["train", "--ps", &ps, "--data", &rows, "--tensor-board-filename", &events];
    let every = EVERY.to_string();
    let pace = ["--mini-batch-size", "128", "--print-freq", &every, "--test-freq", "6"];
    let tests = ["--eval-data", "synthetic:scale=0.001,rows=1000,seed=4"];
    let out = ["--report", &report, "--report-losses", "--save-model", &model];
    let all = [&places[..], &pace, &tests, &out, more].concat();
    succeed(WORKER, &all);
    json(report.as_ref())
}

#[test]
fn events_are_what_the_report_says_and_go_on_with_the_model() {
    let at = tempfile::tempdir().expect("make folder");
    let shape = ["--arch-mlp-bot", "13-16-16", "--arch-mlp-top", "16-1"];
    let first = train(at.path(), "first.json", &shape);
    let model = at.path().join("model");
    let second = train(at.path(), "second.json", &["--load-model", text(&model)]);

    let (mut mean_losses, mut aucs) = (Vec::new(), Vec::new());
    for (run, report) in [&first, &second].into_iter().enumerate() {
        let begun = run * STEPS;
        let losses = losses(report);
        assert_eq!(losses.len(), STEPS);
        for (point, stretch) in losses.chunks(EVERY).enumerate() {
            let step = begun + point * EVERY + stretch.len();
            mean_losses.push((step, stretch.iter().sum::<f64>() / stretch.len() as f64));
        }
        let tests = report["tests"].as_array().expect("the report has tests");
        let step = |test: &Json| begun + test["step"].as_u64().expect("a step") as usize;
        aucs.extend(tests.iter().map(|test| (step(test), test["auc"].as_f64().expect("an AUC"))));
        assert_eq!(tests.last().map(|test| &test["auc"]), Some(&report["auc"]), "the end's");
    }
    assert_eq!(aucs.len(), 4, "a test in each run, and its end");
    let events = at.path().join("events");
    for (tag, expected) in [("Train/Loss", mean_losses), ("Test/AUC", aucs)] {
        let found = points(&events, tag);
        assert_eq!(found.len(), expected.len(), "{tag}: {found:?} {expected:?}");
        for ((step, value), (step_expected, value_expected)) in found.iter().zip(&expected) {
            assert_eq!(*step, *step_expected as i64, "{tag}");
            assert!((f64::from(*value) - value_expected).abs() < 1e-6, "{tag} at {step}: {value}");
        }
    }
    // stages run ahead, so that a run's last points may have none to tell of
    let rates = points(&events, "Tiers/HostHitRate");
    assert!(rates.len() >= 2, "{rates:?}");
    assert!(rates.iter().all(|(_, rate)| (0.0..=1.0).contains(rate)), "{rates:?}");
}

#[test]
fn a_folder_that_can_not_be_made_is_refused_before_training() {
    let at = tempfile::tempdir().expect("make folder");
    let path = |name: &str| text(&at.path().join(name)).to_owned();
    std::fs::write(path("taken"), "").expect("write file");
    let (ps, events) = (format!("embedded:{}", path("ps")), path("taken"));
    let data = "synthetic:scale=0.001,rows=128,seed=3";
    let arguments = ["train", "--ps", &ps, "--data", data, "--tensor-board-filename", &events];
    refuse(WORKER, &arguments, &["create event file", "taken"]);
}
