//! Rows to one vector a bag, and a vector a bag to its rows. A row that is wanted soon is asked for
//! beforehand, across the ends of bags: rows lie anywhere, and the processor can't guess where.

use std::ops::Range;

use super::dispatch;
use super::lanes::{LANES, Lanes, ask};

/// Rows that are asked for ahead of the one at hand.
const AHEAD: usize = 12;

/// Some bags of one feature, and which vector of a matrix is whose.
#[derive(Clone, Copy)]
pub(crate) struct Bags<'a> {
    /// Places of rows, bag after bag.
    pub indices: &'a [u32],
    /// Where each of these bags begins among the indices, and the last one's end.
    pub offsets: &'a [u32], // [bags + 1]
    /// Floats of a row.
    pub dim: usize,
    /// A bag's vector begins at this column of its row of the matrix,
    pub column: usize,
    /// in which so many floats lie from one row to the next.
    pub stride: usize,
}

impl Bags<'_> {
    /// Where each bag's indices are, and its vector.
    pub(crate) fn iter_mut<'m>(
        &self,
        matrix: &'m mut [f32], // [bags, stride]
    ) -> impl Iterator<Item = (Range<usize>, &'m mut [f32])> {
        let vectors = self.column..self.column + self.dim;
        let rows = self.offsets.windows(2).zip(matrix.chunks_exact_mut(self.stride));
        rows.map(move |(ends, row)| (ends[0] as usize..ends[1] as usize, &mut row[vectors.clone()]))
    }

    fn check(&self, matrix: &[f32]) {
        let bags = self.offsets.len() - 1;
        assert!(self.column + self.dim <= self.stride, "columns of a matrix of bags");
        assert!(bags * self.stride <= matrix.len(), "a matrix of {bags} bags");
    }
}

/// Sets each bag's vector to the sum of its rows, first index to last; zeros where it has none.
pub(crate) fn sum_bags(
    bags: Bags<'_>,
    rows: &[f32],        // [rows, dim]
    vectors: &mut [f32], // [bags, stride]
) {
    bags.check(vectors);
    sum(bags, rows, vectors);
}

/// Adds each bag's vector to all its rows, bag after bag, first index to last. Indices count from
/// row `first` on.
pub(crate) fn add_to_rows(
    bags: Bags<'_>,
    vectors: &[f32], // [bags, stride]
    first: usize,
    rows: &mut [f32], // [rows, dim]
) {
    bags.check(vectors);
    spread(bags, vectors, first, rows);
}

