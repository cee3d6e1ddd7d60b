//! Matrix products whose result is finished in registers: biased and rectified, cut where a layer
//! was rectified, set, or added. Blocks of the result stay in registers while the inner dimension
//! goes by; the left operand is read where it lies, the right one in panels of columns.

use super::dispatch;
use super::lanes::{LANES, Lanes, ask};

/// Columns of the right operand that stand side by side in a panel.
pub const PANEL: usize = 2 * LANES;

/// Inner indices whose operands are asked for ahead of the one at hand: rows lie further apart than
/// the processor looks by itself, and a line from the last cache takes as long as seven of them.
const AHEAD: usize = 12;

/// The left operand: element (i, l) lies at `i * row + l * column`.
#[derive(Debug, Clone, Copy)]
pub struct Left<'a> {
    /// All its floats.
    pub values: &'a [f32],
    /// From one row to the next.
    pub row: usize,
    /// From one column to the next.
    pub column: usize,
}

/// The right operand: element (l, j) lies at `j / PANEL * panel + l * row + j % PANEL`. Whole
/// vectors are read, so that some floats must follow the last column.
#[derive(Debug, Clone, Copy)]
pub struct Right<'a> {
    /// All its floats.
    pub values: &'a [f32],
    /// From one panel to the next.
    pub panel: usize,
    /// From one row of a panel to the next.
    pub row: usize,
}

/// One of the products that are summed, with its inner dimension.
#[derive(Debug, Clone, Copy)]
pub struct Term<'a> {
    /// [rows, inner]
    pub left: Left<'a>,
    /// [inner, columns]
    pub right: Right<'a>,
    /// The inner dimension.
    pub inner: usize,
}

/// What becomes of the sum.
#[derive(Debug, Clone, Copy)]
pub enum Finish<'a> {
    /// It is the result.
    Set,
    /// It is added to what is there.
    Add,
    /// The bias of each column is added, and perhaps what is less than zero becomes zero.
    Bias {
        /// One float a column.
        bias: &'a [f32],
        /// Whether zero is the least.
        rectify: bool,
    },
    /// It is the result where `by`, with the target's stride, is greater than zero; else zero is.
    Cut {
        /// As the target.
        by: &'a [f32],
    },
}

/// The sum of the terms, finished into `target`: [rows, columns] with so many floats from one row
/// to the next. All but `Set` and `Add` want whole vectors of columns.
pub fn product(
    terms: &[Term<'_>],
    (rows, columns): (usize, usize),
    target: &mut [f32],
    stride: usize,
    finish: Finish<'_>,
) {
    let whole = columns.next_multiple_of(LANES);
    let last = |count: usize| count.checked_sub(1).expect("a dimension of a product");
    for Term { left, right, inner } in terms {
        let end = last(rows) * left.row + last(*inner) * left.column;
        assert!(end < left.values.len(), "the left operand of a product");
        let vector = whole - LANES;
        let end = vector / PANEL * right.panel + last(*inner) * right.row + vector % PANEL + LANES;
        assert!(end <= right.values.len(), "the right operand of a product");
    }
    assert!(columns <= stride || rows == 1, "rows of a product's target overlap");
    assert!(last(rows) * stride + columns <= target.len(), "the target of a product");
    let beside = match finish {
        Finish::Set | Finish::Add => true,
        Finish::Bias { bias, .. } => columns == whole && columns <= bias.len(),
        Finish::Cut { by } => columns == whole && last(rows) * stride + columns <= by.len(),
    };
    assert!(beside, "what a product is finished with");
    let job = &Job { terms, rows, columns, target: target.as_mut_ptr(), stride, finish };
    run(job);
}

/// A product whose operands were found inside their slices.
struct Job<'a> {
    terms: &'a [Term<'a>],
    rows: usize,
    columns: usize,
    target: *mut f32,
    stride: usize,
    finish: Finish<'a>,
}

