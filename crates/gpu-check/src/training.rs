//! The whole step on a device, all rows in its memory: losses beside PyTorch's, the AUC of products
//! in fewer bits, and samples a second beside PyTorch on the same device. The reference runs are in
//! the program.

use std::fs;
use std::io::Read;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use dataset::{Batch, ReadOptions, Reader, Source, Unique, unique};
use dlrm::{
    Architecture, DenseOptimizer, DeviceModel, DeviceOptions, FeatureRows, Interaction, Loss,
    Model, Pooling, Precision, ResidentBatch, ResidentInput, ResidentTable,
};
use gpu::{Buffer, Device, Kernels, Memory};
use safetensors::SafeTensors;
use serde_json::Value;
use table::{Optimizer, TableId};

use crate::children::Children;
use crate::report::{CASES, Report, Row};

/// How far a loss may be from PyTorch's.
const LOSS_TOLERANCE: f64 = 2e-5;

/// How far an AUC in fewer bits may be from that in 32.
const AUC_TOLERANCE: f64 = 3e-4;

/// What a second has to bring on an H100, and beside PyTorch.
pub(crate) const SAMPLES_PER_S: f64 = 3.9e6;
const TIMES_PYTORCH: f64 = 3.0;

/// PyTorch's own EmbeddingBag and MLPs on the same shapes.
const TORCH_PEER: &str = include_str!("torch_peer.py");
/// It ends by then.
const TORCH_SECONDS: u64 = 120;

const PRECISIONS: [(Precision, &str); 3] =
    [(Precision::F32, "f32"), (Precision::Tf32, "tf32"), (Precision::Bf16, "bf16")];

macro_rules! reference {
    ($folder:literal, $file:literal) => {
        include_bytes!(concat!("../../../tests/data/reference/", $folder, "/", $file))
    };
}

/// A model of the reference runs, and its runs.
struct Reference {
    name: &'static str,
    bottom: &'static [usize],
    top: &'static [usize],
    steps: usize,
    batches: &'static [u8],
    init: &'static [u8],
    runs: [(&'static str, &'static [u8]); 3],
    /// Steps of the Adagrad run that 32-bit floats determine (tests/data/README.md).
    adagrad_steps: usize,
}

const REFERENCES: [Reference; 2] = [
    Reference {
        name: "tiny",
        bottom: &[13, 32, 16],
        top: &[32, 1],
        steps: 24,
        batches: reference!("tiny", "batches.parquet"),
        init: reference!("tiny", "init.safetensors"),
        runs: [
            ("sgd", reference!("tiny", "sgd.json")),
            ("rwsadagrad", reference!("tiny", "rwsadagrad.json")),
            ("adagrad", reference!("tiny", "adagrad.json")),
        ],
        adagrad_steps: 24,
    },
    Reference {
        name: "kaggle-shape",
        bottom: &[13, 512, 256, 64, 16],
        top: &[512, 256, 1],
        steps: 48,
        batches: reference!("kaggle-shape", "batches.parquet"),
        init: reference!("kaggle-shape", "init.safetensors"),
        runs: [
            ("sgd", reference!("kaggle-shape", "sgd.json")),
            ("rwsadagrad", reference!("kaggle-shape", "rwsadagrad.json")),
            ("adagrad", reference!("kaggle-shape", "adagrad.json")),
        ],
        adagrad_steps: 17,
    },
];

/// Where models are trained: the device, with kernels that all of them share.
#[derive(Debug, Clone, Copy)]
pub struct Place<'a> {
    /// The device.
    pub device: &'a Device,
    /// Its kernels.
    pub kernels: &'a Arc<Kernels>,
}

impl Place<'_> {
    /// Whether the goals for whole steps were set for this device.
    pub(crate) fn has_goals(self) -> bool {
        let name = &self.device.description().name;
        name.contains("H100") || name.contains("H200")
    }

    pub(crate) fn model(
        self,
        host: Model,
        batch_max: usize,
        options: DeviceOptions,
    ) -> Result<DeviceModel> {
        let (device, kernels) = (self.device.clone(), Arc::clone(self.kernels));
        Ok(DeviceModel::with_kernels(device, kernels, host, batch_max, options)?)
    }
}

