//! The rules, each a free function over slices. They do not know how a row is laid out; `row` does.
//!
//! All arithmetic is plain `f32` addition, multiplication, division and square root, each correctly
//! rounded, without fused multiply-add: every machine gets the same bits, vectorised or not.

use std::array::from_fn;

/// Floats that are read before any of them is written, so that they go through registers side by
/// side: a compiler that can't tell slices apart takes them one by one. Partial sums of a row's
/// squares, too, which is fixed, so that vectorising changes no bit: lane l takes the elements l,
/// l + 8, l + 16, …
const LANES: usize = 8;

/// Stochastic gradient descent: `w -= lr g`.
#[inline(always)] // into kernels that are compiled for wider vectors
pub fn sgd(weights: &mut [f32], gradient: &[f32], learning_rate: f32) {
    assert_eq!(weights.len(), gradient.len(), "gradient");
    let (w_blocks, w_rest) = weights.as_chunks_mut::<LANES>();
    let (g_blocks, g_rest) = gradient.as_chunks::<LANES>();
    for (w, &g) in w_blocks.iter_mut().zip(g_blocks) {
        *w = sgd_block(*w, g, learning_rate);
    }
    for (w, &g) in w_rest.iter_mut().zip(g_rest) {
        [*w] = sgd_block([*w], [g], learning_rate);
    }
}

#[inline(always)]
fn sgd_block<const N: usize>(w: [f32; N], g: [f32; N], learning_rate: f32) -> [f32; N] {
    from_fn(|i| w[i] - learning_rate * g[i])
}

/// Adagrad (Duchi, Hazan and Singer, JMLR 12, 2011), in the form of PyTorch's `Adagrad`:
/// `acc += g²; w -= lr g / (sqrt(acc) + eps)`.
#[inline(always)] // into kernels that are compiled for wider vectors
pub fn adagrad(
    weights: &mut [f32],
    accumulator: &mut [f32],
    gradient: &[f32],
    learning_rate: f32,
    eps: f32,
) {
    assert_eq!(weights.len(), gradient.len(), "gradient");
    assert_eq!(weights.len(), accumulator.len(), "accumulator");
    let (w_blocks, w_rest) = weights.as_chunks_mut::<LANES>();
    let (a_blocks, a_rest) = accumulator.as_chunks_mut::<LANES>();
    let (g_blocks, g_rest) = gradient.as_chunks::<LANES>();
    for ((w, a), &g) in w_blocks.iter_mut().zip(a_blocks).zip(g_blocks) {
        (*w, *a) = adagrad_block(*w, *a, g, learning_rate, eps);
    }
    for ((w, a), &g) in w_rest.iter_mut().zip(a_rest).zip(g_rest) {
        ([*w], [*a]) = adagrad_block([*w], [*a], [g], learning_rate, eps);
    }
}

#[inline(always)]
fn adagrad_block<const N: usize>(
    w: [f32; N],
    accumulator: [f32; N],
    g: [f32; N],
    learning_rate: f32,
    eps: f32,
) -> ([f32; N], [f32; N]) {
    let acc: [f32; N] = from_fn(|i| accumulator[i] + g[i] * g[i]);
    (from_fn(|i| w[i] - learning_rate * g[i] / (acc[i].sqrt() + eps)), acc)
}

/// Row-wise Adagrad, one accumulator for a whole row, in the form of FBGEMM's
/// `EXACT_ROWWISE_ADAGRAD` and of facebookresearch/dlrm's `RWSAdagrad`:
/// `acc += mean(g²); w -= lr g / (sqrt(acc) + eps)`.
#[inline(always)] // into kernels that are compiled for wider vectors
pub fn rowwise_adagrad(
    weights: &mut [f32],
    accumulator: &mut f32,
    gradient: &[f32],
    learning_rate: f32,
    eps: f32,
) {
    let scale = rowwise_adagrad_scale(accumulator, gradient, learning_rate, eps);
    sgd(weights, gradient, scale);
}

/// The first half of [`rowwise_adagrad`], which touches no weight: what the row's gradient is to be
/// taken times. The second half is [`sgd`].
#[inline(always)] // into kernels that are compiled for wider vectors
pub(crate) fn rowwise_adagrad_scale(
    accumulator: &mut f32,
    gradient: &[f32],
    learning_rate: f32,
    eps: f32,
) -> f32 {
    if gradient.is_empty() {
        return 0.0;
    }
    *accumulator += sum_of_squares(gradient) / gradient.len() as f32;
    learning_rate / (accumulator.sqrt() + eps) // one division for the row
}

/// What an Adam step needs besides the moments: decays, bias corrections and rates, computed once
/// for all elements that share a step count.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamStep {
    beta1: f32,
    beta2: f32,
    eps: f32,
    rate: f32,               // lr / (1 - beta1^t)
    root_of_correction: f32, // sqrt(1 - beta2^t)
}