fn run(job: &Job<'_>) {
    dispatch!(all_blocks(job: &Job<'_>))
}

/// Panel by panel, for a panel's right operand stays in the nearest cache while all rows pass.
#[inline(always)]
unsafe fn all_blocks<L: Lanes>(job: &Job<'_>) {
    let step = L::WIDTH * LANES;
    let blocks = job.rows.div_ceil(L::ROWS);
    let (rows, more) = (job.rows / blocks, job.rows % blocks);
    for column in (0..job.columns).step_by(step) {
        let left = job.columns - column;
        let mut row = 0;
        for block in 0..blocks {
            // blocks as even as can be: a small one waits for its own sums
            let rows = rows + usize::from(block < more);
            // SAFETY: rows and columns are the job's.
            unsafe {
                if L::WIDTH == 2 && left > LANES {
                    some_rows::<L, 2>(job, row, rows, column);
                } else {
                    some_rows::<L, 1>(job, row, rows, column);
                }
            }
            row += rows;
        }
    }
}

#[inline(always)]
unsafe fn some_rows<L: Lanes, const W: usize>(
    job: &Job<'_>,
    row: usize,
    rows: usize,
    column: usize,
) {
    // SAFETY: rows and columns are the job's.
    unsafe {
        match rows {
            1 => block::<L, 1, W>(job, row, column),
            2 => block::<L, 2, W>(job, row, column),
            3 => block::<L, 3, W>(job, row, column),
            4 => block::<L, 4, W>(job, row, column),
            5 => block::<L, 5, W>(job, row, column),
            6 => block::<L, 6, W>(job, row, column),
            _ if L::ROWS <= 6 => unreachable!("{rows} rows in a block"),
            7 => block::<L, 7, W>(job, row, column),
            8 => block::<L, 8, W>(job, row, column),
            9 => block::<L, 9, W>(job, row, column),
            10 => block::<L, 10, W>(job, row, column),
            11 => block::<L, 11, W>(job, row, column),
            12 => block::<L, 12, W>(job, row, column),
            13 => block::<L, 13, W>(job, row, column),
            14 => block::<L, 14, W>(job, row, column),
            _ => unreachable!("{rows} rows in a block"),
        }
    }
}

/// `R` rows of `W` vectors.
#[inline(always)]
unsafe fn block<L: Lanes, const R: usize, const W: usize>(
    job: &Job<'_>,
    row: usize,
    column: usize,
) {
    // SAFETY: `product` has found all that lies between the first and the last row, column and
    // inner index inside the slices; offsets below are of such places.
    unsafe {
        // what the end wants comes while the sums are made: nothing would be left to do meanwhile
        for i in 0..R {
            let place = (row + i) * job.stride + column;
            for w in 0..W {
                ask(job.target.wrapping_add(place + w * LANES));
                if let Finish::Cut { by } = job.finish {
                    ask(by.as_ptr().wrapping_add(place + w * LANES));
                }
            }
        }
        let mut sums = [[L::zero(); W]; R];
        for Term { left, right, inner } in job.terms {
            let mut l = left.values.as_ptr().add(row * left.row);
            let mut r = right.values.as_ptr().add(column / PANEL * right.panel + column % PANEL);
            // sums without a check for overflow, which would keep the loop from its registers
            let ahead = (AHEAD.wrapping_mul(left.column), AHEAD.wrapping_mul(right.row));
            // the end is asked for behind, for there is an inner index, and the sums have a name of
            // the loop's own: else they are kept in memory and go there and back at each turn
            let mut block = sums;
            let mut more = *inner;
            loop {
                let mut vectors = [L::zero(); W];
                for (w, vector) in vectors.iter_mut().enumerate() {
                    *vector = L::load(r.wrapping_add(w * LANES));
                    ask(r.wrapping_add(w * LANES).wrapping_add(ahead.1));
                }
                ask(l.wrapping_add(ahead.0));
                for (i, sums) in block.iter_mut().enumerate() {
                    let x = L::splat(l.wrapping_add(i.wrapping_mul(left.row)));
                    for (sum, &vector) in sums.iter_mut().zip(&vectors) {
                        *sum = sum.add_product(x, vector);
                    }
                }
                l = l.wrapping_add(left.column);
                r = r.wrapping_add(right.row);
                more = more.wrapping_sub(1);
                if more == 0 {
                    break;
                }
            }
            sums = block;
        }
        for (i, sums) in sums.iter().enumerate() {
            let place = (row + i) * job.stride + column;
            for (w, &sum) in sums.iter().enumerate() {
                let (place, column) = (place + w * LANES, column + w * LANES);
                let target = job.target.add(place);
                if column + LANES > job.columns {
                    store_some(sum, target, job.columns - column, job.finish);
                    continue;
                }
                let value = match job.finish {
                    Finish::Set => sum,
                    Finish::Add => L::load(target).add(sum),
                    Finish::Bias { bias, rectify } => {
                        let biased = sum.add(L::load(bias.as_ptr().add(column)));
                        if rectify { biased.rectified() } else { biased }
                    }
                    Finish::Cut { by } => sum.where_positive(L::load(by.as_ptr().add(place))),
                };
                value.store(target);
            }
        }
    }
}

/// The first few of a vector's floats.
#[inline(always)]
unsafe fn store_some<L: Lanes>(sum: L, target: *mut f32, count: usize, finish: Finish<'_>) {
    let mut floats = [0.0; LANES];
    // SAFETY: `floats` has a vector's length, and so many floats of the target are the job's.
    let target = unsafe {
        sum.store(floats.as_mut_ptr());
        std::slice::from_raw_parts_mut(target, count)
    };
    let add = matches!(finish, Finish::Add);
    target.iter_mut().zip(floats).for_each(|(to, sum)| *to = if add { *to + sum } else { sum });
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::kernels::lanes::Plain;
    #[cfg(target_arch = "x86_64")]
    use crate::kernels::lanes::{Avx2, Avx512};

    fn noise(seed: u32, len: usize) -> Vec<f32> {
        let value = |i: usize| {
            let mixed = (i as u32 ^ seed).wrapping_mul(0x9e37_79b9);
            ((mixed ^ (mixed >> 15)).wrapping_mul(0x85eb_ca6b) >> 8) as f32 / (1 << 24) as f32 - 0.5
        };
        (0..len).map(value).collect()
    }

    /// One form of the kernels, with its name.
    type Way = (&'static str, unsafe fn(&Job<'_>));

    /// Every way that this processor has.
    fn ways() -> Vec<Way> {
        let mut ways: Vec<Way> = vec![("plain", all_blocks::<Plain>)];
        #[cfg(target_arch = "x86_64")]
        {
            if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
                ways.push(("avx2", all_blocks::<Avx2>));
            }
            if is_x86_feature_detected!("avx512f") {
                ways.push(("avx512", all_blocks::<Avx512>));
            }
        }
        ways
    }

    proptest! {
        #[test]
        fn products_agree_with_three_loops_in_doubles(
            m in 1_usize..40,
            n in 1_usize..70,
            k in 1_usize..40,
            turned: bool,
            seed in any::<u32>(),
        ) {
            let whole = n.next_multiple_of(LANES);
            let (a, b) = (noise(seed, 2 * m * k), noise(!seed, 2 * k * whole));
            // two terms: the first and the second half of both operands
            let term = |t: usize| {
                let (row, column) = if turned { (1, m) } else { (k, 1) };
                Term {
                    left: Left { values: &a[t * m * k..][..m * k], row, column },
                    right: Right {
                        values: &b[t * k * whole..][..k * whole],
                        panel: PANEL,
                        row: whole,
                    },
                    inner: k,
                }
            };
            let terms = [term(0), term(1)];
            let sum = |i: usize, j: usize| -> f64 {
                let of = |t: usize, l: usize| {
                    let left = if turned { l * m + i } else { i * k + l };
                    f64::from(a[t * m * k + left]) * f64::from(b[t * k * whole + l * whole + j])
                };
                (0..2).map(|t| (0..k).map(|l| of(t, l)).sum::<f64>()).sum()
            };
            let (bias, by) = (noise(seed ^ 1, whole), noise(seed ^ 2, m * whole));
            let near = |found: f32, expected: f64| (f64::from(found) - expected).abs() < 1e-5;
            for (way, run) in ways() {
                let finished = |columns: usize, finish| {
                    let mut target = noise(seed ^ 3, m * whole);
                    let job = Job {
                        terms: &terms,
                        rows: m,
                        columns,
                        target: target.as_mut_ptr(),
                        stride: whole,
                        finish,
                    };
                    // SAFETY: the target has whole rows, the operands whole vectors, and `ways` has
                    // asked the processor.
                    unsafe { run(&job) };
                    target
                };
                let (before, set) = (noise(seed ^ 3, m * whole), finished(n, Finish::Set));
                let added = finished(n, Finish::Add);
                let rectified = finished(whole, Finish::Bias { bias: &bias, rectify: true });
                let biased = finished(whole, Finish::Bias { bias: &bias, rectify: false });
                let cut = finished(whole, Finish::Cut { by: &by });
                for i in 0..m {
                    for (j, &bias) in bias.iter().enumerate() {
                        let (place, sum) = (i * whole + j, sum(i, j));
                        if j < n {
                            prop_assert!(near(set[place], sum), "{}", way);
                            let expected = sum + f64::from(before[place]);
                            prop_assert!(near(added[place], expected), "{}", way);
                        } else {
                            prop_assert_eq!(set[place], before[place], "{} wrote beyond", way);
                            prop_assert_eq!(added[place], before[place], "{} wrote beyond", way);
                        }
                        let expected = sum + f64::from(bias);
                        prop_assert!(near(biased[place], expected), "{}", way);
                        prop_assert!(near(rectified[place], expected.max(0.0)), "{}", way);
                        let expected = if by[place] > 0.0 { sum } else { 0.0 };
                        prop_assert!(near(cut[place], expected), "{}", way);
                    }
                }
            }
        }
    }

    #[test]
    fn a_nan_passes_the_rectifier() {
        let (left, right, bias) = ([f32::NAN], [1.0; LANES], [0.0; LANES]);
        let term = Term {
            left: Left { values: &left, row: 1, column: 1 },
            right: Right { values: &right, panel: PANEL, row: LANES },
            inner: 1,
        };
        for (way, run) in ways() {
            let mut target = [0.0; LANES];
            let job = Job {
                terms: &[term],
                rows: 1,
                columns: LANES,
                target: target.as_mut_ptr(),
                stride: LANES,
                finish: Finish::Bias { bias: &bias, rectify: true },
            };
            // SAFETY: one row of one vector everywhere, and `ways` has asked the processor.
            unsafe { run(&job) };
            assert!(target.iter().all(|x| x.is_nan()), "{way}");
        }
    }

    #[test]
    #[should_panic(expected = "the right operand")]
    fn operands_that_do_not_fit_are_refused() {
        let values = [0.0; LANES];
        let term = Term {
            left: Left { values: &values, row: 2, column: 1 },
            right: Right { values: &values, panel: PANEL, row: LANES },
            inner: 2,
        };
        product(&[term], (2, LANES), &mut [0.0; 2 * LANES], LANES, Finish::Set);
    }
}