fn sum(bags: Bags<'_>, rows: &[f32], vectors: &mut [f32]) {
    dispatch!(sum_all(bags: Bags<'_>, rows: &[f32], vectors: &mut [f32]))
}

fn spread(bags: Bags<'_>, vectors: &[f32], first: usize, rows: &mut [f32]) {
    dispatch!(spread_all(bags: Bags<'_>, vectors: &[f32], first: usize, rows: &mut [f32]))
}

#[inline(always)]
unsafe fn sum_all<L: Lanes>(bags: Bags<'_>, rows: &[f32], vectors: &mut [f32]) {
    // SAFETY: a row has so many vectors as is said, and the matrix was found large enough; the
    // caller has the processor's instructions.
    unsafe {
        match bags.dim {
            16 => sum_vectors::<L, 1>(bags, rows, vectors),
            32 => sum_vectors::<L, 2>(bags, rows, vectors),
            64 => sum_vectors::<L, 4>(bags, rows, vectors),
            128 => sum_vectors::<L, 8>(bags, rows, vectors),
            dim => {
                let row = |index: u32| &rows[index as usize * dim..][..dim];
                let ends = bags.offsets.windows(2).zip(vectors.chunks_exact_mut(bags.stride));
                for (ends, vector) in ends {
                    let target = &mut vector[bags.column..][..dim];
                    let indices = &bags.indices[ends[0] as usize..ends[1] as usize];
                    let Some((&first, more)) = indices.split_first() else {
                        target.fill(0.0);
                        continue;
                    };
                    target.copy_from_slice(row(first));
                    for &index in more {
                        target.iter_mut().zip(row(index)).for_each(|(sum, &x)| *sum += x);
                    }
                }
            }
        }
    }
}

#[inline(always)]
unsafe fn sum_vectors<L: Lanes, const N: usize>(bags: Bags<'_>, rows: &[f32], vectors: &mut [f32]) {
    let (dim, indices) = (N * LANES, bags.indices);
    let ends = bags.offsets.windows(2).zip(vectors.chunks_exact_mut(bags.stride));
    for (ends, vector) in ends {
        let target = &mut vector[bags.column..][..dim];
        // SAFETY: the target and every row were found inside, as long as N vectors.
        unsafe {
            let mut sums = [L::zero(); N];
            for at in ends[0] as usize..ends[1] as usize {
                ask_later(rows, indices, at, 0, dim);
                let row: [L; N] = load(&rows[indices[at] as usize * dim..][..dim]);
                if at == ends[0] as usize {
                    sums = row; // as it is: a zero less than zero stays so
                } else {
                    sums.iter_mut().zip(row).for_each(|(sum, x)| *sum = sum.add(x));
                }
            }
            store(sums, target);
        }
    }
}

#[inline(always)]
unsafe fn spread_all<L: Lanes>(bags: Bags<'_>, vectors: &[f32], first: usize, rows: &mut [f32]) {
    // SAFETY: as above.
    unsafe {
        match bags.dim {
            16 => spread_vectors::<L, 1>(bags, vectors, first, rows),
            32 => spread_vectors::<L, 2>(bags, vectors, first, rows),
            64 => spread_vectors::<L, 4>(bags, vectors, first, rows),
            128 => spread_vectors::<L, 8>(bags, vectors, first, rows),
            dim => {
                let ends = bags.offsets.windows(2).zip(vectors.chunks_exact(bags.stride));
                for (ends, vector) in ends {
                    let gradient = &vector[bags.column..][..dim];
                    for &index in &bags.indices[ends[0] as usize..ends[1] as usize] {
                        let row = &mut rows[(index as usize - first) * dim..][..dim];
                        row.iter_mut().zip(gradient).for_each(|(sum, &x)| *sum += x);
                    }
                }
            }
        }
    }
}

#[inline(always)]
unsafe fn spread_vectors<L: Lanes, const N: usize>(
    bags: Bags<'_>,
    vectors: &[f32],
    first: usize,
    rows: &mut [f32],
) {
    let (dim, indices) = (N * LANES, bags.indices);
    let ends = bags.offsets.windows(2).zip(vectors.chunks_exact(bags.stride));
    for (ends, vector) in ends {
        // SAFETY: the gradient and every row were found inside, as long as N vectors.
        unsafe {
            let gradient: [L; N] = load(&vector[bags.column..][..dim]);
            for at in ends[0] as usize..ends[1] as usize {
                ask_later(rows, indices, at, first, dim);
                let row = &mut rows[(indices[at] as usize - first) * dim..][..dim];
                let mut sums: [L; N] = load(row);
                sums.iter_mut().zip(gradient).for_each(|(sum, x)| *sum = sum.add(x));
                store(sums, row);
            }
        }
    }
}

#[inline(always)]
unsafe fn load<L: Lanes, const N: usize>(row: &[f32]) -> [L; N] {
    // SAFETY: the row has N vectors, says the caller.
    std::array::from_fn(|n| unsafe { L::load(row.as_ptr().add(n * LANES)) })
}

#[inline(always)]
unsafe fn store<L: Lanes, const N: usize>(vectors: [L; N], row: &mut [f32]) {
    for (n, vector) in vectors.into_iter().enumerate() {
        // SAFETY: the row has N vectors, says the caller.
        unsafe { vector.store(row.as_mut_ptr().add(n * LANES)) };
    }
}

/// Asks for the lines of a row that is wanted soon. A place outside is asked for in vain and does
/// no harm.
#[inline(always)]
fn ask_later(rows: &[f32], indices: &[u32], at: usize, first: usize, dim: usize) {
    let Some(&later) = indices.get(at + AHEAD) else { return };
    let place = (later as usize).wrapping_sub(first).wrapping_mul(dim);
    for line in (0..dim).step_by(LANES) {
        ask(rows.as_ptr().wrapping_add(place.wrapping_add(line)));
    }
}
