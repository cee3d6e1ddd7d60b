//! Writes generated rows to files that the readers read back: Criteo TSV, TSV with a header,
//! Parquet. It writes no other data.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow_array::builder::{Int64Builder, ListBuilder};
use arrow_array::{ArrayRef, Float32Array, Int64Array, RecordBatch};
use arrow_schema::{DataType, Field};
use flate2::Compression;
use flate2::write::GzEncoder;
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression as ParquetCompression, ZstdLevel};
use parquet::file::properties::WriterProperties;
use rayon::prelude::*;

use crate::synthetic::selected_rows;
use crate::{
    Error, Generator, Lookups, Result, RowBlock, RowSelection, Schema, Source, SyntheticSpec,
};

const CHUNK_ROWS: usize = 1 << 16;
const BLOCK_ROWS: usize = 4096;

/// Writes the selected rows to `target`, which names a file and its format, and returns how many
/// there were. The file appears under its name when it is whole. Text is compressed where the name
/// ends in `.gz`.
pub fn write(spec: &SyntheticSpec, selection: RowSelection, target: &Source) -> Result<u64> {
    match target {
        Source::Parquet { path } => write_parquet(spec, selection, path),
        Source::Criteo { path } => {
            write_file(path, |out| write_text(spec, selection, Text::Criteo, out))
        }
        Source::Tsv { path } => write_file(path, |out| write_text(spec, selection, Text::Tsv, out)),
        Source::Synthetic(_) | Source::Cache { .. } => Err(Error::Argument {
            what: "target",
            found: target.to_string(),
            expected: "criteo:PATH, tsv:PATH or parquet:PATH".to_owned(),
        }),
    }
}

/// Writes the selected rows as Criteo TSV: ids as 8 hexadecimal digits, missing values empty. Read
/// with a `max_ind_range` of 2^32 or more, its keys are the generator's ids.
pub fn write_criteo_tsv(
    spec: &SyntheticSpec,
    selection: RowSelection,
    out: &mut dyn Write,
) -> Result<u64> {
    write_text(spec, selection, Text::Criteo, out)?.map_err(Error::io(Path::new("output")))
}

/// Writes the selected rows as Parquet: `label` as a float, counts and ids as 64-bit integers, null
/// where missing. Where rows have several ids, they are lists of them, and a missing one is 0.
pub fn write_parquet(spec: &SyntheticSpec, selection: RowSelection, path: &Path) -> Result<u64> {
    let generator = Generator::new(spec)?;
    let partial = partial(path);
    let file = File::create(&partial).map_err(Error::io(&partial))?;
    let properties = WriterProperties::builder()
        .set_compression(ParquetCompression::ZSTD(ZstdLevel::default()))
        .set_max_row_group_row_count(Some(CHUNK_ROWS))
        .build();
    let several = spec.lookups != Lookups::One;
    let schema = Arc::new(arrow_schema(&spec.schema(), several));
    let mut writer = ArrowWriter::try_new(file, Arc::clone(&schema), Some(properties))
        .map_err(Error::parquet(path))?;
    let mut written = 0;
    let mut rows = selected_rows(spec, selection, 0);
    loop {
        let mut block = RowBlock::new();
        block.rows.extend(rows.by_ref().take(BLOCK_ROWS));
        if block.rows.is_empty() {
            break;
        }
        generator.fill(&mut block);
        if several {
            generator.fill_bags(&mut block);
        }
        written += block.rows.len() as u64;
        let batch = RecordBatch::try_new(Arc::clone(&schema), columns(&generator, &block))
            .map_err(|error| Error::parquet(path)(error.into()))?;
        writer.write(&batch).map_err(Error::parquet(path))?;
    }
    writer.close().map_err(Error::parquet(path))?;
    std::fs::rename(&partial, path).map_err(Error::io(path))?;
    Ok(written)
}

fn arrow_schema(schema: &Schema, several: bool) -> arrow_schema::Schema {
    let label = Field::new(&schema.label, DataType::Float32, false);
    let dense = schema.dense.iter().map(|name| Field::new(name, DataType::Int64, true));
    let ids = if several { DataType::new_list(DataType::Int64, true) } else { DataType::Int64 };
    let categorical = schema.categorical.iter().map(|name| Field::new(name, ids.clone(), true));
    let fields = std::iter::once(label).chain(dense).chain(categorical);
    arrow_schema::Schema::new(fields.collect::<Vec<_>>())
}

