//! The worker's pipeline beside a loop that does one thing after the other: stage, pull, compute,
//! push. Batches are large enough for every pull to run beside the bottom MLP.

use dataset::{Batch, DenseTransform, ReadOptions, Unique, unique};
use dlrm::{
    Architecture, DenseOptimizer, FeatureRows, Interaction, Loss, Model, Pooling, StepInput,
    parse_widths,
};
use server::{EmbeddedConfig, open_embedded};
use table::{Step, TableId};

use crate::binaries::{WORKER, json, losses, succeed, text};

const DATA: &str = "synthetic:scale=0.01,rows=65536,seed=4";
const BATCH: usize = 8192;
const LEARNING_RATE: f32 = 0.1;
const DIM: usize = 16;
/// Floats of a pull from which on the worker computes meanwhile.
const BESIDE: usize = 1 << 18;

#[test]
fn the_pipeline_trains_the_losses_of_a_plain_loop() {
    let at = tempfile::tempdir().expect("make folder");
    let path = |name: &str| text(&at.path().join(name)).to_owned();
    let (ps, report, batch) =
        (format!("embedded:{}", path("worker")), path("report.json"), BATCH.to_string());
    let data = ["train", "--ps", &ps, "--data", DATA, "--mini-batch-size", &batch];
    let model = ["--arch-mlp-bot", "13-32-16", "--arch-mlp-top", "32-1", "--threads", "2"];
    let report_to = ["--report", &report, "--report-losses"];
    succeed(WORKER, &[&data[..], &model, &report_to].concat());
    let found = losses(&json(report.as_ref()));

    let made = open_embedded(EmbeddedConfig::new(at.path().join("worker"), 64 << 20))
        .expect("open the worker's store");
    let specs = made.session().tables().expect("its tables");
    made.close().expect("close it");
    let store = open_embedded(EmbeddedConfig::new(at.path().join("plain"), 64 << 20))
        .expect("make another");
    let session = store.session();
    let create = |(_, spec): &(TableId, _)| session.create_table(spec).expect("make a table");
    let tables: Vec<TableId> = specs.iter().map(create).collect();
    let architecture = Architecture {
        sparse_feature_size: DIM,
        features: tables.len(),
        mlp_bottom: parse_widths("13-32-16").expect("widths"),
        mlp_top: parse_widths("32-1").expect("widths"),
        interaction: Interaction::Dot,
        loss: Loss::Bce,
    };
    let mut model =
        Model::new(architecture, DenseOptimizer::Sgd, BATCH, 1, 1).expect("make a model");
    let dense_transform = DenseTransform::Log1p;
    let options = ReadOptions { dense_transform, ..ReadOptions::new(BATCH) };
    let mut reader = dataset::open(&DATA.parse().expect("a source"), &options).expect("open data");
    let (mut batch, mut keys, mut expected) = (Batch::new(), Unique::default(), Vec::new());
    while reader.next_batch(&mut batch).expect("read a batch") {
        unique(&batch, &tables, &mut keys).expect("find its keys");
        let step = Step(expected.len() as u64);
        let floats = keys.keys.len() * DIM;
        assert!(floats > BESIDE, "{floats} floats");
        let (mut rows, mut gradients) = (vec![0.0; floats], vec![0.0; floats]);
        session.stage(step, &keys.keys).expect("stage");
        session.pull(step, &mut rows).expect("pull");
        let lists = keys.inverse.iter().zip(&batch.features);
        let features: Vec<FeatureRows<'_>> = lists
            .map(|(indices, feature)| {
                let (offsets, pooling) = (&feature.offsets, Pooling::Sum);
                FeatureRows { indices, offsets, pooling }
            })
            .collect();
        let (dense, labels) = (&batch.dense, &batch.labels);
        let input = StepInput { dense, labels, rows: &rows, features: &features };
        expected.push(model.forward_backward(&input, &mut gradients).expect("compute"));
        session.push(step, &gradients, LEARNING_RATE).expect("push");
        model.apply_dense(LEARNING_RATE);
    }
    let expected: Vec<f64> = expected.into_iter().map(f64::from).collect();
    assert_eq!(expected.len(), 8);
    // what the report says is the shortest decimal of the float: as near as doubles are
    for (step, (found, expected)) in found.iter().zip(&expected).enumerate() {
        assert!(
            (*found as f32).to_bits() == (*expected as f32).to_bits(),
            "step {step}: {found} {expected}"
        );
    }
    assert_eq!(found.len(), expected.len());
}
