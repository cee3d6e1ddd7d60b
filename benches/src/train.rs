//! `train`: the real worker on generated data in the likeness of Criteo's, its tables 20 and 100
//! times larger than their RAM beside all in RAM. The weights must agree bit for bit.

use std::fs::{self, File};
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use table::{Initializer, Key, KeyBatch, TableId, TableSpec};
use tempfile::TempDir;
use tiers::{Store, StoreConfig};

use crate::measure::{median, rounds};
use crate::report::{Outcome, Row, Settings};

/// Times its RAM that the table is, and the share of the samples a second in RAM that must be left.
const CASES: [(&str, u64, f64); 2] = [("train_20x", 20, 0.90), ("train_100x", 100, 0.80)];
/// Passes of the longer one of two runs: the rate is that of all passes but the first, which finds
/// an empty RAM.
const EPOCHS: u64 = 6;
/// Passes of the run of `stalled_pulls`, which counts all but the first too: a thousand steps, so
/// that one that waits is a thousandth.
const STALL_EPOCHS: u64 = 11;
/// Medians are of so many rounds: more would take long.
const ROUNDS: usize = 3;
/// Percent of the big tables' rows that fit RAM, for `stalled_pulls`.
const PERCENTS: [u64; 3] = [1, 5, 10];
/// A table with more rows is big.
const BIG_ROWS: u64 = 100_000;
/// Percent of the steps whose pull must not wait.
const UNSTALLED_MIN: f64 = 99.9;
/// A row of 16 floats and its row-wise accumulator.
const ROW_BYTES: u64 = 17 * 4;
/// What a cached row may take beside that.
const BESIDE_ROW_BYTES: u64 = 16;
/// Rows made with one stage while the tables are filled.
const FILL_ROWS: u64 = 1 << 14;

pub(crate) fn run(settings: &Settings) -> Result<Outcome> {
    let bench = Bench::new(settings)?;
    let mut outcome = Outcome::default();
    bench.samples_a_second(&mut outcome)?;
    if bench.wants("stalled_pulls") {
        bench.stalled_pulls(&mut outcome)?;
    }
    outcome.notes.push(format!(
        "MLPs 13-512-256-64-16 and 512-256-1, batches of {}, lookahead {}, row-wise Adagrad; {} \
         rows, {} MB with their state, all of them on SSD before the first step. A rate is that of \
         {EPOCHS} epochs less that of one, and pulls that wait are those after the first of \
         {STALL_EPOCHS} epochs of one run: an empty RAM at the start counts for nobody.",
        bench.batch,
        bench.lookahead,
        bench.rows_total,
        bench.table_bytes() / 1_000_000,
    ));
    Ok(outcome)
}

struct Bench<'a> {
    settings: &'a Settings,
    worker: &'a Path,
    dir: TempDir,
    scale: &'static str,
    steps: u64,
    batch: u64,
    lookahead: u64,
    /// Rows of all tables, each of them on SSD in the store that runs start from.
    rows_total: u64,
    rows_big: u64,
}

/// What one run of the worker said.
struct Said {
    seconds: f64,
    samples: f64,
    epochs: Vec<Epoch>,
}

/// Steps of a pass over the data, and those whose pull waited.
#[derive(Clone, Copy)]
struct Epoch {
    steps: u64,
    stalled: u64,
}

