//! Vectors of the kernels around a step's matrix products: by `optim`'s rules and `dlrm`'s loss,
//! and by plain loops in the kernels' order where the host has its own.

use dlrm::Loss;
use dlrm::reference::{losses_of_logits, probability};
use gpu::kernels::{BLOCK, FEW, STRETCH, grid};
use gpu::vectors::{Argument, Case, buffer, floats};
use table::mix;

use crate::vectors::{TOLERANCE, comes_out, same};

pub(crate) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for (seed, (width, rows, blocks_max)) in
        [(512, 33, 3), (16, 200, 2), (8, 1, 1), (64, 64, 7), (4, 0, 1)].into_iter().enumerate()
    {
        let shape = Shape { seed: 300 + seed as u64, width, rows, blocks_max };
        cases.extend(shape.add_bias());
        cases.extend(shape.cut_and_sum());
        cases.push(shape.copy_columns());
        cases.extend(shape.loss());
    }
    for (seed, n) in [1, 300, 5000, 0].into_iter().enumerate() {
        cases.extend(updates(400 + seed as u64, n));
        cases.push(to_brain(500 + seed as u64, n));
    }
    for (seed, (dim, rows, longest)) in
        [(16, 40, 700), (64, 9, 90), (7, 30, 100), (128, 3, 40), (1, 5, 300), (4, 0, 1)]
            .into_iter()
            .enumerate()
    {
        cases.extend(row_sums(600 + seed as u64, dim, rows, longest));
    }
    // a vector wider than a block
    cases.extend(row_sums(620, 300, 3, 70));
    cases
}

#[derive(Clone, Copy)]
struct Shape {
    seed: u64,
    width: usize, // a multiple of four
    rows: usize,
    blocks_max: u32,
}

impl Shape {
    fn case(self, kernel: &str, elements: usize, arguments: Vec<Argument>) -> Case {
        let grid = grid(elements as u64, self.blocks_max);
        Case { kernel: kernel.to_owned(), grid, block: BLOCK, shared_bytes: 0, arguments }
    }

    fn floats(self, stream: u64, len: usize) -> Vec<f32> {
        floats(self.seed, stream, len)
    }

    fn add_bias(self) -> [Case; 2] {
        let Self { width, rows, .. } = self;
        let mut before = self.floats(0, rows * width);
        let bias = self.floats(1, width);
        if let Some(first) = before.first_mut() {
            *first = f32::NAN;
        }
        [false, true].map(|rectify| {
            let mut after = before.clone();
            for row in after.chunks_exact_mut(width) {
                for (x, b) in row.iter_mut().zip(&bias) {
                    let sum = *x + b;
                    *x = if rectify && sum < 0.0 { 0.0 } else { sum };
                }
            }
            let before = before.clone();
            let arguments = vec![
                Argument::Floats { tolerance: 0.0, before, after }, // but for what is no number
                same(&bias),
                Argument::U32(width as u32),
                Argument::U64(rows as u64),
                Argument::U32(u32::from(rectify)),
            ];
            self.case("add_bias", rows * width / 4, arguments)
        })
    }

    /// The cut and the sums of stretches, then the sums of all.
    fn cut_and_sum(self) -> Vec<Case> {
        let Self { width, rows, .. } = self;
        let before = self.floats(2, rows * width);
        let output: Vec<f32> = self.floats(3, rows * width).iter().map(|x| x.max(0.0)).collect();
        let mut cases = Vec::new();
        for rectified in [false, true] {
            let mut after = before.clone();
            if rectified {
                after
                    .iter_mut()
                    .zip(&output)
                    .for_each(|(g, x)| *g = if *x > 0.0 { *g } else { 0.0 });
            }
            let mut stretches = Vec::new();
            for stretch in after.chunks(STRETCH as usize * width) {
                let mut sums = vec![0.0_f32; width];
                for row in stretch.chunks_exact(width) {
                    sums.iter_mut().zip(row).for_each(|(sum, g)| *sum += g);
                }
                stretches.extend(sums);
            }
            let first = if rectified { same(&output) } else { Argument::U64(0) };
            cases.push(self.case(
                "cut_and_sum",
                stretches.len(),
                vec![
                    buffer(&before, &after),
                    first,
                    buffer(&vec![f32::NAN; stretches.len()], &stretches),
                    Argument::U32(width as u32),
                    Argument::U64(rows as u64),
                ],
            ));
            if !rectified {
                cases.push(self.sum_stretches(&stretches));
            }
        }
        cases.push(self.sum_stretches(&self.floats(4, 21 * width)));
        cases
    }

