//! The kernels as functions that check what they are told: lengths against shapes, and lists of
//! rows when they are made. It orders nothing between streams and sums no duplicates.
#![allow(unsafe_code)]

use table::Optimizer;

use crate::device::{Device, Stream};
use crate::kernels::{
    ALL, BLOCK, CACHE, DENSE, Interaction, NETWORK, ROWS, TABLES, TENSOR, WARP, grid,
};
use crate::memory::{Buffer, Memory};
use crate::module::{Module, Threads, Value};
use crate::{Code, Error, Result};

/// Blocks that a multiprocessor holds at once: 2,048 threads.
const BLOCKS_OF_A_MULTIPROCESSOR: u32 = 2048 / BLOCK;

const FLOAT_BYTES: u64 = 4;

/// The kernels, loaded into a device.
#[derive(Debug)]
pub struct Kernels {
    rows: Module,
    tables: Module,
    pub(crate) network: Module,
    tensor: Module,
    cache: Module,
    pub(crate) dense: Module,
    pub(crate) blocks_max: u32,
    has_tensor_cores: bool,
}

/// Rows where they lie, in device memory or in pinned host memory: a list of addresses on the
/// device.
#[derive(Debug, Clone)]
pub struct Rows {
    addresses: Buffer, // [n] u64
    n: u64,
    floats: u32,     // of a row
    _within: Buffer, // keeps the memory that the addresses lead to
}

impl Rows {
    /// The rows of so many floats that begin at these slots of a buffer: slot s at s rows' length.
    /// `None` is a row that there is not. A slot that stands there twice may be gathered, but not
    /// updated: two threads would write one row.
    pub fn new(
        memory: &mut Memory,
        within: &Buffer,
        floats: u32,
        slots: impl ExactSizeIterator<Item = Option<u64>>,
    ) -> Result<Self> {
        let row_bytes = u64::from(floats) * FLOAT_BYTES;
        let n = slots.len() as u64;
        let mut addresses = Vec::with_capacity(slots.len());
        for (row, slot) in slots.enumerate() {
            let Some(slot) = slot else {
                addresses.push(0);
                continue;
            };
            let offset = slot.saturating_mul(row_bytes);
            if offset.checked_add(row_bytes).is_none_or(|end| end > within.bytes()) {
                return Err(Error::RowOutside { row, offset, bytes: within.bytes() });
            }
            addresses.push(within.address() + offset);
        }
        let addresses = memory.buffer_of(&addresses)?;
        Ok(Self { addresses, n, floats, _within: within.clone() })
    }

    /// The rows of so many floats at the addresses of a list: 0 for a row that there is not.
    ///
    /// # Safety
    /// As long as the list is used, the addresses in it lead to rows of that length that the device
    /// reaches and that nobody else writes, nor reads while they are updated.
    pub(crate) unsafe fn at(addresses: Buffer, floats: u32) -> Self {
        let n = addresses.bytes() / size_of::<u64>() as u64;
        Self { _within: addresses.clone(), addresses, n, floats }
    }

    /// The rows whose addresses stand in the first words of a list on the device, all of them
    /// within that buffer. Whoever filled the list vouches for that, and that no row that is
    /// updated stands there twice.
    pub fn listed(addresses: &Buffer, n: u64, floats: u32, within: &Buffer) -> Result<Self> {
        let addresses = addresses.part(0, n * 8)?;
        Ok(Self { addresses, n, floats, _within: within.clone() })
    }

    /// How many they are.
    pub fn n(&self) -> u64 {
        self.n
    }

    /// Bytes of all of them.
    pub fn bytes(&self) -> u64 {
        self.n * u64::from(self.floats) * FLOAT_BYTES
    }
}

/// Which rows each feature of each sample takes.
#[derive(Debug, Clone)]
pub struct Bags {
    starts: Buffer,          // [samples * features + 1] u32
    places: Buffer,          // [starts' last] u32
    weights: Option<Buffer>, // [starts' last] f32
    rows: u64,               // all places are below
    features: u32,
    samples: u64,
}

/// The same on the host.
#[derive(Debug, Clone, Copy)]
pub struct BagsTaken<'a> {
    /// Where each bag's places begin, and the end; a sample's features side by side.
    pub starts: &'a [u32], // [samples * features + 1]
    /// Places among the rows.
    pub places: &'a [u32],
    /// A weight for each place.
    pub weights: Option<&'a [f32]>,
    /// Bags of a sample.
    pub features: u32,
    /// How many rows there are.
    pub rows: u64,
}