impl AdamStep {
    /// The constants of step `step`, the first being 1.
    pub fn new(step: u32, learning_rate: f32, beta1: f32, beta2: f32, eps: f32) -> Self {
        assert!(step > 0, "the first step is 1");
        let correction1 = 1.0 - power(f64::from(beta1), step);
        let correction2 = 1.0 - power(f64::from(beta2), step);
        let rate = (f64::from(learning_rate) / correction1) as f32;
        Self { beta1, beta2, eps, rate, root_of_correction: libm::sqrt(correction2) as f32 }
    }

    /// The learning rate over the first moment's correction.
    pub fn rate(&self) -> f32 {
        self.rate
    }

    /// The root of the second moment's correction.
    pub fn root_of_correction(&self) -> f32 {
        self.root_of_correction
    }
}

/// Adam (Kingma and Ba, arXiv:1412.6980), in the form of PyTorch's `Adam`, `eps` outside the root:
/// `m += (1 - b1)(g - m); v = b2 v + (1 - b2) g²;
/// w -= lr / (1 - b1^t) m / (sqrt(v) / sqrt(1 - b2^t) + eps)`.
#[inline(always)] // into kernels that are compiled for wider vectors
pub fn adam(
    weights: &mut [f32],
    moment1: &mut [f32],
    moment2: &mut [f32],
    gradient: &[f32],
    step: AdamStep,
) {
    assert_eq!(weights.len(), gradient.len(), "gradient");
    assert_eq!(weights.len(), moment1.len(), "first moment");
    assert_eq!(weights.len(), moment2.len(), "second moment");
    let (w_blocks, w_rest) = weights.as_chunks_mut::<LANES>();
    let (m_blocks, m_rest) = moment1.as_chunks_mut::<LANES>();
    let (v_blocks, v_rest) = moment2.as_chunks_mut::<LANES>();
    let (g_blocks, g_rest) = gradient.as_chunks::<LANES>();
    for (((w, m), v), &g) in w_blocks.iter_mut().zip(m_blocks).zip(v_blocks).zip(g_blocks) {
        (*w, *m, *v) = adam_block(*w, *m, *v, g, step);
    }
    for (((w, m), v), &g) in w_rest.iter_mut().zip(m_rest).zip(v_rest).zip(g_rest) {
        ([*w], [*m], [*v]) = adam_block([*w], [*m], [*v], [g], step);
    }
}

#[inline(always)]
fn adam_block<const N: usize>(
    w: [f32; N],
    moment1: [f32; N],
    moment2: [f32; N],
    g: [f32; N],
    step: AdamStep,
) -> ([f32; N], [f32; N], [f32; N]) {
    let AdamStep { beta1, beta2, eps, rate, root_of_correction } = step;
    let (fresh1, fresh2) = (1.0 - beta1, 1.0 - beta2);
    let m: [f32; N] = from_fn(|i| moment1[i] + fresh1 * (g[i] - moment1[i]));
    let v: [f32; N] = from_fn(|i| beta2 * moment2[i] + fresh2 * g[i] * g[i]);
    (from_fn(|i| w[i] - rate * m[i] / (v[i].sqrt() / root_of_correction + eps)), m, v)
}

#[inline(always)]
fn sum_of_squares(values: &[f32]) -> f32 {
    let (blocks, rest) = values.as_chunks::<LANES>();
    let mut lanes = [0.0_f32; LANES];
    for block in blocks {
        for (sum, &x) in lanes.iter_mut().zip(block) {
            *sum += x * x;
        }
    }
    for (sum, &x) in lanes.iter_mut().zip(rest) {
        *sum += x * x;
    }
    let pair = |i: usize| lanes[i] + lanes[i + 4];
    (pair(0) + pair(2)) + (pair(1) + pair(3))
}

