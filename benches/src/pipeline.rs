//! `pipeline`: training from Criteo's text with tables twenty times their RAM, beside compute alone
//! on the same batches: the worker's own loop over the binary cache and a store that does nothing.

use anyhow::{Context, Result};
use table::{Key, KeyBatch, Step};
use tempfile::TempDir;
use wire::Session;

use crate::measure::{interleaved, rounds};
use crate::ours::{self, HOST_RAM_BYTES, KAGGLE, Watched};
use crate::report::{Outcome, Row, Settings};

const THREADS: usize = 2;
const BATCHES: u64 = 64;
/// Rows of each of 26 tables; ids are taken modulo this, so that every row can be made beforehand.
const TABLE_ROWS: u64 = 400_000;
const FEATURES: u64 = 26;
const TIMES_RAM: u64 = 20;
/// Of compute alone.
const SHARE: f64 = 0.85;
const FILL_ROWS: u64 = 1 << 14;

pub(crate) fn run(settings: &Settings) -> Result<Outcome> {
    let dir = TempDir::new_in(&settings.scratch).context("make a directory")?;
    let (batches, table_rows) = if settings.quick { (2, 4000) } else { (BATCHES, TABLE_ROWS) };
    let text = format!("criteo:{}", dir.path().join("rows.tsv").display());
    let cache = dir.path().join("batches.cache");
    let modulo = table_rows.to_string();
    let range = ["--max-ind-range", modulo.as_str()];
    ours::write_text(&ours::generated(settings, batches), &text)?;
    ours::write_batches_as(&text, KAGGLE.batch, &cache, &range)?;
    let cached = format!("cache:{}", cache.display());
    let store = dir.path().join("ps");
    let table_bytes = FEATURES * table_rows * KAGGLE.dim as u64 * 4;
    let least = if settings.quick { 64 << 20 } else { 0 }; // a batch's rows must fit
    let budget = (table_bytes / TIMES_RAM).max(least);
    let all = (THREADS, batches, 1);
    {
        let (filled, session) = ours::open(&store, HOST_RAM_BYTES)?;
        ours::train(&session, &KAGGLE, &text, all, &range)?; // makes the tables
        fill(&session, table_rows)?;
        drop(session);
        filled.close().context("write the tables down")?;
    }
    let (tiered, session) = ours::open(&store, budget)?;
    let idle = Watched::idle(&session);
    let train = |session: &Watched, data: &str| -> Result<f64> {
        Ok(ours::train(session, &KAGGLE, data, all, &range)?.samples_per_s)
    };
    train(&session, &text)?; // the RAM fills
    let [of_text, alone, in_ram] = interleaved(
        rounds(settings.quick),
        [&mut || train(&session, &text), &mut || train(&idle, &cached), &mut || {
            train(&session, &cached)
        }],
    )?;
    drop((session, idle));
    tiered.close().context("close the store")?;
    let mut outcome = Outcome::default();
    let case = |data: &str| {
        format!(
            "{}, batch {}, from {data}, {} MB of tables under {} MB, {THREADS} threads",
            KAGGLE.name,
            KAGGLE.batch,
            table_bytes / 1_000_000,
            budget / 1_000_000
        )
    };
    outcome.add([
        Row::at_least("pipeline", case("Criteo's text"), "samples/s", (of_text, alone), SHARE),
        Row::shown("pipeline.cache", case("the binary cache"), "samples/s", (in_ram, alone)),
    ]);
    outcome.notes.push(
        "the limit is the worker's loop over the binary cache with a store that does nothing: \
         forward, backward and dense update of the same batches, which other threads read. Every \
         row is on SSD before the first step"
            .to_owned(),
    );
    Ok(outcome)
}

/// Makes every row of every table.
fn fill(session: &Watched, rows: u64) -> Result<()> {
    session.begin();
    let tables = session.tables()?;
    let mut step = 0;
    for (table, _) in tables {
        for first in (0..rows).step_by(FILL_ROWS as usize) {
            let keys: Vec<Key> = (first..(first + FILL_ROWS).min(rows)).map(Key).collect();
            let mut batch = KeyBatch::new();
            batch.push_run(table, &keys).context("make a batch")?;
            session.stage(Step(step), &batch)?;
            let mut floats = vec![0.0; keys.len() * KAGGLE.dim]; // [keys, dim]
            session.pull(Step(step), &mut floats)?;
            session.release(Step(step))?;
            step += 1;
        }
    }
    Ok(session.settle()?)
}
