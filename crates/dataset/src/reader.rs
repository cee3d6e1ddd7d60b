//! A source, opened: batch after batch into the caller's buffers. It runs on the caller's thread
//! and holds one batch at most.

use std::path::Path;

use crate::cache::CachedBatches;
use crate::columnar::ParquetRows;
use crate::shuffle::ShuffledRows;
use crate::synthetic::SyntheticRows;
use crate::text::TextRows;
use crate::transform::{CountLogs, Moments};
use crate::{
    BadRows, Batch, DenseTransform, Error, ReadOptions, Result, Schema, Shuffle, Source,
    Standardisation, TransformKind,
};

/// Rows of the largest batch or window: with it a feature's values fit an index of 32 bits.
const BATCH_ROWS_MAX: usize = 1 << 24;

/// Opens a source for reading from its first row.
pub fn open(source: &Source, options: &ReadOptions) -> Result<Reader> {
    if options.batch_rows == 0 || options.batch_rows > BATCH_ROWS_MAX {
        return Err(Error::Argument {
            what: "batch rows",
            found: options.batch_rows.to_string(),
            expected: format!("1 to {BATCH_ROWS_MAX}"),
        });
    }
    if let Some(Shuffle { window_rows, .. }) = options.shuffle
        && (window_rows == 0 || window_rows > BATCH_ROWS_MAX)
    {
        return Err(Error::Argument {
            what: "shuffle window",
            found: window_rows.to_string(),
            expected: format!("1 to {BATCH_ROWS_MAX} rows"),
        });
    }
    if options.max_ind_range == Some(0) {
        return Err(Error::Argument {
            what: "max-ind-range",
            found: "0".to_owned(),
            expected: "1 or more".to_owned(),
        });
    }
    if options.weights && !matches!(source, Source::Parquet { .. } | Source::Cache { .. }) {
        return Err(Error::Argument {
            what: "data source",
            found: source.to_string(),
            expected: "parquet:PATH, or a cache of it: no other source has weights".to_owned(),
        });
    }
    let (rows, schema): (Box<dyn Rows + Send>, Schema) = match source {
        Source::Cache { path } => return Ok(Reader::cached(CachedBatches::open(path, options)?)),
        Source::Criteo { path } => boxed(TextRows::criteo(path, options)?),
        Source::Tsv { path } => boxed(TextRows::tsv(path, options)?),
        Source::Parquet { path } => boxed(ParquetRows::open(path, options)?),
        Source::Synthetic(spec) => boxed(SyntheticRows::open(spec, options)?),
    };
    if let Some(fit) = options.dense_transform.standardisation() {
        let (found, expected) = (fit.mean.len().max(fit.std.len()), schema.dense.len());
        if fit.mean.len() != expected || fit.std.len() != expected {
            return Err(Error::StandardisationWidth { found, expected });
        }
    }
    let rows = match options.shuffle {
        Some(shuffle) => Box::new(ShuffledRows::new(rows, shuffle)),
        None => rows,
    };
    let table_rows = match source {
        Source::Synthetic(spec) => Some(spec.table_rows()),
        Source::Criteo { .. }
        | Source::Tsv { .. }
        | Source::Parquet { .. }
        | Source::Cache { .. } => None,
    };
    let parsed = Parsed {
        source: source.to_string(),
        rows,
        transform: options.dense_transform.clone(),
        logs: CountLogs::new(),
        batch_rows: options.batch_rows,
        batches_left: options.batches_max.unwrap_or(u64::MAX),
        raw_dense: Vec::new(),
    };
    Ok(Reader {
        origin: Origin::Parsed(parsed),
        schema,
        table_rows,
        missing_indicator: options.missing_indicator,
        rows_read: 0,
    })
}

