//! Every gradient against central differences of the oracle in doubles.

use dlrm::{DenseOptimizer, Interaction, Loss, Model};

use crate::batch::{Batch, Noise, architecture, made_up};
use crate::oracle::Oracle;

/// How far a gradient may be off, as a part of itself.
const RELATIVE: f64 = 1e-4;
/// And as a part of the greatest of its tensor: a sum whose terms nearly cancel is only as exact as
/// its terms are in f32.
const OF_GREATEST: f64 = 1e-6;

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

/// What a check is made with.
#[derive(Clone, Copy)]
struct Case {
    interaction: Interaction,
    loss: Loss,
    dim: usize,
    samples: usize,
    bag_max: u64,
    /// Weighted sums, means and sums in turn, instead of sums.
    in_turn: bool,
    /// The second feature takes rows of the first one's table.
    shared: bool,
}

const PLAIN: Case = Case {
    interaction: Interaction::Dot,
    loss: Loss::Bce,
    dim: 5,
    samples: 9,
    bag_max: 3,
    in_turn: false,
    shared: false,
};

fn check(case: Case) {
    let Case { interaction, loss, dim, samples, bag_max, .. } = case;
    let bottom = match interaction {
        Interaction::Dot | Interaction::DotWithItself => format!("4-7-{dim}"),
        Interaction::Cat => "4-7-3".to_owned(), // of another width than a row
    };
    let architecture = architecture(interaction, loss, 3, &bottom, "6-1", dim);
    let mut model = Model::new(architecture.clone(), DenseOptimizer::Sgd, samples, 3, 1).unwrap();
    let mut batch = made_up(&architecture, samples, 4, bag_max, 11);
    if case.in_turn {
        batch = batch.pooled_in_turn(3);
    }
    if case.shared {
        batch.lists[1].0.iter_mut().for_each(|row| *row -= 4);
    }
    let features = batch.features();
    let mut row_gradients = vec![f32::NAN; batch.rows.len()];
    let found = model.forward_backward(&batch.step(&features), &mut row_gradients).unwrap();

    let mut oracle = Oracle::of(&model, &batch);
    assert!((f64::from(found) - oracle.loss(&batch)).abs() < 1e-6);
    let mut tally = Tally::default();
    for parameter in model.parameters() {
        let expected = |i| {
            difference(&mut oracle, &batch, |oracle| {
                &mut oracle.parameters.get_mut(parameter.name).unwrap()[i]
            })
        };
        tally.compare(parameter.name, &parameter.gradient(), expected);
    }
    let expected = |i| difference(&mut oracle, &batch, |oracle| &mut oracle.rows[i]);
    tally.compare("the rows", &row_gradients, expected);
    let Tally { told, all } = tally;
    assert!(3 * told > all, "most gradients are above what may be off: {told} of {all}");
}

#[derive(Default)]
struct Tally {
    /// Gradients of which a part in a hundred would be noticed.
    told: usize,
    all: usize,
}

impl Tally {
    fn compare(&mut self, name: &str, found: &[f32], expected: impl FnMut(usize) -> f64) {
        let expected: Vec<f64> = (0..found.len()).map(expected).collect();
        let greatest = expected.iter().fold(0.0_f64, |greatest, x| greatest.max(x.abs()));
        for (i, (&found, &expected)) in found.iter().zip(&expected).enumerate() {
            let bound = RELATIVE * expected.abs() + OF_GREATEST * greatest;
            let off = (f64::from(found) - expected).abs();
            assert!(off <= bound, "{name} at {i}: {found}, expected {expected} within {bound}");
            self.told += usize::from(bound < 0.01 * expected.abs());
        }
        self.all += found.len();
    }
}

/// Sums, means and weighted sums of every interaction and loss, with widths that have vectors of
/// their own and with one that has none; tables apart and shared.
fn check_all(interaction: Interaction) {
    for loss in [Loss::Bce, Loss::Mse] {
        for (in_turn, shared) in [(false, false), (true, false), (false, true), (true, true)] {
            for dim in [5, 16, 64] {
                check(Case { interaction, loss, dim, in_turn, shared, ..PLAIN });
            }
            check(Case { interaction, loss, in_turn, shared, bag_max: 1, ..PLAIN });
        }
    }
}

#[test]
fn dot() {
    check_all(Interaction::Dot);
}

#[test]
fn dot_with_itself() {
    check_all(Interaction::DotWithItself);
}

#[test]
fn cat() {
    check_all(Interaction::Cat);
}

/// MLPerf's multi-hot sizes ("mlperf_dlrm_v2", 214 lookups a sample), a few of the gradients.
#[test]
fn lists_of_mlperfs_lengths() {
    const LENGTHS: [usize; 26] =
        [3, 2, 1, 2, 6, 1, 1, 1, 1, 7, 3, 8, 1, 6, 9, 5, 1, 1, 1, 12, 100, 27, 10, 3, 1, 1];
    let (samples, table_rows, dim) = (70, 90, 64); // more samples than a tile has
    let architecture = architecture(Interaction::Dot, Loss::Bce, 26, "13-24-64", "16-1", dim);
    let mut batch = made_up(&architecture, samples, table_rows, 1, 21);
    let mut noise = Noise(22);
    for (f, ((indices, offsets), length)) in batch.lists.iter_mut().zip(LENGTHS).enumerate() {
        let index = |_| (f * table_rows) as u32 + noise.below(table_rows as u64) as u32;
        *indices = (0..samples * length).map(index).collect();
        *offsets = (0..=samples).map(|sample| (sample * length) as u32).collect();
    }
    batch.rows.iter_mut().for_each(|x| *x *= 0.1); // sums of a hundred stay of size one
    for batch in [batch.clone(), batch.pooled_in_turn(5)] {
        let mut model = Model::new(architecture.clone(), DenseOptimizer::Sgd, 70, 3, 2).unwrap();
        let features = batch.features();
        let mut found = vec![f32::NAN; batch.rows.len()];
        let loss = model.forward_backward(&batch.step(&features), &mut found).unwrap();
        let mut oracle = Oracle::of(&model, &batch);
        assert!((f64::from(loss) - oracle.loss(&batch)).abs() < 1e-6);
        let greatest = found.iter().fold(0.0_f32, |greatest, x| greatest.max(x.abs()));
        for place in (0..found.len()).step_by(1_301) {
            let expected = difference(&mut oracle, &batch, |oracle| &mut oracle.rows[place]);
            let bound = RELATIVE * expected.abs() + OF_GREATEST * f64::from(greatest);
            let off = (f64::from(found[place]) - expected).abs();
            assert!(off <= bound, "row float {place}: {}, expected {expected}", found[place]);
        }
    }
}

#[test]
fn over_several_tiles_and_a_single_sample() {
    for interaction in [Interaction::Dot, Interaction::Cat] {
        for in_turn in [false, true] {
            check(Case { interaction, samples: 150, bag_max: 4, in_turn, ..PLAIN });
        }
    }
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
