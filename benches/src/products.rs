//! The matrix products of a training step and nothing else, at the speed of the library that is
//! fastest on this machine: the limit of a step. It computes no gradient of anything.
#![allow(unsafe_code)] // the library takes pointers

use anyhow::Result;

use crate::measure::rate;

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

    /// Samples a second.
    pub(crate) fn samples_a_second(&mut self, steps: usize) -> Result<f64> {
        let threads = self.shares.len() as f64;
        let batch = self.batch;
        let summed = rate(self.shares.iter_mut(), |share| {
            for _ in 0..steps {
                share.iter_mut().for_each(Product::compute);
            }
            Ok(steps * batch)
        })?;
        Ok(summed / threads) // each thread counted whole batches and did its share of them
    }
}

impl Product {
    fn new((m, n, k): (usize, usize, usize), a_transposed: bool, b_transposed: bool) -> Product {
        let values = |len: usize| (0..len).map(|i| (i % 97) as f32 / 97.0 - 0.5).collect();
        let (a, b, c) = (values(m * k), values(k * n), values(m * n));
        Product { m, n, k, a, b, c, a_transposed, b_transposed }
    }

    fn compute(&mut self) {
        let Product { m, n, k, ref a, ref b, ref mut c, a_transposed, b_transposed } = *self;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_product_is_that_of_its_matrices() {
        for (a_transposed, b_transposed) in [(false, false), (true, false), (false, true)] {
            let (m, n, k) = (3, 4, 5);
            let mut product = Product::new((m, n, k), a_transposed, b_transposed);
            product.compute();
            for i in 0..m {
                for j in 0..n {
                    let a = |l: usize| product.a[if a_transposed { l * m + i } else { i * k + l }];
                    let b = |l: usize| product.b[if b_transposed { j * k + l } else { l * n + j }];
                    let sum: f32 = (0..k).map(|l| a(l) * b(l)).sum();
                    assert!((product.c[i * n + j] - sum).abs() < 1e-5, "{i}, {j}");
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