/// How much is trained.
#[derive(Debug, Clone, Copy)]
pub struct TrainingSizes {
    /// Samples of a batch.
    pub batch: usize,
    /// Steps that are timed.
    pub steps: usize,
    /// Of Criteo Kaggle's tables.
    pub scale: f64,
    /// Samples that are trained on, and then evaluated, for the AUC.
    pub auc_samples: usize,
    /// Batches that a store's tiers see before the clock runs.
    pub tier_warm: usize,
    /// Batches of each round that is timed then.
    pub tier_round: usize,
}

impl TrainingSizes {
    /// Sizes that show what a device can do.
    pub fn full() -> Self {
        Self {
            batch: 16_384,
            steps: 60,
            scale: 1.0,
            auc_samples: 40 * 16_384,
            tier_warm: 128,
            tier_round: 48,
        }
    }

    /// Sizes that show whether everything runs.
    pub fn quick() -> Self {
        Self { batch: 48, steps: 4, scale: 0.001, auc_samples: 192, tier_warm: 8, tier_round: 3 }
    }
}

/// The reference runs with all rows on the device, step by step; in quick runs the small ones.
pub fn references(place: Place<'_>, quick: bool, report: &Report) -> Result<()> {
    for reference in &REFERENCES[..if quick { 1 } else { 2 }] {
        for (optimizer, expected) in reference.runs {
            let name = reference.name;
            let within = reference_run(place, reference, optimizer, expected)
                .with_context(|| format!("{name}, {optimizer}"))?;
            let (right, steps) = within;
            report.add(Row {
                id: format!("training.{name}.{optimizer}"),
                case: format!("steps whose loss is within {LOSS_TOLERANCE} of PyTorch's"),
                unit: CASES,
                ours: right as f64,
                limit: steps as f64,
                goal: Some(1.0),
            });
        }
    }
    Ok(())
}

/// How many of the steps that count agree.
fn reference_run(
    place: Place<'_>,
    reference: &Reference,
    optimizer: &str,
    expected: &[u8],
) -> Result<(usize, usize)> {
    const EPS: f32 = 1e-10;
    let initial_accumulator = 0.0;
    let (rate, rows_rule, dense_rule, steps) = match optimizer {
        "sgd" => (0.1, Optimizer::Sgd, DenseOptimizer::Sgd, reference.steps),
        "rwsadagrad" => {
            let rule = Optimizer::RowWiseAdagrad { eps: EPS, initial_accumulator };
            (0.05, rule, DenseOptimizer::Sgd, reference.steps)
        }
        _ => {
            let rule = Optimizer::Adagrad { eps: EPS, initial_accumulator };
            (0.01, rule, DenseOptimizer::Adagrad { eps: EPS }, reference.adagrad_steps)
        }
    };
    let expected: Value = serde_json::from_slice(expected)?;
    let losses = expected["losses"].as_array().context("the run has losses")?;
    let init = SafeTensors::deserialize(reference.init)?;
    let mut tables = Vec::new(); // rows of each
    let mut rows: Vec<u8> = Vec::new();
    for t in 0.. {
        let Ok(tensor) = init.tensor(&format!("emb_l.{t}.weight")) else { break };
        tables.push(tensor.shape()[0] as u64);
        rows.extend(tensor.data());
    }
    let architecture = Architecture {
        sparse_feature_size: 16,
        features: tables.len(),
        mlp_bottom: reference.bottom.to_vec(),
        mlp_top: reference.top.to_vec(),
        interaction: Interaction::Dot,
        loss: Loss::Bce,
    };
    let mut model = Model::new(architecture.clone(), dense_rule, 1, 1, 1)?;
    model.load_safetensors(reference.init)?;
    let state_bytes = (rows.len() / 64 * rows_rule.state_floats(16) * 4) as u64;
    let mut memory = Memory::take(place.device, rows.len() as u64 + state_bytes + 1024)?;
    let table = ResidentTable {
        rows: memory.buffer_of(&rows)?,
        states: (state_bytes > 0)
            .then(|| memory.buffer_of(&vec![0_u8; state_bytes as usize]))
            .transpose()?,
        optimizer: rows_rule,
    };
    let mut model = place.model(model, 128, DeviceOptions::default())?;
    let mut reader = EmbeddedReader::open(reference.batches, 128)?;
    let mut right = 0;
    for (step, expected) in losses.iter().take(steps).enumerate() {
        let batch = reader.next(&architecture, &tables)?.context("the file has all batches")?;
        model.resident_step(&batch, &table, rate, rate)?;
        let (loss, expected) = (model.resident_loss()?, expected.as_f64().context("a loss")?);
        let off = (f64::from(loss) - expected).abs();
        if off <= LOSS_TOLERANCE {
            right += 1;
        } else {
            let name = reference.name;
            eprintln!("gpu-check: {name}, {optimizer}, step {step}: loss {loss}, not {expected}");
        }
    }
    Ok((right, steps))
}

