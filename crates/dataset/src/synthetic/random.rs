//! Random words by counter: each is a function of (seed, stream, row), so that rows can be made in
//! any order. There is no state.

use table::{GOLDEN, scatter};

/// What a stream of words is for; `usize` counts features, columns or pairs.
#[derive(Debug, Clone, Copy)]
pub(super) enum Purpose {
    Rank(usize),
    Tail(usize),
    Missing(usize),
    Count(usize),
    Label,
    Scramble(usize),
    MainEffect(usize),
    PairLeft(usize),
    PairRight(usize),
    DenseEffect,
    Lookups(usize),
}

/// A stream of words, one for each row.
#[derive(Debug, Clone, Copy)]
pub(super) struct Stream(u64);

impl Stream {
    pub(super) fn new(seed: u64, purpose: Purpose) -> Self {
        let (kind, number) = match purpose {
            Purpose::Rank(n) => (1_u64, n),
            Purpose::Tail(n) => (2, n),
            Purpose::Missing(n) => (3, n),
            Purpose::Count(n) => (4, n),
            Purpose::Label => (5, 0),
            Purpose::Scramble(n) => (6, n),
            Purpose::MainEffect(n) => (7, n),
            Purpose::PairLeft(n) => (8, n),
            Purpose::PairRight(n) => (9, n),
            Purpose::DenseEffect => (10, 0),
            Purpose::Lookups(n) => (11, n),
        };
        Self(scatter(scatter(seed).wrapping_add(scatter(kind << 32 | number as u64))))
    }

    #[inline]
    pub(super) fn word(self, row: u64) -> u64 {
        scatter(self.0.wrapping_add(row.wrapping_mul(GOLDEN)))
    }

    /// The stream of the n-th draw where a row has several; of draw 0, this one.
    #[inline]
    pub(super) fn of_draw(self, draw: u32) -> Stream {
        if draw == 0 { self } else { Self(scatter(self.0.wrapping_add(scatter(u64::from(draw))))) }
    }

    /// Mean 0, standard deviation 1, nearly normal: the sum of four uniform numbers.
    pub(super) fn bell(self, row: u64) -> f64 {
        let word = self.word(row);
        let sum: u64 = (0..4).map(|part| word >> (16 * part) & 0xffff).sum();
        (sum as f64 / 65_535.0 - 2.0) * 3_f64.sqrt() // each part has the variance 1/12
    }
}

/// A word as a number above 0 and below 1.
#[inline]
pub(super) fn unit(word: u64) -> f64 {
    ((word >> 11) as f64 + 0.5) * (1.0 / (1_u64 << 53) as f64)
}

/// A word as an integer below `bound`, by the upper half of a product.
#[inline]
pub(super) fn below(word: u64, bound: u64) -> u64 {
    ((u128::from(word) * u128::from(bound)) >> 64) as u64
}
