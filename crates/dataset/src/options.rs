//! How a source is read: which rows, which columns, what becomes of values that are missing or
//! wrong. It reads nothing.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::{DenseTransform, Error, Shuffle};

/// Everything that decides what a reader's batches hold, given the source.
#[derive(Debug, Clone, PartialEq)]
pub struct ReadOptions {
    /// Rows of a batch; the last one may have fewer.
    pub batch_rows: usize,
    /// Which rows of the source are read.
    pub rows: RowSelection,
    /// Whether rows must have a label.
    pub labels: Labels,
    /// The name of the label's column, where columns have names.
    pub label_column: String,
    /// Which of the named columns are dense; the others are categorical.
    pub dense_columns: DenseColumns,
    /// The exact columns, as a model remembers them from its training. It overrides `label_column`
    /// and `dense_columns`; columns of the file that it doesn't name are left out.
    pub schema: Option<Schema>,
    /// What is done to a dense value.
    pub dense_transform: DenseTransform,
    /// Adds to the dense columns one column for each, 1 where the value is missing and 0 elsewhere.
    pub missing_indicator: bool,
    /// Folds every categorical value into `0..max_ind_range`, as facebookresearch/dlrm does:
    ///
    /// - Criteo: the token as a hexadecimal number, modulo; missing is 0.
    /// - TSV and Parquet strings: a token of decimal digits as a number, any other by its hash,
    ///   modulo; missing is 0.
    /// - Parquet integers and synthetic ids: the id, modulo.
    ///
    /// Without it a token's key is its 64-bit hash, an integer id is its own key, and a missing
    /// token is the empty token, which has a key and so a row like any other.
    pub max_ind_range: Option<u64>,
    /// Reads a weight for each categorical value, from columns that stand beside the categorical
    /// ones under their names with [`Schema::WEIGHTS_SUFFIX`]. Only Parquet, and caches written of
    /// it, have such; a feature without one has no weights, all features without one are an error.
    pub weights: bool,
    /// What becomes of a row that can't be read.
    pub bad_rows: BadRows,
    /// Gives rows out in a random order; without it, in the order of the source.
    pub shuffle: Option<Shuffle>,
    /// Stops after so many batches.
    pub batches_max: Option<u64>,
    /// Says that another pass over the same rows follows in the same order. Where a source knows
    /// when keys are used next, it then looks beyond the end of this pass.
    pub more_passes: bool,
}

impl ReadOptions {
    /// All rows in batches of `batch_rows`, values as they are, every bad row an error.
    pub fn new(batch_rows: usize) -> Self {
        Self {
            batch_rows,
            rows: RowSelection::All,
            labels: Labels::Read,
            label_column: "label".to_owned(),
            dense_columns: DenseColumns::Prefixed,
            schema: None,
            dense_transform: DenseTransform::None,
            missing_indicator: false,
            max_ind_range: None,
            weights: false,
            bad_rows: BadRows::Error,
            shuffle: None,
            batches_max: None,
            more_passes: false,
        }
    }
}

/// Which rows of a source are read.
///
/// A row's index i, counted from 0 over the file's data rows, good and bad alike, puts it into
/// bucket ((i * 2654435761 mod 2^32) >> 16) mod 10. Rows of other buckets are passed over unread.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RowSelection {
    /// Every row.
    All,
    /// Buckets 0 to 7.
    Train,
    /// Bucket 8.
    Valid,
    /// Bucket 9.
    Test,
}

impl RowSelection {
    /// Whether the row of this index is read.
    pub fn contains(self, index: u64) -> bool {
        let bucket = ((index as u32).wrapping_mul(2_654_435_761) >> 16) % 10;
        match self {
            RowSelection::All => true,
            RowSelection::Train => bucket < 8,
            RowSelection::Valid => bucket == 8,
            RowSelection::Test => bucket == 9,
        }
    }
}

/// Whether rows must have a label.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Labels {
    /// Each has one, from 0 to 1.
    Read,
    /// Files need no column for it, and where there is one it is not looked at: what a batch then
    /// has for labels means nothing.
    LeftOut,
}

/// Which named columns are dense.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DenseColumns {
    /// `I1`, `I2`, ... are dense and `C1`, `C2`, ... categorical; any other name is an error.
    Prefixed,
    /// The first so many columns that aren't the label.
    First(usize),
    /// These, in this order.
    Named(Vec<String>),
}

