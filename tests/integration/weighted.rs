//! Lists of ids with weights, from a Parquet file through training: an id of weight two counts as
//! the id twice, whatever carries its row; and a whole model that goes out and comes in again
//! predicts the same.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use arrow_array::builder::{Float32Builder, Int64Builder, ListBuilder};
use arrow_array::{ArrayRef, Float32Array, Int64Array, RecordBatch};
use parquet::arrow::ArrowWriter;

use crate::binaries::{Server, WORKER, json, losses, succeed, text};

const ROWS: usize = 1200;
const IDS: u64 = 40;

/// Ids of a feature of a row, each with its weight.
type List = Vec<(i64, f32)>;

/// Labels and, for two features, up to four ids of weight one or two.
fn rows() -> (Vec<i64>, [Vec<List>; 2]) {
    let mut state = 11_u64;
    let mut draw = |below: u64| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963);
        (state >> 33) % below
    };
    let (mut labels, mut lists) = (Vec::new(), [Vec::new(), Vec::new()]);
    for _ in 0..ROWS {
        let mut sum = 0;
        for feature in &mut lists {
            let list: List =
                (0..draw(5)).map(|_| (draw(IDS) as i64, [1.0, 2.0][draw(2) as usize])).collect();
            sum += list
                .iter()
                .map(|&(id, weight)| if id % 3 == 0 { weight as i64 } else { 0 })
                .sum::<i64>();
            feature.push(list);
        }
        labels.push(i64::from(sum > 2));
    }
    (labels, lists)
}

/// Writes the rows with their weights, or with each id as often as it weighs.
fn write(path: &Path, spelled_out: bool) {
    let (labels, lists) = rows();
    let dense: Vec<f32> = (0..ROWS).map(|row| (row % 7) as f32).collect();
    let mut columns: Vec<(String, ArrayRef)> = vec![
        ("label".to_owned(), Arc::new(Int64Array::from(labels))),
        ("I1".to_owned(), Arc::new(Float32Array::from(dense))),
    ];
    for (f, lists) in lists.iter().enumerate() {
        let (mut ids, mut weights) =
            (ListBuilder::new(Int64Builder::new()), ListBuilder::new(Float32Builder::new()));
        for list in lists {
            let times = |weight: f32| if spelled_out { weight as usize } else { 1 };
            let taken = list.iter().flat_map(|&(id, weight)| vec![Some(id); times(weight)]);
            ids.append_value(taken);
            weights.append_value(list.iter().map(|&(_, weight)| Some(weight)));
        }
        columns.push((format!("C{}", f + 1), Arc::new(ids.finish())));
        if !spelled_out {
            columns.push((format!("C{}_weights", f + 1), Arc::new(weights.finish())));
        }
    }
    let batch = RecordBatch::try_from_iter(columns).expect("a batch of these columns");
    let file = File::create(path).expect("make the file");
    let mut writer = ArrowWriter::try_new(file, batch.schema(), None).expect("begin the file");
    writer.write(&batch).expect("write the rows");
    writer.close().expect("end the file");
}

#[test]
fn an_id_of_weight_two_trains_as_the_id_twice() {
    let at = tempfile::tempdir().expect("make folder");
    let path = |name: &str| text(&at.path().join(name)).to_owned();
    write(&at.path().join("weighted.parquet"), false);
    write(&at.path().join("spelled.parquet"), true);
    let train = |name: &str, ps: &str, data: &str, pooling: &str| {
        let report = path(&format!("{name}.json"));
        let ids = IDS.to_string();
        let data = ["train", "--ps", ps, "--data", data, "--mini-batch-size", "100"];
        let model = ["--arch-mlp-bot", "1-16-16", "--arch-mlp-top", "16-1", "--nepochs", "3"];
        let tables = ["--max-ind-range", &ids, "--pooling", pooling, "--learning-rate", "0.2"];
        let report_to = ["--report", &report, "--report-losses"];
        succeed(WORKER, &[&data[..], &model, &tables, &report_to].concat());
        losses(&json(report.as_ref()))
    };
    let (weighted, spelled) = (path("weighted.parquet"), path("spelled.parquet"));
    let (weighted, spelled) = (format!("parquet:{weighted}"), format!("parquet:{spelled}"));
    let embedded = |name: &str| format!("embedded:{}", path(name));
    let twice = train("twice", &embedded("twice"), &spelled, "sum");
    let found = train("weighted", &embedded("weighted"), &weighted, "weighted");
    assert_eq!(found.len(), 36);
    for (step, (found, expected)) in found.iter().zip(&twice).enumerate() {
        assert!((found - expected).abs() < 2e-5, "step {step}: {found}, expected {expected}");
    }
    assert!(found[35] < 0.9 * found[0], "it learns: {found:?}");
    // through a server and from a cache: the same bits
    let server = Server::start(&at.path().join("server"), &[]);
    assert_eq!(found, train("served", &server.grpc, &weighted, "weighted"));
    server.stop();
    let (ids, output) = (IDS.to_string(), path("cache"));
    let write = ["cache", "--data", &weighted, "--mini-batch-size", "100", "--output", &output];
    succeed(WORKER, &[&write[..], &["--pooling", "weighted", "--max-ind-range", &ids]].concat());
    let cached = format!("cache:{output}");
    assert_eq!(found, train("cached", &embedded("cached"), &cached, "weighted"));
}

#[test]
fn a_model_that_went_out_whole_and_came_in_again_predicts_the_same() {
    let at = tempfile::tempdir().expect("make folder");
    let path = |name: &str| text(&at.path().join(name)).to_owned();
    write(&at.path().join("rows.parquet"), false);
    let (data, ids) = (format!("parquet:{}", path("rows.parquet")), IDS.to_string());
    let train = |ps: &str, saved: &str, more: &[&str]| {
        let data = ["train", "--ps", ps, "--data", &data, "--mini-batch-size", "100"];
        let model = ["--arch-mlp-bot", "1-16-16", "--arch-mlp-top", "16-1", "--save-model", saved];
        let tables = ["--max-ind-range", &ids, "--pooling", "weighted", "--optimizer", "adagrad"];
        succeed(WORKER, &[&data[..], &model, &tables, more].concat());
    };
    let predict = |ps: &str, saved: &str, output: &str| {
        let model = ["predict", "--ps", ps, "--load-model", saved, "--data", &data];
        succeed(WORKER, &[&model[..], &["--output", output]].concat());
        std::fs::read(output).expect("predictions")
    };
    let (first, second) = (format!("embedded:{}", path("a")), format!("embedded:{}", path("b")));
    let (saved, again, whole) = (path("a-model"), path("b-model"), path("w.safetensors"));
    train(&first, &saved, &["--learning-rate", "0.1", "--nepochs", "2"]);
    let export = ["export", "--ps", &first, "--load-model", &saved, "--output", &whole];
    succeed(WORKER, &export);
    // a step that moves nothing
    let still = ["--learning-rate", "0", "--num-batches", "1", "--seed", "9"];
    train(&second, &again, &[&still[..], &["--init-from", &whole]].concat());
    let expected = predict(&first, &saved, &path("a.txt"));
    assert!(expected == predict(&second, &again, &path("b.txt")), "other predictions");
    // and out once more: the same file
    let twice = path("twice.safetensors");
    let export = ["export", "--ps", &second, "--load-model", &again, "--output", &twice];
    succeed(WORKER, &export);
    let bytes = |path: &str| std::fs::read(path).expect("weights");
    assert!(bytes(&whole) == bytes(&twice), "other weights");
}
