//! `peers`: training steps through the embedded store beside PyTorch, with and without FBGEMM's
//! tables, on the same batches, and beside the step's matrix products alone. What PyTorch is given
//! is in `benches/peers/`; nothing of quality is compared here.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use anyhow::{Context, Result, ensure};
use dataset::{Batch, Lookups, ReadOptions, Source, SyntheticSpec};
use rustix::process::{Pid, Signal, kill_process};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::measure::{median, rounds};
use crate::ours::{self, FEATURES, HOST_RAM_BYTES, KAGGLE, LEARNING_RATE, SCALE, Shape, TERABYTE};
use crate::products::Products;
use crate::report::{Outcome, Row, Settings};

const SCRIPT: &str = include_str!("../peers/peer.py");
const THREADS: [usize; 2] = [2, 1];
/// Settings of OpenMP, each in a process of its own.
const OPENMP: [(&str, &[(&str, &str)]); 3] = [
    ("OpenMP as it comes", &[]),
    ("OpenMP bound", &[("OMP_PROC_BIND", "true")]),
    ("OpenMP spinning and bound", &[("OMP_WAIT_POLICY", "ACTIVE"), ("OMP_PROC_BIND", "true")]),
];
/// Steps before a figure is taken.
const WARM_STEPS: u64 = 4;
/// Of the matrix products' speed.
const PRODUCTS_SHARE: f64 = 0.85;

/// A case of the table.
struct Case {
    id: &'static str,
    /// The same, beside the products.
    products_id: &'static str,
    shape: Shape,
    /// Times the best of the peers that are asked.
    goal: f64,
    /// Batches, each of which is a step of every figure, ours and theirs.
    steps: u64,
    /// Ids of each feature in a row.
    lookups: Lookups,
}

const CASES: [Case; 5] = [
    Case {
        id: "kaggle_2048",
        products_id: "kaggle_2048.products",
        shape: KAGGLE,
        goal: 1.6,
        steps: 64,
        lookups: Lookups::One,
    },
    Case {
        id: "terabyte_2048",
        products_id: "terabyte_2048.products",
        shape: TERABYTE,
        goal: 1.6,
        steps: 32,
        lookups: Lookups::One,
    },
    Case {
        id: "kaggle_128",
        products_id: "kaggle_128.products",
        shape: Shape { batch: 128, ..KAGGLE },
        goal: 2.5,
        steps: 512,
        lookups: Lookups::One,
    },
    Case {
        id: "kaggle_rowwise",
        products_id: "kaggle_rowwise.products",
        shape: Shape { optimizer: "rwsadagrad", ..KAGGLE },
        goal: 1.6,
        steps: 64,
        lookups: Lookups::One,
    },
    Case {
        id: "multi_hot",
        products_id: "multi_hot.products",
        shape: Shape { name: "Terabyte shape, MLPerf's multi-hot sizes", ..TERABYTE },
        goal: 2.0,
        steps: 32,
        lookups: Lookups::Mlperf,
    },
];

pub(crate) fn run(settings: &Settings) -> Result<Outcome> {
    let python = settings.python.as_deref().context("--python names a python3 with torch")?;
    let mut outcome = Outcome::default();
    let all = settings.only.is_empty();
    for case in CASES.iter().filter(|case| all || case.id == settings.only) {
        case.run(settings, python, &mut outcome)?;
    }
    let ids: Vec<&str> = CASES.iter().map(|case| case.id).collect();
    ensure!(!outcome.rows.is_empty(), "--only {}: expected one of {ids:?}", settings.only);
    outcome.notes.push(format!(
        "samples a second; tables at scale {SCALE} of Criteo Kaggle's, all in RAM on every side; \
         every row made before the first figure. Ours reads its batches from the binary cache, \
         stages, pulls and pushes through the embedded store; with 1 thread its whole process is \
         held on one core. PyTorch has its batches as tensors in memory. The products are those of \
         the MLPs, forward and backward, by the `gemm` crate or by our kernels, whichever is \
         faster, on as many threads, which never wait for each other."
    ));
    Ok(outcome)
}

