//! Dense counts: for each column shares of missing, negative and zero, and a rounded log-normal for
//! the rest. It does not transform them.

use super::features::Count;
use super::random::unit;

/// The value that stands for a missing count.
pub(super) const MISSING: i64 = i64::MIN;

/// Knots of the quantile function of the positive part.
const KNOTS: usize = 1024;
/// The share beyond the first and the last knot that the table leaves out.
const CUT: f64 = 1e-4;

pub(super) struct Counts {
    missing: f64,
    negative: f64, // these are running sums: missing or negative
    zero: f64,     // missing, negative or zero
    quantiles: Vec<f64>,
}

impl Counts {
    pub(super) fn new(count: &Count) -> Self {
        // the mean and the spread are over all values; zeros and negatives count as 0 in them
        let positive = 1.0 - (count.zero + count.negative) / (1.0 - count.missing);
        let mean = count.log1p_mean / positive;
        let square =
            (count.log1p_std * count.log1p_std + count.log1p_mean * count.log1p_mean) / positive;
        let std = libm::sqrt((square - mean * mean).max(0.01));
        let knot = |knot: usize| {
            let share = (knot as f64 / KNOTS as f64).clamp(CUT, 1.0 - CUT);
            libm::expm1(mean + std * normal_quantile(share))
        };
        Self {
            missing: count.missing,
            negative: count.missing + count.negative,
            zero: count.missing + count.negative + count.zero,
            quantiles: (0..=KNOTS).map(knot).collect(),
        }
    }

    /// The count for a random word, or [`MISSING`].
    #[inline]
    pub(super) fn draw(&self, word: u64) -> i64 {
        let u = unit(word);
        if u < self.missing {
            return MISSING;
        }
        if u < self.negative {
            // -1 mostly, as in the data; the odd -2
            return if word & 7 == 0 { -2 } else { -1 };
        }
        if u < self.zero {
            return 0;
        }
        let x = (u - self.zero) / (1.0 - self.zero) * KNOTS as f64;
        let knot = (x as usize).min(KNOTS - 1);
        let (low, high) = (self.quantiles[knot], self.quantiles[knot + 1]);
        let value = low + (high - low) * (x - knot as f64);
        (libm::round(value) as i64).max(1)
    }
}

/// The x below which a standard normal lies with this share, by bisection.
fn normal_quantile(share: f64) -> f64 {
    let (mut low, mut high) = (-10.0, 10.0);
    for _ in 0..60 {
        let middle = 0.5 * (low + high);
        if 0.5 * libm::erfc(-middle / std::f64::consts::SQRT_2) < share {
            low = middle;
        } else {
            high = middle;
        }
    }
    0.5 * (low + high)
}

#[cfg(test)]
mod tests {
    use super::super::features::COUNTS;
    use super::super::random::{Purpose, Stream};
    use super::*;

    #[test]
    fn counts_have_the_shares_and_moments_of_their_column() {
        const DRAWS: u64 = 50_000;
        for (column, count) in COUNTS.iter().enumerate() {
            let (counts, stream) = (Counts::new(count), Stream::new(1, Purpose::Count(column)));
            let drawn: Vec<i64> = (0..DRAWS).map(|row| counts.draw(stream.word(row))).collect();
            let share = |held: &dyn Fn(i64) -> bool| {
                drawn.iter().filter(|&&x| held(x)).count() as f64 / DRAWS as f64
            };
            assert!((share(&|x| x == MISSING) - count.missing).abs() < 0.01, "I{}", column + 1);
            assert!((share(&|x| x == 0) - count.zero).abs() < 0.01, "I{}", column + 1);
            assert!((share(&|x| x < 0 && x != MISSING) - count.negative).abs() < 0.01);
            let logs: Vec<f64> = drawn
                .iter()
                .filter(|&&x| x != MISSING)
                .map(|&x| (x.max(0) as f64).ln_1p())
                .collect();
            let mean = logs.iter().sum::<f64>() / logs.len() as f64;
            // rounding up to 1 lifts columns of small counts a little
            assert!((mean - count.log1p_mean).abs() < 0.15, "I{}: {mean}", column + 1);
        }
    }
}
