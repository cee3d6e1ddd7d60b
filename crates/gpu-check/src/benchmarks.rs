//! How near the kernels come to what the device can do: in each round everything that is compared
//! runs once, one after the other, and a figure is the median of the rounds. It checks no results;
//! `correctness` does.

use anyhow::{Context, Result};
use gpu::kernels::Interaction;
use gpu::{
    Bags, BagsTaken, Buffer, Device, Event, Kernels, Memory, Precision, Product, Rows, Shape,
    Stream, has_products, pinned,
};
use table::Optimizer;

use crate::report::{Report, Row};

const ROUNDS: usize = 5;

const GIGA: f64 = 1e9;

/// How much is moved and computed.
#[derive(Debug, Clone, Copy)]
pub struct Sizes {
    /// The table that rows are gathered from; a power of two, far beyond the device's cache.
    pub table_bytes: u64,
    /// The same in pinned host memory.
    pub pinned_table_bytes: u64,
    /// Bytes of a copy within the device, and across the bus.
    pub copy_bytes: u64,
    /// Bytes of the rows of one launch, from device memory and from pinned host memory.
    pub gathered_bytes: u64,
    /// The same from pinned host memory.
    pub pinned_gathered_bytes: u64,
    /// Rows and columns of the matrices of a product.
    pub product: u64,
    /// Samples of a batch.
    pub batch: u64,
}

impl Sizes {
    /// Sizes that show what a device of so much free memory can do.
    pub fn full(free_bytes: u64) -> Self {
        let table_bytes = 1 << (free_bytes / 3).clamp(1 << 28, 16 << 30).ilog2();
        Self {
            table_bytes,
            pinned_table_bytes: 2 << 30,
            copy_bytes: (table_bytes / 16).min(1 << 30),
            gathered_bytes: (table_bytes / 16).min(512 << 20),
            pinned_gathered_bytes: 128 << 20,
            product: 8192,
            batch: 16384,
        }
    }

    /// Sizes that show whether everything runs.
    pub fn quick() -> Self {
        Self {
            table_bytes: 1 << 22,
            pinned_table_bytes: 1 << 21,
            copy_bytes: 1 << 20,
            gathered_bytes: 1 << 17,
            pinned_gathered_bytes: 1 << 16,
            product: 32,
            batch: 24,
        }
    }

    /// Device memory beside the table, for what takes the most of it: two buffers of a copy; three
    /// matrices; rows with their addresses, a copy to compare with and a state for each slot; a
    /// batch.
    pub fn work_bytes(&self) -> u64 {
        let parts = [
            2 * self.copy_bytes,
            12 * self.product * self.product + (32 << 20),
            4 * self.gathered_bytes + self.table_bytes / 16,
            2 * self.pinned_gathered_bytes,
            self.batch * 40_000,
        ];
        parts.into_iter().max().unwrap_or(0) + (64 << 20)
    }
}

/// The device and what runs on it.
#[derive(Debug, Clone, Copy)]
pub struct Bench<'a> {
    /// The device.
    pub device: &'a Device,
    /// The stream in which everything runs.
    pub stream: &'a Stream,
    /// The kernels.
    pub kernels: &'a Kernels,
    /// How much.
    pub sizes: Sizes,
}

