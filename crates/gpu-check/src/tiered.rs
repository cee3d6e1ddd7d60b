//! Training whose rows a store keeps, as a worker with an embedded store trains: steps are staged
//! ahead on a thread, rows go between the store and the model on the device, and a loss is waited
//! for a step late. With room for all rows on the device, and for a twentieth of them, over one
//! stream of batches. Batches are read and their distinct keys found before the clock runs, as
//! where a cache of prepared batches has them; lists, staging and the tier's work are within it.

use std::sync::Arc;
use std::sync::mpsc::sync_channel;
use std::thread;
use std::time::Instant;

use anyhow::{Context, Result, anyhow, ensure};
use dataset::{Batch, ReadOptions, Source, Unique, unique};
use dlrm::{
    DenseOptimizer, DeviceModel, DeviceOptions, FeatureRows, Model, Pooling, Precision, PulledInput,
};
use gpu::SlotTable;
use table::{Initializer, Optimizer, TableId, TableSpec};
use tiers::{Places, Staged, Store};

use crate::report::{Report, Row};
use crate::tier;
use crate::training::{Place, SAMPLES_PER_S, TrainingSizes, kaggle};

/// Steps staged ahead of the one that is ordered, beside the one that is being staged.
const LOOKAHEAD: usize = 4;
/// Rounds that are timed, each over batches that no round before had.
const ROUNDS: usize = 3;
const RATE: f32 = 0.01;
/// How much of the speed with all rows on the device is to be left with a twentieth.
const OF_ALL: f64 = 0.90;
const ROW_BYTES: u64 = 64;

/// A batch with its distinct keys.
struct Prepared {
    batch: Batch,
    unique: Unique,
}

/// What a run over the batches found.
struct Found {
    samples_per_s: f64, // the median round
    hits: f64,          // share of the keys of the timed rounds that were found on the device
    stage_ms: f64,      // of a step, of the timed rounds
    loss: f32,          // the last
}

/// Trains with room for all rows, then for a twentieth, in TF32. `resident`: samples a second
/// without a tier, where they are known.
pub fn speed(
    place: Place<'_>,
    tier: tier::Place<'_>,
    sizes: TrainingSizes,
    resident: Option<f64>,
    report: &Report,
) -> Result<()> {
    let TrainingSizes { batch, tier_warm, tier_round, .. } = sizes;
    let count = tier_warm + ROUNDS * tier_round;
    let (tables, batches) = prepared(sizes.scale, batch, count)?;
    let rows = tables.iter().sum::<u64>();
    let all_bytes = rows * (ROW_BYTES + SlotTable::SLOT_BYTES) + (1 << 20);
    let run = |name: &str, cache_bytes| {
        let folder = tier::Folder::make()?;
        let host_bytes = rows * 2 * ROW_BYTES + (64 << 20);
        let store = folder.open_with(name, tier, host_bytes, cache_bytes)?;
        let found = trained(place, &store, &tables, &batches, sizes);
        found.with_context(|| format!("train over a cache of {} MiB", cache_bytes >> 20))
    };
    let all = run("all", all_bytes)?;
    let part = run("part", (all_bytes / 20).max(64 << 10))?;
    // the same rows whatever is where, and so the same losses
    report.add(Row {
        id: "training.tier_bits".to_owned(),
        case: format!("the loss after {count} steps: {}, {}", all.loss, part.loss),
        unit: crate::report::CASES,
        ours: f64::from(u8::from(all.loss.to_bits() == part.loss.to_bits())),
        limit: 1.0,
        goal: Some(1.0),
    });
    let held = place.has_goals();
    let case = |found: &Found, beside: &str| {
        let Found { hits, stage_ms, .. } = found;
        format!("batch {batch}, {hits:.3} hits, stage {stage_ms:.2} ms, beside {beside}")
    };
    let add = |id: &str, found: &Found, beside: &str, limit: f64, goal: Option<f64>| {
        report.add(Row {
            id: format!("training.{id}"),
            case: case(found, beside),
            unit: "samples/s",
            ours: found.samples_per_s,
            limit,
            goal: goal.filter(|_| held),
        });
    };
    add("tier_all", &all, "the goal without a tier", SAMPLES_PER_S, None);
    add("tier_part", &part, "all rows on the device", all.samples_per_s, Some(OF_ALL));
    if let Some(resident) = resident {
        add("tier_all.resident", &all, "rows without a tier", resident, None);
        add("tier_part.resident", &part, "rows without a tier", resident, Some(OF_ALL));
    }
    Ok(())
}

/// The tables' rows, and so many batches of the generator's stream.
fn prepared(scale: f64, batch: usize, count: usize) -> Result<(Vec<u64>, Vec<Prepared>)> {
    let source: Source =
        format!("synthetic:scale={scale},rows={},seed=6", batch * count).parse()?;
    let options = ReadOptions::new(batch);
    let transform = dataset::fit_transform(&source, &options, source.usual_transform())?;
    let mut reader =
        dataset::open(&source, &ReadOptions { dense_transform: transform, ..options })?;
    let tables = reader.table_rows().context("generated tables know their rows")?.to_vec();
    let ids: Vec<TableId> = (0..tables.len() as u32).map(TableId).collect();
    let mut all = Vec::with_capacity(count);
    let mut read = Batch::default();
    while reader.next_batch(&mut read)? {
        let mut found = Unique::default();
        unique(&read, &ids, &mut found)?;
        let mut batch = std::mem::take(&mut read);
        batch.features.iter_mut().for_each(|feature| feature.values = Vec::new());
        all.push(Prepared { batch, unique: found });
    }
    ensure!(all.len() == count, "{} batches, expected {count}", all.len());
    Ok((tables, all))
}

