//! Every kernel against its vectors, rows in a table beyond 4 GiB, and the matrix products against
//! loops. It measures no time.
#![allow(unsafe_code)]

use anyhow::{Context, Result};
use gpu::kernels::ALL;
use gpu::vectors::{Argument, floats};
use gpu::{
    Buffer, Device, Kernels, Memory, Precision, Product, Rows, RowsIn, Shape, Stream, replay,
};

use crate::report::{CASES, Report, Row};
use crate::vectors::cases;

/// Device memory that the vectors take at most.
pub const MEMORY_BYTES: u64 = 64 << 20;

/// Runs every kernel's vectors: rows in device memory, then, for kernels that take rows by their
/// addresses, in pinned host memory. So the two together say that where a row lies changes no bit.
pub fn vectors(
    device: &Device,
    stream: &Stream,
    kernels: &Kernels,
    memory: &mut Memory,
    report: &Report,
) -> Result<()> {
    let cases = cases();
    for &kernel in ALL.iter().flat_map(|source| source.kernels) {
        for (rows_in, place) in [(RowsIn::Device, "device"), (RowsIn::Pinned, "pinned host")] {
            let by_address = |case: &&gpu::vectors::Case| {
                case.arguments.iter().any(|argument| matches!(argument, Argument::Memory { .. }))
            };
            let of_it = cases.iter().filter(|case| case.kernel == kernel);
            let of_it: Vec<_> =
                of_it.filter(|case| rows_in == RowsIn::Device || by_address(case)).collect();
            if of_it.is_empty() {
                continue;
            }
            let mut right = 0;
            for (number, case) in of_it.iter().enumerate() {
                memory.clear().context("start over with the vectors' memory")?;
                // SAFETY: the cases are this program's own, and the tests run all of them on the
                // CPU under the address sanitizer.
                let outcome = unsafe { replay(device, stream, kernels, memory, rows_in, case) };
                match outcome.with_context(|| format!("run {kernel}, case {number}"))? {
                    Ok(()) => right += 1,
                    Err(difference) => {
                        eprintln!("gpu-check: {kernel}, case {number}, {place}: {difference}");
                    }
                }
            }
            report.add(Row {
                id: format!("vectors.{kernel}"),
                case: format!("rows in {place} memory"),
                unit: CASES,
                ours: f64::from(right),
                limit: of_it.len() as f64,
                goal: Some(1.0),
            });
        }
    }
    memory.clear().context("start over with the vectors' memory")
}

/// Rows of 16 floats that lie all over a large table, its last one among them, are gathered as they
/// were written: no address is cut to 32 bits.
pub fn far_rows(
    stream: &Stream,
    kernels: &Kernels,
    memory: &mut Memory,
    table: &Buffer,
    report: &Report,
) -> Result<()> {
    const ROWS: u64 = 64;
    memory.clear().context("start over with the vectors' memory")?;
    let row_bytes = 64;
    let slots = table.bytes() / row_bytes;
    let place = |i: u64| (slots - 1) * i / (ROWS - 1);
    let expected = floats(7, 0, (ROWS * 16) as usize);
    for (i, row) in expected.chunks_exact(16).enumerate() {
        table.write(place(i as u64) * row_bytes, row)?;
    }
    let places: Vec<Option<u64>> = (0..ROWS).map(|i| Some(place(i))).collect();
    let rows = Rows::new(memory, table, 16, places.into_iter())?;
    let out = memory.buffer(rows.bytes())?;
    kernels.gather(stream, &rows, &out)?;
    let mut found = vec![0.0_f32; expected.len()];
    out.read(0, &mut found)?;
    let pairs = found.chunks_exact(16).zip(expected.chunks_exact(16));
    report.add(Row {
        id: "vectors.far_rows".to_owned(),
        case: format!("gather, all over {} MiB", table.bytes() >> 20),
        unit: CASES,
        ours: pairs.filter(|(found, expected)| found == expected).count() as f64,
        limit: ROWS as f64,
        goal: Some(1.0),
    });
    Ok(())
}

