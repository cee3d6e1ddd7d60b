//! Weights and optimizer state out and in again, and weights that belong elsewhere.

use std::collections::HashMap;

use dlrm::{Carried, DenseOptimizer, Error, Interaction, Loss, Model};
use safetensors::tensor::{Dtype, SafeTensors, TensorView};

use crate::batch::{Batch, architecture, made_up};

const ADAM: DenseOptimizer = DenseOptimizer::Adam { beta1: 0.9, beta2: 0.999, eps: 1e-8 };
const ADAGRAD: DenseOptimizer = DenseOptimizer::Adagrad { eps: 1e-10 };

fn new(optimizer: DenseOptimizer, seed: u64) -> Model {
    let shape = architecture(Interaction::Dot, Loss::Bce, 2, "3-6-4", "5-1", 4);
    Model::new(shape, optimizer, 8, seed, 1).unwrap()
}

fn step(model: &mut Model, batch: &Batch) {
    let mut gradients = vec![0.0; batch.rows.len()];
    model.forward_backward(&batch.step(&batch.features()), &mut gradients).unwrap();
    model.apply_dense(0.05);
}

fn values(model: &Model) -> Vec<Vec<f32>> {
    model.parameters().map(|p| p.values().to_vec()).collect()
}

/// A tensor of zeros in the place of another, or none.
type Edit = Option<(Dtype, Vec<usize>)>;

fn edited(bytes: &[u8], edits: &[(&str, Edit)]) -> Vec<u8> {
    let file = SafeTensors::deserialize(bytes).unwrap();
    let zeros = vec![0; 4096];
    let mut tensors: HashMap<String, TensorView<'_>> = file.tensors().into_iter().collect();
    for (name, edit) in edits {
        match edit {
            None => assert!(tensors.remove(*name).is_some(), "{name}"),
            Some((dtype, shape)) => {
                let bytes = shape.iter().product::<usize>() * dtype.bitsize() / 8;
                let view = TensorView::new(*dtype, shape.clone(), &zeros[..bytes]).unwrap();
                tensors.insert((*name).to_owned(), view);
            }
        }
    }
    safetensors::serialize(tensors, None).unwrap()
}

#[test]
fn names_and_shapes_are_the_references() {
    let model = new(DenseOptimizer::Sgd, 0);
    let found: Vec<_> = model.parameters().map(|p| (p.name, p.shape.to_vec())).collect();
    let expected = [
        ("bot_l.0.weight", vec![6, 3]),
        ("bot_l.0.bias", vec![6]),
        ("bot_l.2.weight", vec![4, 6]),
        ("bot_l.2.bias", vec![4]),
        ("top_l.0.weight", vec![5, 7]),
        ("top_l.0.bias", vec![5]),
        ("top_l.2.weight", vec![1, 5]),
        ("top_l.2.bias", vec![1]),
    ];
    assert_eq!(found, expected);
}

#[test]
fn training_goes_on_from_a_file_as_if_it_had_not_stopped() {
    for optimizer in [DenseOptimizer::Sgd, ADAGRAD, ADAM] {
        let mut through = new(optimizer, 5);
        let batches: Vec<Batch> =
            (0..6).map(|i| made_up(through.architecture(), 8, 4, 2, i)).collect();
        batches[..3].iter().for_each(|batch| step(&mut through, batch));
        let bytes = through.to_safetensors().unwrap();
        assert_eq!(bytes, through.to_safetensors().unwrap(), "the same model, the same bytes");
        let mut resumed = new(optimizer, 6);
        step(&mut resumed, &batches[0]); // state that must go
        let carried = resumed.load_safetensors(&bytes).unwrap();
        assert_eq!(carried == Carried::Weights, optimizer == DenseOptimizer::Sgd);
        for batch in &batches[3..] {
            step(&mut through, batch);
            step(&mut resumed, batch);
        }
        assert_eq!(values(&through), values(&resumed), "{optimizer:?}");
    }
}

#[test]
fn weights_alone_begin_the_state_anew_and_tables_are_passed_over() {
    let bytes = new(DenseOptimizer::Sgd, 5).to_safetensors().unwrap();
    let bytes = edited(&bytes, &[("emb_l.0.weight", Some((Dtype::F32, vec![9, 4])))]);
    let batch = made_up(new(ADAM, 0).architecture(), 8, 4, 2, 3);
    let trained = |before: usize| {
        let mut model = new(ADAM, 1);
        (0..before).for_each(|_| step(&mut model, &batch));
        assert_eq!(model.load_safetensors(&bytes).unwrap(), Carried::Weights);
        step(&mut model, &batch);
        values(&model)
    };
    assert_eq!(trained(0), trained(3));
}

#[test]
fn a_file_that_does_not_fit_is_refused_by_name_and_changes_nothing() {
    let mut model = new(ADAGRAD, 1);
    let before = model.to_safetensors().unwrap();
    let other = new(ADAGRAD, 2).to_safetensors().unwrap();
    let shape = |dtype, shape: &[usize]| Some((dtype, shape.to_vec()));
    let mut refused = |bytes: &[u8]| {
        let error = model.load_safetensors(bytes).unwrap_err();
        assert_eq!(model.to_safetensors().unwrap(), before, "after {error}");
        error
    };
    let error = refused(&edited(&other, &[("top_l.2.bias", None)]));
    assert!(matches!(&error, Error::MissingTensor { name } if name == "top_l.2.bias"), "{error}");
    let error = refused(&edited(&other, &[("optim.bot_l.0.bias.acc", None)]));
    assert!(matches!(&error, Error::MissingTensor { name } if name.ends_with(".acc")), "{error}");
    let error = refused(&edited(&other, &[("bot_l.0.weight", shape(Dtype::F32, &[3, 6]))]));
    assert_eq!(error.to_string(), "tensor bot_l.0.weight is F32 [3, 6], expected F32 [6, 3]");
    let error = refused(&edited(&other, &[("bot_l.0.bias", shape(Dtype::F64, &[6]))]));
    assert!(matches!(&error, Error::Tensor { name, .. } if name == "bot_l.0.bias"), "{error}");
    let error = refused(&edited(&other, &[("bot_l.4.bias", shape(Dtype::F32, &[6]))]));
    assert!(matches!(&error, Error::UnknownTensor { name } if name == "bot_l.4.bias"), "{error}");
    let error = refused(&new(ADAM, 2).to_safetensors().unwrap());
    assert!(matches!(&error, Error::MissingTensor { .. }), "another optimizer's state: {error}");
    assert!(matches!(refused(&other[..40]), Error::Safetensors(_)));
    assert!(matches!(refused(b""), Error::Safetensors(_)));
}

#[test]
fn a_parameter_can_be_set_by_name() {
    let mut model = new(DenseOptimizer::Sgd, 1);
    model.set_parameter("top_l.2.bias", &[0.75]).unwrap();
    let bias = model.parameters().find(|p| p.name == "top_l.2.bias").unwrap();
    assert_eq!(*bias.values(), [0.75]);
    assert!(matches!(model.set_parameter("top_l.2.bias", &[]), Err(Error::Tensor { .. })));
    assert!(matches!(model.set_parameter("top_l.9.bias", &[]), Err(Error::UnknownTensor { .. })));
}
