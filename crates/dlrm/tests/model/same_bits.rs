//! The same bits: on any number of threads, in a model made for larger batches, and for one index
//! whether it comes as one-hot or as a bag.

use dlrm::{Architecture, DenseOptimizer, Interaction, Loss, Model};

use crate::batch::{Batch, Way, architecture, made_up};

const ADAM: DenseOptimizer = DenseOptimizer::Adam { beta1: 0.9, beta2: 0.999, eps: 1e-8 };

/// Everything that a training leaves, as bits.
fn train(
    architecture: &Architecture,
    optimizer: DenseOptimizer,
    batches: &[Batch],
    batch_max: usize,
    threads: usize,
) -> Vec<Vec<u32>> {
    let bits = |values: &[f32]| values.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
    let mut model = Model::new(architecture.clone(), optimizer, batch_max, 7, threads).unwrap();
    let mut trace = Vec::new();
    for batch in batches {
        let features = batch.features();
        let mut row_gradients = vec![f32::NAN; batch.rows.len()];
        let loss = model.forward_backward(&batch.step(&features), &mut row_gradients).unwrap();
        model.apply_dense(0.01);
        let mut probabilities = vec![f32::NAN; batch.labels.len()];
        model.predict(&batch.unlabelled(&features), &mut probabilities).unwrap();
        assert!(loss.is_finite() && row_gradients.iter().all(|g| g.is_finite()));
        trace.extend([bits(&[loss]), bits(&row_gradients), bits(&probabilities)]);
    }
    trace.extend(model.parameters().map(|p| bits(&p.values())));
    trace
}

fn batches(architecture: &Architecture, sizes: &[usize]) -> Vec<Batch> {
    let batch = |(i, &size): (usize, &usize)| made_up(architecture, size, 40, 3, 100 + i as u64);
    sizes.iter().enumerate().map(batch).collect()
}

#[test]
fn on_one_two_and_three_threads_and_for_any_largest_batch() {
    for (interaction, optimizer) in [
        (Interaction::Dot, DenseOptimizer::Sgd),
        (Interaction::DotWithItself, DenseOptimizer::Adagrad { eps: 1e-10 }),
        (Interaction::Cat, ADAM),
    ] {
        // more outputs than a panel has, more samples than a tile, and a last, smaller batch
        let shape = architecture(interaction, Loss::Bce, 5, "13-300-16", "140-40-1", 16);
        let batches = batches(&shape, &[700, 700, 130, 1]);
        let expected = train(&shape, optimizer, &batches, 700, 1);
        for (batch_max, threads) in [(700, 2), (700, 3), (4096, 1), (4096, 3), (701, 2)] {
            let found = train(&shape, optimizer, &batches, batch_max, threads);
            assert!(found == expected, "{interaction:?}, {batch_max} largest, {threads} threads");
        }
    }
}

#[test]
fn for_tables_that_features_share() {
    let shape = architecture(Interaction::Dot, Loss::Bce, 4, "3-20-8", "30-1", 8);
    let mut batches = batches(&shape, &[300, 300]);
    for batch in &mut batches {
        for (indices, _) in &mut batch.lists[1..3] {
            indices.iter_mut().for_each(|index| *index %= 50); // rows of feature 0 and some of 1
        }
    }
    let expected = train(&shape, ADAM, &batches, 300, 1);
    assert!(train(&shape, ADAM, &batches, 300, 2) == expected);
}

#[test]
fn on_any_number_of_threads_for_means_and_weighted_sums() {
    let shape = architecture(Interaction::Dot, Loss::Bce, 5, "3-20-8", "30-1", 8);
    let pooled = batches(&shape, &[700, 130]).into_iter().map(|batch| batch.pooled_in_turn(4));
    let mut pooled: Vec<Batch> = pooled.collect();
    for batch in &mut pooled {
        batch.lists[1].0.iter_mut().for_each(|index| *index %= 50); // rows of a weighted feature
    }
    let expected = train(&shape, ADAM, &pooled, 700, 1);
    for threads in [2, 3] {
        assert!(train(&shape, ADAM, &pooled, 700, threads) == expected, "{threads} threads");
    }
    assert!(train(&shape, ADAM, &batches(&shape, &[700, 130]), 700, 1) != expected);
}

