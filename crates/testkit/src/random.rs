//! Seeded randomness for tests: numbers, Zipf keys, batches. The same seed gives the same sequence
//! everywhere. It is not for anything that needs to be unpredictable.

use std::collections::BTreeSet;

use table::{GOLDEN, Key, KeyBatch, TableId, mix};

/// A stream of pseudo-random numbers (splitmix64; Steele et al., 2014).
#[derive(Debug, Clone)]
pub struct Random {
    state: u64,
}

impl Random {
    /// The stream of a seed.
    pub fn new(seed: u64) -> Self {
        Self { state: seed }
    }

    /// The next 64 bits.
    pub fn next_u64(&mut self) -> u64 {
        let word = mix(self.state);
        self.state = self.state.wrapping_add(GOLDEN);
        word
    }

    /// A number below `n`, which is not 0.
    pub fn below(&mut self, n: u64) -> u64 {
        ((u128::from(self.next_u64()) * u128::from(n)) >> 64) as u64
    }

    /// A number in (0, 1).
    pub fn unit(&mut self) -> f64 {
        ((self.next_u64() >> 11) as f64 + 0.5) / (1_u64 << 53) as f64
    }

    /// A number in ±`bound`.
    pub fn float(&mut self, bound: f32) -> f32 {
        ((self.unit() * 2.0 - 1.0) as f32) * bound
    }
}

/// Keys whose ranks follow a Zipf law: rank k of n with weight k^-exponent, by rejection-inversion
/// (Hörmann and Derflinger, 1996). Ranks are scattered over the 64-bit range, as hashed ids are.
#[derive(Debug, Clone)]
pub struct ZipfKeys {
    random: Random,
    keys: u64,
    exponent: f64,
    low: f64,
    high: f64,
}

impl ZipfKeys {
    /// Draws from `keys` different keys; `exponent` > 0.
    pub fn new(seed: u64, keys: u64, exponent: f64) -> Self {
        assert!(keys > 0 && exponent > 0.0, "{keys} keys, exponent {exponent}");
        let low = integral(1.5, exponent) - 1.0;
        let high = integral(keys as f64 + 0.5, exponent);
        Self { random: Random::new(seed), keys, exponent, low, high }
    }

    /// The next rank, 1 to `keys`; 1 is the most frequent.
    pub fn next_rank(&mut self) -> u64 {
        loop {
            let u = self.high + self.random.unit() * (self.low - self.high);
            let x = inverse_integral(u, self.exponent);
            let rank = x.round().clamp(1.0, self.keys as f64);
            if u >= integral(rank + 0.5, self.exponent) - (-self.exponent * rank.ln()).exp() {
                return rank as u64;
            }
        }
    }

    /// The next key: a fixed scattering of the rank.
    pub fn next_key(&mut self) -> Key {
        Key(Random::new(self.next_rank()).next_u64())
    }

    /// A batch of one table from `draws` draws; it has fewer keys where draws repeat.
    pub fn batch(&mut self, table: TableId, draws: usize) -> KeyBatch {
        let keys: BTreeSet<Key> = (0..draws).map(|_| self.next_key()).collect();
        batch_of(&[(table, keys)])
    }
}

/// The integral of x^-exponent from 1 to x.
fn integral(x: f64, exponent: f64) -> f64 {
    let log = x.ln();
    let power = (1.0 - exponent) * log;
    if power.abs() < 1e-12 { log } else { power.exp_m1() / (1.0 - exponent) }
}

fn inverse_integral(y: f64, exponent: f64) -> f64 {
    let t = y * (1.0 - exponent);
    if t.abs() < 1e-12 { y.exp() } else { (t.max(-1.0).ln_1p() / (1.0 - exponent)).exp() }
}

/// Key number `i` of a list that is meant to hurt: both ends of the range, keys that agree in their
/// low bits, keys that agree in their high bits, and neighbours.
pub fn adversarial_key(i: u64) -> Key {
    Key(match i % 4 {
        0 => i / 4,
        1 => u64::MAX - i / 4,
        2 => (i / 4) << 40,
        _ => (i / 4) << 20 | 0xf_ffff,
    })
}

/// A batch that names some of `tables`, each with up to `keys_max` of the first `universe`
/// [`adversarial_key`]s.
pub fn random_key_batch(
    random: &mut Random,
    tables: &[TableId],
    universe: u64,
    keys_max: u64,
) -> KeyBatch {
    let mut runs = Vec::new();
    for &table in tables {
        let keys = random.below(keys_max + 1);
        runs.push((table, (0..keys).map(|_| adversarial_key(random.below(universe))).collect()));
    }
    batch_of(&runs)
}

/// Gradients for a pull of `floats` floats, in ±1.
pub fn random_gradients(random: &mut Random, floats: usize) -> Vec<f32> {
    (0..floats).map(|_| random.float(1.0)).collect()
}

fn batch_of(runs: &[(TableId, BTreeSet<Key>)]) -> KeyBatch {
    let mut batch = KeyBatch::new();
    for (table, keys) in runs {
        let keys: Vec<Key> = keys.iter().copied().collect();
        batch.push_run(*table, &keys).expect("a set is ascending");
    }
    batch
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zipf_ranks_have_their_weights() {
        for exponent in [0.6, 1.0, 1.2] {
            let n = 1000_u64;
            let mut zipf = ZipfKeys::new(5, n, exponent);
            let mut counts = vec![0_u32; n as usize + 1];
            let draws = 200_000;
            for _ in 0..draws {
                counts[zipf.next_rank() as usize] += 1;
            }
            let total: f64 = (1..=n).map(|k| (k as f64).powf(-exponent)).sum();
            for rank in [1_usize, 2, 5, 20] {
                let expected = f64::from(draws) * (rank as f64).powf(-exponent) / total;
                let found = f64::from(counts[rank]);
                let sigma = expected.sqrt();
                assert!((found - expected).abs() < 5.0 * sigma, "{rank}: {found}, {expected}");
            }
        }
    }

    #[test]
    fn a_seed_fixes_the_batches() {
        let tables = [TableId(0), TableId(3)];
        let batch = |seed| random_key_batch(&mut Random::new(seed), &tables, 50, 20);
        assert_eq!(batch(7), batch(7));
        assert_ne!(batch(7), batch(8));
    }

    #[test]
    fn adversarial_keys_hold_both_ends() {
        let keys: BTreeSet<Key> = (0..400).map(adversarial_key).collect();
        assert!(keys.contains(&Key(0)) && keys.contains(&Key(u64::MAX)));
        assert!(keys.len() > 390);
    }
}