/// Trains over all batches and times the last rounds.
fn trained(
    place: Place<'_>,
    store: &Store,
    tables: &[u64],
    batches: &[Prepared],
    sizes: TrainingSizes,
) -> Result<Found> {
    let TrainingSizes { batch, tier_warm, tier_round, .. } = sizes;
    for (t, &rows) in tables.iter().enumerate() {
        // as a worker has it: uniform within the root of a row's share
        let bound = (1.0 / rows as f32).sqrt();
        let initializer = Initializer::Uniform { bound };
        let spec = TableSpec::new(format!("t{t}"), 16, Optimizer::Sgd, initializer, 7 + t as u64);
        let id = store.create_table(&spec)?;
        ensure!(id == TableId(t as u32), "the table {t} has the number {}", id.0);
    }
    let model = Model::new(kaggle(), DenseOptimizer::Sgd, 1, 7, 1)?;
    let options = DeviceOptions { precision: Precision::Tf32, ..DeviceOptions::default() };
    let mut model = place.model(model, batch, options)?;
    let mut step = Step { store, places: store.lend_places(&model.places())?, model: &mut model };
    let rounds = thread::scope(|scope| {
        let (ahead, staged) = sync_channel(LOOKAHEAD);
        scope.spawn(move || {
            let stage = |prepared: &Prepared| store.stage(&prepared.unique.keys);
            // ends with the batches, or when nobody steps any more
            batches.iter().all(|prepared| ahead.send(stage(prepared)).is_ok());
        });
        let mut batches = batches.iter();
        let mut steps = |step: &mut Step<'_>, count: usize| -> Result<f32> {
            for prepared in batches.by_ref().take(count) {
                let staged = staged.recv().map_err(|_| anyhow!("the thread that stages ended"))?;
                step.order(prepared, Arc::new(staged.context("stage a step")?))?;
            }
            step.settle()
        };
        let mut loss = steps(&mut step, tier_warm)?;
        let before = step.counts();
        let mut seconds = Vec::new();
        for _ in 0..ROUNDS {
            let begun = Instant::now();
            loss = steps(&mut step, tier_round)?;
            seconds.push(begun.elapsed().as_secs_f64());
        }
        drop(staged);
        let [hits, keys, stages, stages_us] = {
            let after = step.counts();
            std::array::from_fn(|i| (after[i] - before[i]) as f64)
        };
        seconds.sort_by(f64::total_cmp);
        let samples_per_s = (tier_round * batch) as f64 / seconds[ROUNDS / 2].max(1e-9);
        let (hits, stage_ms) = (hits / keys.max(1.0), stages_us / stages.max(1.0) / 1e3);
        anyhow::Ok(Found { samples_per_s, hits, stage_ms, loss })
    });
    let Step { places, .. } = step;
    drop(places);
    model.host()?; // waits for all before the model and the store go
    rounds
}

/// Both sides of a step, on one device.
struct Step<'a> {
    store: &'a Store,
    places: Places,
    model: &'a mut DeviceModel,
}

impl Step<'_> {
    /// Orders a step; the device may be at the one before.
    fn order(&mut self, prepared: &Prepared, staged: Arc<Staged>) -> Result<()> {
        let Self { store, places, model } = self;
        let Prepared { batch, unique } = prepared;
        let features = unique.inverse.iter().zip(&batch.features);
        let features: Vec<FeatureRows<'_>> = features
            .map(|(indices, feature)| FeatureRows {
                indices,
                offsets: &feature.offsets,
                pooling: Pooling::Sum,
            })
            .collect();
        let (rows, terms) = (unique.keys.len(), unique.inverse.iter().map(Vec::len).sum());
        let place = model.next_place(rows, terms)?;
        if let Some(moved) = &place.moved {
            store.settle_on_device(places)?;
            *places = store.lend_places(moved)?;
        }
        store.pull_on_device(&staged, places, place.slot)?;
        let Batch { labels, dense, .. } = batch;
        let input = PulledInput { labels, dense, features: &features };
        model.forward_backward_there(&input, place.slot, rows)?;
        store.push_on_device(&staged, places, place.slot, RATE)?;
        model.apply_dense(RATE)?;
        Ok(())
    }

    /// Waits for all that was ordered; the last loss.
    fn settle(&mut self) -> Result<f32> {
        let mut last = None;
        while let Some(loss) = self.model.take_loss()? {
            ensure!(loss.is_finite(), "the loss is {loss}");
            last = Some(loss);
        }
        self.store.settle_on_device(&self.places)?;
        last.context("a round has a step")
    }

    /// Keys found on the device, keys staged, stages, and their microseconds, so far.
    fn counts(&self) -> [u64; 4] {
        let status = self.store.status();
        let totals = status.totals();
        [totals.gpu.hits, totals.keys_staged(), status.gpu_stages, status.gpu_stages_us]
    }
}
