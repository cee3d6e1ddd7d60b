//! The matrix products of a training step and nothing else, at the speed of the fastest way that is
//! known: the limit of a step. It computes no gradient of anything.
#![allow(unsafe_code)] // the library takes pointers

use anyhow::Result;
use dlrm::products::{Finish, Left, PANEL, Right, Term, product};

use crate::measure::rate;

/// Of a product's long side, what our own way takes at a time: as much as a cache holds.
const BLOCK: usize = 256;
/// Floats of a cache line.
const LINE: usize = 16;

/// Who multiplies.
#[derive(Debug, Clone, Copy)]
enum Way {
    /// The `gemm` crate.
    Library,
    /// `dlrm`'s products, operands laid out beforehand.
    Own,
}

/// The products of a batch, each cut into as many shares as there are threads. No share waits for
/// another, so that no real step can be faster.
pub(crate) struct Products {
    batch: usize,
    shares: Vec<Vec<Product>>,
}

/// `c = a · b`: [m, k] · [k, n].
struct Product {
    m: usize,
    n: usize,
    k: usize,
    a: Vec<f32>,
    b: Vec<f32>,
    c: Vec<f32>,
    /// Whether `a`, or `b`, lies transposed in memory.
    a_transposed: bool,
    b_transposed: bool,
    own: Own,
}

/// The operands as our own way wants them: rows of whole cache lines; `b` in panels if it lies
/// transposed, as weights do.
struct Own {
    a: Vec<f32>,
    b: Vec<f32>,
    c: Vec<f32>,
    a_stride: usize,
    b_stride: usize,
    c_stride: usize,
}

impl Products {
    /// Forward, gradient of the weights, and gradient of the inputs but for the first layer of the
    /// bottom MLP, whose input needs none. `mlps` are the widths of each, inputs first.
    pub(crate) fn new(mlps: &[Vec<usize>], batch: usize, threads: usize) -> Products {
        let share = |of: usize, thread: usize| of * (thread + 1) / threads - of * thread / threads;
        let shares = (0..threads).map(|thread| {
            let mut products = Vec::new();
            for (mlp, widths) in mlps.iter().enumerate() {
                for (layer, pair) in widths.windows(2).enumerate() {
                    let (inputs, outputs, samples) = (pair[0], pair[1], share(batch, thread));
                    products.push(Product::new((samples, outputs, inputs), false, true));
                    products.push(Product::new(
                        (outputs, share(inputs, thread), batch),
                        true,
                        false,
                    ));
                    if mlp > 0 || layer > 0 {
                        products.push(Product::new((samples, inputs, outputs), false, false));
                    }
                }
            }
            products
        });
        Products { batch, shares: shares.collect() }
    }

    /// Samples a second, by the way that is faster here.
    pub(crate) fn samples_a_second(&mut self, steps: usize) -> Result<f64> {
        Ok(self.rate(steps, Way::Library)?.max(self.rate(steps, Way::Own)?))
    }

    /// Seconds that the products of one step take, by the way that steps go.
    pub(crate) fn seconds_of_a_step(&mut self) -> Result<f64> {
        Ok(self.batch as f64 / self.rate(1, Way::Own)?)
    }

    fn rate(&mut self, steps: usize, way: Way) -> Result<f64> {
        let (threads, batch) = (self.shares.len() as f64, self.batch);
        let summed = rate(self.shares.iter_mut(), |share| {
            for _ in 0..steps {
                share.iter_mut().for_each(|product| product.compute(way));
            }
            Ok(steps * batch)
        })?;
        Ok(summed / threads) // each thread did its share of whole batches
    }
}

impl Product {
    fn new((m, n, k): (usize, usize, usize), a_transposed: bool, b_transposed: bool) -> Product {
        let values =
            |len: usize| (0..len).map(|i| (i % 97) as f32 / 97.0 - 0.5).collect::<Vec<f32>>();
        let (a, b, c) = (values(m * k), values(k * n), values(m * n));
        let own = Own::new((m, n, k), &a, &b, a_transposed, b_transposed);
        Product { m, n, k, a, b, c, a_transposed, b_transposed, own }
    }

    fn compute(&mut self, way: Way) {
        match way {
            Way::Library => self.compute_by_the_library(),
            Way::Own => self.own.compute((self.m, self.n, self.k), self.a_transposed),
        }
    }

    fn compute_by_the_library(&mut self) {
        let Product { m, n, k, ref a, ref b, ref mut c, a_transposed, b_transposed, .. } = *self;
        assert!(a.len() == m * k && b.len() == k * n && c.len() == m * n, "shapes of a product");
        let strides = |rows: usize, columns: usize, transposed: bool| {
            let (row, column) = if transposed { (1, rows) } else { (columns, 1) };
            (row as isize, column as isize)
        };
        let (a_row, a_column) = strides(m, k, a_transposed);
        let (b_row, b_column) = strides(k, n, b_transposed);
        // SAFETY: the slices were found as long as their shapes just above, the strides are those
        // of dense matrices of these shapes, and `c` is borrowed mutably and overlaps neither.
        unsafe {
            gemm::gemm::<f32>(
                m,
                n,
                k,
                c.as_mut_ptr(),
                1,
                n as isize,
                false,
                a.as_ptr(),
                a_column,
                a_row,
                b.as_ptr(),
                b_column,
                b_row,
                0.0,
                1.0,
                false,
                false,
                false,
                gemm::Parallelism::None,
            );
        }
    }
}

