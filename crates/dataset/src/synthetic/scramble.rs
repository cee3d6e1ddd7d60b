//! A bijection of 0..n, so that an id tells nothing of its popularity: a Feistel network over a
//! rectangle that hardly exceeds n, walked until it comes back inside (Black and Rogaway, 2002).

use table::scatter;

use super::random::{Stream, below};

const ROUNDS: usize = 4;

pub(super) struct Scramble {
    count: u64,
    side: u64, // the rectangle is side * side
    keys: [u64; ROUNDS],
}

impl Scramble {
    pub(super) fn new(stream: Stream, count: u64) -> Self {
        let mut side = libm::ceil(libm::sqrt(count as f64)) as u64;
        while side * side < count {
            side += 1;
        }
        Self { count, side, keys: std::array::from_fn(|round| stream.word(round as u64)) }
    }

    /// The image of `x`, which is below n, as is the image.
    pub(super) fn id(&self, mut x: u64) -> u64 {
        assert!(x < self.count, "{x} of {}", self.count);
        loop {
            let (mut left, mut right) = (x / self.side, x % self.side);
            for pair in self.keys.chunks_exact(2) {
                left = self.turn(left, right, pair[0]);
                right = self.turn(right, left, pair[1]);
            }
            x = left * self.side + right;
            if x < self.count {
                return x;
            }
        }
    }

    fn turn(&self, half: u64, other: u64, key: u64) -> u64 {
        let turned = half + below(scatter(key.wrapping_add(other)), self.side);
        if turned >= self.side { turned - self.side } else { turned }
    }
}

#[cfg(test)]
mod tests {
    use super::super::random::Purpose;
    use super::*;

    #[test]
    fn every_id_comes_once_and_neighbours_part() {
        for count in [1, 2, 3, 4, 10, 1000, 12_345] {
            let scramble = Scramble::new(Stream::new(9, Purpose::Scramble(1)), count);
            let mut ids: Vec<u64> = (0..count).map(|x| scramble.id(x)).collect();
            let steps = ids.windows(2).filter(|pair| pair[0].abs_diff(pair[1]) == 1).count();
            assert!(count < 1000 || steps < 30, "{steps} neighbours stay neighbours of {count}");
            ids.sort_unstable();
            assert!(ids.into_iter().eq(0..count));
        }
    }
}
