//! `bench NAME --json FILE`: measures the store beside the limits of the machine that it runs on
//! and writes what it found. `cargo xtask bench` builds and starts it, adds machine and commit, and
//! shows the table. It keeps no history.

mod device;
mod hit_rate;
mod limits;
mod measure;
mod memory;
mod memory_map;
mod ours;
mod parse;
mod peers;
mod pipeline;
mod plot;
mod policies;
mod products;
mod report;
mod rocks;
mod roofline;
mod ssd;
mod standalone;
mod steps;
mod structures;
mod train;
mod workload;

use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use clap::{Parser, ValueEnum};

use crate::report::{Outcome, Settings};

/// Measures the store beside the limits of the machine.
#[derive(Debug, Parser)]
#[command(name = "bench")]
struct Cli {
    /// Which
    name: Bench,
    /// Write the rows here
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Draw plots into this folder
    #[arg(long, value_name = "DIR")]
    plots: Option<PathBuf>,
    /// Put working files here; the device under it is the one that is measured
    #[arg(long, value_name = "DIR", default_value = "runs/bench")]
    scratch: PathBuf,
    /// The dlrm-worker that `train` runs
    #[arg(long, value_name = "FILE")]
    worker: Option<PathBuf>,
    /// The embedding-ps that `standalone` trains through
    #[arg(long, value_name = "FILE")]
    server: Option<PathBuf>,
    /// The python3 with torch that `peers` runs, and with numpy for `parse --dlrm`
    #[arg(long, value_name = "FILE")]
    python: Option<PathBuf>,
    /// A checkout of facebookresearch/dlrm: `parse` measures its preprocessing too
    #[arg(long, value_name = "DIR", requires = "python")]
    dlrm: Option<PathBuf>,
    /// Of `roofline`, `structures`, `hit-rate`, `ssd` and `rocksdb`, only the cases whose names
    /// hold this: "dim 16, uniform"; of `train` and `peers`, the cases of this id
    #[arg(long, value_name = "TEXT")]
    only: Option<String>,
    /// Tiny sizes: whether it runs, not how fast
    #[arg(long)]
    quick: bool,
}

/// A table of benches/README.md.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Bench {
    /// Pulls, pushes and stages in RAM beside flat arrays, and the device's reads
    Roofline,
    /// The same work through DashMap, RwLock<HashMap> + lru, and ours
    Structures,
    /// Policies on traces and generated streams
    HitRate,
    /// Misses fetched from SSD beside the device's own reads
    Ssd,
    /// Settings of RocksDB one by one beside the store's
    Rocksdb,
    /// Training with tables larger than RAM beside all in RAM
    Train,
    /// Bytes beside a row, and whether all rows stay that fit
    Memory,
    /// Criteo's text to unique keys on one core
    Parse,
    /// Training steps beside PyTorch's and beside the matrix products alone
    Peers,
    /// How evenly steps come
    Steps,
    /// Training through embedding-ps beside the store in the same process
    Standalone,
    /// Training from text with tables beyond RAM beside compute alone
    Pipeline,
}