impl Bags {
    /// Checks them and takes them to the device.
    pub fn new(memory: &mut Memory, taken: BagsTaken<'_>) -> Result<Self> {
        let BagsTaken { starts, places, weights, features, rows } = taken;
        let length = |what, found: usize, expected: u64| {
            let found = found as u64;
            if found == expected { Ok(()) } else { Err(Error::Length { what, found, expected }) }
        };
        let ascending = starts.is_sorted() && starts.first() == Some(&0);
        let last = u64::from(starts.last().copied().unwrap_or(0));
        length("places of bags", places.len(), if ascending { last } else { u64::MAX })?;
        if let Some(weights) = weights {
            length("weights of bags", weights.len(), last)?;
        }
        if let Some(row) = places.iter().position(|&place| u64::from(place) >= rows) {
            return Err(Error::RowOutside { row, offset: u64::from(places[row]), bytes: rows });
        }
        let bags = starts.len().saturating_sub(1) as u64;
        let samples = bags / u64::from(features.max(1));
        length("starts of bags", starts.len(), samples * u64::from(features) + 1)?;
        Ok(Self {
            starts: memory.buffer_of(starts)?,
            places: memory.buffer_of(places)?,
            weights: weights.map(|weights| memory.buffer_of(weights)).transpose()?,
            rows,
            features,
            samples,
        })
    }
}

impl Kernels {
    /// Loads the code that `code` has for each source.
    pub fn load<E: From<Error>>(
        device: &Device,
        mut code: impl FnMut(crate::kernels::Source) -> std::result::Result<Code, E>,
    ) -> std::result::Result<Self, E> {
        let rows = Module::load(device, ROWS, &code(ROWS)?)?;
        let tables = Module::load(device, TABLES, &code(TABLES)?)?;
        let network = Module::load(device, NETWORK, &code(NETWORK)?)?;
        let tensor = Module::load(device, TENSOR, &code(TENSOR)?)?;
        let cache = Module::load(device, CACHE, &code(CACHE)?)?;
        let dense = Module::load(device, DENSE, &code(DENSE)?)?;
        let blocks_max = device.description().multiprocessors * BLOCKS_OF_A_MULTIPROCESSOR;
        let has_tensor_cores = device.description().compute_capability.major >= 8;
        Ok(Self { rows, tables, network, tensor, cache, dense, blocks_max, has_tensor_cores })
    }

    /// The module that a kernel is in.
    pub fn module_of(&self, kernel: &str) -> Result<&Module> {
        let source = ALL.into_iter().find(|source| source.kernels.contains(&kernel));
        match source {
            Some(ROWS) => Ok(&self.rows),
            Some(TABLES) => Ok(&self.tables),
            Some(NETWORK) => Ok(&self.network),
            Some(TENSOR) => Ok(&self.tensor),
            Some(DENSE) => Ok(&self.dense),
            Some(_) => Ok(&self.cache),
            None => Err(Error::NoKernel(kernel.to_owned())),
        }
    }

    /// `out[i]` is row i, for each row that there is. out: [n, floats]
    pub fn gather(&self, stream: &Stream, rows: &Rows, out: &Buffer) -> Result<()> {
        length("gathered rows", out, rows.bytes())?;
        let by_four = rows.floats.is_multiple_of(4) && out.address().is_multiple_of(16);
        let kernel = if by_four { "gather_rows_by_four" } else { "gather_rows" };
        let parts = u64::from(if by_four { rows.floats / 4 } else { rows.floats });
        let values = [
            Value::U64(rows.addresses.address()),
            Value::U64(out.address()),
            Value::U32(rows.floats),
            Value::U64(rows.n),
        ];
        // SAFETY: the signature's values; the list was checked as it was made, `out` just above.
        unsafe { self.rows.launch(stream, kernel, self.threads(rows.n * parts), &values) }
    }

    /// One step of the optimizer for each row that there is. `states` are as long a list as `rows`,
    /// where the optimizer has state. gradients: [n, floats]
    pub fn update(
        &self,
        stream: &Stream,
        optimizer: &Optimizer,
        rows: &Rows,
        states: Option<&Rows>,
        gradients: &Buffer,
        rate: f32,
    ) -> Result<()> {
        self.update_unless(stream, optimizer, rows, states, gradients, rate, None)
    }