/// The columns of a batch in their order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Schema {
    /// The label.
    pub label: String,
    /// The dense columns.
    pub dense: Vec<String>,
    /// The categorical columns: the features.
    pub categorical: Vec<String>,
}

impl Schema {
    /// What the name of a column of weights has behind that of its feature.
    pub const WEIGHTS_SUFFIX: &str = "_weights";

    /// Criteo's columns: `label`, `I1`..`I13`, `C1`..`C26`.
    pub fn criteo() -> Self {
        Self {
            label: "label".to_owned(),
            dense: (1..=13).map(|i| format!("I{i}")).collect(),
            categorical: (1..=26).map(|i| format!("C{i}")).collect(),
        }
    }
}

/// What becomes of a row that can't be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BadRows {
    /// The first one ends the reading.
    Error,
    /// Up to so many are counted and left out; the next one ends the reading.
    Skip {
        /// How many are left out at most.
        rows_max: u64,
    },
}

impl FromStr for RowSelection {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        use RowSelection::{All, Test, Train, Valid};
        [All, Train, Valid, Test].into_iter().find(|rows| rows.to_string() == text).ok_or_else(
            || Error::Argument {
                what: "rows",
                found: text.to_owned(),
                expected: "all, train, valid or test".to_owned(),
            },
        )
    }
}

impl fmt::Display for RowSelection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            RowSelection::All => "all",
            RowSelection::Train => "train",
            RowSelection::Valid => "valid",
            RowSelection::Test => "test",
        })
    }
}

/// `auto`, a number, or names with commas between.
impl FromStr for DenseColumns {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        if text == "auto" {
            return Ok(DenseColumns::Prefixed);
        }
        if let Ok(count) = text.parse() {
            return Ok(DenseColumns::First(count));
        }
        let names: Vec<String> = text.split(',').map(str::to_owned).collect();
        if names.iter().any(String::is_empty) {
            return Err(Error::Argument {
                what: "dense columns",
                found: text.to_owned(),
                expected: "auto, a number, or names with commas between".to_owned(),
            });
        }
        Ok(DenseColumns::Named(names))
    }
}

impl fmt::Display for DenseColumns {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DenseColumns::Prefixed => f.write_str("auto"),
            DenseColumns::First(count) => write!(f, "{count}"),
            DenseColumns::Named(names) => f.write_str(&names.join(",")),
        }
    }
}

/// `error` or `skip:N`.
impl FromStr for BadRows {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        if text == "error" {
            return Ok(BadRows::Error);
        }
        let rows_max = text.strip_prefix("skip:").and_then(|count| count.parse().ok());
        rows_max.map(|rows_max| BadRows::Skip { rows_max }).ok_or_else(|| Error::Argument {
            what: "bad rows",
            found: text.to_owned(),
            expected: "error or skip:N".to_owned(),
        })
    }
}

impl fmt::Display for BadRows {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            BadRows::Error => f.write_str("error"),
            BadRows::Skip { rows_max } => write!(f, "skip:{rows_max}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_buckets_part_the_rows_and_nothing_is_left() {
        let mut counts = [0_u32; 3];
        for index in 0..100_000 {
            let sets = [RowSelection::Train, RowSelection::Valid, RowSelection::Test];
            let found: Vec<usize> = (0..3).filter(|&s| sets[s].contains(index)).collect();
            assert_eq!(found.len(), 1, "row {index} is in sets {found:?}");
            assert!(RowSelection::All.contains(index));
            counts[found[0]] += 1;
        }
        assert!(counts[0] > 79_000 && counts[1] > 9_500 && counts[2] > 9_500, "{counts:?}");
        // by hand: 1 * 2654435761 >> 16 = 40503, bucket 3; 3 * 2654435761 mod 2^32 >> 16 = 55974, 4
        assert!(RowSelection::Train.contains(1) && RowSelection::Train.contains(3));
    }

    #[test]
    fn names_read_back_as_they_are_written() {
        for text in ["all", "train", "valid", "test"] {
            assert_eq!(text.parse::<RowSelection>().unwrap().to_string(), text);
        }
        for text in ["auto", "13", "age,hours"] {
            assert_eq!(text.parse::<DenseColumns>().unwrap().to_string(), text);
        }
        for text in ["error", "skip:0", "skip:12"] {
            assert_eq!(text.parse::<BadRows>().unwrap().to_string(), text);
        }
        assert!("dev".parse::<RowSelection>().is_err());
        assert!("a,,b".parse::<DenseColumns>().is_err());
        assert!("skip:-1".parse::<BadRows>().is_err());
    }
}
