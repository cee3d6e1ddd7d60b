//! What a table is: its name, dimension, optimizer and initialiser, and the layout of its rows that
//! follows from them. It holds no row and applies no update.

use serde::{Deserialize, Serialize};

use crate::{Error, Initializer, Key, Result};

/// Everything that fixes a table's content, given the pushes: two servers with the same
/// specification and the same pushes hold the same bytes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TableSpec {
    /// The table's name, unique at a server: 1 to 64 characters of `A-Z a-z 0-9 _ . -`.
    pub name: String,
    /// Floats in an embedding row, 1 to [`TableSpec::DIM_MAX`].
    pub dim: u32,
    /// The update rule of its rows; it also fixes the state kept beside each row.
    pub optimizer: Optimizer,
    /// How a row is made when its key is first touched.
    pub initializer: Initializer,
    /// The seed of its rows.
    pub seed: u64,
    /// How often a key must be staged before it gets a row.
    #[serde(default)]
    pub admission: Admission,
    /// How long a row lives that nobody stages.
    #[serde(default)]
    pub expiry: Expiry,
}

/// When a key gets a row of its own. Until then it is answered as not admitted, with the floats of
/// its initial row, and what is pushed to it is dropped and counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Admission {
    /// The first time that it is staged.
    #[default]
    FirstSight,
    /// The time that it is staged for the n-th time, as a counting sketch counts: never later, and
    /// seldom earlier.
    AfterSights(u32),
}

/// When a row that nobody stages is forgotten: its next touch is a first touch again.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Expiry {
    /// Never.
    #[default]
    Never,
    /// When the store has staged more than so many steps since the row's last.
    Steps(u32),
    /// When more than so many seconds have passed since the row was last staged.
    Seconds(u32),
}

impl Admission {
    /// The most sights that may be asked for: what four bits count to.
    pub const SIGHTS_MAX: u32 = 15;
}

/// The update rule of a table's rows. The learning rate is not part of it: it comes with each push.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Optimizer {
    /// `w -= lr g`. No state.
    Sgd,
    /// Adagrad (Duchi et al., 2011): an accumulator for each element.
    Adagrad {
        /// Added to the root of the accumulator.
        eps: f32,
        /// The accumulator of a new row.
        initial_accumulator: f32,
    },
    /// Row-wise Adagrad: one accumulator for a row, of the mean of its squared gradient.
    RowWiseAdagrad {
        /// Added to the root of the accumulator.
        eps: f32,
        /// The accumulator of a new row.
        initial_accumulator: f32,
    },
    /// Adam (Kingma and Ba, 2015) on the rows a push names, with a step count for each row.
    Adam {
        /// Decay of the first moment.
        beta1: f32,
        /// Decay of the second moment.
        beta2: f32,
        /// Added to the root of the second moment.
        eps: f32,
    },
}

/// Where things lie in a stored row: the embedding first, then the optimizer's state, all `f32`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RowLayout {
    /// Floats of the embedding.
    pub dim: usize,
    /// Floats of optimizer state that follow.
    pub state: usize,
}

impl TableSpec {
    /// The largest dimension a table may have.
    pub const DIM_MAX: u32 = 4096;
    /// The longest name, in characters.
    pub const NAME_CHARS_MAX: usize = 64;

    /// A table whose keys are all admitted at first sight and whose rows never expire.
    pub fn new(
        name: impl Into<String>,
        dim: u32,
        optimizer: Optimizer,
        initializer: Initializer,
        seed: u64,
    ) -> Self {
        let (admission, expiry) = (Admission::FirstSight, Expiry::Never);
        Self { name: name.into(), dim, optimizer, initializer, seed, admission, expiry }
    }

    /// Checks every field's range.
    pub fn validate(&self) -> Result<()> {
        let bad = |field, found: String, expected: &str| {
            let (table, expected) = (self.name.clone(), expected.to_owned());
            Err(Error::Spec { table, field, found, expected })
        };
        let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-');
        let named = (1..=Self::NAME_CHARS_MAX).contains(&self.name.chars().count());
        if !named || !self.name.chars().all(legal) {
            let expected = "1 to 64 characters of A-Z a-z 0-9 _ . -";
            return bad("name", format!("{:?}", self.name), expected);
        }
        if self.dim == 0 || self.dim > Self::DIM_MAX {
            return bad("dim", self.dim.to_string(), "1 to 4096");
        }
        if let Some((found, expected)) = self.initializer.fault() {
            return bad("initializer", found, expected);
        }
        if let Some((found, expected)) = self.optimizer.fault() {
            return bad("optimizer", found, expected);
        }
        if let Admission::AfterSights(sights) = self.admission
            && !(1..=Admission::SIGHTS_MAX).contains(&sights)
        {
            return bad("admission", format!("after {sights} sights"), "1 to 15 sights");
        }
        match self.expiry {
            Expiry::Steps(0) | Expiry::Seconds(0) => {
                bad("expiry", format!("{:?}", self.expiry), "at least 1")
            }
            Expiry::Never | Expiry::Steps(_) | Expiry::Seconds(_) => Ok(()),
        }
    }

    /// The layout of this table's rows.
    pub fn layout(&self) -> RowLayout {
        let dim = self.dim as usize;
        RowLayout { dim, state: self.optimizer.state_floats(dim) }
    }

    /// Writes the row that `key` has before its first update, embedding and state.
    ///
    /// It depends on the specification and the key alone, so the order of first touches and the
    /// number of threads leave no trace.
    ///
    /// `row` has [`RowLayout::floats`] floats.
    pub fn initial_row(&self, key: Key, row: &mut [f32]) {
        let layout = self.layout();
        assert_eq!(row.len(), layout.floats(), "row of {}", self.name);
        let (embedding, state) = row.split_at_mut(layout.dim);
        self.initial_embedding(key, embedding);
        state.fill(self.optimizer.initial_state());
    }