    /// The same, unless `first` holds the place of a gradient that is not finite, as
    /// [`Self::find_not_finite`] leaves it; then nothing changes.
    #[allow(clippy::too_many_arguments)] // the kernel's
    pub fn update_unless(
        &self,
        stream: &Stream,
        optimizer: &Optimizer,
        rows: &Rows,
        states: Option<&Rows>,
        gradients: &Buffer,
        rate: f32,
        first: Option<&Buffer>, // [1] u64
    ) -> Result<()> {
        length("gradients", gradients, rows.bytes())?;
        if let Some(first) = first {
            length("place of what is not finite", first, 8)?;
        }
        let state_floats = optimizer.state_floats(rows.floats as usize) as u64;
        let expected = rows.n * state_floats * FLOAT_BYTES;
        let found = states.map_or(0, |states| states.bytes());
        if found != expected || states.is_some_and(|states| states.n != rows.n) {
            return Err(Error::Length { what: "optimizer states", found, expected });
        }
        let mut values = vec![Value::U64(rows.addresses.address())];
        if state_floats > 0 {
            values.extend(states.map(|states| Value::U64(states.addresses.address())));
        }
        values.extend([
            Value::U64(gradients.address()),
            Value::U32(rows.floats),
            Value::U64(rows.n),
            Value::F32(rate),
        ]);
        // eight lanes share a row where a rule needs the whole of it
        let (kernel, elements) = match *optimizer {
            Optimizer::Sgd => ("update_sgd", rows.n * u64::from(rows.floats)),
            Optimizer::Adagrad { eps, .. } => {
                values.push(Value::F32(eps));
                ("update_adagrad", rows.n * u64::from(rows.floats))
            }
            Optimizer::RowWiseAdagrad { eps, .. } => {
                values.push(Value::F32(eps));
                ("update_rowwise_adagrad", rows.n * 8)
            }
            Optimizer::Adam { beta1, beta2, eps } => {
                values.extend([beta1, beta2, eps].map(Value::F32));
                ("update_adam", rows.n * 8)
            }
        };
        values.push(Value::U64(first.map_or(0, Buffer::address)));
        // SAFETY: the signature's values; lists were checked as they were made, lengths above.
        unsafe { self.rows.launch(stream, kernel, self.threads(elements), &values) }
    }

    /// Sets `first` to the place of the first float that is not finite; `u64::MAX` where all are.
    /// first: [1] u64
    pub fn find_not_finite(&self, stream: &Stream, floats: &Buffer, first: &Buffer) -> Result<()> {
        length("place of what is not finite", first, 8)?;
        first.fill(stream, 0xff)?;
        let n = floats.bytes() / FLOAT_BYTES;
        let values = [Value::U64(floats.address()), Value::U64(n), Value::U64(first.address())];
        // SAFETY: the signature's values, lengths by the buffers' own.
        unsafe { self.rows.launch(stream, "find_not_finite", self.threads(n), &values) }
    }

    /// Sums of rows into vectors 1 on of each sample. out: [samples, 1 + features, floats]
    pub fn pool(&self, stream: &Stream, rows: &Rows, bags: &Bags, out: &Buffer) -> Result<()> {
        if rows.n < bags.rows {
            let (found, expected) = (rows.n, bags.rows);
            return Err(Error::Length { what: "rows of bags", found, expected });
        }
        let vectors = u64::from(bags.features) + 1;
        length("pooled rows", out, bags.samples * vectors * u64::from(rows.floats) * FLOAT_BYTES)?;
        let by_four = rows.floats.is_multiple_of(4);
        let kernel = if by_four { "pool_rows_by_four" } else { "pool_rows" };
        let parts = u64::from(if by_four { rows.floats / 4 } else { rows.floats });
        let elements = bags.samples * u64::from(bags.features) * parts;
        let values = [
            Value::U64(rows.addresses.address()),
            Value::U64(bags.starts.address()),
            Value::U64(bags.places.address()),
            Value::U64(bags.weights.as_ref().map_or(0, Buffer::address)),
            Value::U64(out.address()),
            Value::U32(rows.floats),
            Value::U32(bags.features),
            Value::U64(bags.samples),
        ];
        // SAFETY: the signature's values; lists and bags were checked as they were made, and
        // lengths just above.
        unsafe { self.network.launch(stream, kernel, self.threads(elements), &values) }
    }