/// Floats from one row to the next: whole lines, and no power of two, which crowds a cache's sets.
fn stride(width: usize) -> usize {
    let whole = width.next_multiple_of(LINE);
    if whole.is_multiple_of(128) { whole + LINE } else { whole }
}

impl Own {
    fn new(
        (m, n, k): (usize, usize, usize),
        a: &[f32],
        b: &[f32],
        a_transposed: bool,
        b_transposed: bool,
    ) -> Own {
        let (rows, width) = if a_transposed { (k, m) } else { (m, k) };
        let a_stride = stride(width);
        let mut own_a = vec![0.0; rows * a_stride];
        for (own, row) in own_a.chunks_exact_mut(a_stride).zip(a.chunks_exact(width)) {
            own[..width].copy_from_slice(row);
        }
        let b_stride = if b_transposed { 0 } else { stride(n) };
        let own_b = if b_transposed {
            let mut panels = vec![0.0; n.div_ceil(PANEL) * k * PANEL];
            for (j, row) in b.chunks_exact(k).enumerate() {
                let panel = &mut panels[j / PANEL * k * PANEL..];
                row.iter().enumerate().for_each(|(l, &x)| panel[l * PANEL + j % PANEL] = x);
            }
            panels
        } else {
            let mut rows = vec![0.0; k * b_stride];
            for (own, row) in rows.chunks_exact_mut(b_stride).zip(b.chunks_exact(n)) {
                own[..n].copy_from_slice(row);
            }
            rows
        };
        let c_stride = stride(n);
        Own { a: own_a, b: own_b, c: vec![0.0; m * c_stride], a_stride, b_stride, c_stride }
    }

    fn compute(&mut self, (m, n, k): (usize, usize, usize), a_transposed: bool) {
        let Own { a, b, c, a_stride, b_stride, c_stride } = self;
        let (a_stride, b_stride, c_stride) = (*a_stride, *b_stride, *c_stride);
        let (panel, row) = if b_stride == 0 { (k * PANEL, PANEL) } else { (PANEL, b_stride) };
        if a_transposed {
            // the weights' gradient: samples are the inner dimension
            for first in (0..k).step_by(BLOCK) {
                let left = Left { values: &a[first * a_stride..], row: 1, column: a_stride };
                let right = Right { values: &b[first * b_stride..], panel, row };
                let term = Term { left, right, inner: BLOCK.min(k - first) };
                let finish = if first == 0 { Finish::Set } else { Finish::Add };
                product(&[term], (m, n), c, c_stride, finish);
            }
        } else {
            for first in (0..m).step_by(BLOCK) {
                let left = Left { values: &a[first * a_stride..], row: a_stride, column: 1 };
                let term = Term { left, right: Right { values: b, panel, row }, inner: k };
                let rows = BLOCK.min(m - first);
                product(&[term], (rows, n), &mut c[first * c_stride..], c_stride, Finish::Set);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_product_is_that_of_its_matrices() {
        for (a_transposed, b_transposed) in [(false, false), (true, false), (false, true)] {
            let (m, n, k) = (3, 4, 5);
            let mut product = Product::new((m, n, k), a_transposed, b_transposed);
            product.compute(Way::Library);
            product.compute(Way::Own);
            for i in 0..m {
                for j in 0..n {
                    let a = |l: usize| product.a[if a_transposed { l * m + i } else { i * k + l }];
                    let b = |l: usize| product.b[if b_transposed { j * k + l } else { l * n + j }];
                    let sum: f32 = (0..k).map(|l| a(l) * b(l)).sum();
                    for found in [product.c[i * n + j], product.own.c[i * product.own.c_stride + j]]
                    {
                        assert!((found - sum).abs() < 1e-5, "{i}, {j}");
                    }
                }
            }
        }
    }

    #[test]
    fn every_product_of_a_step_is_there_whatever_the_threads() {
        let mlps = [vec![13, 8, 4], vec![20, 6, 1]];
        let weights = 13 * 8 + 8 * 4 + 20 * 6 + 6;
        let expected = 2 * (3 * weights - 13 * 8) * 10; // the first layer's input needs no gradient
        for threads in [1, 2, 3] {
            let products = Products::new(&mlps, 10, threads);
            let all = products.shares.iter().flatten();
            let found: usize = all.map(|product| 2 * product.m * product.n * product.k).sum();
            assert_eq!(found, expected, "{threads} threads");
        }
    }
}
