//! The card of a saved model: all that is needed to run it again beside its weights. Rows of tables
//! are not in it; they stay in the parameter server.

use std::path::Path;

use dataset::{DenseTransform, RowSelection, Schema};
use dlrm::{Architecture, DenseOptimizer};
use serde::{Deserialize, Serialize};

use crate::cli::Pooling;
use crate::report::write_whole;
use crate::{Error, Result};

/// The format of a model that sums the rows of a list.
const FORMAT_SUM: u32 = 1;
/// The same with any other pooling: a program that knows format 1 alone would sum.
const FORMAT_POOLING: u32 = 2;
const FILE: &str = "model.json";

/// A model without its weights.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Card {
    pub format: u32,
    pub architecture: Architecture,
    /// The columns by name; each categorical one has a table of its name.
    pub columns: Schema,
    pub dense_transform: DenseTransform,
    pub missing_indicator: bool,
    pub max_ind_range: Option<u64>,
    /// Absent in older models: sum.
    #[serde(default)]
    pub pooling: Pooling,
    /// Rows of each table, where known: ids are then 0 to rows-1.
    pub embedding_rows: Option<Vec<u64>>,
    pub dense_optimizer: DenseOptimizer,
    pub seed: u64,
    /// Steps trained so far.
    pub steps: u64,
    /// Where in its data a training was interrupted; none where it came to its end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interrupted: Option<Interrupted>,
}

/// A place in the data of a training.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Interrupted {
    pub order: Order,
    pub after: Reached,
}

/// What decides which rows a step has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Order {
    /// As `--data` names it.
    pub data: String,
    pub rows: RowSelection,
    pub mini_batch_size: usize,
    pub shuffle_window: usize,
}

/// A step's place: the epoch, counted from 0, and its batch there, counted from 1.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Reached {
    pub epoch: u64,
    pub batch: u64,
}

impl Reached {
    /// Whether a test comes after this batch, where they are so many batches apart, wherever its
    /// epoch ends.
    pub(crate) fn is_tested(self, test_every: Option<u64>) -> bool {
        test_every.is_some_and(|every| self.batch.is_multiple_of(every))
    }
}

/// The format of a model that pools so.
pub(crate) fn format_of(pooling: Pooling) -> u32 {
    match pooling {
        Pooling::Sum => FORMAT_SUM,
        Pooling::Mean | Pooling::Weighted => FORMAT_POOLING,
    }
}

impl Card {
    pub(crate) fn load(folder: &Path) -> Result<Card> {
        let path = folder.join(FILE);
        let text = std::fs::read_to_string(&path).map_err(Error::file("read model", &path))?;
        let card: Card = serde_json::from_str(&text)
            .map_err(|error| Error::Input(format!("{}: {error}", path.display())))?;
        if card.format != format_of(card.pooling) {
            let (found, pooling) = (card.format, card.pooling);
            let path = path.display();
            return Err(Error::Input(format!(
                "{path}: the model has format {found} with pooling {pooling:?}, this program reads \
                 format {FORMAT_SUM} with Sum and {FORMAT_POOLING} with others"
            )));
        }
        Ok(card)
    }

    /// The table of each categorical feature, by name.
    pub(crate) fn tables(&self) -> &[String] {
        &self.columns.categorical
    }

    pub(crate) fn save(&self, folder: &Path) -> Result<()> {
        let text = serde_json::to_string_pretty(self)
            .map_err(|error| Error::Input(format!("write model: {error}")))?;
        write_whole(&folder.join(FILE), "write model", text.as_bytes())
    }
}