    /// The dot interaction. features: [samples, vectors, dim]; crossed: [samples, width], of which
    /// the first columns are written, as many as the shape's own width
    pub fn interact(
        &self,
        stream: &Stream,
        shape: Interaction,
        samples: u64,
        features: &Buffer,
        crossed: &Buffer,
        width: u32,
    ) -> Result<()> {
        let shape = self.as_can_be(shape);
        let Interaction { vectors, dim, with_itself, .. } = shape;
        let threads = self.interaction_threads(shape, samples, false)?;
        length("features", features, samples * u64::from(vectors) * u64::from(dim) * FLOAT_BYTES)?;
        crossed_length(shape, samples, crossed, width)?;
        let values = [
            Value::U64(features.address()),
            Value::U64(crossed.address()),
            Value::U32(vectors),
            Value::U32(dim),
            Value::U32(width),
            Value::U32(u32::from(with_itself)),
            Value::U64(samples),
        ];
        // SAFETY: the signature's values, lengths checked just above, shared bytes by the shape.
        unsafe { self.module_of_shape(shape).launch(stream, shape.kernel(false), threads, &values) }
    }

    /// Its reverse. crossed_gradient: [samples, width], of which the first columns are read;
    /// gradient: [samples, vectors, dim]
    pub fn interact_backward(
        &self,
        stream: &Stream,
        shape: Interaction,
        samples: u64,
        features: &Buffer,
        crossed_gradient: &Buffer,
        width: u32,
        gradient: &Buffer,
    ) -> Result<()> {
        let shape = self.as_can_be(shape);
        let Interaction { vectors, dim, with_itself, .. } = shape;
        let threads = self.interaction_threads(shape, samples, true)?;
        let features_bytes = samples * u64::from(vectors) * u64::from(dim) * FLOAT_BYTES;
        length("features", features, features_bytes)?;
        length("gradient of features", gradient, features_bytes)?;
        crossed_length(shape, samples, crossed_gradient, width)?;
        let values = [
            Value::U64(features.address()),
            Value::U64(crossed_gradient.address()),
            Value::U64(gradient.address()),
            Value::U32(vectors),
            Value::U32(dim),
            Value::U32(width),
            Value::U32(u32::from(with_itself)),
            Value::U64(samples),
        ];
        // SAFETY: the signature's values, lengths checked just above, shared bytes by the shape.
        unsafe { self.module_of_shape(shape).launch(stream, shape.kernel(true), threads, &values) }
    }

    pub(crate) fn threads(&self, elements: u64) -> Threads {
        Threads { grid: grid(elements, self.blocks_max), block: BLOCK, shared_bytes: 0 }
    }

    /// The shape in 32 bits where the device has no tensor cores for fewer.
    fn as_can_be(&self, shape: Interaction) -> Interaction {
        if self.has_tensor_cores { shape } else { shape.plain() }
    }

    fn module_of_shape(&self, shape: Interaction) -> &Module {
        if shape.by_tensor_cores() { &self.tensor } else { &self.network }
    }

    fn interaction_threads(
        &self,
        shape: Interaction,
        samples: u64,
        backward: bool,
    ) -> Result<Threads> {
        let sample = u64::from(shape.vectors) * (u64::from(shape.dim) + 1) * FLOAT_BYTES;
        let (what, expected) = ("a block's shared memory, for a sample", sample);
        let found = u64::from(crate::kernels::SHARED_BYTES_MAX);
        let (warps, shared_bytes) =
            shape.warps(backward).ok_or(Error::Length { what, found, expected })?;
        let blocks = samples.div_ceil(u64::from(warps)).clamp(1, u64::from(self.blocks_max));
        Ok(Threads { grid: blocks as u32, block: warps * WARP, shared_bytes })
    }
}

fn crossed_length(shape: Interaction, samples: u64, crossed: &Buffer, width: u32) -> Result<()> {
    let (what, found, expected) = ("width of crossed features", width, shape.width());
    if found < expected {
        return Err(Error::Length { what, found: found.into(), expected: expected.into() });
    }
    length("crossed features", crossed, samples * u64::from(width) * FLOAT_BYTES)
}

pub(crate) fn length(what: &'static str, buffer: &Buffer, expected: u64) -> Result<()> {
    let found = buffer.bytes();
    if found == expected { Ok(()) } else { Err(Error::Length { what, found, expected }) }
}