fn columns(generator: &Generator, block: &RowBlock) -> Vec<ArrayRef> {
    let schema = generator.spec().schema();
    let mut columns: Vec<ArrayRef> = vec![Arc::new(Float32Array::from(block.labels.clone()))];
    for column in 0..schema.dense.len() {
        let counts = block.counts(column).iter();
        let counts = counts.map(|&count| (count != RowBlock::MISSING).then_some(count));
        columns.push(Arc::new(counts.collect::<Int64Array>()));
    }
    for feature in 0..schema.categorical.len() {
        if generator.spec().lookups != Lookups::One {
            columns.push(lists(block.bags(feature)));
            continue;
        }
        let gaps = generator.has_missing(feature);
        let ids = block.ids(feature).iter();
        let ids = ids.map(|&id| (id > 0 || !gaps).then_some(id as i64));
        columns.push(Arc::new(ids.collect::<Int64Array>()));
    }
    columns
}

fn lists((ids, offsets): (&[u64], &[u32])) -> ArrayRef {
    let mut lists = ListBuilder::new(Int64Builder::new());
    for row in offsets.windows(2) {
        let ids = &ids[row[0] as usize..row[1] as usize];
        lists.append_value(ids.iter().map(|&id| Some(id as i64)));
    }
    Arc::new(lists.finish())
}

#[derive(Clone, Copy, PartialEq)]
enum Text {
    Criteo,
    Tsv,
}

/// The outer result is the generator's, the inner one the output's.
fn write_text(
    spec: &SyntheticSpec,
    selection: RowSelection,
    text: Text,
    out: &mut dyn Write,
) -> Result<std::io::Result<u64>> {
    if spec.lookups != Lookups::One {
        return Err(Error::Argument {
            what: "synthetic indices",
            found: spec.lookups.to_string(),
            expected: "1 for text, which has one id in a column; or parquet:PATH".to_owned(),
        });
    }
    let generator = Generator::new(spec)?;
    Ok(write_lines(&generator, selection, text, out))
}

fn write_lines(
    generator: &Generator,
    selection: RowSelection,
    text: Text,
    out: &mut dyn Write,
) -> std::io::Result<u64> {
    if text == Text::Tsv {
        let schema = generator.spec().schema();
        let names = [&[schema.label][..], &schema.dense, &schema.categorical].concat();
        writeln!(out, "{}", names.join("\t"))?;
    }
    let mut written = 0;
    let mut rows = selected_rows(generator.spec(), selection, 0);
    let mut chunk = Vec::with_capacity(CHUNK_ROWS);
    loop {
        chunk.clear();
        chunk.extend(rows.by_ref().take(CHUNK_ROWS));
        if chunk.is_empty() {
            return Ok(written);
        }
        let blocks = chunk.par_chunks(BLOCK_ROWS).map(|rows| {
            let mut block = RowBlock::new();
            block.rows.extend_from_slice(rows);
            generator.fill(&mut block);
            lines(generator, &block, text)
        });
        for lines in blocks.collect::<Vec<_>>() {
            out.write_all(&lines)?;
        }
        written += chunk.len() as u64;
    }
}

fn lines(generator: &Generator, block: &RowBlock, text: Text) -> Vec<u8> {
    let schema = generator.spec().schema();
    let (dense, features) = (schema.dense.len(), schema.categorical.len());
    let mut out = Vec::with_capacity(block.rows.len() * 300);
    // writing to a vector can't fail
    let mut put = |arguments: std::fmt::Arguments<'_>| {
        out.write_fmt(arguments).unwrap_or_else(|_| unreachable!("a vector takes any write"));
    };
    for row in 0..block.rows.len() {
        put(format_args!("{}", block.labels[row] as u32));
        for column in 0..dense {
            match block.counts(column)[row] {
                RowBlock::MISSING => put(format_args!("\t")),
                count => put(format_args!("\t{count}")),
            }
        }
        for feature in 0..features {
            match (block.ids(feature)[row], text) {
                (0, _) if generator.has_missing(feature) => put(format_args!("\t")),
                (id, Text::Criteo) => put(format_args!("\t{id:08x}")),
                (id, Text::Tsv) => put(format_args!("\t{id}")),
            }
        }
        put(format_args!("\n"));
    }
    out
}

/// Gives a file to `content`, compressed by its name, and lets it appear when it is whole.
fn write_file(
    path: &Path,
    content: impl FnOnce(&mut dyn Write) -> Result<std::io::Result<u64>>,
) -> Result<u64> {
    let partial = partial(path);
    let file = File::create(&partial).map_err(Error::io(&partial))?;
    let mut file = BufWriter::with_capacity(1 << 20, file);
    let written = if path.extension().is_some_and(|end| end == "gz") {
        let mut encoder = GzEncoder::new(file, Compression::fast());
        let written = content(&mut encoder)?.map_err(Error::io(&partial))?;
        file = encoder.finish().map_err(Error::io(&partial))?;
        written
    } else {
        content(&mut file)?.map_err(Error::io(&partial))?
    };
    file.flush().map_err(Error::io(&partial))?;
    std::fs::rename(&partial, path).map_err(Error::io(path))?;
    Ok(written)
}

fn partial(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".partial");
    PathBuf::from(name)
}
