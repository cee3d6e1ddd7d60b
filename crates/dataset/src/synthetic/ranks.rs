//! Draws ranks from a Zipf law: the head exactly, from an alias table (Walker, 1977; Vose, 1991),
//! the tail from the integral of the law, which it meets to a part in 10^7. It knows no ids.

use super::random::unit;

/// Ranks drawn exactly. Their alias table takes 32 KiB, the size of a first-level cache.
const HEAD_RANKS_MAX: u64 = 4096;

/// The law P(rank r) ~ (r + 1)^-exponent over ranks from 0.
pub(super) struct Ranks {
    alias: Vec<Alias>, // [head ranks], one more for the tail as a whole
    head: u64,
    tail: Option<Tail>,
    shares: Vec<f64>, // [head ranks]
}

struct Alias {
    threshold: u32,
    other: u32,
}

/// Inverts F(x) = ∫ t^-s dt from the end of the head to the end of the support.
struct Tail {
    start: f64, // F at its lower end, up to a constant
    span: f64,
    exponent: f64,
    rank_max: f64,
}

impl Ranks {
    /// The law over `support` ranks, of which at most `head_max` are drawn exactly.
    pub(super) fn new(exponent: f64, support: u64, head_max: u64) -> Self {
        let head = support.min(head_max).min(HEAD_RANKS_MAX);
        let mut weights: Vec<f64> =
            (0..head).map(|rank| libm::pow(rank as f64 + 1.0, -exponent)).collect();
        let tail = (support > head).then(|| {
            let (low, high) = (head as f64 + 0.5, support as f64 + 0.5);
            let integral = |x: f64| {
                if exponent == 1.0 { libm::log(x) } else { libm::pow(x, 1.0 - exponent) }
            };
            let (start, end) = (integral(low), integral(high));
            let slope = if exponent == 1.0 { 1.0 } else { 1.0 - exponent };
            weights.push((end - start) / slope);
            Tail { start, span: end - start, exponent, rank_max: support as f64 }
        });
        let sum: f64 = weights.iter().sum();
        weights.iter_mut().for_each(|weight| *weight /= sum);
        let alias = alias_table(&weights);
        weights.truncate(head as usize);
        Self { alias, head, tail, shares: weights }
    }

    /// Ranks drawn exactly.
    pub(super) fn head(&self) -> u64 {
        self.head
    }

    /// The share of draws of each rank of the head.
    pub(super) fn shares(&self) -> &[f64] {
        &self.shares
    }

    /// The rank for a random word; another word decides within the tail.
    #[inline]
    pub(super) fn draw(&self, word: u64, tail_word: impl FnOnce() -> u64) -> u64 {
        let place = ((word >> 32) * self.alias.len() as u64) >> 32;
        let alias = &self.alias[place as usize];
        let rank = if (word as u32) < alias.threshold { place } else { u64::from(alias.other) };
        match &self.tail {
            Some(tail) if rank == self.head => tail.rank(unit(tail_word())),
            _ => rank,
        }
    }
}

impl Tail {
    fn rank(&self, u: f64) -> u64 {
        let y = self.start + u * self.span;
        let x = if self.exponent == 1.0 {
            libm::exp(y)
        } else {
            libm::pow(y, 1.0 / (1.0 - self.exponent))
        };
        // ranks count from 0, the law's argument from 1
        libm::round(x).min(self.rank_max) as u64 - 1
    }
}

/// Vose's construction. `shares` sum to 1.
fn alias_table(shares: &[f64]) -> Vec<Alias> {
    let count = shares.len();
    let mut scaled: Vec<f64> = shares.iter().map(|share| share * count as f64).collect();
    let (mut small, mut large): (Vec<usize>, Vec<usize>) =
        (0..count).partition(|&place| scaled[place] < 1.0);
    let whole = |place| Alias { threshold: u32::MAX, other: place as u32 };
    let mut table: Vec<Alias> = (0..count).map(whole).collect();
    while let (Some(&poor), Some(&rich)) = (small.last(), large.last()) {
        small.pop();
        table[poor] =
            Alias { threshold: (scaled[poor] * 4_294_967_296.0) as u32, other: rich as u32 };
        scaled[rich] -= 1.0 - scaled[poor];
        if scaled[rich] < 1.0 {
            large.pop();
            small.push(rich);
        }
    }
    table
}

#[cfg(test)]
mod tests {
    use super::super::random::{Purpose, Stream};
    use super::*;

    fn shares(ranks: &Ranks, draws: u64) -> Vec<f64> {
        let (word, tail) = (Stream::new(3, Purpose::Rank(0)), Stream::new(3, Purpose::Tail(0)));
        let mut counts = vec![0_u64; 20_000];
        for row in 0..draws {
            let rank = ranks.draw(word.word(row), || tail.word(row)) as usize;
            if let Some(count) = counts.get_mut(rank) {
                *count += 1;
            }
        }
        counts.iter().map(|&count| count as f64 / draws as f64).collect()
    }

    #[test]
    fn draws_follow_the_law_in_the_head_and_in_the_tail() {
        const DRAWS: u64 = 400_000;
        for (exponent, support) in
            [(1.061, 1_000_000_u64), (1.0, 20_000), (0.91, 12_517), (2.3, 105)]
        {
            let found = shares(&Ranks::new(exponent, support, u64::MAX), DRAWS);
            let norm: f64 = (1..=support).map(|rank| (rank as f64).powf(-exponent)).sum();
            let bands = [0..1, 1..2, 2..10, 10..100, 100..4096, 4096..4200, 4200..20_000];
            for band in bands {
                let ranks = band.start.min(support as usize)..band.end.min(support as usize);
                let expected: f64 =
                    ranks.clone().map(|rank| (rank as f64 + 1.0).powf(-exponent) / norm).sum();
                let found: f64 = found[ranks].iter().sum();
                let noise = 4.0 * (expected / DRAWS as f64).sqrt() + 1e-9;
                assert!(
                    (found - expected).abs() < noise,
                    "s {exponent}, support {support}, ranks {band:?}: {found} against {expected}"
                );
            }
        }
    }

    #[test]
    fn no_rank_lies_outside_the_support() {
        for support in [1, 2, 3, 4096, 4097, 5000] {
            let ranks = Ranks::new(1.1, support, u64::MAX);
            for word in [0, 1, u64::MAX, u64::MAX << 32, u64::from(u32::MAX)] {
                for tail in [0, u64::MAX] {
                    assert!(ranks.draw(word, || tail) < support);
                }
            }
        }
    }
}