/// Batches of a Parquet file in memory, as lists over the slots of one table after the other.
struct EmbeddedReader {
    reader: Reader,
    batch: Batch,
    _folder: TemporaryFolder,
}

impl EmbeddedReader {
    fn open(parquet: &[u8], batch_rows: usize) -> Result<Self> {
        let folder = TemporaryFolder::new()?;
        let path = folder.0.join("batches.parquet");
        fs::write(&path, parquet).with_context(|| format!("write {}", path.display()))?;
        let source: Source = format!("parquet:{}", path.display()).parse()?;
        let reader = dataset::open(&source, &ReadOptions::new(batch_rows))?;
        Ok(Self { reader, batch: Batch::default(), _folder: folder })
    }

    fn next(&mut self, shape: &Architecture, tables: &[u64]) -> Result<Option<ResidentBatch>> {
        if !self.reader.next_batch(&mut self.batch)? {
            return Ok(None);
        }
        Ok(Some(resident(&self.batch, shape, tables)?))
    }
}

/// A batch over one table that holds all tables' rows, one after the other.
fn resident(batch: &Batch, shape: &Architecture, tables: &[u64]) -> Result<ResidentBatch> {
    let ids: Vec<TableId> = (0..tables.len() as u32).map(TableId).collect();
    let mut found = Unique::default();
    unique(batch, &ids, &mut found)?;
    let first: Vec<u64> = tables
        .iter()
        .scan(0, |end, rows| {
            *end += rows;
            Some(*end - rows)
        })
        .collect();
    let mut slots = Vec::with_capacity(found.keys.len());
    for (table, run) in found.keys.runs() {
        let (t, keys) = (table.0 as usize, &found.keys.keys()[run]);
        for key in keys {
            ensure!(key.0 < tables[t], "feature {t}: id {} of {} rows", key.0, tables[t]);
            slots.push(first[t] + key.0);
        }
    }
    let features: Vec<FeatureRows<'_>> = found
        .inverse
        .iter()
        .zip(&batch.features)
        .map(|(indices, feature)| FeatureRows {
            indices,
            offsets: &feature.offsets,
            pooling: Pooling::Sum,
        })
        .collect();
    let input = ResidentInput {
        dense: &batch.dense,
        labels: &batch.labels,
        slots: &slots,
        features: &features,
    };
    Ok(ResidentBatch::new(shape, &input)?)
}

/// A folder that goes when it is dropped.
pub(crate) struct TemporaryFolder(pub(crate) std::path::PathBuf);

impl TemporaryFolder {
    pub(crate) fn new() -> Result<Self> {
        let path = std::env::temp_dir().join(format!("gpu-check-{}", std::process::id()));
        fs::create_dir_all(&path).with_context(|| format!("make {}", path.display()))?;
        Ok(Self(path))
    }
}

impl Drop for TemporaryFolder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0); // the system's own folder for such things
    }
}

