//! `roofline`: staged pulls, pushes and stages of rows in RAM beside what the memory of this
//! machine does on flat arrays, and the device's random reads. Nothing here comes from SSD.

use std::cell::RefCell;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use tiers::Staged;

use crate::device::Device;
use crate::limits::{self, PREFETCHES, Prefetch};
use crate::measure::{interleaved_after, median, rate, rounds};
use crate::memory_map::Floats;
use crate::report::{Axis, Outcome, Plot, Row, Series, Settings};
use crate::workload::{Batch, Filled, Law, Shape, gradients, touched};

const DIMS: [u32; 3] = [16, 64, 128];
const THREADS: [usize; 2] = [1, 2];
/// Passes of each measure in a round: one takes some 20 ms, in which a machine's memory may be half
/// as fast as in the next.
const PASSES: usize = 5;
/// Floats of other memory that is read between two measures: 512 MiB.
const OTHER_FLOATS: usize = 1 << 27;
const LINE_FLOATS: usize = 16;
/// Numbers of reads under way at once at which the device is asked.
const DEPTHS: [usize; 6] = [1, 2, 4, 8, 16, 32];

pub(crate) fn run(settings: &Settings) -> Result<Outcome> {
    let mut outcome = Outcome::default();
    let wanted = |case: &str| case.contains(&settings.only);
    if settings.only.is_empty() {
        outcome.add([stream_copy(settings)?]);
    }
    for dim in DIMS {
        let all = Law::ALL.iter().flat_map(|&law| THREADS.map(|threads| (law, threads)));
        let cases: Vec<(Law, usize)> =
            all.filter(|&(law, threads)| wanted(&case_name(dim, law, threads))).collect();
        if cases.is_empty() {
            continue;
        }
        let bench = Bench::new(settings, dim)?;
        for (law, threads) in cases {
            outcome.add(bench.case(law, threads)?);
        }
    }
    if settings.only.is_empty() {
        let (rows, plot) = device_reads(settings)?;
        outcome.add(rows);
        outcome.plots.push(plot);
    }
    outcome.plots.extend(plots(&outcome.rows));
    outcome.notes.push(
        "Limits: flat arrays of the same bytes in huge pages (as the system grants them), the same \
         rows of the same batches, unchecked for keys; the best of several prefetch distances and \
         hints. The limit of a push reads each gradient and adds it to its row."
            .to_owned(),
    );
    outcome.notes.push("Device reads: O_DIRECT, which keeps the page cache out.".to_owned());
    Ok(outcome)
}

fn case_name(dim: u32, law: Law, threads: usize) -> String {
    let plural = if threads == 1 { "" } else { "s" };
    format!("dim {dim}, {}, {threads} thread{plural}", law.name())
}

/// One dimension: the flat array and the store that holds the same rows.
struct Bench {
    shape: Shape,
    dim: usize,
    /// Key batches of each thread.
    batches: usize,
    rounds: usize,
    rows: RefCell<Floats>,   // [rows, dim]
    states: RefCell<Floats>, // [rows]
    others: Floats,          // more than caches hold
    filled: Filled,
}

/// The rows of one thread in the flat arrays: no two threads write the same.
struct Flat<'a> {
    rows: &'a mut [f32],
    states: &'a mut [f32],
    work: &'a Work,
}

/// What one thread does again and again.
struct Work {
    dim: usize,
    batches: Vec<Batch>,
    /// The batches' rows in a thread's share of the flat arrays.
    share_indices: Vec<Vec<u32>>,
    gradients: Vec<f32>, // [rows of the largest batch, dim]
}

/// The best way to prefetch for each kernel.
struct Tuned {
    gather: Prefetch,
    add: Prefetch,
    adagrad: Prefetch,
}

