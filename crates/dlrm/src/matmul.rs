//! Matrix products: the one door to the `gemm` crate and the crate's only unsafe code. Every view
//! is checked against its slice before a pointer leaves here. It splits no work between threads:
//! one call, one thread, so that the bits depend on the operands and their shapes alone.
#![allow(unsafe_code)]

use std::ops::Range;

/// A matrix in a slice: element (i, j) lies at `i * row_stride + j * column_stride`.
#[derive(Clone, Copy)]
pub(crate) struct Matrix<'a> {
    values: &'a [f32],
    rows: usize,
    columns: usize,
    row_stride: usize,
    column_stride: usize,
}

impl<'a> Matrix<'a> {
    /// `values` row after row: [rows, columns].
    pub(crate) fn new(values: &'a [f32], rows: usize, columns: usize) -> Self {
        assert_eq!(Some(values.len()), rows.checked_mul(columns), "a matrix of {rows} x {columns}");
        Self { values, rows, columns, row_stride: columns, column_stride: 1 }
    }

    /// The same values with rows and columns exchanged.
    pub(crate) fn transposed(self) -> Self {
        Self {
            rows: self.columns,
            columns: self.rows,
            row_stride: self.column_stride,
            column_stride: self.row_stride,
            ..self
        }
    }

    /// Some of the columns.
    pub(crate) fn columns(self, range: Range<usize>) -> Self {
        assert!(range.start < range.end && range.end <= self.columns, "columns {range:?}");
        let values = &self.values[range.start * self.column_stride..];
        Self { values, columns: range.len(), ..self }
    }

    /// Whether every element lies inside the slice.
    fn is_inside(&self) -> bool {
        let last = |count: usize, stride: usize| count.checked_sub(1)?.checked_mul(stride);
        let end = last(self.rows, self.row_stride)
            .zip(last(self.columns, self.column_stride))
            .and_then(|(row, column)| row.checked_add(column));
        end.is_some_and(|end| end < self.values.len())
    }
}

/// `target = left · right`; `target` is [left.rows, right.columns].
pub(crate) fn multiply(target: &mut [f32], left: Matrix<'_>, right: Matrix<'_>) {
    product(target, left, right, false);
}

/// `target += left · right`; `target` is [left.rows, right.columns].
pub(crate) fn add_product(target: &mut [f32], left: Matrix<'_>, right: Matrix<'_>) {
    product(target, left, right, true);
}

fn product(target: &mut [f32], left: Matrix<'_>, right: Matrix<'_>, add: bool) {
    let (m, n, k) = (left.rows, right.columns, left.columns);
    assert_eq!(right.rows, k, "inner dimension");
    assert_eq!(Some(target.len()), m.checked_mul(n), "target of {m} x {n}");
    assert!(left.is_inside() && right.is_inside(), "a view outside its slice");
    let stride = |s: usize| isize::try_from(s).expect("a stride within a slice fits isize");
    // SAFETY: `left` [m, k] and `right` [k, n] were found inside their slices just above, strides
    // included, and `target` is exactly m x n floats with row stride n. `target` is borrowed
    // mutably, so it overlaps neither. Strides are not negative and fit isize, for each is at most
    // a slice's length. The type of all pointers is f32, as the type parameter says.
    unsafe {
        gemm::gemm::<f32>(
            m,
            n,
            k,
            target.as_mut_ptr(),
            1,
            stride(n),
            add,
            left.values.as_ptr(),
            stride(left.column_stride),
            stride(left.row_stride),
            right.values.as_ptr(),
            stride(right.column_stride),
            stride(right.row_stride),
            1.0,
            1.0,
            false,
            false,
            false,
            gemm::Parallelism::None,
        );
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn noise(seed: u32, len: usize) -> Vec<f32> {
        let value = |i: usize| {
            let mixed = (i as u32 ^ seed).wrapping_mul(0x9e37_79b9);
            ((mixed ^ (mixed >> 15)).wrapping_mul(0x85eb_ca6b) >> 8) as f32 / (1 << 24) as f32 - 0.5
        };
        (0..len).map(value).collect()
    }

    proptest! {
        #[test]
        fn products_agree_with_three_loops_in_doubles(
            m in 1_usize..70, n in 1_usize..70, k in 1_usize..70, seed in any::<u32>(),
        ) {
            let (a, b) = (noise(seed, m * k), noise(!seed, k * n));
            let at: Vec<f32> = (0..k * m).map(|i| a[i % m * k + i / m]).collect();
            let bt: Vec<f32> = (0..n * k).map(|i| b[i % k * n + i / k]).collect();
            let (plain, right) = (Matrix::new(&a, m, k), Matrix::new(&b, k, n));
            let (mut once, mut turned) = (vec![f32::NAN; m * n], vec![f32::NAN; m * n]);
            multiply(&mut once, plain, right);
            let (left_t, right_t) = (Matrix::new(&at, k, m), Matrix::new(&bt, n, k));
            multiply(&mut turned, left_t.transposed(), right_t.transposed());
            let mut twice = once.clone();
            add_product(&mut twice, plain, right);
            let mut last = vec![f32::NAN; m];
            multiply(&mut last, plain, right.columns(n - 1..n));
            for i in 0..m {
                for j in 0..n {
                    let sum: f64 =
                        (0..k).map(|l| f64::from(a[i * k + l]) * f64::from(b[l * n + j])).sum();
                    let close = |x: f32, y: f64| (f64::from(x) - y).abs() < 1e-5;
                    prop_assert!(close(once[i * n + j], sum) && close(turned[i * n + j], sum));
                    prop_assert!(close(twice[i * n + j], 2.0 * sum));
                    prop_assert!(j + 1 < n || close(last[i], sum));
                }
            }
        }
    }

    #[test]
    #[should_panic(expected = "inner dimension")]
    fn operands_that_do_not_fit_are_refused() {
        let values = [0.0; 6];
        multiply(&mut [0.0; 4], Matrix::new(&values, 2, 3), Matrix::new(&values, 2, 3));
    }
}