/// Generated batches in the likeness of Criteo Kaggle's.
struct Generated {
    batches: Vec<ResidentBatch>,
    labels: Vec<Vec<f32>>, // of each batch
    tables: Vec<u64>,      // rows of each
}

fn generated(scale: f64, batch: usize, count: usize, shape: &Architecture) -> Result<Generated> {
    let rows = batch * count;
    let source: Source = format!("synthetic:scale={scale},rows={rows},seed=5").parse()?;
    let options = ReadOptions {
        dense_transform: dataset::fit_transform(
            &source,
            &ReadOptions::new(batch),
            source.usual_transform(),
        )?,
        ..ReadOptions::new(batch)
    };
    let mut reader = dataset::open(&source, &options)?;
    let tables = reader.table_rows().context("generated tables know their rows")?.to_vec();
    let (mut batches, mut labels) = (Vec::new(), Vec::new());
    let mut read = Batch::default();
    while reader.next_batch(&mut read)? {
        labels.push(read.labels.clone());
        batches.push(resident(&read, shape, &tables)?);
    }
    Ok(Generated { batches, labels, tables })
}

pub(crate) fn kaggle() -> Architecture {
    Architecture {
        sparse_feature_size: 16,
        features: 26,
        mlp_bottom: vec![13, 512, 256, 64, 16],
        mlp_top: vec![512, 256, 1],
        interaction: Interaction::Dot,
        loss: Loss::Bce,
    }
}

/// Rows of small numbers, the same each time.
fn small_rows(table: &Buffer) -> Result<()> {
    const FLOATS: usize = 1 << 20;
    let block: Vec<f32> =
        gpu::vectors::floats(9, 0, FLOATS).into_iter().map(|x| x * 0.05).collect();
    let mut at = 0;
    while at < table.bytes() {
        let left = ((table.bytes() - at) / 4).min(FLOATS as u64) as usize;
        table.write(at, &block[..left])?;
        at += 4 * left as u64;
    }
    Ok(())
}

/// The AUC after training in each precision, from the same start on the same batches.
pub fn quality(place: Place<'_>, sizes: TrainingSizes, report: &Report) -> Result<()> {
    let shape = kaggle();
    let batch = sizes.batch.min(4096).min(sizes.auc_samples / 4);
    let count = sizes.auc_samples / batch;
    let Generated { batches, labels, tables } =
        generated(sizes.scale.min(0.01), batch, 2 * count, &shape)?;
    let rows = tables.iter().sum::<u64>();
    let mut exact = None;
    for (precision, name) in PRECISIONS {
        let buffer =
            Memory::take(place.device, (rows * 64).next_multiple_of(256))?.buffer(rows * 64)?;
        small_rows(&buffer)?;
        let table = ResidentTable { rows: buffer, states: None, optimizer: Optimizer::Sgd };
        let model = Model::new(shape.clone(), DenseOptimizer::Sgd, 1, 7, 1)?;
        let options = DeviceOptions { precision, ..DeviceOptions::default() };
        let mut model = place.model(model, batch, options)?;
        for batch in &batches[..count] {
            model.resident_step(batch, &table, 0.1, 0.1)?;
        }
        let mut scored = Vec::new();
        for (taken, labels) in batches[count..].iter().zip(&labels[count..]) {
            let mut probabilities = vec![0.0; labels.len()];
            model.resident_predict(taken, &table, &mut probabilities)?;
            scored.extend(probabilities.into_iter().zip(labels.iter().copied()));
        }
        let auc = auc(scored).context("both classes")?;
        let exact = *exact.get_or_insert(auc);
        report.add(auc_row(name, auc, exact, &format!("after {count} steps of {batch}")));
    }
    Ok(())
}

/// How near an AUC is to that in 32 bits, from either side.
fn auc_row(name: &str, auc: f64, exact: f64, after: &str) -> Row {
    let apart = (auc - exact).abs();
    Row {
        id: format!("training.auc.{name}"),
        case: format!("{auc:.5} {after}; ours: f32's less how far it is from it"),
        unit: "AUC",
        ours: exact - apart,
        limit: exact,
        goal: Some(1.0 - AUC_TOLERANCE / exact),
    }
}

