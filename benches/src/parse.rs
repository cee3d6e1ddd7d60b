//! `parse`: Criteo's text on one core, from a file in the page cache to unique keys with the place
//! of each value, beside a search for tabs and line ends over the same bytes in memory. The lines
//! are generated with Criteo's widths and skew; nothing of the device is measured. Where there is a
//! checkout of facebookresearch/dlrm, its preprocessing of the same file stands beside ours.

use std::fs::File;
use std::hint::black_box;
use std::io::Read;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use dataset::{Batch, DenseTransform, ReadOptions, RowSelection, Source, Unique, unique};
use table::TableId;
use tempfile::TempDir;

use crate::measure::{interleaved, median, rounds};
use crate::report::{Outcome, Row, Settings};

const BATCH_ROWS: usize = 2048;
const FEATURES: u32 = 26;
const READ_BYTES: usize = 2 << 20; // as the reader's own buffer
/// Bytes a second, in millions, that parse, hash and unique must reach together.
const GOAL_MB_PER_S: f64 = 250.0;
const PARSE: &str = "tsv_parse";
const SCRIPT: &str = include_str!("../peers/preprocess.py");
/// Times facebookresearch/dlrm's preprocessing. It takes some twenty seconds a pass.
const TIMES_DLRM: f64 = 10.0;
const DLRM_ROUNDS: usize = 3;

pub(crate) fn run(settings: &Settings) -> Result<Outcome> {
    let rows = if settings.quick { 5_000 } else { 300_000 };
    let path = settings.scratch.join("parse.tsv");
    let spec = format!("scale=0.1,rows={rows},seed=1").parse()?;
    dataset::write(&spec, RowSelection::All, &source(&path)).context("write the lines")?;
    let measured = phases(&path, rounds(settings.quick)).and_then(|mut outcome| {
        if let (Some(dlrm), Some(python)) = (&settings.dlrm, &settings.python) {
            let ours = outcome.rows.iter().find(|row| row.id == PARSE).context("our figure")?.ours;
            let theirs = preprocessing(dlrm, python, &path, settings)?;
            let case = "parse, hash, unique, beside getCriteoAdData of the same lines".to_owned();
            let row = Row::at_least("tsv_parse.dlrm", case, "MB/s", (ours, theirs), TIMES_DLRM);
            outcome.add([row]);
        }
        Ok(outcome)
    });
    std::fs::remove_file(&path).context("remove the lines")?;
    measured
}

/// Millions of bytes a second that facebookresearch/dlrm turns into arrays on disk.
fn preprocessing(dlrm: &Path, python: &Path, lines: &Path, settings: &Settings) -> Result<f64> {
    let folder = TempDir::new_in(&settings.scratch).context("make a directory")?;
    let script = folder.path().join("preprocess.py");
    std::fs::write(&script, SCRIPT).context("write the script")?;
    let megabytes = std::fs::metadata(lines)?.len() as f64 / 1e6;
    let pass = || -> Result<f64> {
        let out = TempDir::new_in(folder.path()).context("make a directory")?;
        let mut command = Command::new(python);
        command.arg(&script).arg(dlrm).arg(lines).arg(out.path()).stderr(Stdio::piped());
        let output = command.output().with_context(|| format!("run {}", python.display()))?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "preprocess.py: {said}");
        let answer: serde_json::Value = serde_json::from_slice(&output.stdout)?;
        Ok(megabytes / answer["seconds"].as_f64().context("preprocess.py tells no seconds")?)
    };
    let rounds = if settings.quick { 1 } else { DLRM_ROUNDS };
    Ok(median((0..rounds).map(|_| pass()).collect::<Result<_>>()?))
}

fn phases(path: &Path, rounds: usize) -> Result<Outcome> {
    let text = std::fs::read(path)?; // and so the file is in the page cache
    let rate = |started: Instant| text.len() as f64 / 1e6 / started.elapsed().as_secs_f64();
    let batches = read_all(path)?;
    let tables: Vec<TableId> = (0..FEATURES).map(TableId).collect();
    let [scan, read, lines, parse, find, all] = interleaved(
        rounds,
        [
            &mut || {
                let started = Instant::now();
                black_box(memchr::memchr2_iter(b'\t', b'\n', &text).count());
                Ok(rate(started))
            },
            &mut || {
                let started = Instant::now();
                let (mut file, mut buffer) = (File::open(path)?, vec![0; READ_BYTES]);
                while file.read(&mut buffer)? > 0 {}
                Ok(rate(started))
            },
            &mut || {
                let started = Instant::now();
                black_box(memchr::memchr_iter(b'\n', &text).count());
                Ok(rate(started))
            },
            &mut || {
                let started = Instant::now();
                let mut reader = dataset::open(&source(path), &options())?;
                let mut batch = Batch::new();
                while reader.next_batch(&mut batch)? {
                    black_box(&batch);
                }
                Ok(rate(started))
            },
            &mut || {
                let started = Instant::now();
                let mut out = Unique::default();
                for batch in &batches {
                    unique(batch, &tables, &mut out)?;
                    black_box(&out);
                }
                Ok(rate(started))
            },
            &mut || {
                let started = Instant::now();
                let mut reader = dataset::open(&source(path), &options())?;
                let (mut batch, mut out) = (Batch::new(), Unique::default());
                while reader.next_batch(&mut batch)? {
                    unique(&batch, &tables, &mut out)?;
                    black_box(&out);
                }
                Ok(rate(started))
            },
        ],
    )?;
    let megabytes = text.len() as f64 / 1e6;
    let case = |what: &str| format!("{what}, {megabytes:.0} MB, batches of {BATCH_ROWS}");
    let shown = |id, what, rate| Row::shown(id, case(what), "MB/s", (rate, scan));
    let mut outcome = Outcome::default();
    outcome.add([
        shown("tsv_read", "file to buffer", read),
        shown("tsv_lines", "line ends in memory", lines),
        shown("tsv_fields", "lines, fields, numbers, hashes, log1p", parse),
        shown("tsv_unique", "unique and inverse of parsed batches", find),
        Row {
            id: PARSE,
            case: case("parse, hash, unique"),
            unit: "MB/s",
            ours: all,
            limit: scan,
            goal: format!("at least {GOAL_MB_PER_S} MB/s"),
            holds: all >= GOAL_MB_PER_S,
        },
    ]);
    outcome.notes.push(
        "one thread; the file is in the page cache; the limit is memchr's search for tabs and line \
         ends over the same bytes in memory"
            .to_owned(),
    );
    Ok(outcome)
}

fn read_all(path: &Path) -> Result<Vec<Batch>> {
    let mut reader = dataset::open(&source(path), &options())?;
    let (mut batch, mut batches) = (Batch::new(), Vec::new());
    while reader.next_batch(&mut batch)? {
        batches.push(batch.clone());
    }
    Ok(batches)
}

fn source(path: &Path) -> Source {
    Source::Criteo { path: path.to_owned() }
}

fn options() -> ReadOptions {
    let dense_transform = DenseTransform::Log1p;
    ReadOptions { dense_transform, ..ReadOptions::new(BATCH_ROWS) }
}
