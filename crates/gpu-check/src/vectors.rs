//! Vectors of the network's kernels, made by `dlrm`'s own functions. Those of rows are `gpu`'s.

use dlrm::reference::{interact, interact_backward, pool_rows, row_gradients};
use dlrm::{FeatureRows, Pooling};
use gpu::Precision;
use gpu::kernels::{BLOCK, Interaction, WARP, grid};
use gpu::vectors::{Argument, Case, buffer, floats, memory_of, offsets};
use table::mix;

/// How far a result may be from the host's: |x - y| is at most this times 1 + |y|. The kernels sum
/// in the order in which the host's loops do today, and then agree to the bit; the host's may
/// change theirs, as may products by tensor cores ours, and both stay right. Sums of 128 products
/// of numbers up to 1 are off by a few 1e-6 at most.
pub const TOLERANCE: f32 = 1e-5;

/// Cases of every kernel: rows and network.
pub fn cases() -> Vec<Case> {
    let mut cases = gpu::vectors::cases();
    for (seed, (vectors, dim, with_itself, samples, blocks_max)) in [
        (27, 16, false, 37, 2), // the Kaggle shape
        (27, 64, false, 9, 1),
        (27, 128, true, 5, 7), // fewer warps than a block has
        (4, 7, true, 33, 3),   // no vectors of four floats
        (2, 1, false, 65, 1),
        (1, 4, false, 3, 1), // no pair
        (9, 8, true, 0, 1),
    ]
    .into_iter()
    .enumerate()
    {
        let precision = Precision::F32;
        let shape = Interaction { vectors, dim, with_itself, precision };
        cases.extend(interactions(100 + seed as u64, shape, samples, blocks_max));
    }
    for (seed, (features, dim, samples, longest, blocks_max)) in
        [(26, 16, 40, 1, 2), (3, 64, 21, 9, 1), (5, 7, 30, 4, 9), (2, 4, 0, 1, 1)]
            .into_iter()
            .enumerate()
    {
        cases.extend(pools(200 + seed as u64, features, dim, samples, longest, blocks_max));
    }
    cases.extend(crate::dense_vectors::cases());
    cases.extend(crate::tensor_vectors::cases());
    cases
}

fn interactions(seed: u64, shape: Interaction, samples: usize, blocks_max: u32) -> [Case; 2] {
    let Interaction { vectors, dim, with_itself, .. } = shape;
    let (n, d) = (vectors as usize, dim as usize);
    let features = floats(seed, 0, samples * n * d);
    let crossed_gradient = floats(seed, 1, samples * shape.width() as usize);
    let crossed = interact(&features, n, d, with_itself);
    let gradient = interact_backward(&features, &crossed_gradient, n, d, with_itself);
    // every other seed: a few floats more in a row, which are left as they are
    let width = shape.width() + if seed.is_multiple_of(2) { 0 } else { 5 };
    let spread = |rows: &[f32], between: f32| -> Vec<f32> {
        let mut wide = vec![between; samples * width as usize];
        let own = shape.width() as usize;
        for (to, from) in wide.chunks_exact_mut(width as usize).zip(rows.chunks_exact(own)) {
            to[..own].copy_from_slice(from);
        }
        wide
    };
    let before = vec![-7.0; samples * width as usize];
    let (crossed, crossed_gradient) = (spread(&crossed, -7.0), spread(&crossed_gradient, f32::NAN));
    let crossed = Argument::Floats { tolerance: TOLERANCE, before, after: crossed };
    let sizes = [
        Argument::U32(vectors),
        Argument::U32(dim),
        Argument::U32(width),
        Argument::U32(u32::from(with_itself)),
        Argument::U64(samples as u64),
    ];
    let case = |kernel: &str, backward, buffers: Vec<Argument>| {
        let (warps, shared_bytes) = shape.warps(backward).expect("a shape that finds room");
        let blocks = (samples as u32).div_ceil(warps).clamp(1, blocks_max);
        Case {
            kernel: kernel.to_owned(),
            grid: blocks,
            block: warps * WARP,
            shared_bytes,
            arguments: buffers.into_iter().chain(sizes.clone()).collect(),
        }
    };
    let forward = vec![same(&features), crossed];
    let backward = vec![same(&features), same(&crossed_gradient), comes_out(gradient)];
    [case("interact", false, forward), case("interact_backward", true, backward)]
}

