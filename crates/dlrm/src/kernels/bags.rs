//! Rows to one vector and one vector to rows. A row that is wanted soon is asked for beforehand:
//! rows lie anywhere, and the processor can't guess where.

use super::dispatch;
use super::lanes::{LANES, Lanes, ask};

/// Rows that are asked for ahead of the one at hand.
const AHEAD: usize = 12;

/// `target` = the sum of the rows, first index to last. There is one at least.
pub(crate) fn sum_of_rows(
    rows: &[f32], // [rows, target.len()]
    indices: &[u32],
    target: &mut [f32],
) {
    sum(rows, indices, target);
}

/// Adds `gradient` to every row that `indices` name, less `first`, in their order.
pub(crate) fn add_to_rows(
    gradient: &[f32],
    indices: &[u32],
    first: usize,
    rows: &mut [f32], // [rows, gradient.len()]
) {
    spread(gradient, indices, first, rows);
}

fn sum(rows: &[f32], indices: &[u32], target: &mut [f32]) {
    dispatch!(sum_all(rows: &[f32], indices: &[u32], target: &mut [f32]))
}

fn spread(gradient: &[f32], indices: &[u32], first: usize, rows: &mut [f32]) {
    dispatch!(spread_all(gradient: &[f32], indices: &[u32], first: usize, rows: &mut [f32]))
}

#[inline(always)]
unsafe fn sum_all<L: Lanes>(rows: &[f32], indices: &[u32], target: &mut [f32]) {
    // SAFETY: the target has so many vectors as is said; the caller has the processor's.
    unsafe {
        match target.len() {
            16 => sum_vectors::<L, 1>(rows, indices, target),
            32 => sum_vectors::<L, 2>(rows, indices, target),
            64 => sum_vectors::<L, 4>(rows, indices, target),
            128 => sum_vectors::<L, 8>(rows, indices, target),
            dim => {
                let row = |index: u32| &rows[index as usize * dim..][..dim];
                target.copy_from_slice(row(indices[0]));
                for &index in &indices[1..] {
                    target.iter_mut().zip(row(index)).for_each(|(sum, &x)| *sum += x);
                }
            }
        }
    }
}

#[inline(always)]
unsafe fn sum_vectors<L: Lanes, const N: usize>(rows: &[f32], indices: &[u32], target: &mut [f32]) {
    let dim = N * LANES;
    let row = |index: u32| &rows[index as usize * dim..][..dim];
    // SAFETY: every row was found inside, as long as N vectors; so is the target, says the caller.
    unsafe {
        let mut sums: [L; N] = load(row(indices[0]));
        for (i, &index) in indices.iter().enumerate().skip(1) {
            if let Some(&later) = indices.get(i + AHEAD) {
                ask_row(rows, later as usize * dim, dim);
            }
            let vectors: [L; N] = load(row(index));
            sums.iter_mut().zip(vectors).for_each(|(sum, x)| *sum = sum.add(x));
        }
        for (n, sum) in sums.iter().enumerate() {
            sum.store(target.as_mut_ptr().add(n * LANES));
        }
    }
}

#[inline(always)]
unsafe fn spread_all<L: Lanes>(gradient: &[f32], indices: &[u32], first: usize, rows: &mut [f32]) {
    // SAFETY: the gradient has so many vectors as is said; the caller has the processor's.
    unsafe {
        match gradient.len() {
            16 => spread_vectors::<L, 1>(gradient, indices, first, rows),
            32 => spread_vectors::<L, 2>(gradient, indices, first, rows),
            64 => spread_vectors::<L, 4>(gradient, indices, first, rows),
            128 => spread_vectors::<L, 8>(gradient, indices, first, rows),
            dim => {
                for &index in indices {
                    let row = &mut rows[(index as usize - first) * dim..][..dim];
                    row.iter_mut().zip(gradient).for_each(|(sum, &x)| *sum += x);
                }
            }
        }
    }
}

#[inline(always)]
unsafe fn spread_vectors<L: Lanes, const N: usize>(
    gradient: &[f32],
    indices: &[u32],
    first: usize,
    rows: &mut [f32],
) {
    let dim = N * LANES;
    // SAFETY: every row was found inside, as long as N vectors; the caller says so of the gradient.
    unsafe {
        let vectors: [L; N] = load(gradient);
        for (i, &index) in indices.iter().enumerate() {
            if let Some(&later) = indices.get(i + AHEAD) {
                ask_row(rows, (later as usize - first) * dim, dim);
            }
            let row = &mut rows[(index as usize - first) * dim..][..dim];
            let sums: [L; N] = load(row);
            for (n, (sum, x)) in sums.into_iter().zip(vectors).enumerate() {
                sum.add(x).store(row.as_mut_ptr().add(n * LANES));
            }
        }
    }
}

#[inline(always)]
unsafe fn load<L: Lanes, const N: usize>(row: &[f32]) -> [L; N] {
    // SAFETY: the row has N vectors, says the caller.
    std::array::from_fn(|n| unsafe { L::load(row.as_ptr().add(n * LANES)) })
}

/// Asks for the lines of a row. A place outside is asked for in vain and does no harm.
#[inline(always)]
fn ask_row(rows: &[f32], place: usize, dim: usize) {
    for line in (0..dim).step_by(LANES) {
        ask(rows.as_ptr().wrapping_add(place + line));
    }
}
