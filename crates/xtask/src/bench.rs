//! `cargo xtask bench`: runs the real binaries, or the program of `benches/` that measures the
//! store, and sets what they reach beside a limit. The form of its JSON is in `benches/README.md`.
//! It keeps no history.

use std::fs;
use std::path::Path;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail, ensure};
use clap::ValueEnum;
use serde_json::{Value, json};

use crate::columns::columns;
use crate::machine;
use crate::peers;
use crate::report::Report;
use crate::workspace::{Workspace, call, line};

/// Rows that `quality` trains on.
const QUALITY_ROWS: u64 = 4_000_000;

/// Rows that it then evaluates.
const QUALITY_TEST_ROWS: u64 = 500_000;

/// How far below the best possible AUC the trained model may be.
const QUALITY_GAP_MAX: f64 = 0.02;

/// A table of benches/README.md.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Bench {
    /// Test AUC on generated data beside the best that its labels allow
    Quality,
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

/// One measured case.
#[derive(Debug, Clone, PartialEq)]
struct Row {
    id: String,
    case: String,
    unit: String,
    ours: f64,
    /// What bounds it from above, or what it is compared with.
    limit: f64,
    goal: String,
    holds: bool,
}

/// Runs a benchmark, prints its table and, where asked, writes the rows. It fails where a goal is
/// missed.
pub(crate) fn run(
    workspace: &Workspace,
    bench: Bench,
    json: Option<&Path>,
    only: Option<&str>,
    quick: bool,
) -> Result<ExitCode> {
    let name = bench.to_possible_value().context("name the benchmark")?.get_name().to_owned();
    let (rows, notes) = match bench {
        Bench::Quality if quick => bail!("quality has one size: leave --quick out"),
        Bench::Quality if only.is_some() => bail!("quality has one case: leave --only out"),
        Bench::Quality => (quality(workspace)?, Vec::new()),
        Bench::Roofline
        | Bench::Structures
        | Bench::HitRate
        | Bench::Ssd
        | Bench::Rocksdb
        | Bench::Memory
        | Bench::Steps
        | Bench::Pipeline => measured(workspace, &name, only, quick, &[])?,
        Bench::Parse => match peers::dlrm()? {
            Some(dlrm) => {
                let programs = [("--python", &*peers::provide(workspace)?), ("--dlrm", &dlrm)];
                measured(workspace, &name, only, quick, &programs)?
            }
            None => measured(workspace, &name, only, quick, &[])?,
        },
        Bench::Train => {
            let worker = workspace.build_binaries()?.worker;
            measured(workspace, &name, only, quick, &[("--worker", &worker)])?
        }
        Bench::Standalone => {
            let server = workspace.build_binaries()?.server;
            measured(workspace, &name, only, quick, &[("--server", &server)])?
        }
        Bench::Peers => {
            let python = peers::provide(workspace)?;
            measured(workspace, &name, only, quick, &[("--python", &python)])?
        }
    };
    ensure!(!rows.is_empty(), "{name} measured nothing");
    let (machine, commit) = (machine::description(), workspace.commit());
    println!("{name}: {machine}; commit {commit}\n\n{}", table(&rows));
    notes.iter().for_each(|note| println!("{note}"));
    if let Some(path) = json {
        let text = serde_json::to_string_pretty(&value(&name, &machine, &commit, &rows))?;
        fs::write(path, text + "\n").with_context(|| format!("write {}", path.display()))?;
    }
    Ok(if rows.iter().all(|row| row.holds) { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Runs the program of `benches/`, which measures and draws its plots, and reads its rows and
/// notes. Its working files go where its plots go.
fn measured(
    workspace: &Workspace,
    name: &str,
    only: Option<&str>,
    quick: bool,
    programs: &[(&str, &Path)],
) -> Result<(Vec<Row>, Vec<String>)> {
    let mut command = Command::new(workspace.build_bench()?);
    let dir = workspace.root.join("runs/bench");
    fs::create_dir_all(&dir).with_context(|| format!("make {}", dir.display()))?;
    let found = dir.join(format!("{name}.json"));
    command.current_dir(&workspace.root).arg(name).arg("--json").arg(&found);
    command.arg("--plots").arg(&dir).arg("--scratch").arg(&dir);
    for (flag, program) in programs {
        command.arg(flag).arg(program);
    }
    if let Some(only) = only {
        command.args(["--only", only]);
    }
    if quick {
        command.arg("--quick");
    }
    eprintln!("xtask: {}", line(&command));
    call(&mut command)?;
    let text = fs::read_to_string(&found).with_context(|| format!("read {}", found.display()))?;
    read_rows(&text).with_context(|| format!("read {}", found.display()))
}

/// Rows and notes from what the program of `benches/` wrote.
fn read_rows(text: &str) -> Result<(Vec<Row>, Vec<String>)> {
    let found: Value = serde_json::from_str(text)?;
    let list = |name: &str| found[name].as_array().with_context(|| format!("{name} are missing"));
    let row = |row: &Value| {
        let text = |name: &str| {
            let text = row[name].as_str().with_context(|| format!("a row lacks {name}"));
            text.map(str::to_owned)
        };
        let number = |name: &str| row[name].as_f64().with_context(|| format!("a row lacks {name}"));
        Ok(Row {
            id: text("id")?,
            case: text("case")?,
            unit: text("unit")?,
            ours: number("ours")?,
            limit: number("limit")?,
            goal: text("goal")?,
            holds: row["holds"].as_bool().context("a row lacks holds")?,
        })
    };
    let rows = list("rows")?.iter().map(row).collect::<Result<_>>()?;
    let note = |note: &Value| note.as_str().map(str::to_owned).context("a note is no text");
    Ok((rows, list("notes")?.iter().map(note).collect::<Result<_>>()?))
}

/// Trains on generated data whose best possible quality is known.
fn quality(workspace: &Workspace) -> Result<Vec<Row>> {
    let binaries = workspace.build_binaries()?;
    let dir = workspace.root.join("runs/bench-quality"); // ours alone, as the name says
    if dir.exists() {
        fs::remove_dir_all(&dir).with_context(|| format!("clear {}", dir.display()))?;
    }
    fs::create_dir_all(&dir).with_context(|| format!("make {}", dir.display()))?;
    let report = dir.join("report.json");
    let mut worker = quality_command(&binaries.worker, &dir);
    worker.arg("--report").arg(&report);
    eprintln!("xtask: {}", line(&worker));
    call(&mut worker)?;
    let report = Report::read(&report)?;
    let (auc, best) = (report.number("auc")?, report.number("bayes_auc")?);
    Ok(vec![Row {
        id: "quality.auc".to_owned(),
        case: format!("generated, scale 1/100, {} M rows", report.count("samples")? / 1_000_000),
        unit: "AUC".to_owned(),
        ours: auc,
        limit: best,
        goal: format!("at least limit - {QUALITY_GAP_MAX}"),
        holds: auc >= best - QUALITY_GAP_MAX,
    }])
}

fn quality_command(worker: &Path, dir: &Path) -> Command {
    let data =
        format!("synthetic:scale=0.01,rows={QUALITY_ROWS},seed=1,test-rows={QUALITY_TEST_ROWS}");
    let ps = format!("embedded:{}", dir.join("ps").display());
    let flags = [
        ["--ps", ps.as_str()],
        ["--host-ram", "16MiB"],
        ["--data", data.as_str()],
        ["--rows", "train"],
        ["--eval-rows", "test"],
        ["--arch-sparse-feature-size", "16"],
        ["--arch-mlp-bot", "13-64-16"],
        ["--arch-mlp-top", "128-64-1"],
        ["--optimizer", "adagrad"],
        ["--learning-rate", "0.01"],
        ["--learning-rate-tables", "0.05"],
        ["--mini-batch-size", "256"],
        ["--lookahead", "32"],
    ];
    let mut command = Command::new(worker);
    command.arg("train").args(flags.concat());
    command
}

impl Row {
    /// Ours over the limit; 0 where there is no limit to divide by.
    fn ratio(&self) -> f64 {
        if self.limit == 0.0 { 0.0 } else { self.ours / self.limit }
    }
}

fn table(rows: &[Row]) -> String {
    let heading = ["id", "case", "unit", "ours", "limit", "ratio", "goal", "holds"];
    let mut lines = vec![heading.map(str::to_owned).to_vec()];
    lines.extend(rows.iter().map(|row| {
        vec![
            row.id.clone(),
            row.case.clone(),
            row.unit.clone(),
            format!("{:.4}", row.ours),
            format!("{:.4}", row.limit),
            format!("{:.3}", row.ratio()),
            row.goal.clone(),
            if row.holds { "yes" } else { "no" }.to_owned(),
        ]
    }));
    columns(&lines)
}

fn value(name: &str, machine: &str, commit: &str, rows: &[Row]) -> Value {
    let rows: Vec<_> = rows
        .iter()
        .map(|row| {
            json!({
                "id": row.id, "case": row.case, "unit": row.unit, "ours": row.ours,
                "limit": row.limit, "ratio": row.ratio(), "goal": row.goal, "holds": row.holds,
            })
        })
        .collect();
    json!({"bench": name, "machine": machine, "commit": commit, "rows": rows})
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row() -> Row {
        Row {
            id: "quality.auc".to_owned(),
            case: "generated".to_owned(),
            unit: "AUC".to_owned(),
            ours: 0.8,
            limit: 0.8162,
            goal: "at least limit - 0.02".to_owned(),
            holds: true,
        }
    }

    #[test]
    fn a_table_has_a_line_for_each_row() {
        let text = table(&[row()]);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 2);
        assert!(
            lines[1].starts_with("quality.auc  generated   AUC  0.8000  0.8162  0.980"),
            "{text}"
        );
        assert!(lines[1].ends_with("yes"), "{text}");
    }

    #[test]
    fn what_was_measured_reads_back() {
        let written = value("quality", "a machine", "abc+", &[row()]);
        let text = json!({"rows": written["rows"], "notes": ["so it was"]}).to_string();
        assert_eq!(read_rows(&text).unwrap(), (vec![row()], vec!["so it was".to_owned()]));
        let error = read_rows(r#"{"rows": [{"id": "a"}], "notes": []}"#).unwrap_err().to_string();
        assert!(error.contains("lacks case"), "{error}");
    }

    #[test]
    fn the_json_has_the_documented_fields() {
        let value = value("quality", "a machine", "abc+", &[row()]);
        let names: Vec<&String> = value["rows"][0].as_object().unwrap().keys().collect();
        assert_eq!(names.len(), 8, "{names:?}");
        assert_eq!(value["bench"], "quality");
        assert_eq!(value["rows"][0]["ratio"], 0.8 / 0.8162);
        assert_eq!(value["rows"][0]["holds"], true);
    }
}
