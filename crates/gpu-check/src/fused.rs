//! Products with transposes, bias, ReLU and their gradients beside loops in doubles. Where the
//! library knows no way, a model goes on with kernels: that is shown and is no failure.

use anyhow::{Context, Result};
use gpu::vectors::floats;
use gpu::{
    Buffer, Device, Epilogue, Memory, Operation, Precision, Product, Products, Shape, Stream,
    mask_bytes,
};

use crate::correctness::to_brain;
use crate::report::{CASES, Report, Row};

/// A layer of a model: samples, inputs, outputs.
const LAYERS: [(usize, usize, usize); 3] = [(40, 24, 16), (128, 512, 256), (1, 8, 8)];

/// The layer's products forward and backward, in each precision, with as much in the product as the
/// library can do.
pub fn layers(
    device: &Device,
    stream: &Stream,
    memory: &mut Memory,
    report: &Report,
) -> Result<()> {
    let products = Products::open(device)?;
    for (precision, name, tolerance) in [
        (Precision::F32, "f32", 1e-5),
        (Precision::Tf32, "tf32", 2e-3),
        (Precision::Bf16, "bf16", 2e-2),
    ] {
        let mut found = Found::default();
        for (m, k, n) in LAYERS {
            memory.clear().context("start over with the vectors' memory")?;
            let mut layer = Layer { products: &products, stream, memory, precision, tolerance };
            layer.check(m, k, n, &mut found).with_context(|| format!("layer in {name}"))?;
        }
        report.add(Row {
            id: format!("vectors.layer_{name}"),
            case: format!("products of layers, within {tolerance} of the largest sum"),
            unit: CASES,
            ours: f64::from(found.right),
            limit: f64::from(found.done),
            goal: Some(1.0),
        });
        report.add(Row {
            id: format!("epilogues.{name}"),
            case: "that the library knows; kernels do the others".to_owned(),
            unit: "epilogues",
            ours: f64::from(found.known),
            limit: f64::from(found.asked),
            goal: None,
        });
    }
    memory.clear().context("start over with the vectors' memory")
}

#[derive(Default)]
struct Found {
    right: u32,
    done: u32,
    known: u32,
    asked: u32,
}

struct Layer<'a> {
    products: &'a Products,
    stream: &'a Stream,
    memory: &'a mut Memory,
    precision: Precision,
    tolerance: f64,
}

