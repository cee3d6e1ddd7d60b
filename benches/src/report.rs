//! What a benchmark is told and hands back: rows of a table, curves, and the JSON that is made of
//! them. It measures nothing and draws nothing.

use std::path::PathBuf;

use serde_json::{Value, json};

/// What every benchmark is told.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    /// Tiny sizes: whether it runs, not how fast.
    pub(crate) quick: bool,
    /// Where it may put files of its own; on the device that is to be measured.
    pub(crate) scratch: PathBuf,
    /// The `dlrm-worker` of the same build, for the benchmarks that train.
    pub(crate) worker: Option<PathBuf>,
    /// The `embedding-ps` of the same build, for the benchmark that trains through it.
    pub(crate) server: Option<PathBuf>,
    /// A Python with PyTorch, for the benchmark that measures it.
    pub(crate) python: Option<PathBuf>,
    /// A checkout of facebookresearch/dlrm, whose preprocessing is measured where it is there.
    pub(crate) dlrm: Option<PathBuf>,
    /// What the names of the cases hold that are to be run, for benchmarks of many cases.
    pub(crate) only: String,
}

/// What a benchmark found.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    pub(crate) rows: Vec<Row>,
    pub(crate) plots: Vec<Plot>,
    /// Sentences below the table: how the limit was taken, what bounds a figure.
    pub(crate) notes: Vec<String>,
}

/// One measured case beside what bounds it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Row {
    /// Names the row for good; programs look for it.
    pub(crate) id: &'static str,
    pub(crate) case: String,
    pub(crate) unit: &'static str,
    pub(crate) ours: f64,
    /// What bounds it from above, or what it is compared with; measured in the same run.
    pub(crate) limit: f64,
    pub(crate) goal: String,
    pub(crate) holds: bool,
}

/// A curve for each of some series.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Plot {
    /// The file's name, without its ending.
    pub(crate) name: String,
    pub(crate) title: String,
    pub(crate) x: Axis,
    pub(crate) y: Axis,
    pub(crate) series: Vec<Series>,
}

/// What an axis says. It is linear unless `log`.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Axis {
    pub(crate) label: String,
    pub(crate) log: bool,
}

/// One line of a plot.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Series {
    pub(crate) name: String,
    pub(crate) points: Vec<(f64, f64)>,
}

impl Outcome {
    /// Takes rows in and says them at once, for benchmarks take minutes.
    pub(crate) fn add(&mut self, rows: impl IntoIterator<Item = Row>) {
        for row in rows {
            let Row { id, case, unit, ours, limit, .. } = &row;
            eprintln!("bench: {id}, {case}: {ours:.4} {unit} against {limit:.4}");
            self.rows.push(row);
        }
    }

    /// The rows as JSON, without machine and commit, which who started the benchmark knows.
    pub(crate) fn value(&self) -> Value {
        let row = |row: &Row| {
            json!({
                "id": row.id, "case": row.case, "unit": row.unit, "ours": row.ours,
                "limit": row.limit, "ratio": row.ratio(), "goal": row.goal, "holds": row.holds,
            })
        };
        let rows: Vec<Value> = self.rows.iter().map(row).collect();
        json!({"rows": rows, "notes": self.notes})
    }
}

impl Row {
    /// A row whose goal is a least share of the limit.
    pub(crate) fn at_least(
        id: &'static str,
        case: String,
        unit: &'static str,
        (ours, limit): (f64, f64),
        share: f64,
    ) -> Row {
        let goal = format!("at least {share} of limit");
        Row { id, case, unit, ours, limit, goal, holds: ours >= share * limit }
    }

    /// A row that shows a figure and asks nothing of it.
    pub(crate) fn shown(
        id: &'static str,
        case: String,
        unit: &'static str,
        (ours, limit): (f64, f64),
    ) -> Row {
        Row { id, case, unit, ours, limit, goal: "shown".to_owned(), holds: true }
    }

    /// Ours over the limit; 0 where there is no limit to divide by.
    pub(crate) fn ratio(&self) -> f64 {
        if self.limit == 0.0 { 0.0 } else { self.ours / self.limit }
    }
}
