//! Vectors: launches with the bytes of every buffer before and after. One file of them is run on
//! the CPU by `shim/run.cpp` and on a device by `gpu-check`; what must come out is what the host's
//! own rules make of the same rows, bit for bit.
//!
//! The form, numbers little-endian: `EPSVEC02`, u32 cases; a case: u32 length and bytes of the
//! kernel's name, u32 grid, u32 block, u32 bytes that a block shares, u32 arguments; an argument: a
//! byte for its kind, then 0: 4 bytes; 1: 8 bytes; 2, a buffer: u64 length, the bytes before, the
//! bytes after; 3, addresses of rows: u32 number of the buffer among the case's buffers so far, u64
//! count, and for each row the u64 offset of its first byte, all ones for none; 4, like 2, but no
//! argument: only rows lead there; 5, a buffer of floats: u64 length, f32 tolerance, the bytes
//! before, the bytes after: x may come out where y is expected if |x - y| is at most the tolerance
//! times 1 + |y|, or neither is a number; 6, the same for doubles.

use table::{Optimizer, mix};

use crate::kernels::{BLOCK, grid};

/// The first bytes of a file of vectors.
const MAGIC: &[u8; 8] = b"EPSVEC02";

/// An argument of a launch.
#[derive(Debug, Clone, PartialEq)]
pub enum Argument {
    /// A 32-bit number.
    U32(u32),
    /// A 64-bit number.
    U64(u64),
    /// A float.
    F32(f32),
    /// The address of a buffer.
    Buffer {
        /// Its bytes before the launch.
        before: Vec<u8>,
        /// Its bytes after the launch.
        after: Vec<u8>,
    },
    /// The address of a buffer of floats, which need not come out to the bit: what is no number may
    /// be any other, for processors and devices answer with different ones.
    Floats {
        /// How far they may be off: |x - y| is at most this times 1 + |y|.
        tolerance: f32,
        /// They before the launch.
        before: Vec<f32>,
        /// They after the launch.
        after: Vec<f32>,
    },
    /// The same of doubles.
    Doubles {
        /// How far they may be off: |x - y| is at most this times 1 + |y|.
        tolerance: f32,
        /// They before the launch.
        before: Vec<f64>,
        /// They after the launch.
        after: Vec<f64>,
    },
    /// Not an argument, but the memory that rows lie in.
    Memory {
        /// Its bytes before the launch.
        before: Vec<u8>,
        /// Its bytes after the launch.
        after: Vec<u8>,
    },
    /// The address of a list of addresses of rows.
    Rows {
        /// Where they lie: which of the case's buffers and memories, in the order of the arguments.
        buffer: u32,
        /// Where each row begins, in bytes; `None` for a row that there is not.
        offsets: Vec<Option<u64>>,
    },
}

/// One launch.
#[derive(Debug, Clone, PartialEq)]
pub struct Case {
    /// The kernel.
    pub kernel: String,
    /// Blocks.
    pub grid: u32,
    /// Threads of a block.
    pub block: u32,
    /// Bytes that a block shares, beside what the kernel declares.
    pub shared_bytes: u32,
    /// In the kernel's order; memory stands before the rows that lie in it.
    pub arguments: Vec<Argument>,
}

/// Cases of every kernel in [`crate::kernels::CACHE`], [`crate::kernels::TABLES`], and in
/// [`crate::kernels::ROWS`]: widths of
/// one float up to 128, no row, one row, more rows than a grid has threads, rows that there are
/// not.
pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for (seed, (dim, n, blocks_max)) in
        [(16, 1000, 2), (1, 33, 7), (64, 100, 1), (128, 37, 132), (7, 300, 1), (4, 1, 1), (8, 0, 1)]
            .into_iter()
            .enumerate()
    {
        let shape = Shape { seed: seed as u64, dim, n, blocks_max };
        cases.push(shape.gather("gather_rows", 1));
        if dim.is_multiple_of(4) {
            cases.push(shape.gather("gather_rows_by_four", 4));
        }
        cases.push(shape.not_finite());
        cases.push(shape.sum());
        for optimizer in [
            Optimizer::Sgd,
            Optimizer::Adagrad { eps: 1e-10, initial_accumulator: 0.1 },
            Optimizer::RowWiseAdagrad { eps: 1e-8, initial_accumulator: 0.0 },
            Optimizer::Adam { beta1: 0.9, beta2: 0.999, eps: 1e-8 },
        ] {
            cases.push(shape.update(optimizer));
        }
    }
    cases.extend(crate::table_vectors::cases());
    cases.extend(crate::cache_vectors::cases());
    cases
}

