//! Vectors of the interaction by tensor cores: beside sums in doubles of numbers that were rounded
//! as a device rounds them, nearly to the bit; and beside the plain kernel's, as far as the
//! roundings may lead away.

use dlrm::reference::{interact, interact_backward};
use gpu::Precision;
use gpu::kernels::{Interaction, WARP};
use gpu::vectors::{Argument, Case, floats};

use crate::correctness::to_brain;
use crate::vectors::same;

/// How far a result may be from the sum of the same rounded numbers in doubles, at 1 + |y|. A
/// device keeps some 24 bits of a sum and cuts what falls beyond as it aligns the terms: of 128
/// products of numbers up to 1, in 16 steps, up to some 3e-5. Numbers that were cut instead of
/// rounded would be off by 2e-4 and more.
const OF_ROUNDED: f32 = 1e-4;

pub(crate) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for (seed, (vectors, dim, with_itself, samples, blocks_max)) in [
        (27, 16, false, 19, 2), // the Kaggle shape
        (27, 64, false, 5, 1),
        (27, 128, true, 3, 7),
        (16, 20, false, 9, 1), // a whole tile; half a chunk of floats
        (33, 4, true, 4, 3),   // one vector more than two tiles
        (50, 24, false, 2, 1),
        (1, 8, false, 3, 1), // no pair
        (2, 12, true, 0, 1),
    ]
    .into_iter()
    .enumerate()
    {
        for precision in [Precision::Tf32, Precision::Bf16] {
            let shape = Interaction { vectors, dim, with_itself, precision };
            cases.extend(of_shape(700 + seed as u64, shape, samples, blocks_max));
        }
    }
    cases
}

/// The interaction and its reverse, each beside both.
fn of_shape(seed: u64, shape: Interaction, samples: usize, blocks_max: u32) -> Vec<Case> {
    let Interaction { vectors, dim, with_itself, precision } = shape;
    let (n, d, own) = (vectors as usize, dim as usize, shape.width() as usize);
    let width = own + if seed.is_multiple_of(2) { 0 } else { 3 };
    let features = floats(seed, 0, samples * n * d);
    let crossed_gradient = floats(seed, 1, samples * own);
    let spread = |rows: &[f32], between: f32| -> Vec<f32> {
        let mut wide = vec![between; samples * width];
        for (to, from) in wide.chunks_exact_mut(width).zip(rows.chunks_exact(own)) {
            to[..own].copy_from_slice(from);
        }
        wide
    };
    let (crossed, gradient) = of_rounded(shape, &features, &crossed_gradient);
    let plain = interact(&features, n, d, with_itself);
    let plain_gradient = interact_backward(&features, &crossed_gradient, n, d, with_itself);
    let case = |backward, buffers: Vec<Argument>| {
        let (warps, shared_bytes) = shape.warps(backward).expect("a shape that finds room");
        let sizes = [
            Argument::U32(vectors),
            Argument::U32(dim),
            Argument::U32(width as u32),
            Argument::U32(u32::from(with_itself)),
            Argument::U64(samples as u64),
        ];
        Case {
            kernel: shape.kernel(backward).to_owned(),
            grid: (samples as u32).div_ceil(warps).clamp(1, blocks_max),
            block: warps * WARP,
            shared_bytes,
            arguments: buffers.into_iter().chain(sizes).collect(),
        }
    };
    let mut cases = Vec::new();
    for (crossed, gradient, [tolerance, tolerance_backward]) in [
        (crossed, gradient, [OF_ROUNDED; 2]),
        (plain, plain_gradient, [bound(precision, d), bound(precision, 2 * n)]),
    ] {
        let crossed = Argument::Floats {
            tolerance,
            before: vec![-7.0; samples * width],
            after: spread(&crossed, -7.0),
        };
        let slopes = same(&spread(&crossed_gradient, f32::NAN));
        let gradient = Argument::Floats {
            tolerance: tolerance_backward,
            before: vec![f32::NAN; gradient.len()],
            after: gradient,
        };
        cases.push(case(false, vec![same(&features), crossed]));
        cases.push(case(true, vec![same(&features), slopes, gradient]));
    }
    cases
}

