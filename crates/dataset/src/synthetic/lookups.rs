//! How many ids of a feature a generated row has. It draws none of them.

use std::fmt;
use std::str::FromStr;

use super::features::FEATURES;
use super::random::unit;
use crate::Error;

/// How many ids of each feature a generated row has.
///
/// Written `1`, `N` (exactly so many), `1..N` (a random number) or `mlperf`. Of several ids, which
/// may repeat, the first is the one that the row has with one; the others follow the same law.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Lookups {
    /// One, as Criteo's rows have.
    #[default]
    One,
    /// So many.
    Exactly(u32),
    /// A random number, as facebookresearch/dlrm draws it: `round(max(1, u * min(n, N)))`, with u
    /// uniform on 0 to 1 and n the number of ids of the feature.
    UpTo(u32),
    /// For each feature the number that MLPerf's multi-hot Criteo data has.
    Mlperf,
}

/// MLPerf's sizes for C1..C26: 214 ids a row.
const MLPERF: [u32; FEATURES.len()] =
    [3, 2, 1, 2, 6, 1, 1, 1, 1, 7, 3, 8, 1, 6, 9, 5, 1, 1, 1, 12, 100, 27, 10, 3, 1, 1];

impl Lookups {
    /// The most ids of a feature: of the 2^24 rows that a batch may have, they stay below 2^32.
    pub const MAX: u32 = 255;

    /// Checks the number.
    pub fn validate(self) -> Result<(), Error> {
        match self {
            Lookups::Exactly(0) | Lookups::UpTo(0) => Err(wrong("0")),
            Lookups::Exactly(ids) | Lookups::UpTo(ids) if ids > Self::MAX => {
                Err(wrong(&ids.to_string()))
            }
            Lookups::One | Lookups::Exactly(_) | Lookups::UpTo(_) | Lookups::Mlperf => Ok(()),
        }
    }

    /// The number of ids of a feature, from 0, where every row has the same.
    pub fn fixed(self, feature: usize) -> Option<u32> {
        match self {
            Lookups::One => Some(1),
            Lookups::Exactly(ids) => Some(ids),
            Lookups::UpTo(_) => None,
            Lookups::Mlperf => Some(MLPERF[feature]),
        }
    }

    /// The number of ids that a row has of a feature with so many ids; `word` is random.
    pub(super) fn draw(self, feature: usize, table_rows: u64, word: u64) -> u32 {
        match self {
            Lookups::One | Lookups::Exactly(_) | Lookups::Mlperf => {
                self.fixed(feature).unwrap_or(1)
            }
            Lookups::UpTo(ids_max) => {
                let most = table_rows.min(u64::from(ids_max)) as f64;
                libm::rint(unit(word) * most).max(1.0) as u32 // at most `ids_max`
            }
        }
    }
}

fn wrong(found: &str) -> Error {
    Error::Argument {
        what: "synthetic indices",
        found: found.to_owned(),
        expected: format!("N or 1..N with N from 1 to {}, or mlperf", Lookups::MAX),
    }
}

impl FromStr for Lookups {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let number = |digits: &str| digits.parse::<u32>().map_err(|_| wrong(text));
        let lookups = match text.strip_prefix("1..") {
            Some(most) => Lookups::UpTo(number(most)?),
            None if text == "mlperf" => Lookups::Mlperf,
            None => match number(text)? {
                1 => Lookups::One,
                ids => Lookups::Exactly(ids),
            },
        };
        lookups.validate()?;
        Ok(lookups)
    }
}

impl fmt::Display for Lookups {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Lookups::One => f.write_str("1"),
            Lookups::Exactly(ids) => write!(f, "{ids}"),
            Lookups::UpTo(ids) => write!(f, "1..{ids}"),
            Lookups::Mlperf => f.write_str("mlperf"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_read_back_and_others_are_refused() {
        for text in ["1", "7", "255", "1..1", "1..10", "mlperf"] {
            assert_eq!(text.parse::<Lookups>().unwrap().to_string(), text);
        }
        for text in ["", "0", "256", "1..", "1..0", "1..256", "2..3", "-1", "MLPerf"] {
            let message = text.parse::<Lookups>().unwrap_err().to_string();
            assert!(message.contains("expected N or 1..N"), "{message}");
        }
        assert_eq!(MLPERF.iter().sum::<u32>(), 214);
    }

    #[test]
    fn a_random_number_is_the_references() {
        let up_to = Lookups::UpTo(4);
        let word = |share: f64| (share * 18_446_744_073_709_551_616.0) as u64;
        // round(max(1, 4 u))
        for (u, expected) in [(0.0, 1), (0.37, 1), (0.38, 2), (0.62, 2), (0.63, 3), (0.99, 4)] {
            assert_eq!(up_to.draw(0, 100, word(u)), expected, "{u}");
        }
        assert_eq!(up_to.draw(0, 3, word(0.99)), 3, "no more than there are ids");
        assert_eq!(Lookups::UpTo(1).draw(0, 100, word(0.5)), 1);
        assert_eq!(Lookups::Mlperf.draw(20, 4, 0), 100);
    }
}