impl Bench<'_> {
    /// Copies across the bus, each way.
    pub fn copies(&self, memory: &mut Memory, report: &Report) -> Result<()> {
        clear(memory)?;
        let bytes = self.sizes.copy_bytes;
        let here = memory.buffer(bytes)?;
        let there = memory.buffer(bytes)?;
        let host = pinned(self.device, bytes)?;
        here.fill(self.stream, 1)?;
        let seconds = self.race(&mut [
            &mut || there.copy_from(self.stream, &here),
            &mut || here.copy_from(self.stream, &host),
            &mut || host.copy_from(self.stream, &here),
        ])?;
        let rate = |moved: u64, seconds: f64| moved as f64 / seconds / GIGA;
        let mib = bytes >> 20;
        for (id, case, ours) in [
            ("copy.device", "read + written", rate(2 * bytes, seconds[0])),
            ("copy.to_device", "from pinned host memory", rate(bytes, seconds[1])),
            ("copy.from_device", "to pinned host memory", rate(bytes, seconds[2])),
        ] {
            report.add(shown(id, format!("{mib} MiB, {case}"), "GB/s", ours, 0.0));
        }
        Ok(())
    }

    /// Large matrix products.
    pub fn products(&self, memory: &mut Memory, report: &Report) -> Result<()> {
        if !has_products() {
            eprintln!("gpu-check: no libcublasLt.so found: matrix products are left out");
            return Ok(());
        }
        clear(memory)?;
        let n = self.sizes.product;
        let shape = Shape { m: n, n, k: n };
        let workspace = memory.buffer(32 << 20)?;
        let matrix = |memory: &mut Memory, element_bytes| -> Result<Buffer> {
            let buffer = memory.buffer(n * n * element_bytes)?;
            buffer.fill(self.stream, 0x3c)?; // 0.0115 in both kinds: no zeros, for they run cooler
            Ok(buffer)
        };
        let [a, b, c] = [matrix(memory, 4)?, matrix(memory, 4)?, matrix(memory, 4)?];
        let half = |buffer: &Buffer| buffer.part(0, n * n * 2);
        let [a_half, b_half, c_half] = [half(&a)?, half(&b)?, half(&c)?];
        let plan = |precision| Product::plan(self.device, shape, precision, &workspace);
        let exact = plan(Precision::F32)?;
        let brief = plan(Precision::Tf32)?;
        let brain = plan(Precision::Bf16)?;
        let seconds = self.race(&mut [
            &mut || exact.run(self.stream, &a, &b, &c),
            &mut || brief.run(self.stream, &a, &b, &c),
            &mut || brain.run(self.stream, &a_half, &b_half, &c_half),
        ])?;
        let flops = 2.0 * (n as f64).powi(3);
        for (name, seconds) in ["f32", "tf32", "bf16"].into_iter().zip(seconds) {
            let (id, case) = (format!("product.{name}"), format!("{n} x {n} x {n}"));
            report.add(shown(&id, case, "TFLOP/s", flops / seconds / 1e12, 0.0));
        }
        Ok(())
    }

    /// Rows of 64 and of 512 bytes, each once and in no order, gathered and updated.
    pub fn rows(&self, memory: &mut Memory, table: &Buffer, report: &Report) -> Result<()> {
        for (floats, goal) in [(16_u32, 0.50), (128, 0.75)] {
            self.rows_of(memory, table, floats, goal, report)
                .with_context(|| format!("rows of {floats} floats"))?;
        }
        Ok(())
    }

    fn rows_of(
        &self,
        memory: &mut Memory,
        table: &Buffer,
        floats: u32,
        goal: f64,
        report: &Report,
    ) -> Result<()> {
        clear(memory)?;
        let taken = Taken::new(self, memory, table, floats, self.sizes.gathered_bytes)?;
        let Taken { rows, out, n, row_bytes } = &taken;
        let states_bytes = table.bytes() / row_bytes * 4;
        let states = memory.buffer(states_bytes)?;
        states.fill(self.stream, 0x3c)?;
        let slots = table.bytes() / row_bytes;
        let places: Vec<Option<u64>> = (0..*n).map(|i| Some(scattered(i, slots))).collect();
        let states = Rows::new(memory, &states, 1, places.into_iter())?;
        out.fill(self.stream, 0)?; // as gradients: rows stay what they are
        let copied = self.sizes.copy_bytes.min(rows.bytes());
        let (from, to) = (memory.buffer(copied)?, memory.buffer(copied)?);
        let adagrad = Optimizer::RowWiseAdagrad { eps: 1e-8, initial_accumulator: 0.0 };
        let (stream, kernels) = (self.stream, self.kernels);
        let seconds = self.race(&mut [
            &mut || to.copy_from(stream, &from),
            &mut || kernels.gather(stream, rows, out),
            &mut || kernels.update(stream, &Optimizer::Sgd, rows, None, out, 0.1),
            &mut || kernels.update(stream, &adagrad, rows, Some(&states), out, 0.1),
        ])?;
        let limit = 2.0 * copied as f64 / seconds[0] / GIGA;
        let bytes = rows.bytes() as f64;
        let case = |what: &str| {
            format!("{n} rows of {row_bytes} B of {} MiB, {what}", table.bytes() >> 20)
        };
        report.add(Row {
            id: format!("gather.device_{row_bytes}"),
            case: case("read + written"),
            unit: "GB/s",
            ours: 2.0 * bytes / seconds[1] / GIGA,
            limit,
            goal: Some(goal),
        });
        // read row and gradient, write row; and, of the state, a sector of 32 bytes each way
        let state_bytes = 64.0 * *n as f64;
        for (id, moved, seconds) in [
            ("sgd", 3.0 * bytes, seconds[2]),
            ("rowwise_adagrad", 3.0 * bytes + state_bytes, seconds[3]),
        ] {
            let ours = moved / seconds / GIGA;
            let id = format!("update.{id}_{row_bytes}");
            report.add(shown(&id, case("read + written"), "GB/s", ours, limit));
        }
        Ok(())
    }

    /// Rows of pinned host memory, gathered across the bus. What a row of 64 bytes brings is shown
    /// and held to no goal: a packet of the bus carries a header of some 20 bytes beside it.
    pub fn pinned_rows(&self, memory: &mut Memory, report: &Report) -> Result<()> {
        let table = pinned(self.device, self.sizes.pinned_table_bytes)?;
        for (floats, goal) in [(16, None), (128, Some(0.85))] {
            clear(memory)?;
            let bytes = self.sizes.pinned_gathered_bytes;
            let taken = Taken::new(self, memory, &table, floats, bytes)?;
            let Taken { rows, out, n, row_bytes } = &taken;
            let source = table.part(0, rows.bytes())?;
            let (stream, kernels) = (self.stream, self.kernels);
            let seconds = self.race(&mut [&mut || out.copy_from(stream, &source), &mut || {
                kernels.gather(stream, rows, out)
            }])?;
            let rate = |seconds: f64| rows.bytes() as f64 / seconds / GIGA;
            report.add(Row {
                id: format!("gather.pinned_{row_bytes}"),
                case: format!("{n} rows of {row_bytes} B of {} MiB", table.bytes() >> 20),
                unit: "GB/s",
                ours: rate(seconds[1]),
                limit: rate(seconds[0]),
                goal,
            });
        }
        Ok(())
    }

    /// Pooling and the interaction at the shapes of Kaggle and Terabyte: 26 features, one row each.
    pub fn network(&self, memory: &mut Memory, table: &Buffer, report: &Report) -> Result<()> {
        for (name, dim) in [("Kaggle", 16_u32), ("Terabyte", 64)] {
            self.network_of(memory, table, name, dim, report)
                .with_context(|| format!("{name} shape"))?;
        }
        Ok(())
    }

    fn network_of(
        &self,
        memory: &mut Memory,
        table: &Buffer,
        name: &str,
        dim: u32,
        report: &Report,
    ) -> Result<()> {
        const FEATURES: u32 = 26;
        clear(memory)?;
        let samples = self.sizes.batch;
        let (vectors, precision) = (FEATURES + 1, Precision::F32);
        let shape = Interaction { vectors, dim, with_itself: false, precision };
        let in_tf32 = Interaction { precision: Precision::Tf32, ..shape };
        let in_brains = Interaction { precision: Precision::Bf16, ..shape };
        let bags = samples * u64::from(FEATURES);
        let row_bytes = u64::from(dim) * 4;
        let slots = table.bytes() / row_bytes;
        let places: Vec<Option<u64>> = (0..bags).map(|i| Some(scattered(i, slots))).collect();
        let rows = Rows::new(memory, table, dim, places.into_iter())?;
        let starts: Vec<u32> = (0..=u32::try_from(bags)?).collect();
        let taken = BagsTaken {
            starts: &starts,
            places: &starts[..starts.len() - 1],
            weights: None,
            features: FEATURES,
            rows: rows.n(),
        };
        let bags = Bags::new(memory, taken)?;
        let features_bytes = samples * u64::from(shape.vectors) * row_bytes;
        let width = shape.width();
        let crossed_bytes = samples * u64::from(width) * 4;
        let features = memory.buffer(features_bytes)?;
        let gradient = memory.buffer(features_bytes)?;
        let crossed = memory.buffer(crossed_bytes)?;
        features.fill(self.stream, 0x3c)?;
        let (stream, kernels) = (self.stream, self.kernels);
        let forward = |shape| kernels.interact(stream, shape, samples, &features, &crossed, width);
        let backward = |shape| {
            let crossed_gradient = &crossed;
            kernels.interact_backward(
                stream,
                shape,
                samples,
                &features,
                crossed_gradient,
                width,
                &gradient,
            )
        };
        let seconds = self.race(&mut [
            &mut || gradient.copy_from(stream, &features),
            &mut || kernels.pool(stream, &rows, &bags, &features),
            &mut || forward(shape),
            &mut || forward(in_tf32),
            &mut || forward(in_brains),
            &mut || backward(shape),
            &mut || backward(in_tf32),
            &mut || backward(in_brains),
        ])?;
        let limit = 2.0 * features_bytes as f64 / seconds[0] / GIGA;
        let (f, c) = (features_bytes as f64, crossed_bytes as f64);
        for (id, moved, seconds) in [
            ("pool", 2.0 * rows.bytes() as f64, seconds[1]),
            ("interact", f + c, seconds[2]),
            ("interact_tf32", f + c, seconds[3]),
            ("interact_bf16", f + c, seconds[4]),
            ("interact_backward", 2.0 * f + c, seconds[5]),
            ("interact_backward_tf32", 2.0 * f + c, seconds[6]),
            ("interact_backward_bf16", 2.0 * f + c, seconds[7]),
        ] {
            let micros = seconds * 1e6;
            let case = format!("{name} shape, batch {samples}, {micros:.1} us");
            let id = format!("{id}.{}", name.to_lowercase());
            report.add(shown(&id, case, "GB/s", moved / seconds / GIGA, limit));
        }
        Ok(())
    }

    /// The median seconds of each work, over rounds in which all run in turn, on the device's
    /// clock.
    fn race(&self, works: &mut [&mut dyn FnMut() -> gpu::Result<()>]) -> Result<Vec<f64>> {
        let (begin, end): (Event, Event) = (self.device.event()?, self.device.event()?);
        let mut seconds = vec![Vec::new(); works.len()];
        for round in 0..=ROUNDS {
            for (work, seconds) in works.iter_mut().zip(&mut seconds) {
                self.stream.record(&begin)?;
                work()?;
                self.stream.record(&end)?;
                end.finish()?;
                if round > 0 {
                    // the first warms up
                    seconds.push(end.seconds_since(&begin)?.max(1e-9));
                }
            }
        }
        Ok(seconds.into_iter().map(median).collect())
    }
}

