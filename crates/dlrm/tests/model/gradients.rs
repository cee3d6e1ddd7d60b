//! Every gradient against central differences of the oracle in doubles.

use dlrm::{DenseOptimizer, Interaction, Loss, Model};

use crate::batch::{Batch, architecture, made_up};
use crate::oracle::Oracle;

/// f32 sums of some hundred terms of size one, divided by the batch.
const TOLERANCE: f64 = 3e-6;

fn difference(oracle: &mut Oracle, batch: &Batch, place: impl Fn(&mut Oracle) -> &mut f64) -> f64 {
    let step = 1e-6;
    let kept = *place(oracle);
    *place(oracle) = kept + step;
    let above = oracle.loss(batch);
    *place(oracle) = kept - step;
    let below = oracle.loss(batch);
    *place(oracle) = kept;
    (above - below) / (2.0 * step)
}

fn check(interaction: Interaction, loss: Loss, samples: usize, bag_max: u64) {
    check_pooled(interaction, loss, samples, bag_max, |batch| batch);
}

fn check_pooled(
    interaction: Interaction,
    loss: Loss,
    samples: usize,
    bag_max: u64,
    pooled: impl Fn(Batch) -> Batch,
) {
    let bottom = match interaction {
        Interaction::Dot | Interaction::DotWithItself => "4-7-5",
        Interaction::Cat => "4-7-3", // of another width than a row
    };
    let architecture = architecture(interaction, loss, 3, bottom, "6-1", 5);
    let mut model = Model::new(architecture.clone(), DenseOptimizer::Sgd, samples, 3, 1).unwrap();
    let batch = pooled(made_up(&architecture, samples, 4, bag_max, 11));
    let features = batch.features();
    let mut row_gradients = vec![f32::NAN; batch.rows.len()];
    let found = model.forward_backward(&batch.step(&features), &mut row_gradients).unwrap();

    let mut oracle = Oracle::of(&model, &batch);
    assert!((f64::from(found) - oracle.loss(&batch)).abs() < TOLERANCE);
    let (mut moved, mut all) = (0, 0);
    for parameter in model.parameters() {
        for (i, &found) in parameter.gradient.iter().enumerate() {
            let expected = difference(&mut oracle, &batch, |oracle| {
                &mut oracle.parameters.get_mut(parameter.name).unwrap()[i]
            });
            let off = (f64::from(found) - expected).abs();
            assert!(off < TOLERANCE, "{} at {i}: {found}, expected {expected}", parameter.name);
            moved += usize::from(found.abs() > 1e-4);
            all += 1;
        }
    }
    for (i, &found) in row_gradients.iter().enumerate() {
        let expected = difference(&mut oracle, &batch, |oracle| &mut oracle.rows[i]);
        let off = (f64::from(found) - expected).abs();
        assert!(off < TOLERANCE, "row float {i}: {found}, expected {expected}");
        moved += usize::from(found.abs() > 1e-4);
        all += 1;
    }
    assert!(3 * moved > all, "many gradients are not zero: {moved} of {all}");
}

#[test]
fn dot() {
    check(Interaction::Dot, Loss::Bce, 9, 1);
    check(Interaction::Dot, Loss::Bce, 9, 3);
    check(Interaction::Dot, Loss::Mse, 9, 3);
}

#[test]
fn dot_with_itself() {
    check(Interaction::DotWithItself, Loss::Bce, 9, 3);
    check(Interaction::DotWithItself, Loss::Mse, 9, 1);
}

#[test]
fn cat() {
    check(Interaction::Cat, Loss::Bce, 9, 3);
    check(Interaction::Cat, Loss::Mse, 9, 1);
}

#[test]
fn means_and_weighted_sums() {
    for (interaction, samples, bag_max) in [
        (Interaction::Dot, 9, 3),
        (Interaction::DotWithItself, 9, 5),
        (Interaction::Cat, 150, 4),
        (Interaction::Dot, 9, 1),
    ] {
        check_pooled(interaction, Loss::Bce, samples, bag_max, |batch| batch.pooled_in_turn(3));
    }
}

#[test]
fn over_several_tiles_and_a_single_sample() {
    check(Interaction::Dot, Loss::Bce, 150, 2);
    check(Interaction::Cat, Loss::Bce, 150, 2);
    let single = architecture(Interaction::Dot, Loss::Bce, 2, "3-4", "1", 4);
    let mut model = Model::new(single.clone(), DenseOptimizer::Sgd, 1, 0, 1).unwrap();
    let batch = made_up(&single, 1, 2, 1, 5);
    let mut row_gradients = vec![0.0; batch.rows.len()];
    let features = batch.features();
    let loss = model.forward_backward(&batch.step(&features), &mut row_gradients).unwrap();
    assert!((f64::from(loss) - Oracle::of(&model, &batch).loss(&batch)).abs() < 1e-6);
}

#[test]
fn predictions_are_the_oracles() {
    let architecture = architecture(Interaction::DotWithItself, Loss::Bce, 4, "3-9-6", "8-1", 6);
    let mut model = Model::new(architecture.clone(), DenseOptimizer::Sgd, 500, 1, 2).unwrap();
    for samples in [1, 63, 64, 65, 500] {
        let batch = made_up(&architecture, samples, 9, 4, samples as u64).pooled_in_turn(8);
        let oracle = Oracle::of(&model, &batch);
        let mut found = vec![f32::NAN; samples];
        model.predict(&batch.unlabelled(&batch.features()), &mut found).unwrap();
        for (sample, &p) in found.iter().enumerate() {
            assert!((f64::from(p) - oracle.probability(&batch, sample)).abs() < 1e-6);
        }
    }
}