/// One-hot bags where the longest has one row; else bags of none to so many, some rows twice.
fn pools(
    seed: u64,
    features: usize,
    dim: usize,
    samples: usize,
    longest: u64,
    blocks_max: u32,
) -> Vec<Case> {
    let n_unique = 50_usize;
    let weights_of_rows = floats(seed, 0, (n_unique + 9) * dim);
    let slots: Vec<usize> = (0..n_unique).map(|row| row * 7 % (n_unique + 9)).collect();
    let rows: Vec<f32> =
        slots.iter().flat_map(|slot| &weights_of_rows[slot * dim..][..dim]).copied().collect();
    let bags: Vec<Vec<u32>> = (0..samples * features)
        .map(|bag| {
            let random = |i: u64| mix(seed << 32 | (bag as u64) << 8 | i);
            let count = if longest == 1 { 1 } else { random(0) % (longest + 1) };
            (1..=count).map(|i| (random(i) % n_unique as u64) as u32).collect()
        })
        .collect();

    // the host has each feature's bags side by side, the kernel each sample's
    let by_feature: Vec<(Vec<u32>, Vec<u32>)> = (0..features)
        .map(|f| {
            let (mut indices, mut ends) = (Vec::new(), vec![0]);
            for sample in 0..samples {
                indices.extend(&bags[sample * features + f]);
                ends.push(indices.len() as u32);
            }
            (indices, ends)
        })
        .collect();
    let taken: Vec<FeatureRows<'_>> = by_feature
        .iter()
        .map(|(indices, offsets)| FeatureRows { indices, offsets, pooling: Pooling::Sum })
        .collect();
    let mut starts = vec![0_u32];
    starts.extend(bags.iter().scan(0, |end, bag| {
        *end += bag.len() as u32;
        Some(*end)
    }));
    let places = bags.concat();
    let before = vec![-7.0; samples * (features + 1) * dim];
    let mut pooled = before.clone();
    pool_rows(&taken, &rows, dim, &mut pooled);

    let sizes =
        [Argument::U32(dim as u32), Argument::U32(features as u32), Argument::U64(samples as u64)];
    let slots: Vec<Option<usize>> = slots.into_iter().map(Some).collect();
    let pool = |kernel: &str, parts, weights: Argument, out: &[f32]| Case {
        kernel: kernel.to_owned(),
        grid: grid((samples * features * parts) as u64, blocks_max),
        block: BLOCK,
        shared_bytes: 0,
        arguments: [
            memory_of(&weights_of_rows, &weights_of_rows),
            offsets(0, &slots, dim),
            same(&starts),
            same(&places),
            weights,
            Argument::Floats { tolerance: TOLERANCE, before: before.clone(), after: out.to_vec() },
        ]
        .into_iter()
        .chain(sizes.clone())
        .collect(),
    };

    // by weights: a row times its weight is a row of its own to the host
    let weights = floats(seed, 1, places.len());
    let weighted_rows: Vec<f32> = places
        .iter()
        .zip(&weights)
        .flat_map(|(&place, weight)| {
            rows[place as usize * dim..][..dim].iter().map(move |x| weight * x)
        })
        .collect();
    let own: Vec<(Vec<u32>, &Vec<u32>)> = by_feature
        .iter()
        .enumerate()
        .map(|(f, (_, ends))| {
            let of =
                |sample: usize| starts[sample * features + f]..starts[sample * features + f + 1];
            ((0..samples).flat_map(of).collect(), ends)
        })
        .collect();
    let taken_own: Vec<FeatureRows<'_>> = own
        .iter()
        .map(|(indices, offsets)| FeatureRows { indices, offsets, pooling: Pooling::Sum })
        .collect();
    let mut weighted = before.clone();
    pool_rows(&taken_own, &weighted_rows, dim, &mut weighted);

    let mut cases = vec![
        pool("pool_rows", dim, Argument::U64(0), &pooled),
        pool("pool_rows", dim, same(&weights), &weighted),
    ];
    if dim.is_multiple_of(4) {
        cases.push(pool("pool_rows_by_four", dim / 4, Argument::U64(0), &pooled));
        cases.push(pool("pool_rows_by_four", dim / 4, same(&weights), &weighted));
    }
    cases.extend(reverse(seed, &taken, &bags, &weights, dim, n_unique, samples, blocks_max));
    cases
}

