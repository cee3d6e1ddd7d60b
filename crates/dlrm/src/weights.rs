//! The dense part as safetensors bytes, in and out: weights under facebookresearch/dlrm's names,
//! the optimizer's state under `optim.` and the weight's name. It opens no file and leaves the
//! embedding tables (`emb_l.*`) to whoever has them.

use std::borrow::Cow;

use safetensors::tensor::{Dtype, SafeTensors, TensorView, View};

use crate::{Error, Model, Result};

const STATE_PREFIX: &str = "optim.";
const STEPS_NAME: &str = "optim.step";
const TABLES_PREFIX: &str = "emb_l.";

/// What a file of weights brought.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Carried {
    /// Weights alone; the optimizer's state, if it has any, begins anew.
    Weights,
    /// Weights and the optimizer's state: training goes on where it was.
    WeightsAndState,
}

struct Floats<'a> {
    shape: &'a [usize],
    values: Cow<'a, [u8]>,
    dtype: Dtype,
}

impl Model {
    /// The weights and, where the optimizer has any, its state.
    pub fn to_safetensors(&self) -> Result<Vec<u8>> {
        let names = self.optimizer().state_names();
        let mut tensors: Vec<(String, Floats<'_>)> = Vec::new();
        for tensor in self.tensors() {
            tensors.push((tensor.name.clone(), Floats::new(&tensor.shape, tensor.values.dense())));
            for (name, state) in names.iter().zip(&tensor.state) {
                let floats = Floats::new(&tensor.shape, state.dense());
                tensors.push((state_name(&tensor.name, name), floats));
            }
        }
        if self.optimizer().counts_steps() {
            let values = Cow::Owned(i64::from(self.steps).to_le_bytes().to_vec());
            tensors.push((STEPS_NAME.to_owned(), Floats { shape: &[], values, dtype: Dtype::I64 }));
        }
        Ok(safetensors::serialize(tensors, None)?)
    }

    /// Takes the weights, and the optimizer's state where there is any. Every parameter must be
    /// there in its shape and nothing else, but for the tables' weights (`emb_l.*`), which are
    /// passed over. State comes whole or not at all. On an error the model is as it was.
    pub fn load_safetensors(&mut self, bytes: &[u8]) -> Result<Carried> {
        let file = SafeTensors::deserialize(bytes)?;
        let with_state = file.names().iter().any(|name| name.starts_with(STATE_PREFIX));
        let state_names = self.optimizer().state_names();
        let counts_steps = self.optimizer().counts_steps();
        let mut left: Vec<&str> =
            file.names().into_iter().filter(|name| !name.starts_with(TABLES_PREFIX)).collect();
        left.sort_unstable();
        let mut take = |name: &str, dtype: Dtype, shape: &[usize]| {
            let tensor = find(&file, name, dtype, shape)?;
            left.retain(|other| *other != name);
            Ok::<_, Error>(tensor)
        };
        let mut weights = Vec::new();
        let mut states = Vec::new();
        for tensor in self.tensors() {
            weights.push(floats(&take(&tensor.name, Dtype::F32, &tensor.shape)?));
            for name in state_names.iter().filter(|_| with_state) {
                let name = state_name(&tensor.name, name);
                states.push(floats(&take(&name, Dtype::F32, &tensor.shape)?));
            }
        }
        let steps = if with_state && counts_steps {
            read_steps(&take(STEPS_NAME, Dtype::I64, &[])?)?
        } else {
            0
        };
        if let Some(name) = left.first() {
            return Err(Error::UnknownTensor { name: (*name).to_owned() });
        }
        let (mut weights, mut states) = (weights.into_iter(), states.into_iter());
        self.steps = steps;
        for tensor in self.tensors_mut() {
            tensor.values.set_dense(&weights.next().expect("one for each parameter"));
            for state in &mut tensor.state {
                match states.next() {
                    Some(loaded) => state.set_dense(&loaded),
                    None => state.all_mut().fill(0.0),
                }
            }
        }
        Ok(if with_state { Carried::WeightsAndState } else { Carried::Weights })
    }
}

fn state_name(parameter: &str, state: &str) -> String {
    format!("{STATE_PREFIX}{parameter}.{state}")
}

fn find<'a>(
    file: &SafeTensors<'a>,
    name: &str,
    dtype: Dtype,
    shape: &[usize],
) -> Result<TensorView<'a>> {
    let missing = |_| Error::MissingTensor { name: name.to_owned() };
    let tensor = file.tensor(name).map_err(missing)?;
    if tensor.dtype() != dtype || tensor.shape() != shape {
        return Err(Error::Tensor {
            name: name.to_owned(),
            found: format!("{:?} {:?}", tensor.dtype(), tensor.shape()),
            expected: format!("{dtype:?} {shape:?}"),
        });
    }
    Ok(tensor)
}

fn floats(tensor: &TensorView<'_>) -> Vec<f32> {
    let (values, _) = tensor.data().as_chunks();
    values.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
}

fn read_steps(tensor: &TensorView<'_>) -> Result<u32> {
    let count = tensor.data().try_into().ok().map(i64::from_le_bytes);
    count.and_then(|count| u32::try_from(count).ok()).ok_or_else(|| Error::Tensor {
        name: STEPS_NAME.to_owned(),
        found: format!("{count:?}"),
        expected: "a step count, 0 to 2^32 - 1".to_owned(),
    })
}

impl<'a> Floats<'a> {
    fn new(shape: &'a [usize], values: Cow<'a, [f32]>) -> Self {
        let values = match values {
            Cow::Borrowed(values) if cfg!(target_endian = "little") => {
                Cow::Borrowed(bytemuck::cast_slice(values))
            }
            values @ (Cow::Borrowed(_) | Cow::Owned(_)) => {
                Cow::Owned(values.iter().flat_map(|value| value.to_le_bytes()).collect())
            }
        };
        Self { shape, values, dtype: Dtype::F32 }
    }
}

impl View for Floats<'_> {
    fn dtype(&self) -> Dtype {
        self.dtype
    }

    fn shape(&self) -> &[usize] {
        self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        Cow::Borrowed(&self.values)
    }

    fn data_len(&self) -> usize {
        self.values.len()
    }
}