impl Case {
    fn run(&self, settings: &Settings, python: &Path, outcome: &mut Outcome) -> Result<()> {
        let dir = TempDir::new_in(&settings.scratch).context("make a directory")?;
        let steps = if settings.quick { 2 } else { self.steps };
        let (rounds, scale) = match settings.quick {
            true => (1, "0.001"),
            false => (rounds(false), SCALE),
        };
        let rows = steps * self.shape.batch as u64;
        let data = format!("scale={scale},rows={rows},seed=1,indices={}", self.lookups);
        let cache = dir.path().join("batches.cache");
        ours::write_batches(&format!("synthetic:{data}"), self.shape.batch, &cache)?;
        let plain = self.hand_over(&data.parse()?, &cache, dir.path())?;
        let (store, session) = ours::open(&dir.path().join("ps"), HOST_RAM_BYTES)?;
        let data = format!("cache:{}", cache.display());
        let train = |threads| -> Result<f64> {
            Ok(ours::train(&session, &self.shape, &data, (threads, steps, 1), &[])?.samples_per_s)
        };
        train(THREADS[0])?; // first touches
        let mut peers = Peers::start(python, &plain)?;
        let torch = peers.torch.clone();
        let best = peers.qualify(self.id, steps, outcome)?;
        let mlps = self.shape.mlps()?;
        let mut products: Vec<Products> =
            THREADS.map(|threads| Products::new(&mlps, self.shape.batch, threads)).into();
        let mut figures = [const { [const { Vec::new() }; 3] }; THREADS.len()];
        for _ in 0..rounds {
            for (t, threads) in THREADS.into_iter().enumerate() {
                let of_ours = on_cores(threads, || train(threads))?;
                let of_peers = peers.measure(best[t], threads, steps)?;
                let of_products = products[t].samples_a_second(steps as usize)?;
                let measured = [of_ours, of_peers, of_products];
                figures[t].iter_mut().zip(measured).for_each(|(all, figure)| all.push(figure));
            }
        }
        for ((threads, figures), best) in THREADS.into_iter().zip(figures).zip(best) {
            let [of_ours, of_peers, of_products] = figures.map(median);
            let name = peers.name(best);
            let Shape { name: shape, batch, optimizer, .. } = self.shape;
            let case = |beside: &str| {
                format!("{shape}, batch {batch}, {optimizer}, {threads} threads, beside {beside}")
            };
            let versus = format!("PyTorch {torch}: {name}");
            let (unit, id) = ("samples/s", self.id);
            outcome.add([
                Row::at_least(id, case(&versus), unit, (of_ours, of_peers), self.goal),
                Row::at_least(
                    self.products_id,
                    case("the matrix products alone"),
                    unit,
                    (of_ours, of_products),
                    PRODUCTS_SHARE,
                ),
            ]);
        }
        drop(session);
        store.close().context("close the store")
    }

    /// Writes the batches of a cache as plain arrays for `peer.py`, and what they are.
    fn hand_over(&self, spec: &SyntheticSpec, cache: &Path, dir: &Path) -> Result<Plain> {
        let rows = self.shape.batch;
        let source = Source::Cache { path: cache.to_owned() };
        let dense_transform = dataset::cache_card(cache)?.dense_transform;
        let options = ReadOptions { dense_transform, ..ReadOptions::new(rows) };
        let mut reader = dataset::open(&source, &options)?;
        let (mut batch, mut batches) = (Batch::new(), 0_u64);
        let (mut labels, mut dense) = (Vec::new(), Vec::new());
        let mut keys = vec![Vec::new(); FEATURES];
        let hots: Vec<u32> = (0..FEATURES).filter_map(|f| self.lookups.fixed(f)).collect();
        ensure!(hots.len() == FEATURES, "{}: not the same for every row", self.lookups);
        while reader.next_batch(&mut batch)? {
            ensure!(batch.rows() == rows, "a batch of {} rows, expected {rows}", batch.rows());
            labels.extend_from_slice(&batch.labels);
            dense.extend_from_slice(&batch.dense);
            for ((all, feature), &hot) in keys.iter_mut().zip(&batch.features).zip(&hots) {
                let even = |row: &[u32]| row[1] - row[0] == hot;
                ensure!(feature.offsets.windows(2).all(even), "a sample without its {hot} keys");
                all.extend(feature.values.iter().map(|key| key.0));
            }
            batches += 1;
        }
        let table_rows = spec.table_rows();
        for (keys, &rows) in keys.iter().zip(&table_rows) {
            ensure!(keys.iter().all(|&key| key < rows), "an id beyond its table's {rows} rows");
        }
        let plain = Plain {
            batches: dir.join("batches.bin"),
            model: dir.join("model.json"),
            script: dir.join("peer.py"),
        };
        let mut file = BufWriter::new(File::create(&plain.batches).context("write batches")?);
        file.write_all(bytemuck::cast_slice(&labels))?;
        file.write_all(bytemuck::cast_slice(&dense))?;
        for keys in &keys {
            file.write_all(bytemuck::cast_slice(keys))?;
        }
        file.flush()?;
        let [bottom, top] = self.shape.mlps()?;
        let model = json!({
            "batch": rows, "batches": batches, "dim": self.shape.dim, "rows": table_rows,
            "hots": hots, "mlp_bottom": bottom, "mlp_top": &top[1..],
            "optimizer": if self.shape.optimizer == "sgd" { "sgd" } else { "rowwise_adagrad" },
            "learning_rate": LEARNING_RATE.parse::<f64>()?,
        });
        fs::write(&plain.model, model.to_string()).context("write the model's shapes")?;
        fs::write(&plain.script, SCRIPT).context("write the script")?;
        Ok(plain)
    }
}

/// What is handed to Python.
struct Plain {
    batches: PathBuf,
    model: PathBuf,
    script: PathBuf,
}