/// The file of these cases.
pub fn encode(cases: &[Case]) -> Vec<u8> {
    let mut bytes = MAGIC.to_vec();
    let length = |count: usize| u32::try_from(count).expect("vectors are small").to_le_bytes();
    bytes.extend(length(cases.len()));
    for Case { kernel, grid, block, shared_bytes, arguments } in cases {
        bytes.extend(length(kernel.len()));
        bytes.extend(kernel.as_bytes());
        bytes.extend(grid.to_le_bytes());
        bytes.extend(block.to_le_bytes());
        bytes.extend(shared_bytes.to_le_bytes());
        bytes.extend(length(arguments.len()));
        for argument in arguments {
            match argument {
                Argument::U32(value) => {
                    bytes.push(0);
                    bytes.extend(value.to_le_bytes());
                }
                Argument::F32(value) => {
                    bytes.push(0);
                    bytes.extend(value.to_le_bytes());
                }
                Argument::U64(value) => {
                    bytes.push(1);
                    bytes.extend(value.to_le_bytes());
                }
                Argument::Buffer { before, after } => encode_buffer(2, before, after, &mut bytes),
                Argument::Memory { before, after } => encode_buffer(4, before, after, &mut bytes),
                Argument::Floats { tolerance, before, after } => {
                    assert_eq!(before.len(), after.len(), "a buffer keeps its length");
                    bytes.push(5);
                    bytes.extend((size_of_val(&before[..]) as u64).to_le_bytes());
                    bytes.extend(tolerance.to_le_bytes());
                    bytes.extend(bytes_of(before));
                    bytes.extend(bytes_of(after));
                }
                Argument::Doubles { tolerance, before, after } => {
                    assert_eq!(before.len(), after.len(), "a buffer keeps its length");
                    bytes.push(6);
                    bytes.extend((size_of_val(&before[..]) as u64).to_le_bytes());
                    bytes.extend(tolerance.to_le_bytes());
                    bytes.extend(bytes_of(before));
                    bytes.extend(bytes_of(after));
                }
                Argument::Rows { buffer, offsets } => {
                    bytes.push(3);
                    bytes.extend(buffer.to_le_bytes());
                    bytes.extend((offsets.len() as u64).to_le_bytes());
                    for offset in offsets {
                        bytes.extend(offset.unwrap_or(u64::MAX).to_le_bytes());
                    }
                }
            }
        }
    }
    bytes
}

fn encode_buffer(kind: u8, before: &[u8], after: &[u8], bytes: &mut Vec<u8>) {
    assert_eq!(before.len(), after.len(), "a buffer keeps its length");
    bytes.push(kind);
    bytes.extend((before.len() as u64).to_le_bytes());
    bytes.extend(before);
    bytes.extend(after);
}

/// What the cases of all kernels have in common.
#[derive(Clone, Copy)]
struct Shape {
    seed: u64,
    dim: usize,
    n: usize,
    blocks_max: u32,
}

impl Shape {
    /// Slots that the rows lie in: more than rows, so that some are never touched.
    fn slots(self) -> usize {
        self.n + self.n / 4 + 1
    }

