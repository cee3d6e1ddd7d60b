//! Rows to one vector a bag, and the vectors' gradients to one sum a row. What is wanted soon is
//! asked for beforehand, across the ends of bags and of rows: it lies anywhere, and the processor
//! can't guess where.

use std::ops::Range;

use super::dispatch;
use super::lanes::{LANES, Lanes, ask};

/// Rows, or vectors, that are asked for ahead of the one at hand.
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

/// Some rows' terms: which vectors are summed into each.
#[derive(Clone, Copy)]
pub(crate) struct Terms<'a> {
    /// The first row's first term.
    pub first: u32,
    /// Where each row's terms end, which is where the next one's begin.
    pub ends: &'a [u32], // [rows]
    /// Where each term's vector begins in the matrix, row after row.
    pub places: &'a [u32], // [terms], more than these rows' among them
    /// What each term is multiplied with before it is added; none where that is 1.
    pub weights: Option<&'a [f32]>, // [terms]
    /// Floats of a row.
    pub dim: usize,
}

/// Sets each row to the sum of its terms, first to last, from zero on; zeros where it has none.
pub(crate) fn sum_terms(
    terms: Terms<'_>,
    vectors: &[f32],  // a matrix
    rows: &mut [f32], // [rows, dim]
) {
    assert_eq!(terms.ends.len() * terms.dim, rows.len(), "floats of the rows");
    match terms.weights {
        None => sum_plain(terms, vectors, rows),
        Some(weights) => {
            assert_eq!(weights.len(), terms.places.len(), "a weight for each term");
            sum_weighted(terms, vectors, rows);
        }
    }
}

fn sum(bags: Bags<'_>, rows: &[f32], vectors: &mut [f32]) {
    dispatch!(sum_all(bags: Bags<'_>, rows: &[f32], vectors: &mut [f32]))
}

fn sum_plain(terms: Terms<'_>, vectors: &[f32], rows: &mut [f32]) {
    dispatch!(sum_terms_plain(terms: Terms<'_>, vectors: &[f32], rows: &mut [f32]))
}

fn sum_weighted(terms: Terms<'_>, vectors: &[f32], rows: &mut [f32]) {
    dispatch!(sum_terms_weighted(terms: Terms<'_>, vectors: &[f32], rows: &mut [f32]))
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
                if let Some(&later) = indices.get(at + AHEAD) {
                    ask_vector(rows, later as usize * dim, dim);
                }
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
unsafe fn sum_terms_plain<L: Lanes>(terms: Terms<'_>, vectors: &[f32], rows: &mut [f32]) {
    // SAFETY: as below.
    unsafe { sum_terms_all::<L, false>(terms, vectors, rows) }
}

#[inline(always)]
unsafe fn sum_terms_weighted<L: Lanes>(terms: Terms<'_>, vectors: &[f32], rows: &mut [f32]) {
    // SAFETY: as below.
    unsafe { sum_terms_all::<L, true>(terms, vectors, rows) }
}

#[inline(always)]
unsafe fn sum_terms_all<L: Lanes, const WEIGHTED: bool>(
    terms: Terms<'_>,
    vectors: &[f32],
    rows: &mut [f32],
) {
    // SAFETY: a row has so many vectors as is said; the caller has the processor's instructions.
    unsafe {
        match terms.dim {
            16 => sum_terms_wide::<L, 1, WEIGHTED>(terms, vectors, rows),
            32 => sum_terms_wide::<L, 2, WEIGHTED>(terms, vectors, rows),
            64 => sum_terms_wide::<L, 4, WEIGHTED>(terms, vectors, rows),
            128 => sum_terms_wide::<L, 8, WEIGHTED>(terms, vectors, rows),
            dim => {
                let mut at = terms.first as usize;
                for (row, &end) in rows.chunks_exact_mut(dim).zip(terms.ends) {
                    row.fill(0.0);
                    for term in at..end as usize {
                        let vector = &vectors[terms.places[term] as usize..][..dim];
                        let weight = if WEIGHTED { terms.weight(term) } else { 1.0 };
                        row.iter_mut().zip(vector).for_each(|(sum, &x)| *sum += x * weight);
                    }
                    at = end as usize;
                }
            }
        }
    }
}

#[inline(always)]
unsafe fn sum_terms_wide<L: Lanes, const N: usize, const WEIGHTED: bool>(
    terms: Terms<'_>,
    vectors: &[f32],
    rows: &mut [f32],
) {
    let (dim, mut at) = (N * LANES, terms.first as usize);
    for (row, &end) in rows.chunks_exact_mut(dim).zip(terms.ends) {
        // SAFETY: the row and every vector were found inside, as long as N vectors of lanes.
        unsafe {
            let mut sums = [L::zero(); N];
            for term in at..end as usize {
                if let Some(&later) = terms.places.get(term + AHEAD) {
                    ask_vector(vectors, later as usize, dim);
                }
                let mut vector: [L; N] = load(&vectors[terms.places[term] as usize..][..dim]);
                if WEIGHTED {
                    let weight = L::splat(&terms.weight(term));
                    vector.iter_mut().for_each(|x| *x = x.times(weight));
                }
                sums.iter_mut().zip(vector).for_each(|(sum, x)| *sum = sum.add(x));
            }
            store(sums, row);
        }
        at = end as usize;
    }
}

impl Terms<'_> {
    #[inline(always)]
    fn weight(&self, term: usize) -> f32 {
        self.weights.map_or(1.0, |weights| weights[term])
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

/// Asks for the lines of a vector that is wanted soon. A place outside is asked for in vain and
/// does no harm.
#[inline(always)]
fn ask_vector(floats: &[f32], place: usize, dim: usize) {
    for line in (0..dim).step_by(LANES) {
        ask(floats.as_ptr().wrapping_add(place.wrapping_add(line)));
    }
}
