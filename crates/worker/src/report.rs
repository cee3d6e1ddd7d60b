//! What a run says of itself when it is done: the JSON of `--report` and the lines on standard
//! output. It measures nothing.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use serde::Serialize;
use table::StoreStatus;
use table::units::format_bytes;

use crate::quality::Quality;
use crate::{Error, Result};

/// The report of `train` or `eval`. Seconds are of the thread that does the work, so they overlap.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Report {
    /// The command that ran.
    pub command: &'static str,
    /// Steps that were trained.
    pub steps: u64,
    /// Rows that were trained.
    pub samples: u64,
    /// Wall time of training, evaluation apart.
    pub train_s: f64,
    /// Rows trained a second.
    pub samples_per_s: f64,
    /// The loss of every step before its update, with `--report-losses`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub losses: Option<Vec<f32>>,
    /// Quality on the evaluated rows.
    #[serde(flatten)]
    pub quality: Option<Quality>,
    /// The evaluations of `--test-freq`, in their order.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tests: Vec<Test>,
    /// The pictures beside the report, by their file names.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub curves: Vec<PathBuf>,
    /// Whether `--mlperf-auc-threshold` ended the training.
    pub auc_reached: bool,
    /// What the generator's own probabilities reach on the evaluated rows.
    #[serde(flatten)]
    pub bayes: Option<Bayes>,
    /// Rows that `--bad-rows skip:N` passed over.
    pub rows_skipped: u64,
    /// Finding unique keys and announcing them, ahead of the step.
    pub stage_s: f64,
    /// Waiting for rows.
    pub pull_s: f64,
    /// Forward, backward, dense update.
    pub compute_s: f64,
    /// Handing over gradients, beside the dense update.
    pub push_s: f64,
    /// Waiting for the reader or for staging to begin.
    pub wait_s: f64,
    /// Pulls whose staging had not ended when they came.
    pub stalled_pulls: u64,
    /// The same for each pass over the data: the first finds an empty RAM.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub epochs: Vec<Epoch>,
    /// Whether a signal ended the run before its data did.
    pub interrupted: bool,
    /// Threads that compute.
    pub threads: usize,
    /// Where the network is computed: the CPU, or a device with its name.
    pub device: String,
    /// Whether rows went between the store and the network on the device, and not by the host.
    pub rows_on_device: bool,
    /// The seed.
    pub seed: u64,
    /// The tiers, all tables together.
    pub tiers: Tiers,
    /// The same, table by table, as the server reports it.
    pub store: Option<StoreStatus>,
}

/// One pass over the data.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Epoch {
    /// Steps whose rows were pulled.
    pub steps: u64,
    /// Those of them whose staging had not ended when their pull came.
    pub stalled_pulls: u64,
}

/// An evaluation in the middle of training.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Test {
    /// Steps trained before it, in this run.
    pub step: u64,
    /// Wall time of training before it, evaluations apart.
    pub train_s: f64,
    /// Quality on the evaluated rows.
    #[serde(flatten)]
    pub quality: Quality,
}

/// The best that is to be had on generated data.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Bayes {
    /// AUC of the true probabilities.
    pub bayes_auc: f64,
    /// Logloss of the true probabilities.
    pub bayes_logloss: f64,
}

/// Counters of the tiers, all tables together.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub struct Tiers {
    #[serde(flatten)]
    counters: table::Counters,
    /// Keys that were staged, those kept out included.
    keys_staged: u64,
    /// Bytes of host RAM that a cached row takes, everything included.
    host_bytes_per_row: f64,
    /// Bytes of GPU memory that rows may take.
    gpu_cache_bytes: u64,
    /// Microseconds that a stage took to be resolved there, moves of rows included; none while no
    /// stage was.
    gpu_stage_us_mean: Option<f64>,
    /// Bytes that the SSD tier wrote to its files, merging and its log included.
    ssd_file_bytes_written: u64,
    /// Bytes that it read from them to merge them.
    ssd_file_bytes_merged: u64,
    /// Bytes written to files over rows' bytes written; none while no row was.
    write_amplification: Option<f64>,
}

