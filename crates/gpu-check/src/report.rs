//! Rows of a table, and the JSON that all benchmarks share. It measures nothing.

use std::fmt::Write;
use std::fs;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use anyhow::{Context, Result};
use serde_json::{Value, json};

/// One thing that was looked at, beside what bounds it.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    /// Names the row for good.
    pub id: String,
    /// What was run.
    pub case: String,
    /// Of the two figures.
    pub unit: &'static str,
    /// What was found.
    pub ours: f64,
    /// What bounds it, found in the same run; 0 where nothing does.
    pub limit: f64,
    /// How much of the limit it has to be; none where it is only shown.
    pub goal: Option<f64>,
}

impl Row {
    /// Ours over the limit; 0 where there is no limit.
    pub fn ratio(&self) -> f64 {
        if self.limit == 0.0 { 0.0 } else { self.ours / self.limit }
    }

    /// Whether the goal is met. What is no number meets none.
    pub fn holds(&self) -> bool {
        self.goal.is_none_or(|goal| self.ratio() >= goal)
    }

    fn goal_text(&self) -> String {
        match self.goal {
            None => "shown".to_owned(),
            Some(goal) => format!("at least {goal} of the limit"),
        }
    }
}

/// What a run has found so far: who watches the time tells of it while others still add to it.
#[derive(Debug, Default)]
pub struct Report {
    /// Whether benchmarks run at sizes that say nothing of speed: then their goals are not held to.
    quick: bool,
    /// Guards: what was found. Held for moments.
    found: Mutex<Found>,
}

#[derive(Debug, Default)]
struct Found {
    rows: Vec<Row>,        // in the order in which they were found
    failures: Vec<String>, // the first first
}

impl Report {
    /// One with nothing in it.
    pub fn new(quick: bool) -> Self {
        Self { quick, ..Self::default() }
    }

    /// Whether sizes say nothing of speed.
    pub fn is_quick(&self) -> bool {
        self.quick
    }

    /// Takes a row in; one that misses its goal is a failure.
    pub fn add(&self, row: Row) {
        let row = Row { goal: row.goal.filter(|_| !self.quick || row.unit == CASES), ..row };
        let mut found = self.found();
        if !row.holds() {
            let (ratio, goal) = (row.ratio(), row.goal_text());
            found.failures.push(format!("{}, {}: {ratio:.3}, {goal}", row.id, row.case));
        }
        found.rows.push(row);
    }

    /// Takes note of something that failed without a row.
    pub fn fail(&self, what: String) {
        self.found().failures.push(what);
    }

    /// What failed, the first first.
    pub fn failures(&self) -> Vec<String> {
        self.found().failures.clone()
    }

    fn found(&self) -> MutexGuard<'_, Found> {
        self.found.lock().unwrap_or_else(PoisonError::into_inner) // all changes are whole
    }

    /// The table.
    pub fn table(&self) -> String {
        let found = self.found();
        let heading = ["id", "case", "unit", "ours", "limit", "ratio", "goal", "holds"];
        let mut lines = vec![heading.map(str::to_owned)];
        lines.extend(found.rows.iter().map(|row| {
            [
                row.id.clone(),
                row.case.clone(),
                row.unit.to_owned(),
                format!("{:.2}", row.ours),
                if row.limit == 0.0 { "-".to_owned() } else { format!("{:.2}", row.limit) },
                if row.limit == 0.0 { "-".to_owned() } else { format!("{:.3}", row.ratio()) },
                row.goal_text(),
                if row.holds() { "yes" } else { "no" }.to_owned(),
            ]
        }));
        let width = |column: usize| lines.iter().map(|line| line[column].len()).max().unwrap_or(0);
        let widths: Vec<usize> = (0..heading.len()).map(width).collect();
        let mut text = String::new();
        for line in &lines {
            let mut columns = String::new();
            for (cell, width) in line.iter().zip(&widths) {
                let _ = write!(columns, "{cell:width$}  "); // to a string nothing fails
            }
            text.push_str(columns.trim_end());
            text.push('\n');
        }
        text
    }

    /// Writes the JSON into a folder, which is made if need be.
    pub fn write(&self, folder: &Path, machine: &str, commit: &str) -> Result<()> {
        fs::create_dir_all(folder).with_context(|| format!("make {}", folder.display()))?;
        let path = folder.join("gpu-check.json");
        let text = serde_json::to_string_pretty(&self.value(machine, commit))?;
        fs::write(&path, text + "\n").with_context(|| format!("write {}", path.display()))
    }

    fn value(&self, machine: &str, commit: &str) -> Value {
        let row = |row: &Row| {
            json!({
                "id": row.id, "case": row.case, "unit": row.unit, "ours": row.ours,
                "limit": row.limit, "ratio": row.ratio(), "goal": row.goal_text(),
                "holds": row.holds(),
            })
        };
        let found = self.found();
        let rows: Vec<Value> = found.rows.iter().map(row).collect();
        let bench = if self.quick { "gpu-check, quick" } else { "gpu-check" };
        json!({
            "bench": bench, "machine": machine, "commit": commit, "rows": rows,
            "failures": found.failures,
        })
    }
}

/// The unit of rows that say how many vectors came out right.
pub const CASES: &str = "cases";

#[cfg(test)]
mod tests {
    use super::*;

    fn row(ours: f64, unit: &'static str) -> Row {
        let (id, case) = ("gather".to_owned(), "64 B".to_owned());
        Row { id, case, unit, ours, limit: 4.0, goal: Some(0.5) }
    }

    #[test]
    fn a_missed_goal_is_a_failure_and_the_first_stands_first() {
        let report = Report::default();
        report.add(row(2.0, "GB/s"));
        report.add(row(1.9, "GB/s"));
        report.add(row(f64::NAN, "GB/s"));
        report.fail("copies: no answer".to_owned());
        let failures = report.failures();
        assert_eq!(failures.len(), 3);
        assert_eq!(failures[0], "gather, 64 B: 0.475, at least 0.5 of the limit");
        let table = report.table();
        assert!(table.lines().nth(2).unwrap().ends_with("no"), "{table}");
    }

    #[test]
    fn a_quick_run_holds_to_vectors_alone() {
        let report = Report::new(true);
        report.add(row(1.0, "GB/s"));
        assert!(report.failures().is_empty());
        report.add(row(1.0, CASES));
        assert_eq!(report.failures().len(), 1);
    }

    #[test]
    fn the_json_has_the_form_that_all_benchmarks_share() {
        let report = Report::default();
        report.add(row(2.0, "GB/s"));
        let value = report.value("a machine", "abc+");
        let names: Vec<&String> = value["rows"][0].as_object().unwrap().keys().collect();
        assert_eq!(names.len(), 8, "{names:?}");
        assert_eq!(value["bench"], "gpu-check");
        assert_eq!(value["rows"][0]["ratio"], 0.5);
        assert_eq!(value["rows"][0]["holds"], true);
    }
}