impl Bench {
    fn new(settings: &Settings, dim: u32) -> Result<Bench> {
        // at full size the embeddings of a dimension take 1.6 GiB: far more than any cache
        let full = Shape { table_rows: (1 << 24) / u64::from(dim), draws: 2048 };
        let quick = Shape { table_rows: 1 << 8, draws: 64 };
        let (shape, batches) = if settings.quick { (quick, 2) } else { (full, 32) };
        let rows = shape.rows() as usize;
        let floats = dim as usize * rows;
        Ok(Bench {
            shape,
            dim: dim as usize,
            batches,
            rounds: rounds(settings.quick),
            rows: RefCell::new(Floats::filled(floats, |i| (i % 1000) as f32 * 1e-3)?),
            states: RefCell::new(Floats::filled(rows, |_| 0.0)?),
            others: Floats::filled(if settings.quick { 1 << 10 } else { OTHER_FLOATS }, |_| 1.0)?,
            filled: shape.filled_store(&settings.scratch, dim)?,
        })
    }

    fn case(&self, law: Law, threads: usize) -> Result<Vec<Row>> {
        let works: Vec<Work> =
            (0..threads).map(|thread| self.work(law, thread, threads)).collect::<Result<_>>()?;
        let tuned = self.tune(&works[0])?;
        let staged: RefCell<Vec<Vec<Staged>>> = RefCell::new(Vec::new());
        let [gather, stage, pull, add, push, adagrad, unpin] = interleaved_after(
            || self.clean_caches(),
            self.rounds * PASSES,
            [
                &mut || self.gather(&works, tuned.gather),
                &mut || self.stage(&works, &mut staged.borrow_mut()),
                &mut || self.pull(&works, &staged.borrow()),
                &mut || self.flat(&works, |flat| add_all(flat, tuned.add)),
                &mut || self.push(&works, &staged.borrow()),
                &mut || self.flat(&works, |flat| adagrad_all(flat, tuned.adagrad)),
                &mut || unpin(&mut staged.borrow_mut()),
            ],
        )?;
        let case = case_name(self.dim as u32, law, threads);
        let m = |ours: f64, limit: f64| (ours / 1e6, limit / 1e6);
        let unit = "M rows/s";
        let mut rows = vec![
            Row::at_least("staged_pull", case.clone(), unit, m(pull, gather), 0.80),
            Row::at_least("push_rowwise_adagrad", case.clone(), unit, m(push, add), 0.60),
            Row::shown("push_vs_flat_adagrad", case.clone(), unit, m(push, adagrad)),
        ];
        let both = 1.0 / (1.0 / stage + 1.0 / unpin);
        if self.dim == 16 {
            rows.push(Row::at_least("stage_hits", case.clone(), unit, m(stage, gather), 0.50));
            rows.push(Row::shown("stage_and_unpin", case, unit, m(both, gather)));
        }
        Ok(rows)
    }

    /// Has the caches write down what a measure changed, so that the next doesn't pay for it.
    fn clean_caches(&self) {
        let lines = self.others.as_slice().iter().step_by(LINE_FLOATS);
        std::hint::black_box(lines.sum::<f32>());
    }

    fn work(&self, law: Law, thread: usize, threads: usize) -> Result<Work> {
        let seed = 100 + thread as u64;
        let batches = self.shape.batches(law, seed, self.batches)?;
        let share = (self.shape.rows() as usize / threads) as u32;
        let indices = |batch: &Batch| batch.indices.iter().map(|index| index % share).collect();
        let longest = batches.iter().map(|batch| batch.indices.len()).max().unwrap_or(0);
        Ok(Work {
            dim: self.dim,
            share_indices: batches.iter().map(indices).collect(),
            gradients: gradients(longest * self.dim),
            batches,
        })
    }