    /// Writes the embedding that `key` has before its first update. `embedding` has `dim` floats.
    pub fn initial_embedding(&self, key: Key, embedding: &mut [f32]) {
        self.initializer.fill(self.row_seed(key), embedding);
    }

    /// The seed of one row: mixed from the table's seed, its name and the key. The name stands for
    /// the table, for a [`crate::TableId`] depends on the order in which tables were created.
    fn row_seed(&self, key: Key) -> u64 {
        let name = self.name.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3) // FNV-1a
        });
        mix(mix(self.seed ^ name.rotate_left(32)).wrapping_add(mix(key.0)))
    }
}

impl Optimizer {
    /// Floats of state beside a row of `dim` floats.
    pub fn state_floats(&self, dim: usize) -> usize {
        match self {
            Optimizer::Sgd => 0,
            Optimizer::Adagrad { .. } => dim,
            Optimizer::RowWiseAdagrad { .. } => 1,
            Optimizer::Adam { .. } => 2 * dim + 1, // both moments, and the row's own step count
        }
    }

    /// The value of every state float in a new row.
    pub fn initial_state(&self) -> f32 {
        match *self {
            Optimizer::Sgd | Optimizer::Adam { .. } => 0.0,
            Optimizer::Adagrad { initial_accumulator, .. }
            | Optimizer::RowWiseAdagrad { initial_accumulator, .. } => initial_accumulator,
        }
    }

    fn fault(&self) -> Option<(String, &'static str)> {
        let positive = |x: f32| x.is_finite() && x > 0.0;
        let unit = |x: f32| (0.0..1.0).contains(&x);
        let sound = match *self {
            Optimizer::Sgd => true,
            Optimizer::Adagrad { eps, initial_accumulator }
            | Optimizer::RowWiseAdagrad { eps, initial_accumulator } => {
                positive(eps) && initial_accumulator.is_finite() && initial_accumulator >= 0.0
            }
            Optimizer::Adam { beta1, beta2, eps } => unit(beta1) && unit(beta2) && positive(eps),
        };
        let expected = "eps > 0, accumulator >= 0, betas in [0, 1), all finite";
        (!sound).then(|| (format!("{self:?}"), expected))
    }
}

impl RowLayout {
    /// Floats of a stored row.
    pub fn floats(&self) -> usize {
        self.dim + self.state
    }

    /// Bytes of a stored row.
    pub fn bytes(&self) -> usize {
        self.floats() * size_of::<f32>()
    }
}

/// What each step of splitmix64 (Steele et al., 2014) adds to its state.
pub const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

/// The number that splitmix64 (Steele et al., 2014) gives in the state `x`.
#[inline]
pub fn mix(x: u64) -> u64 {
    scatter(x.wrapping_add(GOLDEN))
}

/// The finaliser of splitmix64: a bijection that scatters every bit; 0 stays 0.
#[inline]
pub fn scatter(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(name: &str, seed: u64) -> TableSpec {
        let optimizer = Optimizer::RowWiseAdagrad { eps: 1e-10, initial_accumulator: 0.5 };
        TableSpec::new(name, 4, optimizer, Initializer::Uniform { bound: 0.25 }, seed)
    }

    #[test]
    fn mix_is_splitmix64() {
        // the first numbers of the generator's reference implementation in the state 0
        let numbers = (0..3).map(|i| mix(GOLDEN.wrapping_mul(i)));
        let expected = [0xe220_a839_7b1d_cdaf, 0x6e78_9e6a_a1b9_65f4, 0x06c4_5d18_8009_454f];
        assert!(numbers.eq(expected));
        assert_eq!(scatter(0), 0);
    }

    #[test]
    fn a_row_depends_on_seed_table_and_key_and_on_nothing_else() {
        let row = |spec: &TableSpec, key| {
            let mut row = vec![f32::NAN; spec.layout().floats()];
            spec.initial_row(Key(key), &mut row);
            row
        };
        let base = row(&spec("a", 1), 42);
        assert_eq!(base, row(&spec("a", 1), 42));
        assert_eq!(base[4], 0.5, "the state follows the embedding");
        for other in [row(&spec("b", 1), 42), row(&spec("a", 2), 42), row(&spec("a", 1), 43)] {
            assert_ne!(base[..4], other[..4]);
        }
    }

    #[test]
    fn every_field_out_of_range_is_named() {
        let cases: [(&str, TableSpec); 8] = [
            ("admission", TableSpec { admission: Admission::AfterSights(0), ..spec("a", 0) }),
            ("admission", TableSpec { admission: Admission::AfterSights(16), ..spec("a", 0) }),
            ("expiry", TableSpec { expiry: Expiry::Steps(0), ..spec("a", 0) }),
            ("name", spec("", 0)),
            ("name", spec("a b", 0)),
            ("dim", TableSpec { dim: 0, ..spec("a", 0) }),
            (
                "optimizer",
                TableSpec {
                    optimizer: Optimizer::Adam { beta1: 1.0, beta2: 0.9, eps: 1e-8 },
                    ..spec("a", 0)
                },
            ),
            (
                "initializer",
                TableSpec { initializer: Initializer::Uniform { bound: f32::NAN }, ..spec("a", 0) },
            ),
        ];
        for (field, spec) in cases {
            let error = spec.validate().unwrap_err();
            assert!(matches!(&error, Error::Spec { field: f, .. } if *f == field), "{error}");
        }
        assert_eq!(spec("C1", 0).validate(), Ok(()));
    }
}
