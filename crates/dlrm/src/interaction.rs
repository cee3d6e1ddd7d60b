//! The dot interaction of one sample, forward and backward: two small matrix products, of the
//! vectors with themselves and of the pairs' gradients with the vectors. Cat needs no function: its
//! input is its output.

use crate::kernels::{Finish, LANES, Left, PANEL, Right, Term, product, turn};
use crate::sheet::Sheet;

/// The dot products of `vectors` vectors of `dim` floats, with its scratch memory.
pub(crate) struct Dots {
    vectors: usize,
    dim: usize,
    with_itself: bool,
    turned: Sheet, // [vectors / PANEL, dim, PANEL]: the vectors, transposed
    padded: Sheet, // [vectors, dim]
    square: Sheet, // [vectors, vectors]: products, each twice where they are gradients
}

impl Dots {
    pub(crate) fn new(vectors: usize, dim: usize, with_itself: bool) -> Self {
        Self {
            vectors,
            dim,
            with_itself,
            turned: Sheet::with_stride(vectors.div_ceil(PANEL) * dim, PANEL),
            padded: Sheet::new(vectors, dim),
            square: Sheet::new(vectors, vectors),
        }
    }

    /// How many vectors each vector is multiplied with: those before it, and perhaps itself.
    fn partners(&self, vector: usize) -> usize {
        vector + usize::from(self.with_itself)
    }

    /// Writes the products (1,0), (2,0), (2,1), (3,0), …, with (i,i) after (i,i-1) if asked for:
    /// facebookresearch/dlrm's order.
    pub(crate) fn forward(
        &mut self,
        features: &[f32],     // [vectors, dim]
        products: &mut [f32], // [pairs]
    ) {
        let (vectors, dim) = (self.vectors, self.dim);
        let (lines, _) = self.turned.all_mut().as_chunks_mut::<PANEL>();
        let panels = features.chunks(PANEL * dim).zip(lines.chunks_exact_mut(dim));
        panels.for_each(|(vectors, lines)| turn(vectors, dim, lines));
        let stride = self.square.stride();
        let square = self.square.all_mut();
        for first in (0..vectors).step_by(LANES) {
            // no vector of these rows has a partner to the right; whole vectors of products, the
            // last ones of which are zeros, need no care at the end
            let end = vectors.min(first + LANES);
            let columns = end.next_multiple_of(LANES);
            let term = Term {
                left: Left { values: &features[first * dim..], row: dim, column: 1 },
                right: Right { values: self.turned.all(), panel: dim * PANEL, row: PANEL },
                inner: dim,
            };
            let target = &mut square[first * stride..];
            product(&[term], (end - first, columns), target, stride, Finish::Set);
        }
        let mut rest = products;
        for (i, row) in self.square.rows(vectors).chunks_exact(stride).enumerate() {
            let count = self.partners(i);
            match (rest.first_chunk_mut::<PANEL>(), row.first_chunk::<PANEL>()) {
                // what is beyond the row's own belongs to the next one, which comes later
                (Some(products), Some(row)) if count <= PANEL => *products = *row,
                _ => rest[..count].copy_from_slice(&row[..count]),
            }
            rest = &mut rest[count..];
        }
    }

    /// Writes the gradient by each vector from the gradient by each product.
    pub(crate) fn backward(
        &mut self,
        features: &[f32],          // [vectors, dim]
        products_gradient: &[f32], // [pairs]
        gradient: &mut [f32],      // [vectors, dim]
    ) {
        self.spread(products_gradient);
        let (vectors, dim) = (self.vectors, self.dim);
        let right = if dim.is_multiple_of(LANES) {
            Right { values: features, panel: PANEL, row: dim }
        } else {
            let row = self.padded.stride();
            let padded = self.padded.all_mut().chunks_exact_mut(row);
            for (padded, vector) in padded.zip(features.chunks_exact(dim)) {
                padded[..dim].copy_from_slice(vector);
            }
            Right { values: self.padded.all(), panel: PANEL, row }
        };
        let square = &self.square;
        let left = Left { values: square.all(), row: square.stride(), column: 1 };
        let term = Term { left, right, inner: vectors };
        product(&[term], (vectors, dim), gradient, dim, Finish::Set);
    }

