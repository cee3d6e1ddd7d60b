//! The card of a saved model: all that is needed to run it again beside its weights. Rows of tables
//! are not in it; they stay in the parameter server.

use std::path::Path;

use dataset::{DenseTransform, Schema};
use dlrm::{Architecture, DenseOptimizer};
use serde::{Deserialize, Serialize};

use crate::report::write_whole;
use crate::{Error, Result};

/// The format that this program writes and reads.
pub(crate) const FORMAT: u32 = 1;
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
    /// Rows of each table, where known: ids are then 0 to rows-1.
    pub embedding_rows: Option<Vec<u64>>,
    pub dense_optimizer: DenseOptimizer,
    pub seed: u64,
    /// Steps trained so far.
    pub steps: u64,
}

impl Card {
    pub(crate) fn load(folder: &Path) -> Result<Card> {
        let path = folder.join(FILE);
        let text = std::fs::read_to_string(&path).map_err(Error::file("read model", &path))?;
        let card: Card = serde_json::from_str(&text)
            .map_err(|error| Error::Input(format!("{}: {error}", path.display())))?;
        if card.format != FORMAT {
            let found = card.format;
            let path = path.display();
            return Err(Error::Input(format!(
                "{path}: the model has format {found}, this program reads format {FORMAT}"
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
