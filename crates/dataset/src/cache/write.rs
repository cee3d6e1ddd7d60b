//! Writes a cache: a source is read once, each batch's block goes to the file as it comes, and
//! then, from the last block to the first, when each key is used next. The file appears under its
//! name when it is whole. It keeps no batch but the one at hand.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use table::TableId;

use super::format::{
    BATCHES_MAX, BLOCK_HEADER_BYTES, CARD_BYTES_MAX, HEADER_BYTES, Header, OpenUses, Shape,
    block_bytes, encode_block, open_uses, seal,
};
use super::next_use::Uses;
use super::{CacheCard, CacheSize};
use crate::{Batch, Error, ReadOptions, Reader, Result, Source, Unique, open, unique};

/// Reads `source` once as `options` say and writes its batches to `path`, whole or not at all.
///
/// `go_on` is told the rows read so far; when it answers false, nothing is written and the answer
/// is `None`. Memory: a batch, 8 bytes for each batch, and for each distinct key at most 58, half
/// as many again while the map of them grows.
pub fn write_cache(
    source: &Source,
    options: &ReadOptions,
    path: &Path,
    go_on: &mut dyn FnMut(u64) -> bool,
) -> Result<Option<CacheSize>> {
    if let Source::Cache { .. } = source {
        return Err(Error::Argument {
            what: "data source",
            found: source.to_string(),
            expected: "anything but a cache, to write a cache of".to_owned(),
        });
    }
    let mut partial = path.as_os_str().to_owned();
    partial.push(".partial");
    let partial = PathBuf::from(partial);
    let written = write_partial(source, options, &partial, go_on).and_then(|size| {
        if size.is_some() {
            std::fs::rename(&partial, path).map_err(Error::io(path))?;
        }
        Ok(size)
    });
    if !matches!(written, Ok(Some(_))) {
        let _ = std::fs::remove_file(&partial); // what went wrong first is what is told
    }
    written
}

fn write_partial(
    source: &Source,
    options: &ReadOptions,
    path: &Path,
    go_on: &mut dyn FnMut(u64) -> bool,
) -> Result<Option<CacheSize>> {
    let reader = open(source, options)?;
    let card = CacheCard {
        source: source.to_string(),
        rows: options.rows,
        batch_rows: options.batch_rows,
        shuffle: options.shuffle,
        columns: reader.schema().clone(),
        dense_transform: options.dense_transform.clone(),
        missing_indicator: options.missing_indicator,
        max_ind_range: options.max_ind_range,
        weights: options.weights,
        table_rows: reader.table_rows().map(<[u64]>::to_vec),
    };
    let json = serde_json::to_vec(&card).map_err(|e| Error::io(path)(e.into()))?;
    let card_bytes = u32::try_from(json.len()).unwrap_or(u32::MAX);
    if card_bytes > CARD_BYTES_MAX {
        return Err(Error::Argument {
            what: "columns",
            found: format!("names of {card_bytes} bytes"),
            expected: format!("at most {CARD_BYTES_MAX}"),
        });
    }
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(path);
    let file = file.map_err(Error::io(path))?;
    let blocks_at = (HEADER_BYTES + json.len()) as u64;
    let mut pass =
        Pass { file: &file, path, end: blocks_at, blocks: vec![], uses: Uses::default() };
    let Some((rows, rows_skipped)) = pass.write_blocks(reader, go_on)? else { return Ok(None) };
    if pass.blocks.is_empty() {
        return Err(Error::Empty { file: path.to_owned(), expected: "at least one row to cache" });
    }
    let shape = Shape {
        features: card.columns.categorical.len(),
        dense_width: card.dense_width(),
        batch_rows: card.batch_rows,
        batches: pass.blocks.len() as u64,
    };
    if !pass.write_next_uses(&shape, || go_on(rows))? {
        return Ok(None);
    }
    let size = CacheSize {
        rows,
        batches: shape.batches,
        distinct_keys: pass.uses.len(),
        rows_skipped,
        file_bytes: pass.end,
    };
    let header = Header { card_bytes, size }.encode(&json);
    file.write_all_at(&json, HEADER_BYTES as u64).map_err(Error::io(path))?;
    file.write_all_at(&header, 0).map_err(Error::io(path))?;
    file.sync_all().map_err(Error::io(path))?;
    Ok(Some(size))
}

