//! Tests on the way of a training: `--save-model FILE.safetensors` keeps the model of the best AUC,
//! and `--mlperf-auc-threshold` ends the training at the first test above it.
//!
//! The oracle of what was saved is another training that goes only as far as the best test: same
//! seed, same bytes.

use std::fmt::Write as _;
use std::path::Path;

use serde_json::Value;

use crate::binaries::{WORKER, json, run, succeed, text};

const ROWS: u64 = 2048;
const BATCH_ROWS: u64 = 64;
const TEST_EVERY: u64 = 4;

/// Rows whose label follows from a token, but for one in eight. From `flip_from` on labels are the
/// other way round, so that what was learnt until then is unlearnt and the AUC falls.
fn table(rows: u64, salt: u64, flip_from: u64) -> String {
    let mut lines = String::from("label\ta\tb\tx\ty\n");
    for row in 0..rows {
        let mixed = (row + salt).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 20;
        let (x, y, noise) = (mixed % 32, mixed / 32 % 32, (mixed / 1024).is_multiple_of(8));
        let label = (x < 12) ^ noise ^ (row >= flip_from);
        writeln!(lines, "{}\t{}.5\t{}\tx{x}\ty{y}", u8::from(label), x % 3, y % 5).expect("write");
    }
    lines
}

struct Trained {
    report: Value,
    /// The saved model's bytes.
    model: Vec<u8>,
}

impl Trained {
    fn steps(&self) -> u64 {
        self.report["steps"].as_u64().expect("the report has steps")
    }

    /// Step and AUC of each test.
    fn tests(&self) -> Vec<(u64, f64)> {
        let Some(tests) = self.report["tests"].as_array() else { return Vec::new() };
        let of = |test: &Value| Some((test["step"].as_u64()?, test["auc"].as_f64()?));
        tests.iter().map(|test| of(test).expect("a test has a step and an AUC")).collect()
    }

    /// The first of the tests with the best AUC: a later one has to be better to take its place.
    fn best(&self) -> (u64, f64) {
        let tests = self.tests();
        let most = tests.iter().fold(0.0_f64, |most, test| most.max(test.1));
        *tests.iter().find(|test| test.1 == most).expect("there was a test")
    }
}

/// Trains in `at` under `name` and saves everything to one file.
fn train(at: &Path, name: &str, flip_from: u64, more: &[&str]) -> Trained {
    let path = |name: &str| text(&at.join(name)).to_owned();
    std::fs::write(path("train.tsv"), table(ROWS, 0, flip_from)).expect("write rows");
    std::fs::write(path("test.tsv"), table(1024, ROWS, u64::MAX)).expect("write rows");
    let (train, test) = (format!("tsv:{}", path("train.tsv")), format!("tsv:{}", path("test.tsv")));
    let ps = format!("embedded:{}", path(&format!("{name}.ps")));
    let (model, report) =
        (path(&format!("{name}.safetensors")), path(&format!("{name}.report.json")));
    let batch_rows = BATCH_ROWS.to_string();
    let arguments = [
        ["train", "--ps"],
        [&ps, "--data"],
        [&train, "--eval-data"],
        [&test, "--dense-columns"],
        ["2", "--max-ind-range"],
        ["64", "--arch-mlp-bot"],
        ["2-8-4", "--arch-sparse-feature-size"],
        ["4", "--arch-mlp-top"],
        ["16-1", "--mini-batch-size"],
        [&batch_rows, "--optimizer"],
        ["rwsadagrad", "--learning-rate"],
        ["0.1", "--report"],
        [&report, "--save-model"],
    ]
    .concat();
    let output = run(WORKER, &[&arguments[..], &[&model], more].concat());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let model = std::fs::read(model).expect("read the saved model");
    Trained { report: json(report.as_ref()), model }
}

#[test]
fn the_model_with_the_best_auc_is_the_one_saved() {
    let at = tempfile::tempdir().expect("make folder");
    let every = TEST_EVERY.to_string();
    let tested = train(at.path(), "tested", ROWS / 2, &["--test-freq", &every]);
    let tests = tested.tests();
    assert_eq!(tests.len() as u64, ROWS / BATCH_ROWS / TEST_EVERY, "{tests:?}");
    let ((step, best), last) = (tested.best(), *tests.last().expect("there was a test"));
    assert!(step > TEST_EVERY, "the AUC rises first, so that the file is replaced: {tests:?}");
    assert!(last.1 < best - 0.1, "it falls later, so that the file has to stay: {tests:?}");

    let steps = step.to_string();
    let only = train(at.path(), "only-so-far", ROWS / 2, &["--num-batches", &steps]);
    assert_eq!((only.steps(), only.report["auc"].as_f64()), (step, Some(best)));
    assert!(tested.model == only.model, "saved was not the model of step {step}: {tests:?}");
    let whole = train(at.path(), "untested", ROWS / 2, &[]);
    assert!(whole.model != only.model, "the end is another model");
    assert_eq!(whole.report["auc"].as_f64(), Some(last.1), "a test changes nothing");
}

