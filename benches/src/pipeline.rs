//! `pipeline`: training from Criteo's text with tables twenty times their RAM, beside compute alone
//! on the same batches in memory: steps of the network one after the other, and no other thread
//! that has anything to do.

use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use dataset::{Batch, ReadOptions, Source, Unique, unique};
use dlrm::{
    Architecture, DenseOptimizer, FeatureRows, Interaction, Loss, Model, Pooling, StepInput,
    parse_widths,
};
use table::{Key, KeyBatch, Step, TableId};
use tempfile::TempDir;
use wire::Session;

use crate::measure::{interleaved, rounds};
use crate::ours::{self, FEATURES, HOST_RAM_BYTES, KAGGLE, LEARNING_RATE, Watched};
use crate::report::{Outcome, Row, Settings};

const THREADS: usize = 2;
const BATCHES: u64 = 64;
/// Rows of each of 26 tables; ids are taken modulo this, so that every row can be made beforehand.
const TABLE_ROWS: u64 = 400_000;
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
    let table_bytes = FEATURES as u64 * table_rows * KAGGLE.dim as u64 * 4;
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
    let train = |data: &str| Ok(ours::train(&session, &KAGGLE, data, all, &range)?.samples_per_s);
    train(&text)?; // the RAM fills
    let mut alone = Alone::read(&cache, batches)?;
    alone.samples_a_second()?; // its memory is touched
    let [of_text, alone, of_cache] = interleaved(
        rounds(settings.quick),
        [&mut || train(&text), &mut || alone.samples_a_second(), &mut || train(&cached)],
    )?;
    drop(session);
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
        Row::shown("pipeline.cache", case("the binary cache"), "samples/s", (of_cache, alone)),
    ]);
    outcome.notes.push(
        "the limit is forward, backward and dense update of the same batches, read beforehand, \
         with rows in an array; nothing is read, staged, pulled or pushed beside them. Every row \
         is on SSD before the first step"
            .to_owned(),
    );
    Ok(outcome)
}

/// Steps of the network alone, on batches and rows in memory.
struct Alone {
    model: Model,
    batches: Vec<(Batch, Unique)>,
    rows: Vec<f32>,      // [most unique keys of a batch, dim]
    gradients: Vec<f32>, // [most unique keys of a batch, dim]
    learning_rate: f32,
}

impl Alone {
    fn read(cache: &Path, batches: u64) -> Result<Alone> {
        let tables: Vec<TableId> = (0..FEATURES as u32).map(TableId).collect();
        let card = dataset::cache_card(cache)?;
        let (dense_transform, max_ind_range) = (card.dense_transform, card.max_ind_range);
        let options =
            ReadOptions { dense_transform, max_ind_range, ..ReadOptions::new(KAGGLE.batch) };
        let mut reader = dataset::open(&Source::Cache { path: cache.to_owned() }, &options)?;
        let (mut batch, mut all) = (Batch::new(), Vec::new());
        while reader.next_batch(&mut batch)? {
            let mut keys = Unique::default();
            unique(&batch, &tables, &mut keys)?;
            all.push((batch.clone(), keys));
        }
        ensure!(all.len() as u64 == batches, "{} batches, expected {batches}", all.len());
        let most = all.iter().map(|(_, keys)| keys.keys.len()).max().unwrap_or(0);
        let architecture = Architecture {
            sparse_feature_size: KAGGLE.dim,
            features: FEATURES,
            mlp_bottom: parse_widths(KAGGLE.bottom)?,
            mlp_top: parse_widths(KAGGLE.top)?,
            interaction: Interaction::Dot,
            loss: Loss::Bce,
        };
        let model = Model::new(architecture, DenseOptimizer::Sgd, KAGGLE.batch, 1, THREADS)?;
        let value = |i: usize| (i.wrapping_mul(0x9e37_79b9) >> 7) % 2000;
        Ok(Alone {
            model,
            batches: all,
            rows: (0..most * KAGGLE.dim).map(|i| value(i) as f32 / 2e4 - 0.05).collect(),
            gradients: vec![0.0; most * KAGGLE.dim],
            learning_rate: LEARNING_RATE.parse()?,
        })
    }

    fn samples_a_second(&mut self) -> Result<f64> {
        let Alone { model, batches, rows, gradients, learning_rate } = self;
        let (started, mut samples) = (Instant::now(), 0);
        for (batch, keys) in batches {
            let floats = keys.keys.len() * KAGGLE.dim;
            let lists = keys.inverse.iter().zip(&batch.features);
            let features: Vec<FeatureRows<'_>> = lists
                .map(|(indices, feature)| {
                    let (offsets, pooling) = (&feature.offsets, Pooling::Sum);
                    FeatureRows { indices, offsets, pooling }
                })
                .collect();
            let input = StepInput {
                dense: &batch.dense,
                labels: &batch.labels,
                rows: &rows[..floats],
                features: &features,
            };
            let loss = model.forward_backward(&input, &mut gradients[..floats])?;
            ensure!(loss.is_finite(), "a loss of {loss}");
            model.apply_dense(*learning_rate);
            samples += batch.rows();
        }
        Ok(samples as f64 / started.elapsed().as_secs_f64())
    }
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