impl<'a> Bench<'a> {
    fn new(settings: &'a Settings) -> Result<Bench<'a>> {
        let worker = settings.worker.as_deref().context("--worker names the dlrm-worker to run")?;
        let dir = TempDir::new_in(&settings.scratch).context("make a directory")?;
        let (scale, steps, batch, lookahead) =
            if settings.quick { ("0.001", 3, 64, 2) } else { ("0.3", 100, 2048, 8) };
        let (rows_total, rows_big) = (0, 0);
        let mut bench =
            Bench { settings, worker, dir, scale, steps, batch, lookahead, rows_total, rows_big };
        bench.make_origin()?;
        Ok(bench)
    }

    fn table_bytes(&self) -> u64 {
        self.rows_total * ROW_BYTES
    }

    /// Whether the cases of this id are to be run.
    fn wants(&self, id: &str) -> bool {
        self.settings.only.is_empty() || self.settings.only == id
    }

    fn all_ram_bytes(&self) -> u64 {
        2 * self.table_bytes() + (64 << 20)
    }

    /// One step makes the tables and the model; then every row of every table is made.
    fn make_origin(&mut self) -> Result<()> {
        let rows = self.steps * self.batch;
        let mut cache = Command::new(self.worker);
        cache.arg("cache").arg("--output").arg(self.batches());
        cache.args(["--mini-batch-size", &self.batch.to_string()]);
        let generated = format!("synthetic:scale={},rows={rows},seed=1", self.scale);
        call(cache.arg("--data").arg(&generated))?;
        let (place, report) = (self.place("origin"), self.dir.path().join("origin.json"));
        let mut command = self.train(&place, 64 << 20, None, 1, &report);
        command.args(["--data", &generated, "--num-batches", "1"]);
        call(&mut command)?;
        // more than all rows, for this is not what is measured
        let rows_max = 34_000_000;
        let mut config = StoreConfig::new(&place.store, rows_max * 2 * ROW_BYTES);
        config.host_ram_bytes = if self.settings.quick { 256 << 20 } else { 3 << 30 };
        let store = Store::open(config).context("open the store")?;
        for (table, spec) in store.tables() {
            let rows = rows_of(&spec)?;
            fill(&store, table, rows)?;
            self.rows_total += rows;
            self.rows_big += if rows > BIG_ROWS || self.settings.quick { rows } else { 0 };
        }
        store.close().context("write the tables down")
    }

    /// Trains in RAM and under each budget, A B C A B C, and compares the weights in the end.
    fn samples_a_second(&self, outcome: &mut Outcome) -> Result<()> {
        let least = if self.settings.quick { 2 << 20 } else { 0 };
        let budget = |factor: u64| (self.table_bytes() / factor).max(least);
        let cases: Vec<_> = CASES.into_iter().filter(|(id, ..)| self.wants(id)).collect();
        if cases.is_empty() {
            return Ok(());
        }
        let mut runs = vec![("ram", self.all_ram_bytes())];
        runs.extend(cases.iter().map(|&(id, factor, _)| (id, budget(factor))));
        for (name, _) in &runs {
            copy_dir(&self.place("origin").root, &self.place(name).root)?;
        }
        let mut rates = vec![Vec::new(); runs.len()];
        for _ in 0..ROUNDS.min(rounds(self.settings.quick)) {
            for ((name, budget), rates) in runs.iter().zip(&mut rates) {
                let one = self.go_on(name, *budget, 1)?;
                let more = self.go_on(name, *budget, EPOCHS)?;
                let seconds = (more.seconds - one.seconds).max(1e-3);
                rates.push((more.samples - one.samples) / seconds);
            }
        }
        let in_ram = median(rates.remove(0));
        let expected = self.export("ram")?;
        for ((id, factor, share), rates) in cases.into_iter().zip(rates) {
            let same = same_bytes(&expected, &self.export(id)?)?;
            let rate = median(rates);
            outcome.add([Row {
                id,
                case: format!("table {factor}x its RAM ({} MB)", budget(factor) / 1_000_000),
                unit: "samples/s",
                ours: rate,
                limit: in_ram,
                goal: format!("at least {share} of limit, the same weights"),
                holds: rate >= share * in_ram && same,
            }]);
            outcome.notes.push(format!("{id}: weights bit-identical to those in RAM: {same}"));
        }
        Ok(())
    }

    fn stalled_pulls(&self, outcome: &mut Outcome) -> Result<()> {
        let least = if self.settings.quick { 2 << 20 } else { 0 };
        copy_dir(&self.place("origin").root, &self.place("stalled").root)?;
        for percent in PERCENTS {
            let rows = self.rows_big * percent / 100;
            let budget = (rows * (ROW_BYTES + BESIDE_ROW_BYTES)).max(least);
            let said = self.go_on("stalled", budget, STALL_EPOCHS)?;
            let after_first = said.after_first()?;
            let unstalled = after_first.unstalled_percent();
            outcome.add([Row {
                id: "stalled_pulls",
                case: format!("{percent} % of the big tables' {} rows", self.rows_big),
                unit: "% of steps",
                ours: unstalled,
                limit: 100.0,
                goal: format!("at least {UNSTALLED_MIN}"),
                holds: unstalled >= UNSTALLED_MIN,
            }]);
            let Epoch { steps, stalled } = after_first;
            outcome.notes.push(format!("{percent} %: {stalled} of {steps} pulls waited"));
        }
        Ok(())
    }

    /// Trains a model some epochs further.
    fn go_on(&self, name: &str, budget: u64, epochs: u64) -> Result<Said> {
        let (place, report) = (self.place(name), self.dir.path().join("report.json"));
        let from = place.model.clone();
        call(&mut self.train(&place, budget, Some(&from), epochs, &report))?;
        let said = Said::read(&report)?;
        eprintln!(
            "bench: {name}, {epochs} epochs under {} MB: {:.1} s, {} of {} pulls waited",
            budget / 1_000_000,
            said.seconds,
            sum(&said.epochs).stalled,
            sum(&said.epochs).steps
        );
        Ok(said)
    }

    fn train(
        &self,
        place: &Place,
        budget: u64,
        from: Option<&Path>,
        epochs: u64,
        report: &Path,
    ) -> Command {
        let mut command = Command::new(self.worker);
        command.arg("train").arg("--ps").arg(format!("embedded:{}", place.store.display()));
        if from.is_some() {
            command.arg("--data").arg(format!("cache:{}", self.batches().display()));
        }
        command.args(["--host-ram", &budget.to_string(), "--optimizer", "rwsadagrad"]);
        command.args(["--learning-rate", "0.01", "--nepochs", &epochs.to_string()]);
        command.args(["--mini-batch-size", &self.batch.to_string()]);
        command.args(["--lookahead", &self.lookahead.to_string()]);
        command.arg("--save-model").arg(&place.model).arg("--report").arg(report);
        if let Some(from) = from {
            command.arg("--load-model").arg(from);
        }
        command
    }

    /// All weights of a model in one file.
    fn export(&self, name: &str) -> Result<PathBuf> {
        let (place, path) = (self.place(name), self.dir.path().join(format!("{name}.safetensors")));
        let mut command = Command::new(self.worker);
        command.arg("export").arg("--ps").arg(format!("embedded:{}", place.store.display()));
        command.args(["--host-ram", "64MiB"]).arg("--load-model").arg(&place.model);
        call(command.arg("--output").arg(&path))?;
        Ok(path)
    }

    /// The file of parsed batches that all runs train on: generating them would take longer.
    fn batches(&self) -> PathBuf {
        self.dir.path().join("batches")
    }

    fn place(&self, name: &str) -> Place {
        let root = self.dir.path().join(name);
        Place { store: root.join("ps"), model: root.join("model"), root }
    }
}

/// Where a run has its store and its model.
struct Place {
    root: PathBuf,
    store: PathBuf,
    model: PathBuf,
}

impl Said {
    fn read(path: &Path) -> Result<Said> {
        let text = fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
        let report: Value = serde_json::from_str(&text).context("parse the worker's report")?;
        let number = |name: &str| {
            let value = report.get(name).and_then(Value::as_f64);
            value.with_context(|| format!("the worker's report lacks {name}"))
        };
        let epochs = report.get("epochs").and_then(Value::as_array);
        let epochs = epochs.context("the worker's report lacks epochs")?.iter().map(Epoch::read);
        Ok(Said {
            seconds: number("train_s")?,
            samples: number("samples")?,
            epochs: epochs.collect::<Result<_>>()?,
        })
    }

