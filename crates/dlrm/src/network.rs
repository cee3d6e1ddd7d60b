//! A model where it is computed: on the CPU or on a device. It only passes on what it is asked.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use gpu::Device;
pub use gpu::Precision;
use table::{DeviceId, DevicePlaces};

use crate::step::{PredictInput, PulledInput, StepInput};
use crate::{Architecture, DeviceModel, DeviceOptions, Error, Model, NextPlace, Result};

/// Where a model is to be computed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Place {
    /// On the CPU.
    #[default]
    Cpu,
    /// On the CUDA device of that number.
    Cuda(u32),
    /// On the first CUDA device where there is one with all its libraries, else on the CPU.
    Auto,
}

/// A model on the CPU or on a device.
#[derive(Debug)]
pub struct Network {
    model: Computed,
    rows: Vec<f32>, // of the next batch, on the CPU
}

#[derive(Debug)]
enum Computed {
    Host(Box<Model>),
    Device(Box<DeviceModel>),
}

/// What stands at a place: a device, or none and the CPU.
#[derive(Debug)]
pub struct Found {
    device: Option<Device>,
    about: String,
    code_dir: Option<PathBuf>,
}

impl Found {
    /// The device's own place, if there is one.
    pub fn device(&self) -> Option<Place> {
        self.device.as_ref().map(|device| Place::Cuda(device.description().ordinal))
    }

    /// The same, with a folder that keeps the code that is compiled for the device.
    pub fn with_code_dir(self, code_dir: Option<PathBuf>) -> Self {
        Self { code_dir, ..self }
    }

    /// The device's name, or why there is none.
    pub fn about(&self) -> &str {
        &self.about
    }
}

/// Looks for the device of a place, with the libraries that a model needs there. Where a device is
/// asked for by name and something is missing, that is an error.
pub fn device_at(place: Place) -> Result<Found> {
    match place {
        Place::Cpu => Ok(Found { device: None, about: "as asked for".to_owned(), code_dir: None }),
        Place::Cuda(ordinal) => {
            let device = Device::open(ordinal)?;
            if !gpu::has_compiler() {
                return Err(Error::NoCode(gpu::NoCode::NoCompiler));
            }
            gpu::check_products()?;
            let about = device.description().name.clone();
            Ok(Found { device: Some(device), about, code_dir: None })
        }
        Place::Auto => match device_at(Place::Cuda(0)) {
            Ok(found) => Ok(found),
            Err(reason) => Ok(Found { device: None, about: reason.to_string(), code_dir: None }),
        },
    }
}

impl Network {
    /// Takes a model to the device that was found, if there is one, with memory for batches of up
    /// to `batch_max` samples; on the CPU the model was made for them.
    pub fn new(
        model: Model,
        found: Found,
        batch_max: usize,
        options: DeviceOptions,
    ) -> Result<Self> {
        let model = match found.device {
            None => Computed::Host(Box::new(model)),
            Some(device) => {
                let code_dir = found.code_dir.as_deref();
                let model = DeviceModel::new(device, model, batch_max, options, code_dir)?;
                Computed::Device(Box::new(model))
            }
        };
        Ok(Self { model, rows: Vec::new() })
    }

    /// The shape of the model.
    pub fn architecture(&self) -> &Architecture {
        match &self.model {
            Computed::Host(model) => model.architecture(),
            Computed::Device(model) => model.architecture(),
        }
    }

    /// As [`Model::trace_step`]; a device tells nothing.
    pub fn trace_step(&mut self, step: Option<u64>) {
        match &mut self.model {
            Computed::Host(model) => model.trace_step(step),
            Computed::Device(_) => {}
        }
    }

    /// Memory for the rows of the next batch, to be filled before [`Network::forward_backward`]
    /// takes them from there: a device copies them from where they are.
    pub fn rows(&mut self, floats: usize) -> Result<&mut [f32]> {
        match &mut self.model {
            Computed::Host(_) => {
                self.rows.resize(floats, 0.0);
                Ok(&mut self.rows)
            }
            Computed::Device(model) => model.rows(floats),
        }
    }

    /// On the CPU, the memory that [`Network::rows`] lends: to be filled elsewhere while
    /// [`Network::begin`] computes, and put back. A device keeps its own.
    pub fn take_rows(&mut self, floats: usize) -> Option<Vec<f32>> {
        match &self.model {
            Computed::Host(_) => {
                let mut rows = std::mem::take(&mut self.rows);
                rows.resize(floats, 0.0);
                Some(rows)
            }
            Computed::Device(_) => None,
        }
    }

    /// Puts the rows of the next batch where [`Network::forward_backward`] takes them from.
    pub fn put_rows(&mut self, rows: Vec<f32>) {
        self.rows = rows;
    }

    /// As [`Model::begin`]; a device begins with the rows.
    pub fn begin(&mut self, dense: &[f32]) -> Result<()> {
        match &mut self.model {
            Computed::Host(model) => model.begin(dense),
            Computed::Device(_) => Ok(()),
        }
    }