/// Rows that were picked from a table, and a buffer for them.
struct Taken {
    rows: Rows,
    out: Buffer,
    n: u64,
    row_bytes: u64,
}

impl Taken {
    fn new(
        bench: &Bench<'_>,
        memory: &mut Memory,
        table: &Buffer,
        floats: u32,
        bytes: u64,
    ) -> Result<Self> {
        let row_bytes = u64::from(floats) * 4;
        let (slots, n) = (table.bytes() / row_bytes, bytes / row_bytes);
        let places: Vec<Option<u64>> = (0..n).map(|i| Some(scattered(i, slots))).collect();
        let rows = Rows::new(memory, table, floats, places.into_iter())?;
        let out = memory.buffer(rows.bytes())?;
        out.fill(bench.stream, 0)?;
        Ok(Self { rows, out, n, row_bytes })
    }
}

/// A slot of its own for each i below `slots`, a power of two, in no order that a memory likes:
/// each step is one to one.
fn scattered(i: u64, slots: u64) -> u64 {
    debug_assert!(slots.is_power_of_two() && i < slots);
    let (mask, shift) = (slots - 1, slots.ilog2() / 2 + 1);
    let mut x = i;
    for odd in [0x9e37_79b9_7f4a_7c15_u64, 0xbf58_476d_1ce4_e5b9, 0x94d0_49bb_1331_11eb] {
        x = x.wrapping_mul(odd) & mask;
        x ^= x >> shift;
    }
    x
}