    /// All epochs but the first.
    fn after_first(&self) -> Result<Epoch> {
        let later = sum(self.epochs.get(1..).unwrap_or_default());
        ensure!(later.steps > 0, "the worker's report tells of no epoch after the first");
        Ok(later)
    }
}

impl Epoch {
    fn read(report: &Value) -> Result<Epoch> {
        let count = |name: &str| {
            let value = report.get(name).and_then(Value::as_u64);
            value.with_context(|| format!("an epoch of the worker's report lacks {name}"))
        };
        Ok(Epoch { steps: count("steps")?, stalled: count("stalled_pulls")? })
    }

    fn unstalled_percent(self) -> f64 {
        100.0 * (1.0 - self.stalled as f64 / self.steps as f64)
    }
}

fn sum(epochs: &[Epoch]) -> Epoch {
    let none = Epoch { steps: 0, stalled: 0 };
    epochs.iter().fold(none, |sum, epoch| Epoch {
        steps: sum.steps + epoch.steps,
        stalled: sum.stalled + epoch.stalled,
    })
}

/// The rows that a table is made for; its ids are below it.
fn rows_of(spec: &TableSpec) -> Result<u64> {
    match spec.initializer {
        Initializer::UniformByRows { rows } => Ok(rows),
        Initializer::Uniform { .. } | Initializer::Normal { .. } | Initializer::Zeros => {
            bail!("table {} does not tell its rows", spec.name)
        }
    }
}

fn fill(store: &Store, table: TableId, rows: u64) -> Result<()> {
    for first in (0..rows).step_by(FILL_ROWS as usize) {
        let keys: Vec<Key> = (first..(first + FILL_ROWS).min(rows)).map(Key).collect();
        let mut batch = KeyBatch::new();
        batch.push_run(table, &keys).context("make a batch")?;
        store.stage(&batch).context("fill a table")?;
    }
    Ok(())
}

fn call(command: &mut Command) -> Result<()> {
    let output = command.output().context("run the worker")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "the worker failed: {}: {}", output.status, said.trim());
    Ok(())
}