impl Report {
    /// Counts a step's pull; epochs come one after the other, from 0.
    pub(crate) fn count_pull(&mut self, epoch: u64, stalled: bool) {
        while self.epochs.len() as u64 <= epoch {
            self.epochs.push(Epoch::default());
        }
        if let Some(last) = self.epochs.last_mut() {
            last.steps += 1;
            last.stalled_pulls += u64::from(stalled);
        }
        self.stalled_pulls += u64::from(stalled);
    }

    /// Takes in what the server says at the end.
    pub(crate) fn set_store(&mut self, store: StoreStatus) {
        let (rows, bytes) = store
            .tables
            .iter()
            .fold((0, 0), |(rows, bytes), t| (rows + t.host.rows, bytes + t.host.bytes));
        let host_bytes_per_row = if rows == 0 { 0.0 } else { bytes as f64 / rows as f64 };
        let counters = store.totals();
        self.tiers = Tiers {
            counters,
            keys_staged: counters.keys_staged(),
            host_bytes_per_row,
            gpu_cache_bytes: store.gpu_cache_bytes,
            gpu_stage_us_mean: (store.gpu_stages > 0)
                .then(|| store.gpu_stages_us as f64 / store.gpu_stages as f64),
            ssd_file_bytes_written: store.ssd_file_bytes_written,
            ssd_file_bytes_merged: store.ssd_file_bytes_merged,
            write_amplification: store.write_amplification(),
        };
        self.store = Some(store);
    }

    /// Step and quality of each test, and of the evaluation at the end where no test was.
    pub(crate) fn tests_and_end(&self) -> impl Iterator<Item = (u64, Quality)> {
        let end = self.quality.map(|quality| (self.steps, quality));
        let tested = self.tests.last().is_some_and(|test| test.step == self.steps);
        let tests = self.tests.iter().map(|test| (test.step, test.quality));
        tests.chain(end.filter(|_| !tested))
    }

    /// Writes the JSON, whole or not at all.
    pub(crate) fn write(&self, path: &Path) -> Result<()> {
        let text = serde_json::to_string_pretty(self)
            .map_err(|error| Error::Input(format!("write report: {error}")))?;
        write_whole(path, "write report", text.as_bytes())
    }

    /// The lines for a person.
    pub(crate) fn lines(&self) -> String {
        let mut text = String::new();
        if self.steps > 0 {
            let _ = writeln!(
                text,
                "trained {} rows in {} steps, {:.1} s: {:.0} samples/s, {} stalled pulls",
                self.samples, self.steps, self.train_s, self.samples_per_s, self.stalled_pulls
            );
        }
        if let Some(q) = self.quality {
            let auc = q.auc.map_or("undefined (one class)".to_owned(), |auc| format!("{auc:.4}"));
            let _ = writeln!(
                text,
                "evaluated {} rows: AUC {auc}, logloss {:.4} (base rate {:.4}: logloss {:.4}), \
                 accuracy {:.4}",
                q.rows, q.logloss, q.base_rate, q.base_logloss, q.accuracy
            );
            if let (Some(entropy), Some(calibration)) = (q.normalised_entropy, q.calibration) {
                let _ = writeln!(
                    text,
                    "normalised entropy {entropy:.4}, calibration {calibration:.4} (predicted over \
                     seen positives)"
                );
            }
        }
        if let Some(bayes) = self.bayes {
            let (auc, logloss) = (bayes.bayes_auc, bayes.bayes_logloss);
            let _ = writeln!(text, "the best possible: AUC {auc:.4}, logloss {logloss:.4}");
        }
        if let Some(store) = &self.store {
            text.push_str(&tier_lines(store));
        }
        if !self.curves.is_empty() {
            let names: Vec<_> = self.curves.iter().map(|name| name.to_string_lossy()).collect();
            let _ = writeln!(text, "curves beside the report: {}", names.join(", "));
        }
        text
    }
}