/// What a sum of so many products of numbers up to 1, each rounded, may be off by.
fn bound(precision: Precision, products: usize) -> f32 {
    let rounding = match precision {
        Precision::F32 => 0.0,
        Precision::Tf32 => 1.0 / 2048.0, // half of the last of 10 bits of fraction
        Precision::Bf16 => 1.0 / 256.0,  // of 7 bits
    };
    products as f32 * (2.0 * rounding + rounding * rounding) + OF_ROUNDED
}

/// A number as tensor cores take it.
fn rounded(precision: Precision, x: f32) -> f64 {
    f64::from(match precision {
        Precision::F32 => x,
        Precision::Tf32 => f32::from_bits((x.to_bits() + 0x1000) & !0x1fff),
        Precision::Bf16 => f32::from_bits(u32::from(to_brain(x)) << 16),
    })
}

/// The interaction and its reverse, summed in doubles, of rounded numbers.
fn of_rounded(
    shape: Interaction,
    features: &[f32],         // [samples, vectors, dim]
    crossed_gradient: &[f32], // [samples, dim + pairs]
) -> (Vec<f32>, Vec<f32>) {
    let Interaction { vectors, dim, with_itself, precision } = shape;
    let (n, d) = (vectors as usize, dim as usize);
    let (mut crossed, mut gradient) = (Vec::new(), Vec::new());
    let samples =
        features.chunks_exact(n * d).zip(crossed_gradient.chunks_exact(shape.width() as usize));
    for (sample, slopes) in samples {
        let taken: Vec<f64> = sample.iter().map(|&x| rounded(precision, x)).collect();
        let vector = |i: usize| &taken[i * d..][..d];
        crossed.extend(&sample[..d]);
        let mut by_vector = vec![0.0_f64; n * d];
        by_vector[..d].iter_mut().zip(&slopes[..d]).for_each(|(to, &g)| *to = g.into());
        let mut slope = slopes[d..].iter();
        for i in 0..n {
            for j in 0..i + usize::from(with_itself) {
                let product: f64 = vector(i).iter().zip(vector(j)).map(|(x, y)| x * y).sum();
                crossed.push(product as f32);
                let slope = rounded(precision, *slope.next().expect("a slope a product"));
                for (to, from) in [(i, j), (j, i)] {
                    let sums = by_vector[to * d..][..d].iter_mut();
                    sums.zip(vector(from)).for_each(|(sum, x)| *sum += slope * x);
                }
            }
        }
        gradient.extend(by_vector.iter().map(|&x| x as f32));
    }
    (crossed, gradient)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_rounded_as_a_device_does() {
        let tf32 = |bits: u32| (rounded(Precision::Tf32, f32::from_bits(bits)) as f32).to_bits();
        assert_eq!(tf32(0x3f80_0fff), 0x3f80_0000);
        assert_eq!(tf32(0x3f80_1000), 0x3f80_2000, "a tie goes away from zero");
        assert_eq!(tf32(0xbf80_1000), 0xbf80_2000);
        let brain = |bits: u32| (rounded(Precision::Bf16, f32::from_bits(bits)) as f32).to_bits();
        assert_eq!(brain(0x3f80_8000), 0x3f80_0000, "a tie goes to even");
        assert_eq!(brain(0x3f81_8000), 0x3f82_0000);
    }

    #[test]
    fn in_32_bits_it_is_what_the_host_makes() {
        for with_itself in [false, true] {
            let (vectors, dim, precision) = (5, 8, Precision::F32);
            let shape = Interaction { vectors, dim, with_itself, precision };
            let (features, slopes) = (floats(1, 0, 80), floats(1, 1, 2 * shape.width() as usize));
            let (crossed, gradient) = of_rounded(shape, &features, &slopes);
            let near = |a: &[f32], b: &[f32]| a.iter().zip(b).all(|(x, y)| (x - y).abs() < 1e-5);
            assert!(near(&crossed, &interact(&features, 5, 8, with_itself)));
            let expected = interact_backward(&features, &slopes, 5, 8, with_itself);
            assert!(near(&gradient, &expected) && gradient.len() == expected.len());
        }
    }
}