    /// As [`Model::rows_first`], of a batch whose rows were put into [`Network::rows`].
    pub fn forward_backward(
        &mut self,
        input: &PulledInput<'_>,
        row_gradients: &mut [f32], // [n_unique, sparse_feature_size]
    ) -> Result<f32> {
        match &mut self.model {
            Computed::Host(model) => {
                let &PulledInput { dense, labels, features } = input;
                let input = StepInput { dense, labels, rows: &self.rows, features };
                model.rows_first(&input, row_gradients)
            }
            Computed::Device(model) => model.forward_backward(input, row_gradients),
        }
    }

    /// The device that it is on; none on the CPU.
    pub fn device_id(&self) -> Option<DeviceId> {
        match &self.model {
            Computed::Host(_) => None,
            Computed::Device(model) => Some(model.device_id()),
        }
    }

    /// As [`DeviceModel::places`]; none on the CPU.
    pub fn places(&mut self) -> Option<DevicePlaces> {
        match &mut self.model {
            Computed::Host(_) => None,
            Computed::Device(model) => Some(model.places()),
        }
    }

    /// As [`DeviceModel::places_elsewhere`]; none on the CPU.
    pub fn places_elsewhere(&mut self) -> Result<Option<DevicePlaces>> {
        match &mut self.model {
            Computed::Host(_) => Ok(None),
            Computed::Device(model) => model.places_elsewhere().map(Some),
        }
    }

    /// As [`DeviceModel::next_place`], of a model on a device, or it panics.
    pub fn next_place(&mut self, rows: usize, terms: usize) -> Result<NextPlace> {
        self.on_device().next_place(rows, terms)
    }

    /// As [`DeviceModel::forward_backward_there`], of a model on a device, or it panics.
    pub fn forward_backward_there(
        &mut self,
        input: &PulledInput<'_>,
        slot: u32,
        rows: usize,
    ) -> Result<()> {
        self.on_device().forward_backward_there(input, slot, rows)
    }

    /// As [`DeviceModel::take_loss`]; none on the CPU.
    pub fn take_loss(&mut self) -> Result<Option<f32>> {
        match &mut self.model {
            Computed::Host(_) => Ok(None),
            Computed::Device(model) => model.take_loss(),
        }
    }

    fn on_device(&mut self) -> &mut DeviceModel {
        match &mut self.model {
            Computed::Host(_) => panic!("a model on the CPU has no places on a device"),
            Computed::Device(model) => model,
        }
    }

    /// As [`Model::apply_dense`].
    pub fn apply_dense(&mut self, learning_rate: f32) -> Result<()> {
        match &mut self.model {
            Computed::Host(model) => {
                model.apply_dense(learning_rate);
                Ok(())
            }
            Computed::Device(model) => model.apply_dense(learning_rate),
        }
    }

    /// As [`Model::predict`].
    pub fn predict(
        &mut self,
        input: &PredictInput<'_>,
        probabilities: &mut [f32], // [batch]
    ) -> Result<()> {
        match &mut self.model {
            Computed::Host(model) => model.predict(input, probabilities),
            Computed::Device(model) => model.predict(input, probabilities),
        }
    }

    /// The model with its weights and state as they are now. A device is waited for.
    pub fn host(&mut self) -> Result<&Model> {
        match &mut self.model {
            Computed::Host(model) => Ok(model),
            Computed::Device(model) => model.host(),
        }
    }
}

impl FromStr for Place {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "cpu" => Ok(Self::Cpu),
            "auto" => Ok(Self::Auto),
            "cuda" => Ok(Self::Cuda(0)),
            _ => {
                let ordinal = text.strip_prefix("cuda:").and_then(|number| number.parse().ok());
                ordinal.map(Self::Cuda).ok_or_else(|| Error::Field {
                    field: "device",
                    found: format!("{text:?}"),
                    expected: "cpu, cuda, cuda:N or auto".to_owned(),
                })
            }
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(ordinal) => write!(f, "cuda:{ordinal}"),
            Self::Auto => f.write_str("auto"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_read_as_they_are_written() {
        for place in [Place::Cpu, Place::Auto, Place::Cuda(0), Place::Cuda(7)] {
            assert_eq!(place.to_string().parse::<Place>().ok(), Some(place));
        }
        assert_eq!("cuda".parse::<Place>().ok(), Some(Place::Cuda(0)));
        for text in ["", "gpu", "cuda:", "cuda:-1", "CPU"] {
            let error = text.parse::<Place>().unwrap_err().to_string();
            assert!(error.contains("cuda:N"), "{error}");
        }
    }

    #[test]
    fn auto_goes_on_without_a_device_and_says_why() {
        if gpu::probe().is_ok() {
            return; // this machine has one
        }
        let found = device_at(Place::Auto).unwrap();
        assert!(found.device().is_none(), "{found:?}");
        assert!(found.about().contains("CUDA driver"), "{found:?}");
        let error = device_at(Place::Cuda(0)).unwrap_err().to_string();
        assert!(error.starts_with("no device: "), "{error}");
    }
}
