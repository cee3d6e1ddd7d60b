//! The store's own records: the format of the directory, the tables, and whether it was closed
//! cleanly with how many rows. It holds no rows.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use table::{Expiry, Key, RowLayout, TableId, TableSpec};

use crate::admission::Sketch;
use crate::ssd::Ssd;
use crate::stored::{decode_row, encode};
use crate::{Error, Result};

/// The format that this program writes.
const FORMAT: u32 = 2;
const FORMAT_FILE: &str = "FORMAT";
const FORMAT_TITLE: &str = "embedding store, format";
const TABLE_PREFIX: &[u8] = b"table/";
const CLEAN: &[u8] = b"clean";
const STAGES: &[u8] = b"stages";
const SKETCH: &[u8] = b"sketch";

#[derive(Serialize, Deserialize)]
struct TableRecord {
    version: u32,
    id: TableId,
    spec: TableSpec,
}

#[derive(Serialize, Deserialize)]
struct CleanRecord {
    version: u32,
    rows: Vec<(TableId, u64)>,
}

/// Makes the directory a store's, or finds that it is one; tells where the database lies.
///
/// An empty directory becomes a store. One that holds anything else is refused and left as it is.
pub(crate) fn open_dir(dir: &Path) -> Result<PathBuf> {
    let io = |verb: &str| {
        let context = format!("{verb} {}", dir.display());
        move |source| Error::Io { context, source }
    };
    fs::create_dir_all(dir).map_err(io("create"))?;
    match fs::read_to_string(dir.join(FORMAT_FILE)) {
        // what is older is read as it is; what is written from now on, an older program can't read
        Ok(text) if check_format(dir, &text)? < FORMAT => {
            write_format(dir).map_err(io("write the format file in"))?;
        }
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            for entry in fs::read_dir(dir).map_err(io("list"))? {
                let name = entry.map_err(io("list"))?.file_name();
                let found = name.to_string_lossy().into_owned();
                // a half-written format file is ours; a new file system has its lost+found
                if found != "lost+found" && found != format!("{FORMAT_FILE}.tmp") {
                    return Err(Error::NotAStore { dir: dir.to_owned(), found });
                }
            }
            write_format(dir).map_err(io("write the format file in"))?;
        }
        Err(error) => return Err(io("read the format file in")(error)),
    }
    Ok(dir.join("rows"))
}

fn check_format(dir: &Path, text: &str) -> Result<u32> {
    let number = text.trim_end().strip_prefix(FORMAT_TITLE).map(str::trim);
    let Some(found) = number.and_then(|number| number.parse::<u32>().ok()) else {
        return Err(Error::NotAStore { dir: dir.to_owned(), found: FORMAT_FILE.to_owned() });
    };
    if found > FORMAT {
        return Err(Error::NewerFormat { dir: dir.to_owned(), found, supported: FORMAT });
    }
    Ok(found)
}

fn write_format(dir: &Path) -> io::Result<()> {
    let temporary = dir.join(format!("{FORMAT_FILE}.tmp"));
    let mut file = File::create(&temporary)?;
    writeln!(file, "{FORMAT_TITLE} {FORMAT}")?;
    file.sync_all()?;
    fs::rename(&temporary, dir.join(FORMAT_FILE))?;
    File::open(dir)?.sync_all()
}

/// Writes a new table down; when this returns, the table lasts.
pub(crate) fn write_table(ssd: &Ssd, id: TableId, spec: &TableSpec) -> Result<()> {
    let record = TableRecord { version: FORMAT, id, spec: spec.clone() };
    ssd.set_record(&table_name(id), Some(&json(&record)))
}

/// Every table, in the order of their numbers, which leave no gap.
pub(crate) fn read_tables(ssd: &Ssd) -> Result<Vec<TableSpec>> {
    let mut specs = Vec::new();
    for (name, value) in ssd.records(TABLE_PREFIX)? {
        specs.push(decode_table(TableId(specs.len() as u32), &name, &value)?);
    }
    Ok(specs)
}

fn decode_table(id: TableId, name: &[u8], value: &[u8]) -> Result<TableSpec> {
    let damaged = |reason: String| Error::CorruptMeta { record: format!("{id}"), reason };
    let record: TableRecord =
        serde_json::from_slice(value).map_err(|error| damaged(error.to_string()))?;
    if record.version > FORMAT || record.id != id || *name != table_name(id)[..] {
        return Err(damaged(format!("{}, version {}, is there", record.id, record.version)));
    }
    record.spec.validate().map_err(|error| damaged(error.to_string()))?;
    Ok(record.spec)
}

/// Marks the store clean.
pub(crate) fn write_clean(ssd: &Ssd, rows: &[(TableId, u64)]) -> Result<()> {
    let record = CleanRecord { version: FORMAT, rows: rows.to_vec() };
    ssd.set_record(CLEAN, Some(&json(&record)))
}

