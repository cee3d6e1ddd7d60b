//! What the model refuses: each fault is told by what was found and what was expected.

use dlrm::{DenseOptimizer, Error, FeatureRows, Interaction, Loss, Model, Pooling};

use crate::batch::{Batch, Way, architecture, made_up};

fn model() -> (Model, Batch) {
    let shape = architecture(Interaction::Dot, Loss::Bce, 2, "3-4", "5-1", 4);
    let batch = made_up(&shape, 6, 5, 2, 1);
    (Model::new(shape, DenseOptimizer::Sgd, 6, 0, 1).unwrap(), batch)
}

fn refused(change: impl Fn(&mut Batch)) -> Error {
    let (mut model, mut batch) = model();
    change(&mut batch);
    let mut gradients = vec![0.0; batch.rows.len()];
    model.forward_backward(&batch.step(&batch.features()), &mut gradients).unwrap_err()
}

#[test]
fn a_buffer_of_the_wrong_length_is_named() {
    let is = |error: Error, name: &str| {
        assert!(matches!(&error, Error::Shape { what, .. } if *what == name), "{error}");
    };
    is(refused(|b| b.dense.truncate(17)), "dense");
    is(refused(|b| b.rows.truncate(39)), "rows");
    is(refused(|b| b.lists.truncate(1)), "features");
    is(refused(|b| b.lists[1].1.truncate(6)), "offsets");
    let weights = |len: usize| move |b: &mut Batch| b.ways[1] = Way::Weighted(vec![1.0; len]);
    let indices = model().1.lists[1].0.len();
    is(refused(weights(indices - 1)), "weights");
    is(refused(weights(indices + 1)), "weights");
    let (mut model, batch) = model();
    let mut short = vec![0.0; batch.rows.len() - 4];
    let error = model.forward_backward(&batch.step(&batch.features()), &mut short).unwrap_err();
    is(error, "row gradients");
}

#[test]
fn a_batch_too_large_or_empty_is_refused() {
    let (mut model, batch) = model();
    let features = batch.features();
    for size in [0, 7] {
        let mut probabilities = vec![0.0; size];
        let error = model.predict(&batch.unlabelled(&features), &mut probabilities).unwrap_err();
        assert!(matches!(error, Error::Batch { found, max: 6 } if found == size), "{error}");
    }
}

#[test]
fn offsets_and_indices_that_name_no_row_are_told_with_their_place() {
    let offset = |error: Error, place: usize| {
        assert!(
            matches!(error, Error::Offset { feature: 1, sample, .. } if sample == place),
            "{error}"
        );
    };
    offset(refused(|b| b.lists[1].1[0] = 1), 0);
    offset(
        refused(|b| {
            let last = b.lists[1].1[6];
            b.lists[1].1[2] = last + 1;
        }),
        3,
    );
    offset(refused(|b| b.lists[1].1[6] += 1), 6);
    let error = refused(|b| *b.lists[0].0.last_mut().unwrap() = 10);
    assert!(matches!(error, Error::Index { feature: 0, found: 10, rows: 10, .. }), "{error}");
}

#[test]
fn a_refused_step_leaves_nothing_to_apply() {
    let (mut model, mut batch) = model();
    let mut gradients = vec![0.0; batch.rows.len()];
    model.forward_backward(&batch.step(&batch.features()), &mut gradients).unwrap();
    batch.dense.pop();
    model.forward_backward(&batch.step(&batch.features()), &mut gradients).unwrap_err();
    let apply = std::panic::AssertUnwindSafe(|| model.apply_dense(0.1));
    assert!(std::panic::catch_unwind(apply).is_err());
}

#[test]
fn a_batch_without_any_index_trains_the_dense_part() {
    let (mut model, mut batch) = model();
    for (indices, offsets) in &mut batch.lists {
        indices.clear();
        offsets.fill(0);
    }
    batch.rows.clear();
    let loss = model.forward_backward(&batch.step(&batch.features()), &mut []).unwrap();
    assert!(loss.is_finite());
    model.apply_dense(0.1);
}

#[test]
fn a_loss_that_is_not_finite_is_seen() {
    let (mut model, mut batch) = model();
    batch.dense[4] = f32::NAN;
    let mut gradients = vec![0.0; batch.rows.len()];
    let loss = model.forward_backward(&batch.step(&batch.features()), &mut gradients).unwrap();
    assert!(loss.is_nan());
}

#[test]
fn a_model_that_cannot_be_is_refused() {
    let (model, _) = model();
    let shape = model.architecture().clone();
    let is = |result: Result<Model, Error>, name: &str| {
        let error = result.unwrap_err();
        assert!(matches!(&error, Error::Field { field, .. } if *field == name), "{error}");
    };
    let sgd = DenseOptimizer::Sgd;
    is(Model::new(shape.clone(), sgd, 0, 0, 1), "largest batch");
    is(Model::new(shape.clone(), sgd, 1, 0, 0), "threads");
    is(Model::new(shape.clone(), DenseOptimizer::Adagrad { eps: 0.0 }, 1, 0, 1), "dense optimizer");
    let mut other = shape;
    other.mlp_bottom[1] = 5;
    is(Model::new(other, sgd, 1, 0, 1), "mlp_bottom");
}

#[test]
fn features_may_be_given_by_anyone() {
    let (indices, offsets) = (vec![0_u32; 6], (0..=6).collect::<Vec<u32>>());
    let (mut model, batch) = model();
    let feature = FeatureRows { indices: &indices, offsets: &offsets, pooling: Pooling::Mean };
    let features = [feature, feature];
    model.predict(&batch.unlabelled(&features), &mut [0.0; 6]).unwrap();
}