    /// Tries every way to prefetch and keeps the best of each kernel. What serves one thread serves
    /// two.
    fn tune(&self, work: &Work) -> Result<Tuned> {
        let tries = if self.rounds == 1 { 1 } else { 3 };
        let best = |figure: &dyn Fn(Prefetch) -> Result<f64>| -> Result<Prefetch> {
            let mut found = (0.0, PREFETCHES[0]);
            for prefetch in PREFETCHES {
                let figures: Result<Vec<f64>> = (0..tries).map(|_| figure(prefetch)).collect();
                let figure = median(figures?);
                if figure > found.0 {
                    found = (figure, prefetch);
                }
            }
            Ok(found.1)
        };
        let one = std::slice::from_ref(work);
        Ok(Tuned {
            gather: best(&|prefetch| self.gather(one, prefetch))?,
            add: best(&|prefetch| self.flat(one, |flat| add_all(flat, prefetch)))?,
            adagrad: best(&|prefetch| self.flat(one, |flat| adagrad_all(flat, prefetch)))?,
        })
    }

    fn gather(&self, works: &[Work], prefetch: Prefetch) -> Result<f64> {
        let rows = self.rows.borrow();
        let rows = rows.as_slice();
        let outs = works.iter().map(|work| (work, touched(work.gradients.len())));
        rate(outs, |(work, mut out)| {
            let mut count = 0;
            for batch in &work.batches {
                let out = &mut out[..batch.indices.len() * work.dim];
                limits::gather(rows, work.dim, &batch.indices, out, prefetch);
                count += batch.indices.len();
            }
            Ok(count)
        })
    }