/// The one pass over the data.
struct Pass<'a> {
    file: &'a File,
    path: &'a Path,
    end: u64,         // where the next block goes
    blocks: Vec<u64>, // where each block stands
    uses: Uses,
}

impl Pass<'_> {
    /// Writes every batch with its next uses still open. Rows written and passed over, or `None`
    /// when nobody wants more.
    fn write_blocks(
        &mut self,
        mut reader: Reader,
        go_on: &mut dyn FnMut(u64) -> bool,
    ) -> Result<Option<(u64, u64)>> {
        // one table for each feature, in their order: a key's run is its feature
        let tables: Vec<TableId> =
            (0..).take(reader.schema().categorical.len()).map(TableId).collect();
        let (mut batch, mut distinct) = (Batch::new(), Unique::default());
        let mut block = Vec::new();
        while reader.next_batch(&mut batch)? {
            let number = self.blocks.len() as u64;
            if number >= BATCHES_MAX {
                return Err(Error::Argument {
                    what: "batches",
                    found: "more".to_owned(),
                    expected: format!("at most {BATCHES_MAX} in a cache"),
                });
            }
            unique(&batch, &tables, &mut distinct)?;
            keep_distinct(&distinct, &mut batch);
            let mut keys = batch.distinct.keys.iter();
            for (feature, &count) in batch.distinct.counts.iter().enumerate() {
                for &key in keys.by_ref().take(count as usize) {
                    self.uses.note(number as u32, feature, key); // fewer than 2^31 batches
                }
            }
            block.clear();
            encode_block(number, &batch, &mut block);
            self.file.write_all_at(&block, self.end).map_err(Error::io(self.path))?;
            self.blocks.push(self.end);
            self.end += block.len() as u64;
            if !go_on(reader.rows_read()) {
                return Ok(None);
            }
        }
        Ok(Some((reader.rows_read(), reader.rows_skipped())))
    }

    /// Fills in the next uses, from the last block to the first. False when nobody wants more.
    fn write_next_uses(&mut self, shape: &Shape, mut go_on: impl FnMut() -> bool) -> Result<bool> {
        let mut block = Vec::new();
        let batches = shape.batches as u32; // fewer than 2^31
        let io = || Error::io(self.path);
        for number in (0..batches).rev() {
            let at = self.blocks[number as usize];
            let mut header = [0; BLOCK_HEADER_BYTES];
            self.file.read_exact_at(&mut header, at).map_err(io())?;
            let length = block_bytes(&header).min(self.end - at);
            block.resize(usize::try_from(length).unwrap_or(usize::MAX), 0);
            self.file.read_exact_at(&mut block, at).map_err(io())?;
            let changed = || {
                let kind = std::io::ErrorKind::InvalidData;
                io()(std::io::Error::new(kind, "the file changed while it was written"))
            };
            let OpenUses { keys, places } = open_uses(&block, shape).map_err(|_| changed())?;
            let (words, _) = block[places].as_chunks_mut::<4>();
            for (word, (feature, key)) in words.iter_mut().zip(keys) {
                let next = self.uses.next_use(number, batches, feature, key);
                *word = next.ok_or_else(changed)?.encode().to_le_bytes();
            }
            seal(&mut block);
            self.file.write_all_at(&block, at).map_err(io())?;
            if !go_on() {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

/// Puts what `unique` found into the batch, feature by feature; next uses are still zero.
pub(super) fn keep_distinct(found: &Unique, batch: &mut Batch) {
    let distinct = &mut batch.distinct;
    distinct.clear(batch.features.len());
    distinct.counts.resize(batch.features.len(), 0);
    for (table, range) in found.keys.runs() {
        distinct.counts[table.0 as usize] = range.len() as u32; // values have 32 bits
    }
    distinct.keys.extend_from_slice(found.keys.keys());
    distinct.next_uses.resize(found.keys.len(), 0);
    let mut start = 0;
    for (feature, &count) in distinct.counts.iter().enumerate() {
        distinct.inverse[feature].extend(found.inverse[feature].iter().map(|place| place - start));
        start += count;
    }
}
