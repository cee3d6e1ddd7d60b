//! Gradients beside PyTorch's own, where a Python with torch is: of every interaction, way of
//! pooling and loss.

use std::collections::HashMap;
use std::path::Path;
use std::process::Command;

use dlrm::{DenseOptimizer, Interaction, Loss, Model};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, serialize_to_file};

use crate::batch::{Batch, Way, architecture, made_up};

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../ops/pytorch/gradients.py");

/// Tensors by name, as bytes.
#[derive(Default)]
struct Tensors(HashMap<String, (Dtype, Vec<usize>, Vec<u8>)>);

impl Tensors {
    fn floats(&mut self, name: &str, shape: &[usize], values: &[f32]) {
        let bytes = values.iter().flat_map(|x| x.to_le_bytes()).collect();
        self.0.insert(name.to_owned(), (Dtype::F32, shape.to_vec(), bytes));
    }

    fn places(&mut self, name: &str, values: &[u32]) {
        let bytes = values.iter().flat_map(|&x| i64::from(x).to_le_bytes()).collect();
        self.0.insert(name.to_owned(), (Dtype::I64, vec![values.len()], bytes));
    }

    fn write(&self, path: &Path) {
        let mut views = HashMap::new();
        for (name, (kind, shape, bytes)) in &self.0 {
            views.insert(name.clone(), TensorView::new(*kind, shape.clone(), bytes).unwrap());
        }
        serialize_to_file(&views, None, path).unwrap();
    }
}

/// Everything that a step begins with, and the gradients that it gives.
fn step(model: &mut Model, batch: &Batch) -> Tensors {
    let architecture = model.architecture().clone();
    let (samples, dim) = (batch.labels.len(), architecture.sparse_feature_size);
    let features = batch.features();
    let mut row_gradients = vec![f32::NAN; batch.rows.len()];
    model.forward_backward(&batch.step(&features), &mut row_gradients).unwrap();
    let mut tensors = Tensors::default();
    tensors.floats("dense", &[samples, architecture.dense_width()], &batch.dense);
    tensors.floats("labels", &[samples], &batch.labels);
    let of_rows = [batch.rows.len() / dim, dim];
    tensors.floats("rows", &of_rows, &batch.rows);
    tensors.floats("gradient rows", &of_rows, &row_gradients);
    for parameter in model.parameters() {
        tensors.floats(parameter.name, parameter.shape, &parameter.values());
        let name = format!("gradient {}", parameter.name);
        tensors.floats(&name, parameter.shape, &parameter.gradient());
    }
    for (f, ((indices, offsets), way)) in batch.lists.iter().zip(&batch.ways).enumerate() {
        tensors.places(&format!("indices {f}"), indices);
        tensors.places(&format!("offsets {f}"), offsets);
        match way {
            Way::Sum => (),
            Way::Mean => tensors.places(&format!("mean {f}"), &[]),
            Way::Weighted(weights) => {
                tensors.floats(&format!("weights {f}"), &[weights.len()], weights);
            }
        }
    }
    tensors
}

/// Whether the script finds the gradients to be PyTorch's, and what it says.
fn agrees(tensors: &Tensors, interaction: &str, loss: &str) -> (bool, String) {
    let python = std::env::var_os("EMBEDDING_PS_PYTHON").expect("EMBEDDING_PS_PYTHON is set");
    let file = tempfile::NamedTempFile::new().unwrap();
    tensors.write(file.path());
    let mut command = Command::new(python);
    command.args([SCRIPT, "--interaction", interaction, "--loss", loss]).arg(file.path());
    let output = command.output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8_lossy(&said).into_owned())
}

#[test]
#[ignore = "needs EMBEDDING_PS_PYTHON"]
fn gradients_are_pytorchs() {
    let mut last = None;
    for (interaction, named) in [
        (Interaction::Dot, "dot"),
        (Interaction::DotWithItself, "dot_with_itself"),
        (Interaction::Cat, "cat"),
    ] {
        for (loss, loss_named) in [(Loss::Bce, "bce"), (Loss::Mse, "mse")] {
            for dim in [16, 64] {
                let shape =
                    architecture(interaction, loss, 6, &format!("13-40-{dim}"), "24-1", dim);
                let mut model = Model::new(shape.clone(), DenseOptimizer::Sgd, 300, 5, 2).unwrap();
                let summed = made_up(&shape, 300, 50, 9, 31);
                for batch in [summed.clone(), summed.pooled_in_turn(6)] {
                    let tensors = step(&mut model, &batch);
                    let (same, said) = agrees(&tensors, named, loss_named);
                    assert!(same, "{named}, {loss_named}, dim {dim}: {said}");
                    last = Some((tensors, named, loss_named));
                }
            }
        }
    }
    // one float of a row's gradient off by a part in a thousand must show
    let (mut tensors, interaction, loss) = last.unwrap();
    let (_, _, bytes) = tensors.0.get_mut("gradient rows").unwrap();
    let (floats, _) = bytes.as_chunks_mut::<4>();
    let size = |bytes: &[u8; 4]| f32::from_le_bytes(*bytes).abs();
    let greatest = floats.iter_mut().max_by(|a, b| size(a).total_cmp(&size(b))).unwrap();
    *greatest = (f32::from_le_bytes(*greatest) * 1.001).to_le_bytes();
    let (same, said) = agrees(&tensors, interaction, loss);
    assert!(!same && said.contains("rows"), "a changed gradient went unnoticed: {said}");
}