    /// Runs `kernel` on the flat arrays, each thread on a share of its own.
    fn flat(&self, works: &[Work], kernel: impl Fn(Flat<'_>) -> usize + Sync) -> Result<f64> {
        let (mut rows, mut states) = (self.rows.borrow_mut(), self.states.borrow_mut());
        let share = states.as_slice().len() / works.len();
        let rows = rows.as_mut_slice().chunks_mut(share * self.dim);
        let states = states.as_mut_slice().chunks_mut(share);
        let flats = rows.zip(states).zip(works);
        let flats = flats.map(|((rows, states), work)| Flat { rows, states, work });
        rate(flats, |flat| Ok(kernel(flat)))
    }

    fn stage(&self, works: &[Work], staged: &mut Vec<Vec<Staged>>) -> Result<f64> {
        *staged = works.iter().map(|work| Vec::with_capacity(work.batches.len())).collect();
        let store = &self.filled.store;
        rate(works.iter().zip(staged), |(work, staged)| {
            for batch in &work.batches {
                staged.push(store.stage(&batch.keys).context("stage")?);
            }
            Ok(staged.iter().map(Staged::rows).sum())
        })
    }

    fn pull(&self, works: &[Work], staged: &[Vec<Staged>]) -> Result<f64> {
        let outs = works.iter().map(|work| touched(work.gradients.len()));
        let store = &self.filled.store;
        rate(staged.iter().zip(outs), |(staged, mut out)| {
            for step in staged {
                let out = &mut out[..step.rows_floats()];
                store.pull(step, out).context("pull")?;
            }
            Ok(staged.iter().map(Staged::rows).sum())
        })
    }

    fn push(&self, works: &[Work], staged: &[Vec<Staged>]) -> Result<f64> {
        let store = &self.filled.store;
        rate(works.iter().zip(staged), |(work, staged)| {
            for step in staged {
                let gradients = &work.gradients[..step.rows_floats()];
                store.push(step, gradients, 0.01).context("push")?;
            }
            Ok(staged.iter().map(Staged::rows).sum())
        })
    }
}

fn add_all(flat: Flat<'_>, prefetch: Prefetch) -> usize {
    let dim = flat.work.dim;
    for indices in &flat.work.share_indices {
        let gradients = &flat.work.gradients[..indices.len() * dim];
        limits::add(flat.rows, dim, indices, gradients, prefetch);
    }
    flat.work.share_indices.iter().map(Vec::len).sum()
}

fn adagrad_all(flat: Flat<'_>, prefetch: Prefetch) -> usize {
    let dim = flat.work.dim;
    for indices in &flat.work.share_indices {
        let gradients = &flat.work.gradients[..indices.len() * dim];
        limits::rowwise_adagrad(flat.rows, flat.states, dim, indices, gradients, prefetch);
    }
    flat.work.share_indices.iter().map(Vec::len).sum()
}

fn unpin(staged: &mut Vec<Vec<Staged>>) -> Result<f64> {
    rate(std::mem::take(staged), |staged| {
        let rows = staged.iter().map(Staged::rows).sum();
        drop(staged);
        Ok(rows)
    })
}

/// The gather limit's own bound: bytes a second of copying in order.
fn stream_copy(settings: &Settings) -> Result<Row> {
    let floats = if settings.quick { 1 << 16 } else { 1 << 27 };
    let source = Floats::filled(floats, |i| i as f32)?;
    let mut target = Floats::filled(floats, |_| 0.0)?;
    let bytes = (floats * size_of::<f32>()) as f64;
    let mut copies = Vec::new();
    for _ in 0..rounds(settings.quick) {
        let started = Instant::now();
        limits::stream_copy(source.as_slice(), target.as_mut_slice());
        copies.push(bytes / started.elapsed().as_secs_f64() / 1e9);
    }
    let indices: Vec<u32> = (0..(floats / 128) as u32).collect();
    let mut gathers = Vec::new();
    for _ in 0..rounds(settings.quick) {
        let started = Instant::now();
        limits::gather(source.as_slice(), 128, &indices, target.as_mut_slice(), PREFETCHES[2]);
        gathers.push(bytes / started.elapsed().as_secs_f64() / 1e9);
    }
    let case = "the gather kernel on rows in order beside a stream copy, 1 thread".to_owned();
    Ok(Row::shown("stream_copy", case, "GB/s", (median(gathers), median(copies))))
}

fn device_reads(settings: &Settings) -> Result<(Vec<Row>, Plot)> {
    let (bytes, time) = if settings.quick {
        (8 << 20, Duration::from_millis(20))
    } else {
        (4 << 30, Duration::from_secs(1))
    };
    let device = Device::create(&settings.scratch, bytes)?;
    let mut points = Vec::new();
    for threads in DEPTHS {
        let mut figures = Vec::new();
        for round in 0..rounds(settings.quick) {
            figures.push(device.random_reads(threads, round as u64, time)?);
        }
        points.push((threads as f64, median(figures)));
    }
    let best = points.iter().fold(0.0_f64, |best, point| best.max(point.1));
    let row = |&(threads, figure): &(f64, f64)| {
        let case = format!("4 KiB O_DIRECT, {threads} reads under way, of the best depth");
        Row::shown("device_random_reads", case, "reads/s", (figure, best))
    };
    let plot = Plot {
        name: "roofline_device".to_owned(),
        title: "4 KiB random reads of the device, O_DIRECT".to_owned(),
        x: Axis { label: "reads under way".to_owned(), log: true },
        y: Axis { label: "reads a second".to_owned(), log: false },
        series: vec![Series { name: "device".to_owned(), points: points.clone() }],
    };
    Ok((points.iter().map(row).collect(), plot))
}

/// Rows a second over the dimension, ours and the limit, uniform keys and one thread.
fn plots(rows: &[Row]) -> Vec<Plot> {
    let plot = |id: &str| {
        let of = |figure: &dyn Fn(&Row) -> f64| {
            let at = |dim: &u32| {
                let case = format!("dim {dim}, uniform, 1 thread");
                let row = rows.iter().find(|row| row.id == id && row.case == case)?;
                Some((f64::from(*dim), figure(row)))
            };
            DIMS.iter().filter_map(at).collect::<Vec<_>>()
        };
        let series = |name: &str, points| Series { name: name.to_owned(), points };
        Plot {
            name: format!("roofline_{id}"),
            title: format!("{id}: uniform keys, 1 thread"),
            x: Axis { label: "floats in a row".to_owned(), log: true },
            y: Axis { label: "M rows/s".to_owned(), log: true },
            series: vec![series("ours", of(&|row| row.ours)), series("limit", of(&|r| r.limit))],
        }
    };
    ["staged_pull", "push_rowwise_adagrad"].map(plot).into()
}
