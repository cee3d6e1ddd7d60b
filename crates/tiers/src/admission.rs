//! How often keys were seen that have no row yet: a count-min sketch of four-bit counters with
//! conservative update (Cormode and Muthukrishnan, 2005; Estan and Varghese, 2002). It counts the
//! same on every run. When it has counted as many sights as it has counters, all counts are halved,
//! so that it forgets what was long ago. It decides nothing; `staging` does.

/// Counters that a sight touches.
const ROWS: u32 = 4;
/// What a counter counts to.
const MOST: u8 = 15;

pub(crate) struct Sketch {
    counters: Vec<u8>, // two to a byte, a power of two of them
    sights: u64,       // since the last halving
}

impl Sketch {
    /// Bytes that a sketch takes.
    pub(crate) const BYTES: usize = 1 << 20;

    pub(crate) fn new() -> Self {
        Self { counters: vec![0; Self::BYTES], sights: 0 }
    }

    /// Sights at which all counts are halved.
    pub(crate) const SIGHTS_MAX: u64 = 2 * Self::BYTES as u64;

    /// What [`Self::to_bytes`] gave; `None` if it is not that.
    pub(crate) fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (sights, counters) = bytes.split_first_chunk::<8>()?;
        let sights = u64::from_le_bytes(*sights);
        let sound = counters.len() == Self::BYTES && sights < Self::SIGHTS_MAX;
        sound.then(|| Self { counters: counters.to_vec(), sights })
    }

    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        [&self.sights.to_le_bytes()[..], &self.counters].concat()
    }

    /// Counts a sight of a key; how often it was seen, this time included.
    pub(crate) fn see(&mut self, hash: u64) -> u32 {
        let places = self.places(hash);
        let least = places.iter().map(|&place| self.get(place)).min().unwrap_or(0);
        let seen = least.saturating_add(1).min(MOST);
        for place in places {
            if self.get(place) < seen {
                self.set(place, seen);
            }
        }
        self.sights += 1;
        if self.sights >= Self::SIGHTS_MAX {
            self.halve();
        }
        u32::from(seen)
    }

    fn places(&self, hash: u64) -> [usize; ROWS as usize] {
        let mask = 2 * self.counters.len() as u64 - 1;
        let step = table::mix(hash) | 1;
        std::array::from_fn(|row| {
            (hash.wrapping_add(step.wrapping_mul(row as u64)) & mask) as usize
        })
    }

    fn get(&self, place: usize) -> u8 {
        self.counters[place / 2] >> (place % 2 * 4) & 15
    }

    fn set(&mut self, place: usize, count: u8) {
        let shift = place % 2 * 4;
        let byte = &mut self.counters[place / 2];
        *byte = *byte & !(15 << shift) | count << shift;
    }

    fn halve(&mut self) {
        self.sights = 0;
        for byte in &mut self.counters {
            *byte = *byte >> 1 & 0x77;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sights_are_counted_never_too_few_and_seldom_too_many() {
        let mut sketch = Sketch::new();
        let hash = |i: u64| table::mix(i);
        let mut early = 0;
        for round in 1..=4 {
            for i in 0..100_000 {
                let seen = sketch.see(hash(i));
                assert!(seen >= round, "key {i} was seen {round} times, not {seen}");
                early += u32::from(seen > round);
            }
        }
        assert!(early < 4000, "{early} of 400,000 sights were taken for later ones");
    }

    #[test]
    fn more_sights_than_are_ever_counted_are_refused() {
        let mut bytes = Sketch::new().to_bytes();
        assert!(Sketch::from_bytes(&bytes).is_some());
        bytes[..8].copy_from_slice(&u64::MAX.to_le_bytes());
        assert!(Sketch::from_bytes(&bytes).is_none());
    }

    #[test]
    fn it_forgets_and_comes_back_as_it_was() {
        let mut sketch = Sketch::new();
        for _ in 0..10 {
            sketch.see(7);
        }
        let mut again = Sketch::from_bytes(&sketch.to_bytes()).unwrap();
        assert_eq!(again.see(7), 11);
        again.halve();
        assert_eq!(again.see(7), 6);
        for _ in 0..40 {
            again.see(7);
        }
        assert_eq!(again.see(7), 15, "a counter stays at its most");
        assert!(Sketch::from_bytes(&[0; 20]).is_none());
    }
}
