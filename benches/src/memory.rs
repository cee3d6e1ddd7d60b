//! `memory`: what a cached row takes beside its floats, and whether a store that has room for all
//! rows keeps them all, whatever their keys. It measures no time.

use anyhow::{Context, Result, ensure};
use table::{Key, KeyBatch, TableId, mix};
use testkit::{Random, adversarial_key};
use tiers::Store;

use crate::device::process_resident_bytes;
use crate::report::{Outcome, Row, Settings};
use crate::workload::{Filled, ascending, key, open, spec};

const DIMS: [u32; 3] = [16, 64, 128];
/// Bytes that a cached row may take beside its floats.
const BESIDE_ROW_BYTES_MAX: f64 = 16.0;
/// Keys staged at once.
const STAGE_KEYS: u64 = 1 << 12;
/// Room beyond the floats and `BESIDE_ROW_BYTES_MAX` in which every row must stay.
const SPARE: f64 = 1.10;
/// What a store may take that does not grow with its rows.
const FIXED_BYTES: u64 = 8 << 20;

pub(crate) fn run(settings: &Settings) -> Result<Outcome> {
    let mut outcome = Outcome::default();
    for dim in DIMS {
        outcome.add(ram_per_row(settings, dim)?);
    }
    for (name, key_of) in key_sets() {
        outcome.add([full_capacity(settings, name, &key_of)?]);
    }
    let crowding = crowding_keys(full_capacity_rows(settings));
    let crowding_key = |i: u64| crowding[i as usize];
    outcome.add([full_capacity(
        settings,
        "keys that crowd an eighth of the index",
        &crowding_key,
    )?]);
    outcome.notes.push(
        "A row is its embedding and its optimizer's state. `ram_per_row` divides the bytes that \
         the store says it uses, once rows are being evicted, by the rows in RAM; \
         `ram_per_row.rss` divides by them what the process has grown by since before the \
         store was opened, RocksDB's buffers included."
            .to_owned(),
    );
    outcome.notes.push(format!(
        "full_capacity: room for {SPARE} times all rows at {BESIDE_ROW_BYTES_MAX} bytes beside \
         each, and {} MiB; every key is staged three times, in other batches each time.",
        FIXED_BYTES >> 20
    ));
    Ok(outcome)
}

fn ram_per_row(settings: &Settings, dim: u32) -> Result<Vec<Row>> {
    let budget_bytes: u64 = if settings.quick { 4 << 20 } else { 256 << 20 };
    let row_bytes = f64::from((dim + 1) * 4);
    let resident_before = process_resident_bytes()?;
    let Filled { store, .. } = &open(&settings.scratch, |config| {
        config.host_ram_bytes = budget_bytes;
        config.ssd_memory_bytes = 8 << 20;
    })?;
    let table = store.create_table(&spec(0, dim)).context("create a table")?;
    let mut next = 1;
    let mut more = |rows: u64| -> Result<()> {
        stage(store, table, next..next + rows, &key)?;
        next += rows;
        Ok(())
    };
    while store.status().totals().evictions == 0 {
        more(STAGE_KEYS)?;
    }
    let resident = process_resident_bytes()?.saturating_sub(resident_before) as f64;
    let rows_then: u64 = store.status().tables.iter().map(|table| table.host.rows).sum();
    more(rows_then / 4)?; // on into the state in which a row goes for each that comes
    let status = store.status();
    let rows: u64 = status.tables.iter().map(|table| table.host.rows).sum();
    ensure!(rows > 0, "no row is in RAM");
    let beside = |bytes: f64, rows: u64| bytes / rows as f64 - row_bytes;
    let case = format!("dim {dim}: {} of {rows} rows in {budget_bytes} B", row_bytes);
    let used = beside(status.host_ram_used_bytes as f64, rows);
    let budget = beside(status.host_ram_budget_bytes as f64, rows);
    let rss = beside(resident, rows_then);
    let limit = BESIDE_ROW_BYTES_MAX;
    let shown = |id, ours| Row::shown(id, format!("dim {dim}"), "bytes a row", (ours, limit));
    Ok(vec![
        Row {
            id: "ram_per_row",
            case,
            unit: "bytes a row",
            ours: used,
            limit,
            goal: "at most limit".to_owned(),
            holds: used <= limit,
        },
        shown("ram_per_row.budget", budget),
        shown("ram_per_row.rss", rss),
    ])
}