/// The row counts of the last clean close, if the store was closed cleanly. The mark is gone from
/// then on: until the next clean close the store counts as not cleanly closed.
pub(crate) fn take_clean(ssd: &Ssd) -> Result<Option<Vec<(TableId, u64)>>> {
    let Some(value) = ssd.record(CLEAN)? else { return Ok(None) };
    let rows = decode_clean(&value)?;
    ssd.set_record(CLEAN, None)?;
    Ok(Some(rows))
}

fn decode_clean(value: &[u8]) -> Result<Vec<(TableId, u64)>> {
    let record: CleanRecord =
        serde_json::from_slice(value).map_err(|error| Error::CorruptMeta {
            record: "mark of the clean close".to_owned(),
            reason: error.to_string(),
        })?;
    Ok(record.rows)
}

/// Writes how many stages there were, the clock of rows that expire by steps.
pub(crate) fn write_stages(ssd: &Ssd, stages: u64) -> Result<()> {
    ssd.set_record(STAGES, Some(&stages.to_le_bytes()))
}

/// How many stages there were at the last flush.
pub(crate) fn read_stages(ssd: &Ssd) -> Result<u64> {
    ssd.record(STAGES)?.map_or(Ok(0), |value| decode_stages(&value))
}

fn decode_stages(value: &[u8]) -> Result<u64> {
    let bytes: [u8; 8] = value.try_into().map_err(|_| Error::CorruptMeta {
        record: "count of stages".to_owned(),
        reason: format!("it has {} bytes, expected 8", value.len()),
    })?;
    Ok(u64::from_le_bytes(bytes))
}

/// Writes the sights of keys that have no row yet.
pub(crate) fn write_sketch(ssd: &Ssd, sketch: &Sketch) -> Result<()> {
    ssd.set_record(SKETCH, Some(&sketch.to_bytes()))
}

/// The sights of keys that had no row at the last flush.
pub(crate) fn read_sketch(ssd: &Ssd) -> Result<Option<Sketch>> {
    ssd.record(SKETCH)?.map(|value| decode_sketch(&value)).transpose()
}

fn decode_sketch(value: &[u8]) -> Result<Sketch> {
    Sketch::from_bytes(value).ok_or_else(|| {
        let (bytes, sights) = (Sketch::BYTES + 8, Sketch::SIGHTS_MAX);
        let reason =
            format!("it has {} bytes, expected {bytes} and below {sights} sights", value.len());
        Error::CorruptMeta { record: "sketch of sights".to_owned(), reason }
    })
}

/// Gives bytes to every decoder of what the store writes, as if they were read; what comes of them
/// must be sound. For the fuzzer.
pub fn decode_any(bytes: &[u8]) {
    let _ = check_format(Path::new("store"), &String::from_utf8_lossy(bytes));
    if let Ok(spec) = decode_table(TableId(0), &table_name(TableId(0)), bytes) {
        spec.validate().expect("a table that is read is sound");
        let (layout, key) = (spec.layout(), Key(7));
        let stamped = spec.expiry != Expiry::Never;
        let row = decode_row(TableId(0), layout, stamped, key, bytes);
        assert!(row.is_err() || bytes.len() >= layout.bytes());
    }
    let layout = RowLayout { dim: 2, state: 1 };
    for stamped in [false, true] {
        if let Ok(row) = decode_row(TableId(0), layout, stamped, Key(7), bytes) {
            row.copy_to(&mut [0.0; 2], &mut [0.0; 1]);
        }
    }
    let _ = decode_clean(bytes);
    let _ = decode_stages(bytes);
    if let Ok(mut sketch) = decode_sketch(bytes) {
        assert!(sketch.see(1) >= 1);
    }
}

/// Records and rows as the store writes them, for the fuzzer to begin from.
pub fn record_seeds(spec: &TableSpec) -> Vec<Vec<u8>> {
    let table = TableRecord { version: FORMAT, id: TableId(0), spec: spec.clone() };
    let clean = CleanRecord { version: FORMAT, rows: vec![(TableId(0), 5), (TableId(1), 0)] };
    let mut row = Vec::new();
    encode(&[1.0, 2.0], &[3.0], 4, Some(5), &mut row);
    let format = format!("{FORMAT_TITLE} {FORMAT}\n").into_bytes();
    let stages = 12_u64.to_le_bytes().to_vec();
    vec![json(&table), json(&clean), row, format, stages]
}

fn table_name(id: TableId) -> Vec<u8> {
    [TABLE_PREFIX, &id.0.to_be_bytes()].concat()
}

fn json(record: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(record).expect("records are plain structs")
}

#[cfg(test)]
mod tests {
    use table::{Initializer, Optimizer};

    use super::*;

    #[test]
    fn a_table_whose_record_is_no_sound_specification_is_refused() {
        let zeros = Initializer::Uniform { bound: 0.5 };
        let spec = |dim| TableSpec::new("t", dim, Optimizer::Sgd, zeros, 1);
        let id = TableId(0);
        let decode = |dim| decode_table(id, &table_name(id), &record_seeds(&spec(dim))[0]);
        assert_eq!(decode(4).unwrap(), spec(4));
        for dim in [0, TableSpec::DIM_MAX + 1] {
            assert!(matches!(decode(dim), Err(Error::CorruptMeta { .. })), "dim {dim}");
        }
    }
}