fn main() -> ExitCode {
    match run(&Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: &Cli) -> Result<()> {
    let make =
        |dir: &PathBuf| fs::create_dir_all(dir).with_context(|| format!("make {}", dir.display()));
    make(&cli.scratch)?;
    let settings = Settings {
        quick: cli.quick,
        scratch: cli.scratch.clone(),
        worker: cli.worker.clone(),
        server: cli.server.clone(),
        python: cli.python.clone(),
        dlrm: cli.dlrm.clone(),
        only: cli.only.clone().unwrap_or_default(),
    };
    let only = &settings.only;
    ensure!(only.is_empty() || cli.name.takes_only(), "this benchmark has no --only: leave it out");
    let outcome = cli.name.run(&settings)?;
    ensure!(!outcome.rows.is_empty(), "--only {only:?}: no case has it in its name");
    if let Some(dir) = &cli.plots {
        make(dir)?;
        for plot in &outcome.plots {
            plot::draw(plot, &dir.join(&plot.name).with_extension("svg"))?;
        }
    }
    let text = serde_json::to_string_pretty(&outcome.value())? + "\n";
    match &cli.json {
        Some(path) => fs::write(path, text).with_context(|| format!("write {}", path.display())),
        None => {
            eprint!("{text}");
            Ok(())
        }
    }
}

impl Bench {
    fn run(self, settings: &Settings) -> Result<Outcome> {
        match self {
            Bench::Roofline => roofline::run(settings),
            Bench::Structures => structures::run(settings),
            Bench::HitRate => hit_rate::run(settings),
            Bench::Ssd => ssd::run(settings),
            Bench::Rocksdb => rocks::run(settings),
            Bench::Train => train::run(settings),
            Bench::Memory => memory::run(settings),
            Bench::Parse => parse::run(settings),
            Bench::Peers => peers::run(settings),
            Bench::Steps => steps::run(settings),
            Bench::Standalone => standalone::run(settings),
            Bench::Pipeline => pipeline::run(settings),
        }
    }

    /// Whether it has cases that can be run alone.
    fn takes_only(self) -> bool {
        match self {
            Bench::Roofline
            | Bench::Structures
            | Bench::HitRate
            | Bench::Ssd
            | Bench::Rocksdb
            | Bench::Train
            | Bench::Peers => true,
            Bench::Memory | Bench::Parse | Bench::Steps | Bench::Standalone | Bench::Pipeline => {
                false
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs a benchmark at its tiny size, holds its rows to their form, and returns their ids.
    fn quick(bench: Bench, worker: Option<PathBuf>) -> Vec<String> {
        quick_with(bench, |cli| cli.worker = worker)
    }

    fn quick_with(bench: Bench, programs: impl FnOnce(&mut Cli)) -> Vec<String> {
        // on a device: a folder in memory can't be opened past the page cache
        let scratch = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        let mut cli = Cli {
            name: bench,
            json: Some(scratch.path().join("rows.json")),
            plots: Some(scratch.path().join("plots")),
            scratch: scratch.path().to_owned(),
            worker: None,
            server: None,
            python: None,
            dlrm: None,
            only: None,
            quick: true,
        };
        programs(&mut cli);
        run(&cli).unwrap();
        let text = fs::read_to_string(cli.json.unwrap()).unwrap();
        let found: serde_json::Value = serde_json::from_str(&text).unwrap();
        let rows = found["rows"].as_array().unwrap();
        for row in rows {
            assert_eq!(row.as_object().unwrap().len(), 8, "{row}");
            let (ours, limit) = (row["ours"].as_f64().unwrap(), row["limit"].as_f64().unwrap());
            // a tiny table stays in caches, so that the device may have nothing to do
            assert!(ours.is_finite() && ours >= 0.0 && limit.is_finite() && limit >= 0.0, "{row}");
            assert!(row["case"].as_str().is_some_and(|case| !case.is_empty()), "{row}");
            assert!(row["goal"].is_string() && row["holds"].is_boolean(), "{row}");
        }
        let mut ids: Vec<String> =
            rows.iter().map(|row| row["id"].as_str().unwrap().to_owned()).collect();
        ids.dedup();
        ids
    }

    fn runs(bench: Bench, wanted: &[&str]) {
        let ids = quick(bench, None);
        for id in wanted {
            assert!(ids.iter().any(|found| found == id), "{id} is not in {ids:?}");
        }
    }

    #[test]
    fn roofline_runs() {
        runs(
            Bench::Roofline,
            &["staged_pull", "push_rowwise_adagrad", "stage_hits", "device_random_reads"],
        );
    }

    #[test]
    fn structures_runs() {
        runs(Bench::Structures, &["vs_dashmap", "vs_lru"]);
    }

    #[test]
    fn ssd_runs() {
        runs(Bench::Ssd, &["ssd_fetch", "ssd_write_amplification"]);
    }

    #[test]
    fn rocksdb_runs() {
        let wanted =
            ["rocksdb_load", "rocksdb_overwrite", "rocksdb_read_16", "rocksdb_reads_a_row"];
        runs(Bench::Rocksdb, &wanted);
    }

    #[test]
    fn memory_runs() {
        runs(Bench::Memory, &["ram_per_row", "full_capacity"]);
    }

    #[test]
    fn parse_runs() {
        runs(Bench::Parse, &["tsv_fields", "tsv_unique", "tsv_parse"]);
    }

    #[test]
    fn steps_runs() {
        runs(Bench::Steps, &["step_spread"]);
    }

    #[test]
    fn pipeline_runs() {
        runs(Bench::Pipeline, &["pipeline", "pipeline.cache"]);
    }

    #[test]
    fn hit_rate_runs() {
        let wanted = ["rereads_vs_min", "rereads_vs_online", "online_policy"];
        runs(Bench::HitRate, &wanted);
    }

    #[test]
    fn train_runs() {
        // cargo builds the worker beside this test whenever it tests the whole workspace
        let tests = std::env::current_exe().unwrap();
        let worker = tests.ancestors().nth(2).unwrap().join("dlrm-worker");
        assert!(worker.exists(), "{} is not built: test with --workspace", worker.display());
        let ids = quick(Bench::Train, Some(worker));
        assert_eq!(ids, ["train_20x", "train_100x", "stalled_pulls"]);
    }

    #[test]
    fn cases_that_nothing_is_called_like_are_refused() {
        let scratch = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        let refused = |name: &str| {
            let mut words = vec!["bench", name, "--quick", "--only", "no such case", "--scratch"];
            words.push(scratch.path().to_str().unwrap());
            run(&Cli::parse_from(words)).unwrap_err().to_string()
        };
        for name in ["roofline", "structures", "hit-rate", "ssd", "rocksdb"] {
            let error = refused(name);
            assert!(error.contains("\"no such case\""), "{name}: {error}");
        }
        for name in ["memory", "parse", "steps", "standalone", "pipeline"] {
            let error = refused(name);
            assert!(error.contains("no --only"), "{name}: {error}");
        }
    }

    #[test]
    #[ignore = "needs EMBEDDING_PS_PYTHON"]
    fn peers_runs() {
        let python = std::env::var_os("EMBEDDING_PS_PYTHON").unwrap();
        let ids = quick_with(Bench::Peers, |cli| cli.python = Some(python.into()));
        assert_eq!(ids.len(), 10, "five cases, each beside its products: {ids:?}");
    }

    #[test]
    fn train_says_what_it_lacks() {
        let scratch = tempfile::tempdir().unwrap();
        let scratch = scratch.path().to_owned();
        let settings = Settings {
            quick: true,
            scratch,
            worker: None,
            server: None,
            python: None,
            dlrm: None,
            only: String::new(),
        };
        let error = train::run(&settings).unwrap_err().to_string();
        assert!(error.contains("--worker"), "{error}");
        let error = peers::run(&settings).unwrap_err().to_string();
        assert!(error.contains("--python"), "{error}");
    }
}