    /// The gradient of each pair to both its places. The diagonal counts twice, for v·v = Σ v², and
    /// is zero where no vector meets itself.
    fn spread(&mut self, products_gradient: &[f32]) {
        let (n, with_itself, stride) = (self.vectors, self.with_itself, self.square.stride());
        let square = self.square.all_mut();
        let mut rest = products_gradient;
        for i in 0..n {
            let target = &mut square[i * stride..][..stride];
            let (row, later) = rest.split_at(i + usize::from(with_itself));
            match (target.first_chunk_mut::<PANEL>(), rest.first_chunk::<PANEL>()) {
                // what is beyond the diagonal is set by the rows to come
                (Some(target), Some(row_and_more)) if row.len() <= PANEL => *target = *row_and_more,
                _ => target[..row.len()].copy_from_slice(row),
            }
            rest = later;
            let (column, _) = square.split_at_mut(i * stride);
            for (row, &g) in column.chunks_exact_mut(stride).zip(row) {
                row[i] = g;
            }
            let diagonal = &mut square[i * stride + i];
            *diagonal = if with_itself { 2.0 * *diagonal } else { 0.0 };
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn products_stand_in_the_references_order() {
        let features = [1.0, 10.0, 100.0, 1000.0]; // four vectors of one float
        let mut products = [0.0; 6];
        Dots::new(4, 1, false).forward(&features, &mut products);
        assert_eq!(products, [1e1, 1e2, 1e3, 1e3, 1e4, 1e5]);
        let mut products = [0.0; 10];
        Dots::new(4, 1, true).forward(&features, &mut products);
        assert_eq!(products, [1.0, 1e1, 1e2, 1e2, 1e3, 1e4, 1e3, 1e4, 1e5, 1e6]);
    }

    fn noise(seed: u32, len: usize) -> Vec<f32> {
        let value = |i: usize| {
            let mixed = (i as u32 ^ seed).wrapping_mul(0x9e37_79b9);
            ((mixed ^ (mixed >> 15)).wrapping_mul(0x85eb_ca6b) >> 8) as f32 / (1 << 24) as f32 - 0.5
        };
        (0..len).map(value).collect()
    }

    proptest! {
        #[test]
        fn both_ways_agree_with_loops_in_doubles(
            n in 1_usize..40, dim in 1_usize..40, with_itself: bool, seed in any::<u32>(),
        ) {
            let pairs: Vec<(usize, usize)> = (0..n)
                .flat_map(|i| (0..i + usize::from(with_itself)).map(move |j| (i, j)))
                .collect();
            let (features, slopes) = (noise(seed, n * dim), noise(!seed, pairs.len()));
            let mut dots = Dots::new(n, dim, with_itself);
            dots.forward(&noise(seed ^ 1, n * dim), &mut vec![0.0; pairs.len()]); // leaves no trace
            let mut products = vec![f32::NAN; pairs.len()];
            let mut gradient = vec![f32::NAN; n * dim];
            dots.forward(&features, &mut products);
            dots.backward(&features, &slopes, &mut gradient);
            let v = |i: usize, k: usize| f64::from(features[i * dim + k]);
            let mut expected = vec![0.0; n * dim];
            for (p, &(i, j)) in pairs.iter().enumerate() {
                let product: f64 = (0..dim).map(|k| v(i, k) * v(j, k)).sum();
                prop_assert!((f64::from(products[p]) - product).abs() < 1e-5);
                for k in 0..dim {
                    expected[i * dim + k] += f64::from(slopes[p]) * v(j, k);
                    expected[j * dim + k] += f64::from(slopes[p]) * v(i, k);
                }
            }
            for (&found, expected) in gradient.iter().zip(expected) {
                prop_assert!((f64::from(found) - expected).abs() < 1e-5);
            }
        }
    }
}