/// The area under the curve of ranks; equal scores share theirs.
fn auc(mut scored: Vec<(f32, f32)>) -> Option<f64> {
    scored.sort_by(|a, b| a.0.total_cmp(&b.0));
    let (mut ranks, mut positives) = (0.0, 0.0);
    let mut at = 0;
    while at < scored.len() {
        let equal = scored[at..].iter().take_while(|(score, _)| *score == scored[at].0).count();
        let rank = at as f64 + (equal as f64 + 1.0) / 2.0;
        let ones = scored[at..at + equal].iter().filter(|(_, label)| *label > 0.5).count() as f64;
        ranks += ones * rank;
        positives += ones;
        at += equal;
    }
    let negatives = scored.len() as f64 - positives;
    (positives > 0.0 && negatives > 0.0)
        .then(|| (ranks - positives * (positives + 1.0) / 2.0) / (positives * negatives))
}

/// Samples a second at the Kaggle shape, all rows in device memory, the batches from pinned memory,
/// in each precision; beside PyTorch where there is one.
pub fn speed(
    place: Place<'_>,
    sizes: TrainingSizes,
    children: &Children,
    report: &Report,
) -> Result<Option<f64>> {
    const BATCHES: usize = 8;
    let shape = kaggle();
    let Generated { batches, tables, .. } = generated(sizes.scale, sizes.batch, BATCHES, &shape)?;
    let rows = tables.iter().sum::<u64>();
    let buffer =
        Memory::take(place.device, (rows * 64).next_multiple_of(256))?.buffer(rows * 64)?;
    small_rows(&buffer)?;
    let table = ResidentTable { rows: buffer, states: None, optimizer: Optimizer::Sgd };
    let peer = torch_peer(&tables, sizes, children)?;
    let is_known = place.has_goals();
    let mut in_tf32 = None;
    for (precision, name) in PRECISIONS {
        let options = DeviceOptions { precision, ..DeviceOptions::default() };
        let (ours, batch) = (samples_per_s(place, sizes, options, &batches, &table)?, sizes.batch);
        if precision != Precision::F32 {
            let plain = DeviceOptions { tensor_interaction: false, ..options };
            report.add(Row {
                id: format!("training.kaggle_{name}.tensor_interaction"),
                case: format!("batch {batch}, beside the interaction in 32 bits"),
                unit: "samples/s",
                ours,
                limit: samples_per_s(place, sizes, plain, &batches, &table)?,
                goal: None,
            });
        }
        if precision == Precision::Tf32 {
            in_tf32 = Some(ours);
        }
        let held = is_known && precision == Precision::Tf32;
        report.add(Row {
            id: format!("training.kaggle_{name}"),
            case: format!("batch {batch}, {rows} rows, beside the goal for an H100"),
            unit: "samples/s",
            ours,
            limit: SAMPLES_PER_S,
            goal: held.then_some(1.0),
        });
        let peer = peer.iter().find(|(peer, _)| peer == name);
        if let Some((_, theirs)) = peer {
            report.add(Row {
                id: format!("training.kaggle_{name}.pytorch"),
                case: format!("batch {batch}, beside PyTorch with {name} products"),
                unit: "samples/s",
                ours,
                limit: *theirs,
                goal: (is_known && precision == Precision::Tf32).then_some(TIMES_PYTORCH),
            });
        }
    }
    Ok(in_tf32)
}

/// The median of three rounds over the batches, after one that warms up.
fn samples_per_s(
    place: Place<'_>,
    sizes: TrainingSizes,
    options: DeviceOptions,
    batches: &[ResidentBatch],
    table: &ResidentTable,
) -> Result<f64> {
    let model = Model::new(kaggle(), DenseOptimizer::Sgd, 1, 7, 1)?;
    let mut model = place.model(model, sizes.batch, options)?;
    let mut rounds = Vec::new();
    for round in 0..=3 {
        let began = Instant::now();
        let steps = if round == 0 { 2 * batches.len() } else { sizes.steps };
        for batch in batches.iter().cycle().take(steps) {
            model.resident_step(batch, table, 0.01, 0.01)?;
        }
        let loss = model.resident_loss()?;
        model.host()?; // waits for all
        ensure!(loss.is_finite(), "the loss is {loss}");
        if round > 0 {
            rounds.push((steps * sizes.batch) as f64 / began.elapsed().as_secs_f64());
        }
    }
    rounds.sort_by(f64::total_cmp);
    Ok(rounds[1])
}

