//! Our side of the benchmarks that train: the worker's own `train` in this process, through a
//! session that is watched. It changes nothing of what the worker does and measures no peer.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use clap::Parser;
use parking_lot::Mutex;
use server::{Embedded, EmbeddedConfig, open_embedded};
use table::{KeyBatch, Limits, RowStatus, Step, StoreStatus, TableId, TableSpec};
use wire::{Pulled, Session};
use worker::Report;
use worker::cli::{Cli, Command};

use crate::report::Settings;

/// A model's shape and how it is trained.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Shape {
    pub(crate) name: &'static str,
    /// As `--arch-mlp-bot` has them.
    pub(crate) bottom: &'static str,
    pub(crate) top: &'static str,
    pub(crate) dim: usize,
    pub(crate) batch: usize,
    /// As `--optimizer` has it.
    pub(crate) optimizer: &'static str,
}

pub(crate) const KAGGLE: Shape = Shape {
    name: "Kaggle shape",
    bottom: "13-512-256-64-16",
    top: "512-256-1",
    dim: 16,
    batch: 2048,
    optimizer: "sgd",
};

pub(crate) const TERABYTE: Shape = Shape {
    name: "Terabyte shape",
    bottom: "13-512-256-64",
    top: "512-512-256-1",
    dim: 64,
    batch: 2048,
    optimizer: "sgd",
};

pub(crate) const LEARNING_RATE: &str = "0.01";
/// The categorical features of generated data.
pub(crate) const FEATURES: usize = 26;
/// More than all rows of any benchmark here.
pub(crate) const HOST_RAM_BYTES: u64 = 4 << 30;
/// The tables' rows against Criteo Kaggle's 33.8 M.
pub(crate) const SCALE: &str = "0.1";
const SCALE_QUICK: &str = "0.001";

impl Shape {
    /// Both MLPs' widths, inputs first.
    pub(crate) fn mlps(&self) -> Result<[Vec<usize>; 2]> {
        let widths = |text: &str| -> Result<Vec<usize>> {
            text.split('-').map(|width| width.parse().context("a width")).collect()
        };
        let vectors = FEATURES + 1;
        let mut top = widths(self.top)?;
        top.insert(0, self.dim + vectors * (vectors - 1) / 2);
        Ok([widths(self.bottom)?, top])
    }
}

/// Generated rows for so many batches of the Kaggle shape, as `--data` has them.
pub(crate) fn generated(settings: &Settings, batches: u64) -> String {
    let scale = if settings.quick { SCALE_QUICK } else { SCALE };
    format!("synthetic:scale={scale},rows={},seed=1", batches * KAGGLE.batch as u64)
}

/// Writes generated rows as Criteo's text.
pub(crate) fn write_text(data: &str, target: &str) -> Result<()> {
    let Command::Generate(args) = command(&["generate", "--data", data, "--output", target])?
    else {
        bail!("expected the command generate");
    };
    worker::generate_command(&args).context("write text")?;
    Ok(())
}

/// Writes generated rows in the likeness of Criteo's as a file of parsed batches.
pub(crate) fn write_batches(data: &str, batch: usize, target: &Path) -> Result<()> {
    write_batches_as(data, batch, target, &[])
}

/// The same of any data, with flags of how columns become features.
pub(crate) fn write_batches_as(
    data: &str,
    batch: usize,
    target: &Path,
    more: &[&str],
) -> Result<()> {
    let (batch, target) = (batch.to_string(), target.display().to_string());
    let mut words = vec!["cache", "--data", data, "--mini-batch-size", &batch];
    words.extend(["--output", &target]);
    words.extend(more);
    let Command::Cache(args) = command(&words)? else {
        bail!("expected the command cache");
    };
    worker::cache_command(&args, &AtomicBool::new(false)).context("write batches")?;
    Ok(())
}