/// A process for each setting of OpenMP. All but the one that measures are stopped (SIGSTOP), for
/// threads that spin would take our cores.
struct Peers {
    processes: Vec<Peer>,
    variants: Vec<String>,
    torch: String,
}

/// A setting and a way of training, by number.
#[derive(Debug, Clone, Copy)]
struct Way {
    setting: usize,
    variant: usize,
}

impl Peers {
    fn start(python: &Path, plain: &Plain) -> Result<Peers> {
        let (mut processes, mut variants, mut torch) = (Vec::new(), Vec::new(), String::new());
        for (_, environment) in OPENMP {
            let mut peer = Peer::start(python, plain, environment)?;
            let hello = peer.answer()?;
            peer.signal(Signal::STOP)?;
            processes.push(peer);
            let there = hello["variants"].as_array().context("peer.py tells no variants")?;
            variants = there.iter().filter_map(Value::as_str).map(str::to_owned).collect();
            torch = hello["torch"].as_str().context("peer.py tells no version")?.to_owned();
        }
        ensure!(!variants.is_empty(), "peer.py has no way of training");
        Ok(Peers { processes, variants, torch })
    }

    /// Tries every way with every number of threads and returns the best for each number.
    fn qualify(&mut self, id: &str, steps: u64, outcome: &mut Outcome) -> Result<Vec<Way>> {
        let mut tried = format!("{id}: PyTorch {} in the heats, samples/s on", self.torch);
        let mut best = Vec::new();
        for threads in THREADS {
            write!(tried, " {threads} threads:")?;
            let mut fastest: Option<(f64, Way)> = None;
            for setting in 0..OPENMP.len() {
                for variant in 0..self.variants.len() {
                    let way = Way { setting, variant };
                    let rate = self.measure(way, threads, steps.div_ceil(2))?;
                    write!(tried, " {} {rate:.0};", self.name(way))?;
                    if fastest.is_none_or(|(best, _)| rate > best) {
                        fastest = Some((rate, way));
                    }
                }
            }
            best.push(fastest.context("no way to train")?.1);
        }
        eprintln!("bench: {tried}");
        outcome.notes.push(tried);
        Ok(best)
    }

    /// Samples a second.
    fn measure(&mut self, way: Way, threads: usize, steps: u64) -> Result<f64> {
        let peer = &mut self.processes[way.setting];
        peer.signal(Signal::CONT)?;
        let request = json!({
            "variant": self.variants[way.variant], "threads": threads, "steps": steps,
            "warm": WARM_STEPS,
        });
        writeln!(peer.requests, "{request}").context("ask peer.py")?;
        let answer = peer.answer()?;
        peer.signal(Signal::STOP)?;
        answer["samples_per_s"].as_f64().context("peer.py tells no rate")
    }

    fn name(&self, way: Way) -> String {
        format!("{}, {}", self.variants[way.variant], OPENMP[way.setting].0)
    }
}

/// A running `peer.py`; it is killed when this is dropped.
struct Peer {
    child: Child,
    requests: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Peer {
    fn start(python: &Path, plain: &Plain, environment: &[(&str, &str)]) -> Result<Peer> {
        let mut command = Command::new(python);
        command.arg(&plain.script).arg(&plain.batches).arg(&plain.model);
        command.envs(environment.iter().copied()).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().with_context(|| format!("run {}", python.display()))?;
        let requests = child.stdin.take().context("write to peer.py")?;
        let answers = BufReader::new(child.stdout.take().context("read from peer.py")?);
        Ok(Peer { child, requests, answers })
    }

    fn answer(&mut self) -> Result<Value> {
        let mut line = String::new();
        self.answers.read_line(&mut line).context("read from peer.py")?;
        ensure!(!line.is_empty(), "peer.py ended; what it said is above");
        serde_json::from_str(&line).with_context(|| format!("peer.py said {line}"))
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        let id = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw);
        kill_process(id.context("a process id out of range")?, signal).context("signal peer.py")
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        // an error means that it is gone already
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs `work` with every thread of this process held on one core if `threads` is 1, and wherever
/// they were before otherwise. PyTorch with one thread uses no other core either.
fn on_cores<T>(threads: usize, work: impl FnOnce() -> Result<T>) -> Result<T> {
    if threads > 1 {
        return work();
    }
    let before = sched_getaffinity(None).context("ask which cores are ours")?;
    let first = (0..CpuSet::MAX_CPU).find(|&core| before.is_set(core)).context("no core")?;
    let mut one = CpuSet::new();
    one.set(first);
    hold(&one)?;
    let done = work();
    hold(&before)?;
    done
}

/// Holds every thread that there is now on `cores`; threads that they start inherit it.
fn hold(cores: &CpuSet) -> Result<()> {
    for task in fs::read_dir("/proc/self/task").context("list threads")? {
        let name = task?.file_name();
        let id = name.to_str().and_then(|id| id.parse().ok()).and_then(Pid::from_raw);
        // a thread that ended since it was listed needs no core
        let _ = sched_setaffinity(Some(id.context("a thread's id")?), cores);
    }
    Ok(())
}