    /// A slot of its own for each row, in no order; each seventh row is none.
    fn rows(self) -> Vec<Option<usize>> {
        let mut slots: Vec<usize> = (0..self.slots()).collect();
        slots.sort_by_key(|&slot| mix(self.seed << 32 | slot as u64));
        let rows = slots.into_iter().take(self.n).enumerate();
        rows.map(|(i, slot)| (i % 7 != 6).then_some(slot)).collect()
    }

    fn floats(self, stream: u64, len: usize) -> Vec<f32> {
        floats(self.seed, stream, len)
    }

    fn gather(self, kernel: &'static str, floats_at_once: usize) -> Case {
        let Self { dim, n, blocks_max, .. } = self;
        let (memory, rows) = (self.floats(0, self.slots() * dim), self.rows());
        let before = vec![-7.0_f32; n * dim];
        let mut after = before.clone();
        for (i, slot) in rows.iter().enumerate().filter_map(|(i, slot)| Some((i, (*slot)?))) {
            after[i * dim..][..dim].copy_from_slice(&memory[slot * dim..][..dim]);
        }
        self.case(
            kernel,
            grid((n * dim / floats_at_once) as u64, blocks_max),
            vec![
                memory_of(&memory, &memory),
                offsets(0, &rows, dim),
                buffer(&before, &after),
                Argument::U32(dim as u32),
                Argument::U64(n as u64),
            ],
        )
    }

    /// Every second shape has some that are not, the first of them in the middle.
    fn not_finite(self) -> Case {
        let Self { dim, n, blocks_max, seed } = self;
        let mut floats = self.floats(5, n * dim);
        let mut first = u64::MAX;
        if seed.is_multiple_of(2) && !floats.is_empty() {
            let at = floats.len() / 2;
            let last = floats.len() - 1;
            floats[last] = f32::INFINITY;
            floats[at] = if seed == 0 { f32::NEG_INFINITY } else { f32::NAN };
            first = at as u64;
        }
        self.case(
            "find_not_finite",
            grid((n * dim) as u64, blocks_max),
            vec![
                buffer(&floats, &floats),
                Argument::U64((n * dim) as u64),
                buffer(&[u64::MAX], &[first]),
            ],
        )
    }

    fn sum(self) -> Case {
        let Self { dim, n, blocks_max, .. } = self;
        let upstream_rows = 2 * n + 3;
        let upstream = self.floats(1, upstream_rows * dim);
        let (mut starts, mut places) = (vec![0_u32], Vec::new());
        for row in 0..n as u64 {
            // some rows have none, most have few, one in sixteen has many
            let count = match mix(row + self.seed) % 16 {
                0 => 60,
                many => many % 4,
            };
            places.extend((0..count).map(|i| (mix(row << 8 | i) % upstream_rows as u64) as u32));
            starts.push(places.len() as u32);
        }
        let mut sums = vec![0.0_f32; n * dim];
        for (row, sum) in sums.chunks_exact_mut(dim).enumerate() {
            for &place in &places[starts[row] as usize..starts[row + 1] as usize] {
                let gradient = &upstream[place as usize * dim..][..dim];
                sum.iter_mut().zip(gradient).for_each(|(sum, g)| *sum += g);
            }
        }
        self.case(
            "sum_gradients",
            grid((n * dim) as u64, blocks_max),
            vec![
                buffer(&upstream, &upstream),
                buffer(&starts, &starts),
                buffer(&places, &places),
                buffer(&vec![f32::NAN; n * dim], &sums),
                Argument::U32(dim as u32),
                Argument::U64(n as u64),
            ],
        )
    }