/// PyTorch's samples a second by the precision of its products; none where there is no PyTorch that
/// finds a device, which is told.
fn torch_peer(
    tables: &[u64],
    sizes: TrainingSizes,
    children: &Children,
) -> Result<Vec<(String, f64)>> {
    let folder = TemporaryFolder::new()?;
    let script = folder.0.join("torch_peer.py");
    fs::write(&script, TORCH_PEER).with_context(|| format!("write {}", script.display()))?;
    let tables: Vec<String> = tables.iter().map(u64::to_string).collect();
    let output = folder.0.join("torch_peer.txt");
    let numbers = [sizes.batch.to_string(), sizes.steps.to_string()];
    let arguments = [&tables.join("-")[..], &numbers[0], &numbers[1]];
    match run_limited(&script, &arguments, &output, children) {
        Ok(said) => {
            let lines = said.lines().filter_map(|line| line.split_once(' '));
            let rates =
                lines.filter_map(|(name, rate)| Some((name.to_owned(), rate.parse().ok()?)));
            Ok(rates.collect())
        }
        Err(reason) => {
            eprintln!("gpu-check: PyTorch is left out: {reason:#}");
            Ok(Vec::new())
        }
    }
}

/// What a Python script prints, within [`TORCH_SECONDS`].
fn run_limited(
    script: &Path,
    arguments: &[&str],
    output: &Path,
    children: &Children,
) -> Result<String> {
    let mut python = Command::new("python3");
    python.arg(script).args(arguments).stdin(Stdio::null());
    python.stdout(fs::File::create(output)?).stderr(Stdio::piped());
    let running = children.start(&mut python)?;
    let status = running.wait(Duration::from_secs(TORCH_SECONDS))?;
    let mut said = String::new();
    if let (_, _, Some(mut errors)) = running.pipes() {
        let _ = errors.read_to_string(&mut said); // only to tell of
    }
    let last = said.lines().last().unwrap_or_default();
    ensure!(status.success(), "{status}: {last}");
    Ok(fs::read_to_string(output)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_auc_is_the_share_of_pairs_in_order() {
        assert_eq!(auc(vec![(0.1, 0.0), (0.9, 1.0)]), Some(1.0));
        assert_eq!(auc(vec![(0.9, 0.0), (0.1, 1.0)]), Some(0.0));
        assert_eq!(auc(vec![(0.5, 0.0), (0.5, 1.0), (0.5, 0.0)]), Some(0.5));
        assert_eq!(auc(vec![(0.2, 0.0), (0.4, 1.0), (0.3, 1.0), (0.35, 0.0)]), Some(0.75));
        assert_eq!(auc(vec![(0.2, 1.0)]), None);
    }

    #[test]
    fn an_auc_may_be_no_further_from_that_in_32_bits_on_either_side() {
        let holds = |auc: f64| auc_row("tf32", auc, 0.75, "after all").holds();
        assert!(holds(0.75) && holds(0.75029) && holds(0.74971));
        assert!(!holds(0.75031) && !holds(0.74969) && !holds(f64::NAN));
    }

    #[test]
    fn a_script_that_fails_is_told_with_its_last_word() {
        let folder = TemporaryFolder::new().unwrap();
        let script = folder.0.join("fails.py");
        fs::write(&script, "import sys\nsys.exit('no device for us')").unwrap();
        let children = Children::default();
        let outcome = run_limited(&script, &[], &folder.0.join("out"), &children);
        let said = outcome.unwrap_err().to_string();
        assert!(said.contains("no device for us") || said.contains("python3"), "{said}");
    }
}