    fn sum_stretches(self, stretches: &[f32]) -> Case {
        let width = self.width;
        let mut lanes = vec![vec![0.0_f32; width]; 8];
        for (s, stretch) in stretches.chunks_exact(width).enumerate() {
            lanes[s % 8].iter_mut().zip(stretch).for_each(|(sum, x)| *sum += x);
        }
        let pair = |i: usize, c: usize| lanes[i][c] + lanes[i + 4][c];
        let sums: Vec<f32> =
            (0..width).map(|c| (pair(0, c) + pair(2, c)) + (pair(1, c) + pair(3, c))).collect();
        let arguments = vec![
            same(stretches),
            buffer(&vec![f32::NAN; width], &sums),
            Argument::U32(width as u32),
            Argument::U64((stretches.len() / width) as u64),
        ];
        self.case("sum_stretches", width.div_ceil(32) * BLOCK as usize, arguments)
    }

    fn copy_columns(self) -> Case {
        let Self { width, rows, .. } = self;
        let (wide, columns) = (2 * width + 3, width.min(7));
        let from = self.floats(5, rows * width);
        let before = self.floats(6, rows * wide);
        let mut after = before.clone();
        for (to, from) in after.chunks_exact_mut(wide).zip(from.chunks_exact(width)) {
            to[..columns].copy_from_slice(&from[..columns]);
        }
        let arguments = vec![
            same(&from),
            Argument::U64(width as u64),
            buffer(&before, &after),
            Argument::U64(wide as u64),
            Argument::U32(columns as u32),
            Argument::U64(rows as u64),
        ];
        self.case("copy_columns", rows * columns, arguments)
    }

    /// The losses, their mean, the probabilities.
    fn loss(self) -> Vec<Case> {
        let Self { width: stride, rows: samples, .. } = self;
        let scaled = |x: f32| x * 12.0;
        let mut logits: Vec<f32> =
            self.floats(7, samples * stride).into_iter().map(scaled).collect();
        for (logit, far) in logits.iter_mut().step_by(stride).zip([1e4, -1e4, 0.0, -90.0]) {
            *logit = far;
        }
        let own: Vec<f32> = logits.iter().step_by(stride).copied().collect();
        let labels: Vec<f32> = (0..samples)
            .map(|i| match mix(self.seed << 20 | i as u64) % 5 {
                0 => 0.25,
                odd => (odd % 2) as f32,
            })
            .collect();
        let mut cases = Vec::new();
        for (loss, squared) in [(Loss::Bce, 0), (Loss::Mse, 1)] {
            let (losses, slopes) = losses_of_logits(loss, &own, &labels);
            let before = vec![-7.0_f32; logits.len()];
            let mut gradient = before.clone();
            gradient.iter_mut().step_by(stride).zip(&slopes).for_each(|(g, slope)| *g = *slope);
            // in doubles, of which the functions' last bits may differ: held to as floats below
            let tolerance = TOLERANCE;
            cases.push(self.case(
                "loss_of_logits",
                samples,
                vec![
                    same(&logits),
                    same(&labels),
                    Argument::Floats { tolerance, before, after: gradient },
                    Argument::Doubles {
                        tolerance: 1e-12,
                        before: vec![0.0; samples],
                        after: losses.clone(),
                    },
                    Argument::U32(stride as u32),
                    Argument::U64(samples as u64),
                    Argument::U32(squared),
                ],
            ));
            if samples > 0 {
                let mean = losses.iter().sum::<f64>() / samples as f64;
                let arguments = vec![
                    same(&losses),
                    comes_out(vec![mean as f32]),
                    Argument::U64(samples as u64),
                ];
                cases.push(self.case("mean_of_losses", 1, arguments));
            }
        }
        let probabilities = own.iter().map(|&logit| probability(logit)).collect();
        let arguments = vec![
            same(&logits),
            comes_out(probabilities),
            Argument::U32(stride as u32),
            Argument::U64(samples as u64),
        ];
        cases.push(self.case("probabilities_of", samples, arguments));
        cases
    }
}

fn flat(seed: u64, kernel: &str, n: usize, arguments: Vec<Argument>) -> Case {
    Shape { seed, width: 4, rows: n, blocks_max: 2 }.case(kernel, n, arguments)
}

/// The rules over weights of no shape.
fn updates(seed: u64, n: usize) -> [Case; 3] {
    let (rate, eps, step) = (0.05_f32, 1e-8_f32, 1 + n as u32);
    let gradient = floats(seed, 0, n);
    let weights = floats(seed, 1, n);
    let moments1 = floats(seed, 2, n);
    let moments2: Vec<f32> = floats(seed, 3, n).iter().map(|x| x.abs()).collect();
    let size = Argument::U64(n as u64);

    let mut after = weights.clone();
    optim::sgd(&mut after, &gradient, rate);
    let plain = [rate, f32::NAN];
    let sgd = vec![buffer(&weights, &after), same(&gradient), size.clone(), same(&plain)];

    let (mut after, mut accumulators) = (weights.clone(), moments2.clone());
    optim::adagrad(&mut after, &mut accumulators, &gradient, rate, eps);
    let adagrad = vec![
        buffer(&weights, &after),
        buffer(&moments2, &accumulators),
        same(&gradient),
        size.clone(),
        same(&plain),
        Argument::F32(eps),
    ];

    let adam_step = optim::AdamStep::new(step, rate, 0.9, 0.999, eps);
    let (mut after, mut m, mut v) = (weights.clone(), moments1.clone(), moments2.clone());
    optim::adam(&mut after, &mut m, &mut v, &gradient, adam_step);
    let adam = vec![
        buffer(&weights, &after),
        buffer(&moments1, &m),
        buffer(&moments2, &v),
        same(&gradient),
        size,
        same(&[adam_step.rate(), adam_step.root_of_correction()]),
        Argument::F32(0.9),
        Argument::F32(0.999),
        Argument::F32(eps),
    ];
    [("step_sgd", sgd), ("step_adagrad", adagrad), ("step_adam", adam)]
        .map(|(kernel, arguments)| flat(seed, kernel, n, arguments))
}