/// The per-tier table.
fn tier_lines(store: &StoreStatus) -> String {
    let mut text = String::new();
    let sums = store.totals();
    let over_tables =
        |rows: fn(&table::TableStatus) -> u64| -> u64 { store.tables.iter().map(rows).sum() };
    let tiers = [
        ("gpu", over_tables(|t| t.gpu.rows), sums.gpu),
        ("host", over_tables(|t| t.host.rows), sums.host),
        ("ssd", over_tables(|t| t.ssd.rows), sums.ssd),
    ];
    let _ = writeln!(
        text,
        "{} rows in {} tables; host RAM {} of {}",
        over_tables(|t| t.rows),
        store.tables.len(),
        format_bytes(store.host_ram_used_bytes),
        format_bytes(store.host_ram_budget_bytes)
    );
    let _ = writeln!(
        text,
        "{:<6} {:>12} {:>14} {:>14} {:>9} {:>9} {:>12} {:>12}",
        "tier", "rows", "hits", "misses", "hit rate", "of all", "read", "written"
    );
    for (name, rows, tier) in tiers {
        if name == "gpu" && store.gpu_cache_bytes == 0 {
            continue;
        }
        let of = |whole: u64| 100.0 * tier.hits as f64 / whole.max(1) as f64;
        let (rate, overall) = (of(tier.hits + tier.misses), of(sums.keys_staged()));
        let _ = writeln!(
            text,
            "{name:<6} {rows:>12} {:>14} {:>14} {rate:>8.2}% {overall:>8.2}% {:>12} {:>12}",
            tier.hits,
            tier.misses,
            format_bytes(tier.bytes_read),
            format_bytes(tier.bytes_written)
        );
    }
    let _ = writeln!(
        text,
        "first touches {}, re-reads {}, evictions {}, write-backs {}",
        sums.first_touch, sums.ssd_rereads, sums.evictions, sums.writebacks
    );
    if store.gpu_cache_bytes > 0 {
        let mean_us = store.gpu_stages_us / store.gpu_stages.max(1);
        let _ = writeln!(
            text,
            "GPU memory {}: {} rows went up, {} down; a stage there took {mean_us} us",
            format_bytes(store.gpu_cache_bytes),
            sums.promotions,
            sums.demotions
        );
    }
    if sums.not_admitted > 0 || sums.expired > 0 {
        let _ = writeln!(
            text,
            "keys not admitted {}, rows expired {}",
            sums.not_admitted, sums.expired
        );
    }
    if let Some(times) = store.write_amplification() {
        let written = format_bytes(store.ssd_file_bytes_written);
        let _ = writeln!(text, "{written} written to files on SSD: write amplification {times:.2}");
    }
    text
}

/// Writes a file whole or not at all.
pub(crate) fn write_whole(path: &Path, doing: &'static str, bytes: &[u8]) -> Result<()> {
    write_whole_by(path, doing, |partial| {
        std::fs::write(partial, bytes).map_err(Error::file(doing, path))
    })
}

/// Lets `write` write a file under another name beside `path`, then renames it: whole or not at
/// all.
pub(crate) fn write_whole_by<T>(
    path: &Path,
    doing: &'static str,
    write: impl FnOnce(&Path) -> Result<T>,
) -> Result<T> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".partial");
    let partial = path.with_file_name(name);
    let written = write(&partial).and_then(|value| {
        std::fs::File::open(&partial)
            .and_then(|file| file.sync_all())
            .and_then(|()| std::fs::rename(&partial, path))
            .map_err(Error::file(doing, path))?;
        Ok(value)
    });
    if written.is_err() {
        let _ = std::fs::remove_file(&partial); // the first error is the one to tell
    }
    written
}