/// One matrix product in each precision beside loops in doubles, over shapes of the network.
pub fn products(
    device: &Device,
    stream: &Stream,
    memory: &mut Memory,
    report: &Report,
) -> Result<()> {
    let shapes = [Shape { m: 64, n: 48, k: 80 }, Shape { m: 16, n: 512, k: 24 }];
    // a product's error is the elements' rounding, 2^-11 in TF32 and 2^-9 in bf16, over sums of k
    let precisions = [
        (Precision::F32, "f32", 1e-5),
        (Precision::Tf32, "TF32", 2e-3),
        (Precision::Bf16, "bf16", 2e-2),
    ];
    for (precision, name, tolerance) in precisions {
        let mut right = 0;
        for shape in shapes {
            memory.clear().context("start over with the vectors' memory")?;
            let off = product_error(device, stream, memory, shape, precision)
                .with_context(|| format!("product in {name}"))?;
            if off <= tolerance {
                right += 1;
            } else {
                eprintln!("gpu-check: product in {name}, {shape:?}: off by {off}");
            }
        }
        report.add(Row {
            id: format!("vectors.product_{}", name.to_lowercase()),
            case: format!("within {tolerance} of the largest sum"),
            unit: CASES,
            ours: f64::from(right),
            limit: shapes.len() as f64,
            goal: Some(1.0),
        });
    }
    memory.clear().context("start over with the vectors' memory")
}

/// The largest error of an element over the largest sum that could be: k.
fn product_error(
    device: &Device,
    stream: &Stream,
    memory: &mut Memory,
    shape: Shape,
    precision: Precision,
) -> Result<f64> {
    let Shape { m, n, k } = shape;
    let a = floats(11, 0, (m * k) as usize);
    let b = floats(11, 1, (k * n) as usize);
    let brief = precision == Precision::Bf16;
    let mut take = |values: &[f32]| {
        if brief {
            let halves: Vec<u16> = values.iter().map(|&x| to_brain(x)).collect();
            memory.buffer_of(&halves)
        } else {
            memory.buffer_of(values)
        }
    };
    let (a_there, b_there) = (take(&a)?, take(&b)?);
    let elements = (m * n) as usize;
    let c = memory.buffer(elements as u64 * if brief { 2 } else { 4 })?;
    let workspace = memory.buffer(4 << 20)?;
    let product = Product::plan(device, shape, precision, &workspace)?;
    product.run(stream, &a_there, &b_there, &c)?;
    let found: Vec<f32> = if brief {
        let mut halves = vec![0_u16; elements];
        c.read(0, &mut halves)?;
        halves.into_iter().map(|half| f32::from_bits(u32::from(half) << 16)).collect()
    } else {
        let mut floats = vec![0.0_f32; elements];
        c.read(0, &mut floats)?;
        floats
    };
    let mut worst = 0.0_f64;
    for (at, &found) in found.iter().enumerate() {
        let (row, column) = (at / n as usize, at % n as usize);
        let term =
            |i: usize| f64::from(a[row * k as usize + i]) * f64::from(b[i * n as usize + column]);
        let expected: f64 = (0..k as usize).map(term).sum();
        let off = (f64::from(found) - expected).abs() / k as f64;
        worst = if off.is_nan() { f64::INFINITY } else { worst.max(off) };
    }
    Ok(worst)
}

/// The nearest 16-bit brain float, ties to even.
pub(crate) fn to_brain(x: f32) -> u16 {
    let bits = x.to_bits();
    if x.is_nan() {
        return (bits >> 16) as u16 | 0x40;
    }
    ((bits + 0x7fff + (bits >> 16 & 1)) >> 16) as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn brain_floats_are_the_nearest() {
        assert_eq!(to_brain(1.0), 0x3f80);
        assert_eq!(to_brain(f32::from_bits(0x3f80_8000)), 0x3f80, "a tie goes to even");
        assert_eq!(to_brain(f32::from_bits(0x3f81_8000)), 0x3f82);
        assert_eq!(to_brain(f32::from_bits(0x3f80_8001)), 0x3f81);
        assert_eq!(to_brain(-2.0), 0xc000);
    }
}