/// base^exponent by repeated squaring: a fixed order of multiplications, so the same everywhere.
fn power(base: f64, mut exponent: u32) -> f64 {
    let (mut result, mut square) = (1.0, base);
    while exponent > 0 {
        if exponent & 1 == 1 {
            result *= square;
        }
        square *= square;
        exponent >>= 1;
    }
    result
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn close(found: f32, expected: f64, scale: f64) -> bool {
        (f64::from(found) - expected).abs() <= 4e-6 * scale.max(1e-3)
    }

    #[test]
    fn each_rule_gives_the_values_worked_out_by_hand() {
        let mut w = [1.0, 2.0];
        sgd(&mut w, &[0.5, -1.0], 0.1);
        assert_eq!(w, [0.95, 2.1]);

        // acc = 0 + 4, 5 + 4; w -= 0.5 * 2 / 2, 0.5 * -2 / 3
        let (mut w, mut acc) = ([1.0, 1.0], [0.0, 5.0]);
        adagrad(&mut w, &mut acc, &[2.0, -2.0], 0.5, 0.0);
        assert_eq!((w, acc), ([0.5, 1.0 + 1.0 / 3.0], [4.0, 9.0]));

        // acc = 3.5 + (9 + 16) / 2 = 16; w -= 0.4 / 4 g
        let (mut w, mut acc) = ([1.0, 1.0], 3.5);
        rowwise_adagrad(&mut w, &mut acc, &[3.0, -4.0], 0.4, 0.0);
        assert_eq!(acc, 16.0);
        assert!(close(w[0], 0.7, 1.0) && close(w[1], 1.4, 1.0), "{w:?}");

        // the first step of Adam is lr in the direction of the gradient's sign, whatever its size
        let (mut w, mut m, mut v) = ([1.0, 1.0], [0.0; 2], [0.0; 2]);
        adam(&mut w, &mut m, &mut v, &[1e-3, -70.0], AdamStep::new(1, 0.1, 0.9, 0.999, 0.0));
        assert!(close(w[0], 0.9, 1.0) && close(w[1], 1.1, 1.0), "{w:?}");
        let fresh2 = 1.0 - f64::from(0.999_f32); // the f32 next to 0.999 makes it 1.3e-5 less
        assert!(close(m[1], -7.0, 7.0) && close(v[1], fresh2 * 4900.0, 4.9), "{m:?} {v:?}");
    }

    #[test]
    fn a_zero_gradient_on_zero_state_leaves_the_weights_and_makes_no_nan() {
        let mut w = [1.5_f32; 11];
        sgd(&mut w, &[0.0; 11], 0.1);
        adagrad(&mut w, &mut [0.0; 11], &[0.0; 11], 0.1, 1e-10);
        rowwise_adagrad(&mut w, &mut 0.0, &[0.0; 11], 0.1, 1e-10);
        let step = AdamStep::new(1, 0.1, 0.9, 0.999, 1e-8);
        adam(&mut w, &mut [0.0; 11], &mut [0.0; 11], &[0.0; 11], step);
        assert_eq!(w, [1.5; 11]);
    }

    #[test]
    fn the_bias_correction_vanishes_in_the_end() {
        let step = AdamStep::new(u32::MAX, 0.25, 0.9, 0.999, 1e-8);
        assert_eq!((step.rate, step.root_of_correction), (0.25, 1.0));
        assert_eq!(power(0.5, 10), 1.0 / 1024.0);
        assert_eq!(power(0.0, 1), 0.0);
    }

    fn rows(n: usize) -> impl Strategy<Value = (Vec<f32>, Vec<f32>, Vec<f32>)> {
        let values = |low: f32, high: f32| proptest::collection::vec(low..high, n);
        (values(-2.0, 2.0), values(0.01, 2.0), values(-2.0, 2.0))
    }

    proptest! {
        #[test]
        fn adagrad_agrees_with_doubles((w, acc, g) in (1_usize..70).prop_flat_map(rows)) {
            let (mut w_after, mut acc_after) = (w.clone(), acc.clone());
            adagrad(&mut w_after, &mut acc_after, &g, 0.05, 1e-6);
            for i in 0..w.len() {
                let (g, acc) = (f64::from(g[i]), f64::from(acc[i]));
                let sum = acc + g * g;
                let expected = f64::from(w[i]) - 0.05 * g / (sum.sqrt() + 1e-6);
                prop_assert!(close(acc_after[i], sum, sum));
                prop_assert!(close(w_after[i], expected, 2.0));
            }
        }

        #[test]
        fn rowwise_adagrad_agrees_with_doubles((w, acc, g) in (1_usize..70).prop_flat_map(rows)) {
            let (mut w_after, mut acc_after) = (w.clone(), acc[0]);
            rowwise_adagrad(&mut w_after, &mut acc_after, &g, 0.05, 1e-6);
            let squares: f64 = g.iter().map(|&g| f64::from(g) * f64::from(g)).sum();
            let sum = f64::from(acc[0]) + squares / g.len() as f64;
            prop_assert!(close(acc_after, sum, sum));
            for i in 0..w.len() {
                let expected = f64::from(w[i]) - 0.05 * f64::from(g[i]) / (sum.sqrt() + 1e-6);
                prop_assert!(close(w_after[i], expected, 2.0));
            }
        }

        #[test]
        fn adam_agrees_with_doubles(
            (w, v, g) in (1_usize..70).prop_flat_map(rows),
            t in 1_u32..3000,
        ) {
            let (b1, b2) = (f64::from(0.9_f32), f64::from(0.999_f32));
            let m: Vec<f32> = g.iter().map(|g| 0.5 - g / 3.0).collect();
            let (mut w_after, mut m_after, mut v_after) = (w.clone(), m.clone(), v.clone());
            let step = AdamStep::new(t, 0.05, 0.9, 0.999, 1e-8);
            adam(&mut w_after, &mut m_after, &mut v_after, &g, step);
            for i in 0..w.len() {
                let g = f64::from(g[i]);
                let m = b1 * f64::from(m[i]) + (1.0 - b1) * g;
                let v = b2 * f64::from(v[i]) + (1.0 - b2) * g * g;
                let (m_hat, v_hat) = (m / (1.0 - b1.powf(t.into())), v / (1.0 - b2.powf(t.into())));
                let moved = 0.05 * m_hat / (v_hat.sqrt() + 1e-8);
                prop_assert!(close(m_after[i], m, 2.0) && close(v_after[i], v, 2.0));
                let expected = f64::from(w[i]) - moved;
                prop_assert!(close(w_after[i], expected, 2.0 + moved.abs()));
            }
        }
    }
}