/// The sum of each row's gradients: by `sum_gradients` without weights, and with.
fn reverse(
    seed: u64,
    taken: &[FeatureRows<'_>],
    bags: &[Vec<u32>],
    weights: &[f32], // of each bag's rows, bag after bag
    dim: usize,
    n_unique: usize,
    samples: usize,
    blocks_max: u32,
) -> [Case; 2] {
    let features = taken.len();
    let vectors = samples * (features + 1);
    let upstream = floats(seed, 2, vectors * dim);
    let gradients = row_gradients(taken, &upstream, dim, n_unique);
    let mut by_row: Vec<Vec<(u32, f32)>> = vec![Vec::new(); n_unique]; // vectors, weights
    let mut weights = weights.iter();
    for (bag, rows) in bags.iter().enumerate() {
        let vector = bag / features * (features + 1) + 1 + bag % features;
        for (&row, &weight) in rows.iter().zip(&mut weights) {
            by_row[row as usize].push((vector as u32, weight));
        }
    }
    let mut starts = vec![0_u32];
    starts.extend(by_row.iter().scan(0, |end, taken| {
        *end += taken.len() as u32;
        Some(*end)
    }));
    let (places, weights): (Vec<u32>, Vec<f32>) = by_row.concat().into_iter().unzip();
    let mut weighted = vec![0.0_f32; n_unique * dim];
    for (sum, taken) in weighted.chunks_exact_mut(dim).zip(&by_row) {
        for (vector, weight) in taken {
            let gradient = &upstream[*vector as usize * dim..][..dim];
            sum.iter_mut().zip(gradient).for_each(|(sum, g)| *sum += weight * g);
        }
    }
    let sizes = [Argument::U32(dim as u32), Argument::U64(n_unique as u64)];
    let case = |kernel: &str, inputs: Vec<Argument>, out: Vec<f32>| Case {
        kernel: kernel.to_owned(),
        grid: grid((n_unique * dim) as u64, blocks_max),
        block: BLOCK,
        shared_bytes: 0,
        arguments: inputs.into_iter().chain([comes_out(out)]).chain(sizes.clone()).collect(),
    };
    let lists = vec![same(&upstream), same(&starts), same(&places)];
    let with_weights = lists.iter().cloned().chain([same(&weights)]).collect();
    [
        case("sum_gradients", lists, gradients),
        case("sum_weighted_gradients", with_weights, weighted),
    ]
}

pub(crate) fn same<T: bytemuck::NoUninit>(values: &[T]) -> Argument {
    buffer(values, values)
}

/// Floats that nobody wrote yet.
pub(crate) fn comes_out(after: Vec<f32>) -> Argument {
    Argument::Floats { tolerance: TOLERANCE, before: vec![f32::NAN; after.len()], after }
}

#[cfg(test)]
mod tests {
    use gpu::kernels::ALL;

    use super::*;

    #[test]
    fn every_kernel_has_cases() {
        let cases = cases();
        for kernel in ALL.iter().flat_map(|source| source.kernels) {
            let of_it = cases.iter().filter(|case| case.kernel == *kernel).count();
            assert!(of_it >= 3, "{kernel}: {of_it}");
        }
    }
}
