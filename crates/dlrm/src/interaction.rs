//! The dot interaction of one sample, forward and backward: hand-written for the compiler to
//! vectorise, over vectors padded to whole blocks. Cat needs no function: its input is its output.

/// Floats in a block: four 128-bit or one 512-bit register.
const BLOCK: usize = 16;

type Block = [f32; BLOCK];

/// The dot products of `vectors` vectors of `dim` floats, with its scratch memory.
pub(crate) struct Dots {
    vectors: usize,
    dim: usize,
    with_itself: bool,
    turned: Vec<Block>, // [vectors / BLOCK, dim]: lane l of block b holds vector b * BLOCK + l
    padded: Vec<Block>, // [dim / BLOCK, vectors]
    pairs: Vec<f32>,    // [vectors, vectors], symmetric
}

impl Dots {
    pub(crate) fn new(vectors: usize, dim: usize, with_itself: bool) -> Self {
        let (vector_blocks, dim_blocks) = (vectors.div_ceil(BLOCK), dim.div_ceil(BLOCK));
        Self {
            vectors,
            dim,
            with_itself,
            turned: vec![[0.0; BLOCK]; vector_blocks * dim],
            padded: vec![[0.0; BLOCK]; dim_blocks * vectors],
            pairs: vec![0.0; vectors * vectors],
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
        self.turn(features);
        let mut products = products;
        for (i, vector) in features.chunks_exact(self.dim).enumerate() {
            let (mut row, rest) = products.split_at_mut(self.partners(i));
            products = rest;
            for block in self.turned.chunks_exact(self.dim) {
                if row.is_empty() {
                    break;
                }
                let (now, later) = row.split_at_mut(row.len().min(BLOCK));
                let mut sums = [0.0; BLOCK];
                for (lanes, &x) in block.iter().zip(vector) {
                    sums.iter_mut().zip(lanes).for_each(|(sum, &y)| *sum += x * y);
                }
                now.copy_from_slice(&sums[..now.len()]);
                row = later;
            }
        }
    }

    /// Writes the gradient by each vector from the gradient by each product.
    pub(crate) fn backward(
        &mut self,
        features: &[f32],          // [vectors, dim]
        products_gradient: &[f32], // [pairs]
        gradient: &mut [f32],      // [vectors, dim]
    ) {
        self.pad(features);
        self.spread(products_gradient);
        let rows = self.pairs.chunks_exact(self.vectors);
        for (row, target) in rows.zip(gradient.chunks_exact_mut(self.dim)) {
            let blocks = self.padded.chunks_exact(self.vectors);
            for (block, target) in blocks.zip(target.chunks_mut(BLOCK)) {
                let mut sums = [0.0; BLOCK];
                for (lanes, &x) in block.iter().zip(row) {
                    sums.iter_mut().zip(lanes).for_each(|(sum, &y)| *sum += x * y);
                }
                target.copy_from_slice(&sums[..target.len()]);
            }
        }
    }

    /// Vectors into lanes: the lanes past the last vector stay zero.
    fn turn(&mut self, features: &[f32]) {
        for (i, vector) in features.chunks_exact(self.dim).enumerate() {
            let block = &mut self.turned[i / BLOCK * self.dim..][..self.dim];
            let lane = i % BLOCK;
            block.iter_mut().zip(vector).for_each(|(lanes, &x)| lanes[lane] = x);
        }
    }

    /// Vectors into whole blocks: the lanes past `dim` stay zero.
    fn pad(&mut self, features: &[f32]) {
        for (i, vector) in features.chunks_exact(self.dim).enumerate() {
            for (b, part) in vector.chunks(BLOCK).enumerate() {
                self.padded[b * self.vectors + i][..part.len()].copy_from_slice(part);
            }
        }
    }

    /// The gradient of each pair to both its places. The diagonal counts twice, for v·v = Σ v²; it
    /// stays zero where no vector meets itself.
    fn spread(&mut self, products_gradient: &[f32]) {
        let n = self.vectors;
        let mut rest = products_gradient;
        for i in 0..n {
            let (row, later) = rest.split_at(self.partners(i));
            rest = later;
            self.pairs[i * n..][..row.len()].copy_from_slice(row);
            for (j, &g) in row.iter().enumerate() {
                self.pairs[j * n + i] = g;
            }
            if self.with_itself {
                self.pairs[i * n + i] *= 2.0;
            }
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