#[test]
fn a_mean_of_one_and_a_weight_of_one_are_one_hot() {
    let shape = architecture(Interaction::Dot, Loss::Bce, 3, "3-20-8", "30-1", 8);
    let one_hot = made_up(&shape, 300, 40, 1, 12);
    let expected = train(&shape, ADAM, std::slice::from_ref(&one_hot), 300, 1);
    let ones = vec![1.0; 300];
    for ways in [
        vec![Way::Mean; 3],
        vec![Way::Weighted(ones.clone()); 3],
        vec![Way::Weighted(ones), Way::Sum, Way::Mean],
    ] {
        let batch = Batch { ways, ..one_hot.clone() };
        assert!(train(&shape, ADAM, &[batch], 300, 2) == expected);
    }
}

#[test]
fn a_bag_of_one_is_one_hot_and_a_row_twice_is_the_row_doubled() {
    let shape = architecture(Interaction::Dot, Loss::Bce, 2, "3-8", "8-1", 8);
    let one_hot = made_up(&shape, 20, 6, 1, 9);
    let mut model = Model::new(shape, DenseOptimizer::Sgd, 20, 1, 1).unwrap();
    let mut run = |batch: &Batch| {
        let mut gradients = vec![f32::NAN; batch.rows.len()];
        let features = batch.features();
        let loss = model.forward_backward(&batch.step(&features), &mut gradients).unwrap();
        (loss.to_bits(), gradients)
    };
    let expected = run(&one_hot);
    // the same rows, each index given twice, with every row halved: sums of halves are exact
    let mut doubled = one_hot.clone();
    doubled.rows.iter_mut().for_each(|x| *x *= 0.5);
    for (indices, offsets) in &mut doubled.lists {
        *indices = indices.iter().flat_map(|&i| [i, i]).collect();
        offsets.iter_mut().for_each(|offset| *offset *= 2);
    }
    let found = run(&doubled);
    assert_eq!(found.0, expected.0);
    for (twice, once) in found.1.iter().zip(&expected.1) {
        assert!((twice - 2.0 * once).abs() <= 1e-7, "{twice} {once}");
    }
    // and through the general path: a bag of one beside an empty bag's neighbour
    let mut bags = one_hot.clone();
    let (indices, offsets) = &mut bags.lists[0];
    indices.insert(0, 5);
    offsets.iter_mut().skip(1).for_each(|offset| *offset += 1);
    assert_ne!(run(&bags).0, expected.0);
    let (indices, offsets) = &mut bags.lists[0];
    indices.remove(0);
    offsets.iter_mut().skip(1).for_each(|offset| *offset -= 1);
    assert_eq!(run(&bags), expected);
}

#[test]
fn a_prediction_leaves_the_gradients_of_the_step_before_it() {
    let shape = architecture(Interaction::Dot, Loss::Bce, 2, "3-8", "8-1", 8);
    let (batch, other) = (made_up(&shape, 20, 6, 2, 9), made_up(&shape, 13, 6, 2, 10));
    let weights = |predict: bool| {
        let mut model = Model::new(shape.clone(), DenseOptimizer::Sgd, 20, 1, 2).unwrap();
        let mut gradients = vec![0.0; batch.rows.len()];
        model.forward_backward(&batch.step(&batch.features()), &mut gradients).unwrap();
        if predict {
            let mut probabilities = [0.0; 13];
            model.predict(&other.unlabelled(&other.features()), &mut probabilities).unwrap();
        }
        model.apply_dense(0.1);
        model.parameters().map(|p| p.values().to_vec()).collect::<Vec<_>>()
    };
    assert_eq!(weights(true), weights(false));
}