impl Layer<'_> {
    fn check(&mut self, m: usize, k: usize, n: usize, found: &mut Found) -> Result<()> {
        let input = floats(21, 0, m * k);
        let weight = floats(21, 1, n * k);
        let bias = floats(21, 2, n);
        let slopes = floats(21, 3, m * n);
        let [x, w, dy] = [&input, &weight, &slopes].map(|values| self.side(values));
        let (x, w, dy) = (x?, w?, dy?);
        let bias_there = self.memory.buffer_of(&bias)?;
        let mask = self.memory.buffer(mask_bytes(m as u64, k as u64))?;
        let workspace = self.memory.buffer(4 << 20)?;
        let dot = |terms: &mut dyn Iterator<Item = (f32, f32)>| -> f64 {
            terms.map(|(a, b)| f64::from(a) * f64::from(b)).sum()
        };

        // forward: x w^T, then with the bias, then cut
        let plain: Vec<f64> = (0..m * n)
            .map(|at| {
                let (row, column) = (&input[at / n * k..][..k], &weight[at % n * k..][..k]);
                dot(&mut row.iter().copied().zip(column.iter().copied()))
            })
            .collect();
        let added: Vec<f64> =
            plain.iter().enumerate().map(|(at, sum)| sum + f64::from(bias[at % n])).collect();
        let cut: Vec<f64> = added.iter().map(|sum| sum.max(0.0)).collect();
        let shape = Shape { m: m as u64, n: n as u64, k: k as u64 };
        for (epilogue, expected) in [
            (Epilogue::None, &plain),
            (Epilogue::Bias(&bias_there), &added),
            (Epilogue::BiasAndRelu(&bias_there), &cut),
        ] {
            let out = self.memory.buffer(4 * (m * n) as u64)?;
            let operation = self.operation(shape, (false, true), epilogue);
            if self.run(operation, &workspace, (&x, &w, &out), found)? {
                self.compare(&out, expected, k, found)?;
            }
        }

        // backward by the weight: dy^T x
        let expected: Vec<f64> = (0..n * k)
            .map(|at| {
                let (output, column) = (at / k, at % k);
                dot(&mut (0..m).map(|s| (slopes[s * n + output], input[s * k + column])))
            })
            .collect();
        let out = self.memory.buffer(4 * (n * k) as u64)?;
        let shape = Shape { m: n as u64, n: k as u64, k: m as u64 };
        let operation = self.operation(shape, (true, false), Epilogue::None);
        if self.run(operation, &workspace, (&dy, &x, &out), found)? {
            self.compare(&out, &expected, m, found)?;
        }

        // backward by the input: dy w; then cut by the mask of the layer before, and summed
        let by_input: Vec<f64> = (0..m * k)
            .map(|at| {
                let (sample, column) = (at / k, at % k);
                dot(&mut (0..n).map(|o| (slopes[sample * n + o], weight[o * k + column])))
            })
            .collect();
        let out = self.memory.buffer(4 * (m * k) as u64)?;
        let shape = Shape { m: m as u64, n: k as u64, k: n as u64 };
        let operation = self.operation(shape, (false, false), Epilogue::None);
        if self.run(operation, &workspace, (&dy, &w, &out), found)? {
            self.compare(&out, &by_input, n, found)?;
        }

        // a layer before: its mask is where x q^T plus a bias is above zero
        let before = floats(21, 4, k * k);
        let before_bias = floats(21, 5, k);
        let (q, q_bias) = (self.side(&before)?, self.memory.buffer_of(&before_bias)?);
        let sums = self.memory.buffer(4 * k as u64)?;
        let there = self.memory.buffer(4 * (m * k) as u64)?;
        let shape = Shape { m: m as u64, n: k as u64, k: k as u64 };
        let epilogue = Epilogue::BiasAndReluWithMask { bias: &q_bias, mask: &mask };
        let operation = self.operation(shape, (false, true), epilogue);
        if !self.run(operation, &workspace, (&x, &q, &there), found)? {
            return Ok(());
        }
        let mut above = vec![0.0_f32; m * k];
        there.read(0, &mut above)?;
        let shape = Shape { m: m as u64, n: k as u64, k: n as u64 };
        let epilogue = Epilogue::ReluGradient { mask: &mask, bias_gradient: &sums };
        let operation = self.operation(shape, (false, false), epilogue);
        if self.run(operation, &workspace, (&dy, &w, &out), found)? {
            let gradient: Vec<f64> =
                by_input.iter().zip(&above).map(|(g, x)| if *x > 0.0 { *g } else { 0.0 }).collect();
            self.compare(&out, &gradient, n, found)?;
            let by_column: Vec<f64> =
                (0..k).map(|c| gradient.iter().skip(c).step_by(k).sum()).collect();
            self.compare(&sums, &by_column, n * m, found)?;
        }
        Ok(())
    }

    fn operation<'e>(
        &self,
        shape: Shape,
        (a_transposed, b_transposed): (bool, bool),
        epilogue: Epilogue<'e>,
    ) -> Operation<'e> {
        let precision = self.precision;
        Operation { shape, a_transposed, b_transposed, precision, wide: true, epilogue }
    }

    /// Whether the library knows how, and then it has run. A plain product it has to know, but in
    /// brain floats, which a model has a way around too.
    fn run(
        &self,
        operation: Operation<'_>,
        workspace: &Buffer,
        (a, b, c): (&Buffer, &Buffer, &Buffer),
        found: &mut Found,
    ) -> Result<bool> {
        let plain = matches!(operation.epilogue, Epilogue::None);
        found.asked += u32::from(!plain);
        let planned = Product::plan_operation(self.products, operation, workspace);
        let made = planned.and_then(|product| product.run(self.stream, a, b, c));
        match made {
            Ok(()) => {
                found.known += u32::from(!plain);
                Ok(true)
            }
            Err(error) if plain && self.precision != Precision::Bf16 => Err(error.into()),
            Err(error) => {
                eprintln!("gpu-check: {:?} is left to kernels: {error}", operation.shape);
                Ok(false)
            }
        }
    }

    fn side(&mut self, values: &[f32]) -> Result<Buffer> {
        Ok(if self.precision == Precision::Bf16 {
            let brains: Vec<u16> = values.iter().map(|&x| to_brain(x)).collect();
            self.memory.buffer_of(&brains)?
        } else {
            self.memory.buffer_of(values)?
        })
    }

    fn compare(
        &self,
        out: &Buffer,
        expected: &[f64],
        terms: usize,
        found: &mut Found,
    ) -> Result<()> {
        let mut floats = vec![0.0_f32; expected.len()];
        out.read(0, &mut floats)?;
        let off = floats.iter().zip(expected).map(|(x, y)| (f64::from(*x) - y).abs());
        // no number is as far off as can be
        let worst = off.fold(0.0, |a: f64, b| if b.is_nan() { f64::INFINITY } else { a.max(b) });
        found.done += 1;
        if worst <= self.tolerance * terms.max(8) as f64 {
            found.right += 1;
        } else {
            eprintln!("gpu-check: a layer's product of {terms} terms is off by {worst}");
        }
        Ok(())
    }
}