#[test]
fn the_end_is_saved_where_it_is_the_best() {
    let at = tempfile::tempdir().expect("make folder");
    let steps = ROWS / BATCH_ROWS;
    // no multiple of the steps falls on the last one: the epoch's end is tested all the same
    let every = (steps / 2 + 1).to_string();
    let tested = train(at.path(), "tested", u64::MAX, &["--test-freq", &every]);
    let end = tested.report["auc"].as_f64().expect("the report has an AUC");
    assert_eq!(tested.tests().len(), 2, "{:?}", tested.tests());
    assert_eq!(tested.best(), (steps, end), "the AUC rises to the end: {:?}", tested.tests());
    let untested = train(at.path(), "untested", u64::MAX, &[]);
    assert_eq!(tested.steps(), steps);
    assert!(tested.model == untested.model, "saved was not the model of the end");
}

#[test]
fn training_ends_at_the_first_test_above_the_threshold() {
    let at = tempfile::tempdir().expect("make folder");
    let every = TEST_EVERY.to_string();
    let through = train(at.path(), "through", u64::MAX, &["--test-freq", &every]);
    assert_eq!(through.report["auc_reached"].as_bool(), Some(false), "none was asked for");
    let tests = through.tests();
    // below what a test has by less than tests differ, and above what reading JSON may round
    let asked = tests[tests.len() / 2].1 - 1e-9;
    let first = tests.iter().find(|test| test.1 >= asked).expect("one reaches it").0;
    assert!(first < ROWS / BATCH_ROWS, "it ends before the data does: {tests:?}");
    let threshold = asked.to_string();
    let flags = ["--test-freq", &every, "--mlperf-auc-threshold", &threshold];
    let stopped = train(at.path(), "stopped", u64::MAX, &flags);
    assert_eq!(stopped.report["auc_reached"].as_bool(), Some(true));
    assert_eq!(stopped.steps(), first, "{tests:?}");
    assert_eq!(stopped.tests(), tests[..stopped.tests().len()], "the same way to there");
    assert_eq!(stopped.report["auc"].as_f64(), Some(stopped.tests().last().expect("a test").1));
    let steps = first.to_string();
    let only = train(at.path(), "only-so-far", u64::MAX, &["--num-batches", &steps]);
    assert!(stopped.model == only.model, "saved is the model of the step that reached it");

    let flags = ["--test-freq", &every, "--mlperf-auc-threshold", "1"];
    let missed = train(at.path(), "missed", u64::MAX, &flags);
    assert_eq!(missed.report["auc_reached"].as_bool(), Some(false), "an AUC of 1 is not reached");
    assert_eq!(missed.steps(), ROWS / BATCH_ROWS);
}

#[test]
fn a_folder_has_the_end() {
    let at = tempfile::tempdir().expect("make folder");
    let path = |name: &str| text(&at.path().join(name)).to_owned();
    std::fs::write(path("rows.tsv"), table(ROWS, 0, ROWS / 2)).expect("write rows");
    std::fs::write(path("test.tsv"), table(1024, ROWS, u64::MAX)).expect("write rows");
    let (data, test) = (format!("tsv:{}", path("rows.tsv")), format!("tsv:{}", path("test.tsv")));
    let (ps, model) = (format!("embedded:{}", path("ps")), path("model"));
    let columns = ["--dense-columns", "2", "--arch-sparse-feature-size", "4"];
    let shape = ["--arch-mlp-bot", "2-8-4", "--arch-mlp-top", "16-1"];
    let tests = ["--eval-data", &test, "--test-freq", "8", "--mini-batch-size", "64"];
    let places = ["--ps", &ps, "--data", &data, "--save-model", &model];
    let rate = ["--optimizer", "rwsadagrad", "--learning-rate", "0.1"];
    succeed(WORKER, &[&["train"], &places[..], &columns, &shape, &tests, &rate].concat());
    let card = json(at.path().join("model/model.json").as_ref());
    assert_eq!(card["steps"].as_u64(), Some(ROWS / BATCH_ROWS), "as the server's rows are");
}
