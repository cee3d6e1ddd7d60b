//! What the generator is asked for: how large, how many rows, which seed. It makes no row.

use std::fmt;
use std::str::FromStr;

use crate::synthetic::features::FEATURES;
use crate::synthetic::lookups::Lookups;
use crate::{Error, RowSelection, Schema};

/// Tables up to this size keep it at every scale: most of them hold the heads that a model learns.
const ROWS_KEPT_MAX: u64 = 1000;
const SCALE_MAX: f64 = 400.0; // ids stay below 2^32: eight hexadecimal digits, as in Criteo
const ROWS_MAX: u64 = 1 << 62; // row indices above it serve the teacher's bias

/// A data set that the generator makes, written as `name=value` with commas between:
///
/// - `scale`: the size of each table against Criteo Kaggle's (33.8 M rows together at 1). A table
///   of up to 1,000 rows keeps its size; a larger one becomes no smaller than 1,000. Default 0.01.
/// - `rows`: how many rows. Default 1000000.
/// - `seed`: everything follows from it: ids, labels and the teacher. Default 1.
/// - `test-rows`: so many further rows. Where it is given, the rows before them are what `train`
///   selects and they are what `test` selects, in the place of the ten-bucket rule. Default 0.
/// - `indices`: how many ids of each feature a row has; see [`Lookups`]. Labels follow from the
///   first ones alone. Default 1.
#[derive(Debug, Clone, PartialEq)]
pub struct SyntheticSpec {
    /// The size of the tables against Criteo Kaggle's.
    pub scale: f64,
    /// Rows, without the test rows.
    pub rows: u64,
    /// The seed of everything.
    pub seed: u64,
    /// Rows that follow for testing; 0 leaves the split to the ten-bucket rule.
    pub test_rows: u64,
    /// Ids of each feature in a row.
    pub lookups: Lookups,
}

impl SyntheticSpec {
    /// Checks every field's range.
    pub fn validate(&self) -> Result<(), Error> {
        let bad = |what, found: String, expected: &str| {
            Err(Error::Argument { what, found, expected: expected.to_owned() })
        };
        if !(self.scale > 0.0 && self.scale <= SCALE_MAX) {
            return bad("synthetic scale", self.scale.to_string(), "more than 0, at most 400");
        }
        if self.rows == 0 || self.rows > ROWS_MAX / 2 {
            return bad("synthetic rows", self.rows.to_string(), "1 to 2^61");
        }
        if self.test_rows > ROWS_MAX / 2 {
            return bad("synthetic test-rows", self.test_rows.to_string(), "0 to 2^61");
        }
        self.lookups.validate()
    }

    /// The number of ids of each feature C1..C26; ids are below it.
    pub fn table_rows(&self) -> Vec<u64> {
        FEATURES.iter().map(|feature| self.scaled(feature.rows)).collect()
    }

    /// Criteo's columns.
    pub fn schema(&self) -> Schema {
        Schema::criteo()
    }

    /// Rows and test rows together.
    pub fn rows_total(&self) -> u64 {
        self.rows + self.test_rows
    }

    /// Whether the row of this index is selected.
    pub fn selects(&self, selection: RowSelection, index: u64) -> bool {
        let test = index >= self.rows;
        match selection {
            RowSelection::All => index < self.rows_total(),
            RowSelection::Train if self.test_rows > 0 => !test,
            RowSelection::Test if self.test_rows > 0 => test && index < self.rows_total(),
            RowSelection::Valid if self.test_rows > 0 => false,
            RowSelection::Train | RowSelection::Valid | RowSelection::Test => {
                !test && selection.contains(index)
            }
        }
    }

    pub(super) fn scaled(&self, rows: u64) -> u64 {
        if rows <= ROWS_KEPT_MAX {
            return rows;
        }
        (libm::round(rows as f64 * self.scale) as u64).max(ROWS_KEPT_MAX)
    }
}

impl FromStr for SyntheticSpec {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let (rows, test_rows, lookups) = (1_000_000, 0, Lookups::One);
        let mut spec = SyntheticSpec { scale: 0.01, rows, seed: 1, test_rows, lookups };
        let mut seen = Vec::new();
        for part in text.split(',').filter(|_| !text.is_empty()) {
            let wrong = || Error::Argument {
                what: "synthetic data",
                found: part.to_owned(),
                expected:
                    "each once: scale=X, rows=N, seed=N, test-rows=N, indices=N, with commas \
                           between"
                        .to_owned(),
            };
            let (name, value) = part.split_once('=').ok_or_else(wrong)?;
            let number = || value.parse::<u64>().map_err(|_| wrong());
            match name {
                "scale" => spec.scale = value.parse().map_err(|_| wrong())?,
                "rows" => spec.rows = number()?,
                "seed" => spec.seed = number()?,
                "test-rows" => spec.test_rows = number()?,
                "indices" => spec.lookups = value.parse()?,
                _ => return Err(wrong()),
            }
            if seen.contains(&name) {
                return Err(wrong());
            }
            seen.push(name);
        }
        spec.validate()?;
        Ok(spec)
    }
}

impl fmt::Display for SyntheticSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "scale={},rows={},seed={}", self.scale, self.rows, self.seed)?;
        if self.test_rows > 0 {
            write!(f, ",test-rows={}", self.test_rows)?;
        }
        if self.lookups != Lookups::One {
            write!(f, ",indices={}", self.lookups)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_out_has_its_default_and_what_is_wrong_is_named() {
        let spec: SyntheticSpec = "".parse().unwrap();
        assert_eq!(spec.to_string(), "scale=0.01,rows=1000000,seed=1");
        for bad in [
            "rows",
            "rows=-1",
            "rows=0",
            "scale=0",
            "scale=nan",
            "scale=1e9",
            "a=1",
            "indices=0",
            "indices=2..9",
            "seed=1,seed=1",
            ",",
        ] {
            let message = bad.parse::<SyntheticSpec>().unwrap_err().to_string();
            assert!(message.contains("expected"), "{message}");
        }
    }

    #[test]
    fn small_tables_keep_their_size_and_large_ones_scale() {
        let rows = |text: &str| text.parse::<SyntheticSpec>().unwrap().table_rows();
        assert_eq!(rows("scale=1").iter().sum::<u64>(), 33_762_577);
        let hundredth = rows("scale=0.01");
        assert_eq!(hundredth[..5], [1000, 583, 101_312, 22_026, 305]);
        assert!(hundredth.iter().sum::<u64>() > 337_000);
        assert!(rows("scale=400").iter().all(|&rows| rows < 1 << 32));
    }

    #[test]
    fn test_rows_stand_behind_the_others() {
        let spec: SyntheticSpec = "rows=10,test-rows=4".parse().unwrap();
        let count = |rows| (0..100).filter(|&i| spec.selects(rows, i)).collect::<Vec<u64>>();
        assert_eq!(count(RowSelection::Train), (0..10).collect::<Vec<_>>());
        assert_eq!(count(RowSelection::Test), (10..14).collect::<Vec<_>>());
        assert_eq!(count(RowSelection::All), (0..14).collect::<Vec<_>>());
        let plain: SyntheticSpec = "rows=50".parse().unwrap();
        for rows in [RowSelection::Train, RowSelection::Valid, RowSelection::Test] {
            for i in 0..100 {
                assert_eq!(plain.selects(rows, i), i < 50 && rows.contains(i));
            }
        }
    }
}