    fn update(self, optimizer: Optimizer) -> Case {
        let Self { dim, n, blocks_max, .. } = self;
        let (rate, rows) = (0.05_f32, self.rows());
        let state_floats = optimizer.state_floats(dim);
        let weights = self.floats(2, self.slots() * dim);
        // accumulators and second moments are never negative; Adam's count is a whole number
        let mut states: Vec<f32> =
            self.floats(3, self.slots() * state_floats).iter().map(|x| x.abs()).collect();
        if let Optimizer::Adam { .. } = optimizer {
            for (slot, state) in states.chunks_exact_mut(state_floats).enumerate() {
                state[2 * dim] = if slot == 0 { (1 << 24) as f32 } else { (slot % 3000) as f32 };
            }
        }
        let gradients = self.floats(4, n * dim);
        let (mut weights_after, mut states_after) = (weights.clone(), states.clone());
        let rule = optim::Rule::new(&optimizer, dim, rate);
        // whether the gradients are refused: not asked, all finite, or one is not
        let (first, rows_updated) = match self.seed {
            4 => (buffer(&[5_u64], &[5]), vec![]),
            seed if seed % 2 == 1 => (buffer(&[u64::MAX], &[u64::MAX]), rows.clone()),
            _ => (Argument::U64(0), rows.clone()),
        };
        let updated = rows_updated.iter().enumerate();
        for (i, slot) in updated.filter_map(|(i, slot)| Some((i, (*slot)?))) {
            rule.apply(
                &mut weights_after[slot * dim..][..dim],
                &mut states_after[slot * state_floats..][..state_floats],
                &gradients[i * dim..][..dim],
            );
        }
        let (dim_argument, n_argument) = (Argument::U32(dim as u32), Argument::U64(n as u64));
        let weights = [memory_of(&weights, &weights_after), offsets(0, &rows, dim)];
        let states = [memory_of(&states, &states_after), offsets(1, &rows, state_floats)];
        let gradients = buffer(&gradients, &gradients);
        let sizes = [gradients, dim_argument, n_argument, Argument::F32(rate)];
        let (kernel, elements, mut arguments, rest) = match optimizer {
            Optimizer::Sgd => ("update_sgd", n * dim, weights.to_vec(), vec![]),
            Optimizer::Adagrad { eps, .. } => {
                ("update_adagrad", n * dim, [weights, states].concat(), vec![eps])
            }
            Optimizer::RowWiseAdagrad { eps, .. } => {
                ("update_rowwise_adagrad", n * 8, [weights, states].concat(), vec![eps])
            }
            Optimizer::Adam { beta1, beta2, eps } => {
                ("update_adam", n * 8, [weights, states].concat(), vec![beta1, beta2, eps])
            }
        };
        arguments.extend(sizes);
        arguments.extend(rest.into_iter().map(Argument::F32));
        arguments.push(first);
        self.case(kernel, grid(elements as u64, blocks_max), arguments)
    }

    fn case(self, kernel: &'static str, grid: u32, arguments: Vec<Argument>) -> Case {
        Case { kernel: kernel.to_owned(), grid, block: BLOCK, shared_bytes: 0, arguments }
    }
}

/// Floats from -1 to 1, the same for the same seed and stream.
pub fn floats(seed: u64, stream: u64, len: usize) -> Vec<f32> {
    let value = |i: usize| {
        let bits = mix(seed << 48 | stream << 40 | i as u64) >> 40; // 24 bits
        bits as f32 / (1 << 23) as f32 - 1.0
    };
    (0..len).map(value).collect()
}

/// A buffer that comes out to the bit.
pub fn buffer<T: bytemuck::NoUninit>(before: &[T], after: &[T]) -> Argument {
    Argument::Buffer { before: bytes_of(before), after: bytes_of(after) }
}

/// Memory that rows lie in.
pub fn memory_of(before: &[f32], after: &[f32]) -> Argument {
    Argument::Memory { before: bytes_of(before), after: bytes_of(after) }
}

fn bytes_of<T: bytemuck::NoUninit>(values: &[T]) -> Vec<u8> {
    bytemuck::cast_slice(values).to_vec()
}

/// Rows of that many floats by their slots in a buffer or memory.
pub fn offsets(buffer: u32, rows: &[Option<usize>], floats: usize) -> Argument {
    let offset = |slot: usize| (slot * floats * size_of::<f32>()) as u64;
    Argument::Rows { buffer, offsets: rows.iter().map(|slot| slot.map(offset)).collect() }
}