fn copy_dir(source: &Path, target: &Path) -> Result<()> {
    fs::create_dir_all(target).with_context(|| format!("make {}", target.display()))?;
    for entry in fs::read_dir(source).with_context(|| format!("list {}", source.display()))? {
        let entry = entry.context("list a directory")?;
        let (from, to) = (entry.path(), target.join(entry.file_name()));
        if from.is_dir() {
            copy_dir(&from, &to)?;
        } else {
            fs::copy(&from, &to).with_context(|| format!("copy {}", from.display()))?;
        }
    }
    Ok(())
}

fn same_bytes(a: &Path, b: &Path) -> Result<bool> {
    let open = |path: &Path| {
        File::open(path).map(BufReader::new).with_context(|| format!("open {}", path.display()))
    };
    let length = |path: &Path| {
        fs::metadata(path).map(|meta| meta.len()).with_context(|| format!("see {}", path.display()))
    };
    let length_a = length(a)?;
    if length_a != length(b)? {
        return Ok(false);
    }
    let (mut a, mut b, mut left) = (open(a)?, open(b)?, length_a);
    let (mut of_a, mut of_b) = (vec![0; 1 << 16], vec![0; 1 << 16]);
    while left > 0 {
        let count = left.min(of_a.len() as u64) as usize;
        a.read_exact(&mut of_a[..count]).context("read weights")?;
        b.read_exact(&mut of_b[..count]).context("read weights")?;
        if of_a[..count] != of_b[..count] {
            return Ok(false);
        }
        left -= count as u64;
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_epoch_that_waited_makes_no_later_wait_good() {
        let text = r#"{"train_s": 2.0, "samples": 900, "epochs": [
            {"steps": 100, "stalled_pulls": 24},
            {"steps": 100, "stalled_pulls": 3},
            {"steps": 100, "stalled_pulls": 0}
        ]}"#;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("report.json");
        fs::write(&path, text).unwrap();
        let said = Said::read(&path).unwrap();
        assert_eq!(said.after_first().unwrap().unstalled_percent(), 98.5);
        let lone = Said { epochs: said.epochs[..1].to_vec(), ..said };
        assert!(lone.after_first().is_err(), "there is nothing to tell of one epoch");
    }
}
