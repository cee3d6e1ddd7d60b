//! Reads a cache batch by batch, in its order. It parses no text and refuses to be read otherwise
//! than it was written.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use table::KeyBatch;

use super::CacheCard;
use super::format::{
    BLOCK_HEADER_BYTES, Fault, HEADER_BYTES, Header, NextUse, Shape, block_bytes, check_header,
    decode_block,
};
use super::map::map;
use crate::{Batch, DenseColumns, Error, ReadOptions, Result, RowSelection};

/// What the batches of a cache are, from its head.
pub fn cache_card(path: &Path) -> Result<CacheCard> {
    Ok(Opened::open(path)?.card)
}

/// A cache file whose head is sound.
struct Opened {
    file: File,
    header: Header,
    card: CacheCard,
}

impl Opened {
    fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(Error::io(path))?;
        let file_bytes = file.metadata().map_err(Error::io(path))?.len();
        if file_bytes < HEADER_BYTES as u64 {
            let expected = format!("a cache: at least {HEADER_BYTES} bytes");
            return Err(told(path, 0, format!("{file_bytes} bytes"), expected));
        }
        let mut bytes = [0; HEADER_BYTES];
        file.read_exact_at(&mut bytes, 0).map_err(Error::io(path))?;
        let header = Header::decode(&bytes).map_err(|fault| at(path, 0, fault))?;
        let wanted = HEADER_BYTES as u64 + u64::from(header.card_bytes);
        if file_bytes < wanted {
            let expected = format!("at least {wanted}: truncated");
            return Err(told(path, 0, format!("{file_bytes} bytes"), expected));
        }
        let mut json = vec![0; header.card_bytes as usize];
        file.read_exact_at(&mut json, HEADER_BYTES as u64).map_err(Error::io(path))?;
        check_header(&bytes, &json).map_err(|fault| at(path, 0, fault))?;
        if file_bytes != header.size.file_bytes {
            let found = format!("{file_bytes} bytes");
            let expected = format!("{}: truncated, or added to", header.size.file_bytes);
            return Err(told(path, 0, found, expected));
        }
        let card: CacheCard = serde_json::from_slice(&json).map_err(|error| {
            told(path, HEADER_BYTES as u64, format!("a card that does not read: {error}"), "one")
        })?;
        Ok(Self { file, header, card })
    }
}

/// The batches of a cache.
pub(crate) struct CachedBatches {
    path: PathBuf,
    file: File,
    header: Header,
    card: CacheCard,
    shape: Shape,
    more_passes: bool,
    next: u64,    // the number of the next batch
    next_at: u64, // where its block stands
    batches: u64, // how many are read
}

impl CachedBatches {
    /// Opens a cache; `options` must ask for what it holds.
    pub(crate) fn open(path: &Path, options: &ReadOptions) -> Result<Self> {
        let Opened { file, header, card } = Opened::open(path)?;
        check_options(&card, options)?;
        let shape = Shape {
            features: card.columns.categorical.len(),
            dense_width: card.dense_width(),
            batch_rows: card.batch_rows,
            batches: header.size.batches,
        };
        Ok(Self {
            path: path.to_owned(),
            file,
            next_at: HEADER_BYTES as u64 + u64::from(header.card_bytes),
            header,
            card,
            shape,
            more_passes: options.more_passes,
            next: 0,
            batches: options.batches_max.unwrap_or(u64::MAX).min(shape.batches),
        })
    }

    pub(crate) fn card(&self) -> &CacheCard {
        &self.card
    }

    /// As [`crate::Reader::next_batch`].
    pub(crate) fn next_batch(&mut self, batch: &mut Batch) -> Result<bool> {
        if self.next >= self.batches {
            self.check_end()?;
            batch.reset(self.shape.dense_width, self.shape.features);
            return Ok(false);
        }
        self.check_whole()?;
        let left = self.header.size.file_bytes.saturating_sub(self.next_at);
        let mut header = [0; BLOCK_HEADER_BYTES];
        if left < BLOCK_HEADER_BYTES as u64 {
            let expected = format!("the block of batch {}", self.next);
            return Err(told(&self.path, self.next_at, format!("{left} bytes"), expected));
        }
        self.file.read_exact_at(&mut header, self.next_at).map_err(Error::io(&self.path))?;
        let length = block_bytes(&header);
        if length > left {
            let found = format!("a block of {length} bytes");
            let expected = format!("at most the {left} that the file has left");
            return Err(told(&self.path, self.next_at, found, expected));
        }
        let bytes = usize::try_from(length).unwrap_or(usize::MAX);
        let block = map(&self.file, self.next_at, bytes).map_err(Error::io(&self.path))?;
        decode_block(&block, self.next, &self.shape, batch)
            .map_err(|fault| at(&self.path, self.next_at, fault))?;
        self.tell_next_uses(&mut batch.distinct.next_uses);
        self.next += 1;
        self.next_at += length;
        Ok(true)
    }