/// Trains a new dense part as `shape` says, on rows that stay in the session from run to run.
pub(crate) fn train(
    session: &Watched,
    shape: &Shape,
    data: &str,
    (threads, steps, epochs): (usize, u64, u64),
    more: &[&str],
) -> Result<Report> {
    session.begin();
    let numbers = [threads as u64, steps, epochs, shape.dim as u64, shape.batch as u64];
    let [threads, steps, epochs, dim, batch] = numbers.map(|number| number.to_string());
    let mut words = vec!["train", "--ps", "embedded:unused", "--data", data];
    words.extend(["--arch-mlp-bot", shape.bottom, "--arch-mlp-top", shape.top]);
    words.extend(["--arch-sparse-feature-size", &dim, "--mini-batch-size", &batch]);
    words.extend(["--optimizer", shape.optimizer, "--learning-rate", LEARNING_RATE]);
    words.extend(["--threads", &threads, "--num-batches", &steps, "--nepochs", &epochs]);
    words.extend(more);
    let Command::Train(args) = command(&words)? else {
        bail!("expected the command train");
    };
    let (report, _) = worker::train_command(&args, session, &AtomicBool::new(false))?;
    Ok(report)
}

fn command(words: &[&str]) -> Result<Command> {
    let words = std::iter::once("dlrm-worker").chain(words.iter().copied());
    Ok(Cli::try_parse_from(words)?.command)
}

/// A store in this process with its one session.
pub(crate) fn open(dir: &Path, host_ram_bytes: u64) -> Result<(Embedded, Watched)> {
    let embedded = open_embedded(EmbeddedConfig::new(dir, host_ram_bytes)).context("open store")?;
    let session = Watched::new(embedded.session());
    Ok((embedded, session))
}

/// A session that several trainings may use one after the other, each of which counts its steps
/// from 0. It notes when each pull came.
pub(crate) struct Watched {
    session: Arc<dyn Session>,
    /// The session's step that is this training's step 0.
    first: AtomicU64,
    /// One more than the last step staged.
    next: AtomicU64,
    pulls: Mutex<Vec<Instant>>, // the list alone; held for one append
}

impl Watched {
    pub(crate) fn new(session: Arc<dyn Session>) -> Watched {
        let (first, next) = (AtomicU64::new(0), AtomicU64::new(0));
        Watched { session, first, next, pulls: Mutex::default() }
    }

    /// The seconds between the pulls of the last training, in order.
    pub(crate) fn step_seconds(&self) -> Vec<f64> {
        let pulls = self.pulls.lock();
        pulls.windows(2).map(|pair| (pair[1] - pair[0]).as_secs_f64()).collect()
    }

    /// The next training's step 0 comes after all steps so far.
    pub(crate) fn begin(&self) {
        self.first.store(self.next.load(Ordering::Relaxed), Ordering::Relaxed);
        self.pulls.lock().clear();
    }

    fn step(&self, step: Step) -> Step {
        Step(self.first.load(Ordering::Relaxed) + step.0)
    }
}

impl Session for Watched {
    fn limits(&self) -> Limits {
        self.session.limits()
    }

    fn tables(&self) -> wire::Result<Vec<(TableId, TableSpec)>> {
        self.session.tables()
    }

    fn create_table(&self, spec: &TableSpec) -> wire::Result<TableId> {
        self.session.create_table(spec)
    }

    fn stage(&self, step: Step, keys: &KeyBatch) -> wire::Result<()> {
        let step = self.step(step);
        self.next.store(step.0 + 1, Ordering::Relaxed);
        self.session.stage(step, keys)
    }

    fn pull(&self, step: Step, rows: &mut [f32]) -> wire::Result<Pulled> {
        self.pulls.lock().push(Instant::now());
        self.session.pull(self.step(step), rows)
    }

    fn pull_with_statuses(
        &self,
        step: Step,
        rows: &mut [f32],
        statuses: &mut [RowStatus],
    ) -> wire::Result<Pulled> {
        self.pulls.lock().push(Instant::now());
        self.session.pull_with_statuses(self.step(step), rows, statuses)
    }

    fn push(&self, step: Step, gradients: &[f32], learning_rate: f32) -> wire::Result<()> {
        self.session.push(self.step(step), gradients, learning_rate)
    }

    fn release(&self, step: Step) -> wire::Result<()> {
        self.session.release(self.step(step))
    }

    fn settle(&self) -> wire::Result<()> {
        self.session.settle()
    }

    fn lookup(
        &self,
        keys: &KeyBatch,
        rows: &mut [f32],
        statuses: &mut [RowStatus],
    ) -> wire::Result<()> {
        self.session.lookup(keys, rows, statuses)
    }

    fn assign(&self, keys: &KeyBatch, rows: &[f32]) -> wire::Result<()> {
        self.session.assign(keys, rows)
    }

    fn status(&self) -> wire::Result<StoreStatus> {
        self.session.status()
    }
}