fn to_brain(seed: u64, n: usize) -> Case {
    let mut values = floats(seed, 0, n);
    for (value, bits) in values.iter_mut().zip([
        0x3f80_8000_u32, // ties go to even
        0x3f81_8000,
        0x7f7f_ffff, // the largest float is nearest to infinity
        0x7f80_0000,
        0xff80_0000,
        0x7fff_ffff, // no numbers
        0xff80_0001,
        0x0000_8001,
        0x8000_0000,
    ]) {
        *value = f32::from_bits(bits);
    }
    let brains: Vec<u16> = values.iter().map(|&x| crate::correctness::to_brain(x)).collect();
    let arguments = vec![same(&values), buffer(&vec![7_u16; n], &brains), Argument::U64(n as u64)];
    flat(seed, "to_brain", n, arguments)
}

/// Rows of none to `longest` terms, and one of twice as many: by the two kernels, with weights and
/// without.
fn row_sums(seed: u64, dim: usize, rows: usize, longest: u64) -> Vec<Case> {
    let vectors = 50;
    let upstream = floats(seed, 0, vectors * dim);
    let (mut starts, mut places) = (vec![0_u32], Vec::<u32>::new());
    for row in 0..rows as u64 {
        let terms = match row {
            0 => 2 * longest,
            1 => u64::from(FEW),
            2 => u64::from(FEW) + 1,
            _ => mix(seed << 16 | row) % (longest + 1) * (row % 2) + row % 4,
        };
        places.extend((0..terms).map(|i| (mix(row << 24 | i) % vectors as u64) as u32));
        starts.push(places.len() as u32);
    }
    let weights = floats(seed, 1, places.len());
    let terms = |row: usize| starts[row] as usize..starts[row + 1] as usize;
    let many: Vec<u32> =
        (0..rows).filter(|&row| terms(row).len() > FEW as usize).map(|row| row as u32).collect();
    // room for more rows than there are, as a step's lists have it
    let mut starts_long = starts.clone();
    starts_long.extend([u32::MAX; 3]);
    let counts = [rows as u64, many.len() as u64];
    let mut cases = Vec::new();
    for weighted in [false, true] {
        for by_four in [false, true] {
            let parts = if by_four { dim / 4 } else { dim };
            if by_four && !dim.is_multiple_of(4) {
                continue;
            }
            let groups = BLOCK as usize / parts.min(BLOCK as usize);
            for is_many in [false, true] {
                let before = vec![-7.0_f32; (rows + 3) * dim];
                let mut after = before.clone();
                for row in (0..rows).filter(|&row| (terms(row).len() > FEW as usize) == is_many) {
                    let target = &mut after[row * dim..][..dim];
                    let groups = if is_many { groups } else { 1 };
                    sum_terms(terms(row), groups, weighted, &places, &weights, &upstream, target);
                }
                let kernel = format!(
                    "sum_rows_of_{}{}",
                    if is_many { "many" } else { "few" },
                    if by_four { "_by_four" } else { "" }
                );
                let mut arguments = vec![
                    same(&upstream),
                    same(&starts_long),
                    same(&places),
                    if weighted { same(&weights) } else { Argument::U64(0) },
                    buffer(&before, &after),
                ];
                if is_many {
                    arguments.push(same(&many));
                }
                arguments.extend([same(&counts), Argument::U32(dim as u32)]);
                cases.push(flat(seed, &kernel, 300, arguments));
            }
        }
    }
    cases
}

/// Group g takes the terms g, g + groups, ... in order; then the groups' sums in order.
fn sum_terms(
    terms: std::ops::Range<usize>,
    groups: usize,
    weighted: bool,
    places: &[u32],
    weights: &[f32],
    upstream: &[f32],
    target: &mut [f32],
) {
    let dim = target.len();
    let mut sums = vec![vec![0.0_f32; dim]; groups];
    for (i, term) in terms.enumerate() {
        let vector = &upstream[places[term] as usize * dim..][..dim];
        let of = |x: &f32| if weighted { weights[term] * x } else { *x };
        sums[i % groups].iter_mut().zip(vector).for_each(|(sum, x)| *sum += of(x));
    }
    target.copy_from_slice(&sums[0]);
    for sum in &sums[1..] {
        target.iter_mut().zip(sum).for_each(|(target, x)| *target += x);
    }
}