    /// Turns next uses as they are stored into what is known of this run: beyond the last batch
    /// that is read there is none, and beyond a pass there is one if another pass follows.
    fn tell_next_uses(&self, next_uses: &mut [u32]) {
        let whole = self.batches == self.shape.batches;
        for word in next_uses {
            *word = match NextUse::decode(*word) {
                NextUse::ThisPass(later) if self.next + u64::from(later) < self.batches => later,
                NextUse::NextPass(later) if whole && self.more_passes => later,
                NextUse::ThisPass(_) | NextUse::NextPass(_) => KeyBatch::NEVER,
            };
        }
    }

    /// A file that was cut short since it was opened is told, before its lost pages are mapped.
    fn check_whole(&self) -> Result<()> {
        let found = self.file.metadata().map_err(Error::io(&self.path))?.len();
        let expected = self.header.size.file_bytes;
        if found < expected {
            let expected = format!("{expected}, as when it was opened: cut short since");
            return Err(told(&self.path, self.next_at, format!("{found} bytes"), expected));
        }
        Ok(())
    }

    /// After the last block the file must be at its end.
    fn check_end(&self) -> Result<()> {
        let end = self.header.size.file_bytes;
        if self.next == self.shape.batches && self.next_at != end {
            let expected = format!("the file's end, {end}");
            return Err(told(&self.path, self.next_at, "the end of the last block", expected));
        }
        Ok(())
    }

    pub(crate) fn rows_skipped(&self) -> u64 {
        self.header.size.rows_skipped
    }

    pub(crate) fn progress(&self) -> f64 {
        self.next as f64 / self.batches.max(1) as f64
    }
}

/// A cache is read as it was written: what would change its batches is refused.
fn check_options(card: &CacheCard, options: &ReadOptions) -> Result<()> {
    let wrong = |what, found: String, written: String| {
        let expected = format!("{written}, as the cache was written; or another cache");
        Err(Error::Argument { what, found, expected })
    };
    if options.batch_rows != card.batch_rows {
        let (found, written) = (options.batch_rows, card.batch_rows);
        return wrong("batch rows", found.to_string(), written.to_string());
    }
    if options.rows != RowSelection::All && options.rows != card.rows {
        return wrong("rows", options.rows.to_string(), card.rows.to_string());
    }
    if let Some(shuffle) = options.shuffle {
        let written = "0 (the order of a cache is fixed)".to_owned();
        return wrong("shuffle window", shuffle.window_rows.to_string(), written);
    }
    if let Some(columns) = options.schema.as_ref().filter(|columns| **columns != card.columns) {
        return wrong("columns", format!("{columns:?}"), format!("{:?}", card.columns));
    }
    if options.dense_columns != DenseColumns::Prefixed {
        return wrong("dense columns", options.dense_columns.to_string(), "auto".to_owned());
    }
    if options.dense_transform != card.dense_transform {
        let (found, written) = (&options.dense_transform, &card.dense_transform);
        let differs = if found.kind() == written.kind() { ", fitted on other rows" } else { "" };
        return wrong("dense transform", format!("{found}{differs}"), written.to_string());
    }
    if options.missing_indicator != card.missing_indicator {
        let (found, written) = (options.missing_indicator, card.missing_indicator);
        return wrong("missing indicator", found.to_string(), written.to_string());
    }
    if options.max_ind_range != card.max_ind_range {
        let text = |range: Option<u64>| range.map_or("none".to_owned(), |range| range.to_string());
        return wrong("max-ind-range", text(options.max_ind_range), text(card.max_ind_range));
    }
    if options.weights != card.weights {
        let text = |weights: bool| if weights { "with weights" } else { "without weights" };
        return wrong("pooling", text(options.weights).to_owned(), text(card.weights).to_owned());
    }
    Ok(())
}

fn at(path: &Path, base: u64, fault: Fault) -> Error {
    told(path, base.saturating_add(fault.at), fault.found, fault.expected)
}

fn told(path: &Path, byte: u64, found: impl Into<String>, expected: impl Into<String>) -> Error {
    let (file, found, expected) = (path.to_owned(), found.into(), expected.into());
    Error::Cache { file, byte, found, expected }
}