#[test]
fn whether_a_step_begins_before_its_rows_are_there_or_not() {
    let shape = architecture(Interaction::Dot, Loss::Bce, 2, "3-20-8", "8-1", 8);
    let (batch, other) = (made_up(&shape, 300, 6, 2, 9), made_up(&shape, 300, 6, 2, 10));
    let bits = |values: &[f32]| values.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
    let train = |between: fn(&mut Model, &Batch)| {
        let mut model = Model::new(shape.clone(), DenseOptimizer::Sgd, 300, 1, 2).unwrap();
        let mut trace = Vec::new();
        for _ in 0..2 {
            let mut gradients = vec![f32::NAN; batch.rows.len()];
            between(&mut model, &batch);
            let features = batch.features();
            let loss = model.forward_backward(&batch.step(&features), &mut gradients).unwrap();
            model.apply_dense(0.1);
            trace.extend([bits(&[loss]), bits(&gradients)]);
        }
        // a step that was begun and given up leaves nothing behind
        between(&mut model, &batch);
        let mut probabilities = vec![f32::NAN; 300];
        model.predict(&other.unlabelled(&other.features()), &mut probabilities).unwrap();
        trace.push(bits(&probabilities));
        trace.extend(model.parameters().map(|p| bits(&p.values())));
        trace
    };
    let expected = train(|_, _| ());
    assert!(train(|model, batch| model.begin(&batch.dense).unwrap()) == expected);
    let set_between = train(|model, batch| {
        let weight = model.parameters().next().unwrap();
        let (name, values) = (weight.name.to_owned(), weight.values().to_vec());
        model.set_parameter(&name, &vec![0.5; values.len()]).unwrap();
        model.begin(&batch.dense).unwrap();
        model.set_parameter(&name, &values).unwrap();
    });
    assert!(set_between == expected, "weights that were set after a step began");
}

#[test]
fn whether_the_rows_gradients_come_first_or_all_at_once() {
    let shape = architecture(Interaction::Cat, Loss::Bce, 2, "3-20-8", "8-1", 8);
    let (batch, other) = (made_up(&shape, 300, 6, 2, 9), made_up(&shape, 300, 6, 2, 10));
    let bits = |values: &[f32]| values.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
    let train = |rows_first: bool, between: fn(&mut Model, &Batch)| {
        let mut model = Model::new(shape.clone(), ADAM, 300, 1, 2).unwrap();
        let mut trace = Vec::new();
        for batch in [&batch, &other, &batch] {
            let mut gradients = vec![f32::NAN; batch.rows.len()];
            let features = batch.features();
            let step = batch.step(&features);
            let loss = if rows_first {
                model.rows_first(&step, &mut gradients)
            } else {
                model.forward_backward(&step, &mut gradients)
            };
            between(&mut model, &other);
            model.apply_dense(0.1);
            trace.extend([bits(&[loss.unwrap()]), bits(&gradients)]);
        }
        trace.extend(model.parameters().map(|p| bits(&p.values())));
        trace
    };
    let expected = train(false, |_, _| ());
    assert!(train(true, |_, _| ()) == expected);
    // what replaces the activations that the dense gradients are sums of has them summed before
    assert!(train(true, |model, other| model.begin(&other.dense).unwrap()) == expected);
    let predicted = train(true, |model, other| {
        let mut probabilities = [0.0; 300];
        model.predict(&other.unlabelled(&other.features()), &mut probabilities).unwrap();
    });
    assert!(predicted == expected);
    let given_up = train(true, |model, other| {
        let mut gradients = vec![0.0; other.rows.len()];
        model.rows_first(&other.step(&other.features()), &mut gradients).unwrap();
    });
    assert!(given_up != expected, "the gradients of the later step are applied");
}