/// Each benchmark has the whole of the memory for itself.
fn clear(memory: &mut Memory) -> Result<()> {
    memory.clear().context("start over with the benchmarks' memory")
}

fn shown(id: &str, case: String, unit: &'static str, ours: f64, limit: f64) -> Row {
    Row { id: id.to_owned(), case, unit, ours, limit, goal: None }
}

fn median(mut seconds: Vec<f64>) -> f64 {
    seconds.sort_by(f64::total_cmp);
    seconds[seconds.len() / 2]
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn scattered_slots_are_each_taken_once() {
        for bits in [1, 2, 7, 12] {
            let slots = 1 << bits;
            let taken: BTreeSet<u64> = (0..slots).map(|i| scattered(i, slots)).collect();
            assert_eq!(taken.len() as u64, slots);
        }
        let near =
            (0..1000).filter(|&i| scattered(i, 1 << 28).abs_diff(scattered(i + 1, 1 << 28)) < 64);
        assert!(near.count() < 3, "neighbours lie apart");
    }

    #[test]
    fn sizes_fit_a_device() {
        let sizes = Sizes::full(78 << 30);
        assert_eq!(sizes.table_bytes, 16 << 30);
        assert!(sizes.work_bytes() < 4 << 30, "{}", sizes.work_bytes());
        let small = Sizes::full(6 << 30);
        assert!(small.table_bytes + small.work_bytes() < 6 << 30, "{}", small.work_bytes());
    }
}
