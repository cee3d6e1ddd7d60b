//! `cargo xtask bench`: runs the real binaries and sets what they reach beside a limit. The form of
//! its JSON is in `benches/README.md`. It keeps no history.

use std::fs;
use std::path::Path;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result};
use clap::ValueEnum;
use serde_json::json;

use crate::columns::columns;
use crate::machine;
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
}

/// One measured case.
#[derive(Debug, Clone, PartialEq)]
struct Row {
    id: &'static str,
    case: String,
    unit: &'static str,
    ours: f64,
    /// What bounds it from above, or what it is compared with.
    limit: f64,
    goal: String,
    holds: bool,
}

/// Runs a benchmark, prints its table and, where asked, writes the rows. It fails where a goal is
/// missed.
pub(crate) fn run(workspace: &Workspace, bench: Bench, json: Option<&Path>) -> Result<ExitCode> {
    let (name, rows) = match bench {
        Bench::Quality => ("quality", quality(workspace)?),
    };
    let (machine, commit) = (machine::description(), workspace.commit());
    println!("{name}: {machine}; commit {commit}\n\n{}", table(&rows));
    if let Some(path) = json {
        let text = serde_json::to_string_pretty(&value(name, &machine, &commit, &rows))?;
        fs::write(path, text + "\n").with_context(|| format!("write {}", path.display()))?;
    }
    Ok(if rows.iter().all(|row| row.holds) { ExitCode::SUCCESS } else { ExitCode::FAILURE })
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
        id: "quality.auc",
        case: format!("generated, scale 1/100, {} M rows", report.count("samples")? / 1_000_000),
        unit: "AUC",
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
    fn ratio(&self) -> f64 {
        self.ours / self.limit
    }
}

fn table(rows: &[Row]) -> String {
    let heading = ["case", "unit", "ours", "limit", "ratio", "goal", "holds"];
    let mut lines = vec![heading.map(str::to_owned).to_vec()];
    lines.extend(rows.iter().map(|row| {
        vec![
            row.case.clone(),
            row.unit.to_owned(),
            format!("{:.4}", row.ours),
            format!("{:.4}", row.limit),
            format!("{:.3}", row.ratio()),
            row.goal.clone(),
            if row.holds { "yes" } else { "no" }.to_owned(),
        ]
    }));
    columns(&lines)
}

fn value(name: &str, machine: &str, commit: &str, rows: &[Row]) -> serde_json::Value {
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
            id: "quality.auc",
            case: "generated".to_owned(),
            unit: "AUC",
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
        assert!(lines[1].starts_with("generated   AUC  0.8000  0.8162  0.980"), "{text}");
        assert!(lines[1].ends_with("yes"), "{text}");
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
