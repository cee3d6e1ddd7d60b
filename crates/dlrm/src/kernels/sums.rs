//! Sums of rows.

use super::dispatch;
use super::lanes::{LANES, Lanes};

/// Adds the columns `first..first + sum.len()` of every row to `sum`, first row to last.
pub(crate) fn add_rows(
    rows: &[f32], // [rows, stride]
    stride: usize,
    first: usize,
    sum: &mut [f32],
) {
    assert!(first + sum.len() <= stride && rows.len().is_multiple_of(stride), "columns of rows");
    add(rows, stride, first, sum);
}

fn add(rows: &[f32], stride: usize, first: usize, sum: &mut [f32]) {
    dispatch!(add_all(rows: &[f32], stride: usize, first: usize, sum: &mut [f32]))
}

/// Some vectors at a time, as registers hold them; the columns that are left one by one.
#[inline(always)]
unsafe fn add_all<L: Lanes>(rows: &[f32], stride: usize, first: usize, sum: &mut [f32]) {
    const VECTORS: usize = 4;
    let (wide, rest) = sum.as_chunks_mut::<{ VECTORS * LANES }>();
    let mut column = first;
    for wide in wide {
        // SAFETY: the caller has found the columns inside the rows; a chunk is as long as that.
        unsafe { add_vectors::<L, VECTORS>(rows, stride, column, wide) };
        column += VECTORS * LANES;
    }
    let (narrow, rest) = rest.as_chunks_mut::<LANES>();
    for narrow in narrow {
        // SAFETY: as above.
        unsafe { add_vectors::<L, 1>(rows, stride, column, narrow) };
        column += LANES;
    }
    for row in rows.chunks_exact(stride) {
        rest.iter_mut().zip(&row[column..]).for_each(|(sum, &x)| *sum += x);
    }
}

#[inline(always)]
unsafe fn add_vectors<L: Lanes, const N: usize>(
    rows: &[f32],
    stride: usize,
    column: usize,
    sum: &mut [f32],
) {
    // SAFETY: `sum` has N vectors, and so has every row from `column` on, says the caller.
    unsafe {
        let mut sums = [L::zero(); N];
        for (n, vector) in sums.iter_mut().enumerate() {
            *vector = L::load(sum.as_ptr().add(n * LANES));
        }
        for row in rows.chunks_exact(stride) {
            for (n, vector) in sums.iter_mut().enumerate() {
                *vector = vector.add(L::load(row.as_ptr().add(column + n * LANES)));
            }
        }
        for (n, vector) in sums.iter().enumerate() {
            vector.store(sum.as_mut_ptr().add(n * LANES));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_summed_in_the_order_of_the_rows() {
        for (stride, first, count) in [(7, 2, 5), (100, 3, 97), (160, 16, 128), (64, 0, 64)] {
            let rows: Vec<f32> =
                (0..11 * stride).map(|i| ((i * 7919 % 101) as f32 - 50.0) / 3.0).collect();
            let mut found = vec![0.5; count];
            add_rows(&rows, stride, first, &mut found);
            for (c, &found) in found.iter().enumerate() {
                let column = rows.iter().skip(first + c).step_by(stride);
                assert_eq!(found, column.fold(0.5, |sum, &x| sum + x));
            }
        }
    }
}