fn boxed(opened: (impl Rows + Send + 'static, Schema)) -> (Box<dyn Rows + Send>, Schema) {
    (Box::new(opened.0), opened.1)
}

/// The batches of a source, in the order of its rows or shuffled.
pub struct Reader {
    origin: Origin,
    schema: Schema,
    table_rows: Option<Vec<u64>>,
    missing_indicator: bool,
    rows_read: u64,
}

enum Origin {
    /// Rows that become batches here.
    Parsed(Parsed),
    /// Batches that were made before.
    Cached(Box<CachedBatches>),
}

/// Rows of a format on their way into batches.
struct Parsed {
    source: String,
    rows: Box<dyn Rows + Send>,
    transform: DenseTransform,
    logs: CountLogs,
    batch_rows: usize,
    batches_left: u64,
    raw_dense: Vec<f64>, // [rows, dense columns]; NaN is missing
}

impl Reader {
    /// Fills `batch` with the next rows. False when none is left; the batch is then empty. After an
    /// error the content of the batch means nothing, and neither does reading on.
    pub fn next_batch(&mut self, batch: &mut Batch) -> Result<bool> {
        let more = match &mut self.origin {
            Origin::Parsed(parsed) => {
                let columns = &self.schema;
                let width = columns.dense.len() * if self.missing_indicator { 2 } else { 1 };
                batch.reset(width, columns.categorical.len());
                parsed.next_batch(columns, self.missing_indicator, batch)?
            }
            Origin::Cached(cached) => cached.next_batch(batch)?,
        };
        self.rows_read += batch.rows() as u64;
        Ok(more)
    }

    fn cached(batches: CachedBatches) -> Reader {
        let card = batches.card();
        Reader {
            schema: card.columns.clone(),
            table_rows: card.table_rows.clone(),
            missing_indicator: card.missing_indicator,
            rows_read: 0,
            origin: Origin::Cached(Box::new(batches)),
        }
    }

    /// The columns of the batches. With an indicator of missing values `dense` of a batch is wider.
    pub fn schema(&self) -> &Schema {
        &self.schema
    }

    /// Dense values of a row in a batch: the dense columns, and once more for the indicators.
    pub fn dense_width(&self) -> usize {
        self.schema.dense.len() * if self.missing_indicator { 2 } else { 1 }
    }

    /// The number of ids of each feature, where the source knows it: ids are then below it.
    pub fn table_rows(&self) -> Option<&[u64]> {
        self.table_rows.as_deref()
    }

    /// Rows given out so far.
    pub fn rows_read(&self) -> u64 {
        self.rows_read
    }

    /// Bad rows left out so far.
    pub fn rows_skipped(&self) -> u64 {
        match &self.origin {
            Origin::Parsed(parsed) => parsed.rows.rows_skipped(),
            Origin::Cached(cached) => cached.rows_skipped(),
        }
    }

    /// How much of the source has been passed, 0 to 1; for a progress bar.
    pub fn progress(&self) -> f64 {
        match &self.origin {
            Origin::Parsed(parsed) => parsed.rows.progress(),
            Origin::Cached(cached) => cached.progress(),
        }
    }
}

impl Parsed {
    /// The next rows as a batch; `batch` has its shape and no row.
    fn next_batch(
        &mut self,
        schema: &Schema,
        missing_indicator: bool,
        batch: &mut Batch,
    ) -> Result<bool> {
        if self.batches_left == 0 {
            return Ok(false);
        }
        self.raw_dense.clear();
        self.rows.fill(self.batch_rows, batch, &mut self.raw_dense)?;
        let (raw, columns) = (&self.raw_dense, schema.dense.len());
        let dense = &mut batch.dense;
        let transformed = self.transform.apply(&self.logs, raw, columns, missing_indicator, dense);
        if let Err(place) = transformed {
            return Err(Error::Transform {
                data: self.source.clone(),
                name: schema.dense[place % columns].clone(),
                found: self.raw_dense[place],
                transform: self.transform.to_string(),
            });
        }
        if batch.rows() == 0 {
            self.batches_left = 0;
            return Ok(false);
        }
        self.batches_left -= 1;
        Ok(true)
    }
}

/// A first pass over the rows that `options` select: mean and spread of each dense column after
/// `options.dense_transform`, missing values left out.
pub fn fit_standardisation(source: &Source, options: &ReadOptions) -> Result<Standardisation> {
    let options = ReadOptions { missing_indicator: true, shuffle: None, ..options.clone() };
    let mut reader = open(source, &options)?;
    let mut moments = Moments::new(reader.schema().dense.len());
    let mut batch = Batch::new();
    while reader.next_batch(&mut batch)? {
        batch.dense.chunks_exact(batch.dense_width.max(1)).for_each(|row| moments.add(row));
    }
    if reader.rows_read() == 0 {
        return Err(Error::NothingToFit { data: source.to_string() });
    }
    Ok(moments.finish())
}

/// A transform of this kind, fitted on the rows that `options` select if it needs to be;
/// `options.dense_transform` plays no part.
pub fn fit_transform(
    source: &Source,
    options: &ReadOptions,
    kind: TransformKind,
) -> Result<DenseTransform> {
    let fit = |dense_transform| {
        fit_standardisation(source, &ReadOptions { dense_transform, ..options.clone() })
    };
    Ok(match kind {
        TransformKind::None => DenseTransform::None,
        TransformKind::Log1p => DenseTransform::Log1p,
        TransformKind::SignedLog1p => DenseTransform::SignedLog1p,
        TransformKind::Standard => DenseTransform::Standard(fit(DenseTransform::None)?),
        TransformKind::SignedLog1pStandard => {
            DenseTransform::SignedLog1pStandard(fit(DenseTransform::SignedLog1p)?)
        }
    })
}

/// The rows of a format: what a reader needs of it.
pub(crate) trait Rows {
    /// Appends rows until `batch` has `rows_max` or the source ends: labels and features to
    /// `batch`, dense values to `dense`, NaN where missing. It MUST set `first_row` with the first
    /// row.
    ///
    /// The caller guarantees that `batch` is empty and has one feature for each categorical column.
    fn fill(&mut self, rows_max: usize, batch: &mut Batch, dense: &mut Vec<f64>) -> Result<()>;

    /// Bad rows left out so far.
    fn rows_skipped(&self) -> u64;

    /// How much has been passed, 0 to 1.
    fn progress(&self) -> f64;
}

/// Counts bad rows against what is allowed.
pub(crate) struct BadRowCount {
    policy: BadRows,
    rows: u64,
}

impl BadRowCount {
    pub(crate) fn new(policy: BadRows) -> Self {
        Self { policy, rows: 0 }
    }

    pub(crate) fn rows(&self) -> u64 {
        self.rows
    }

    /// Lets a bad row pass, or returns its error.
    #[cold]
    pub(crate) fn count(&mut self, path: &Path, error: Error) -> Result<()> {
        debug_assert!(error.is_bad_row(), "{error}");
        match self.policy {
            BadRows::Error => Err(error),
            BadRows::Skip { rows_max } if self.rows < rows_max => {
                self.rows += 1;
                Ok(())
            }
            BadRows::Skip { rows_max } => {
                let (file, latest) = (path.to_owned(), Box::new(error));
                Err(Error::TooManyBadRows { file, rows_max, latest })
            }
        }
    }
}