/// Key number i of a set.
type KeyOf = fn(u64) -> Key;

fn key_sets() -> [(&'static str, KeyOf); 7] {
    [
        ("random keys", key),
        ("neighbours", Key),
        ("both ends of the range, equal low bits, equal high bits", adversarial_key),
        ("multiples of 2^20", |i| Key(i << 20)),
        ("multiples of 2^40", |i| Key(i << 40)), // all of them below 2^24 keys
        ("neighbours from the top down", |i| Key(u64::MAX - i)),
        ("neighbours with their bits reversed", |i| Key(i.reverse_bits())),
    ]
}

/// Keys of an adversary who knows the store's hash, of which the high bits choose a row's place:
/// all of them want an eighth of the index.
fn crowding_keys(count: u64) -> Vec<Key> {
    (0..).filter(|&key| mix(key) >> 61 == 0).take(count as usize).map(Key).collect()
}

fn full_capacity_rows(settings: &Settings) -> u64 {
    if settings.quick { 1 << 14 } else { 1 << 20 }
}

fn full_capacity(settings: &Settings, name: &str, key_of: &dyn Fn(u64) -> Key) -> Result<Row> {
    const DIM: u32 = 16;
    let keys = full_capacity_rows(settings);
    let floats_bytes = f64::from((DIM + 1) * 4);
    let room_bytes = keys as f64 * (floats_bytes + BESIDE_ROW_BYTES_MAX) * SPARE;
    let filled = open(&settings.scratch, |config| {
        config.host_ram_bytes = room_bytes as u64 + FIXED_BYTES;
    })?;
    let store = &filled.store;
    let table = store.create_table(&spec(0, DIM)).context("create a table")?;
    stage(store, table, 0..keys, key_of)?;
    let first = store.status().totals();
    let mut random = Random::new(keys);
    for _ in 0..2 {
        for _ in 0..keys.div_ceil(STAGE_KEYS) {
            let drawn = (0..STAGE_KEYS).map(|_| key_of(random.below(keys)));
            stage_keys(store, table, &ascending(drawn))?;
        }
        stage(store, table, 0..keys, key_of)?;
    }
    let last = store.status().totals();
    let hits = (last.host.hits - first.host.hits) as f64;
    let misses = last.host.misses - first.host.misses;
    let rate = 100.0 * hits / (hits + misses as f64);
    Ok(Row {
        id: "full_capacity",
        case: format!("{name}, {keys} rows of dim {DIM}"),
        unit: "% hits",
        ours: rate,
        limit: 100.0,
        goal: "exactly limit".to_owned(),
        holds: misses == 0 && hits > 0.0,
    })
}

/// Stages the keys of these numbers, some at a time.
fn stage(
    store: &Store,
    table: TableId,
    numbers: std::ops::Range<u64>,
    key_of: &dyn Fn(u64) -> Key,
) -> Result<()> {
    for first in numbers.clone().step_by(STAGE_KEYS as usize) {
        let last = (first + STAGE_KEYS).min(numbers.end);
        stage_keys(store, table, &ascending((first..last).map(key_of)))?;
    }
    Ok(())
}

fn stage_keys(store: &Store, table: TableId, keys: &[Key]) -> Result<()> {
    let mut batch = KeyBatch::new();
    batch.push_run(table, keys).context("make a batch")?;
    store.stage(&batch).context("stage")?;
    Ok(())
}
