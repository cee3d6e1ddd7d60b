//! The status as tables of text. It asks nothing.

use std::fmt::Write;

use table::units::format_bytes;
use table::{Counters, Optimizer, StoreStatus, TierCounters, TierStatus};
use wire::client::Connection;

/// The server as a whole.
pub fn status_text(connection: &Connection, status: &StoreStatus) -> String {
    let limits = connection.limits();
    let counters = status.totals();
    let used = status.host_ram_used_bytes as f64 / status.host_ram_budget_bytes.max(1) as f64;
    let rows: u64 = status.tables.iter().map(|table| table.rows).sum();
    let lines = [
        ("server", format!("{} (version {})", connection.address(), connection.version())),
        ("tables", format!("{} of at most {}", status.tables.len(), limits.tables_max)),
        ("rows", rows.to_string()),
        (
            "host RAM",
            format!(
                "{} of {} ({:.1} %)",
                format_bytes(status.host_ram_used_bytes),
                format_bytes(status.host_ram_budget_bytes),
                100.0 * used
            ),
        ),
        ("pinned rows", status.pinned_rows.to_string()),
        ("opened clean", if status.opened_clean { "yes" } else { "no" }.to_owned()),
        ("first touches", counters.first_touch.to_string()),
        ("SSD rereads", counters.ssd_rereads.to_string()),
        ("evictions", counters.evictions.to_string()),
        ("write-backs", counters.writebacks.to_string()),
    ];
    let mut text = String::new();
    for (name, value) in lines {
        let _ = writeln!(text, "{name:<14} {value}"); // writing to a string can't fail
    }
    let (gpu, host, ssd) = status.tables.iter().fold(
        (TierStatus::default(), TierStatus::default(), TierStatus::default()),
        |(gpu, host, ssd), t| (sum(gpu, t.gpu), sum(host, t.host), sum(ssd, t.ssd)),
    );
    let mut grid = Grid::new(&TIER_HEADER);
    grid.tiers(&[], [gpu, host, ssd], &counters);
    text.push('\n');
    text.push_str(&grid.text());
    text
}

/// Every table with its tiers, a line each.
pub fn tables_text(status: &StoreStatus) -> String {
    if status.tables.is_empty() {
        return "no tables\n".to_owned();
    }
    let header: Vec<&str> = TABLE_HEADER.iter().chain(&TIER_HEADER).copied().collect();
    let mut grid = Grid::new(&header);
    for table in &status.tables {
        let lead = [
            table.id.0.to_string(),
            table.spec.name.clone(),
            table.spec.dim.to_string(),
            optimizer_name(&table.spec.optimizer).to_owned(),
            table.rows.to_string(),
        ];
        grid.tiers(&lead, [table.gpu, table.host, table.ssd], &table.counters);
    }
    grid.text()
}

const TABLE_HEADER: [&str; 5] = ["id", "table", "dim", "optimizer", "total rows"];
const TIER_HEADER: [&str; 8] =
    ["tier", "rows", "bytes", "hits", "misses", "hit rate", "read", "written"];

/// Columns as wide as their widest cell, numbers to the right.
struct Grid {
    lines: Vec<Vec<String>>,
}

impl Grid {
    fn new(header: &[&str]) -> Self {
        Self { lines: vec![header.iter().map(|&cell| cell.to_owned()).collect()] }
    }

    /// A line for each tier that holds or served anything; host RAM always has one. `lead` stands
    /// before the first of them.
    fn tiers(&mut self, lead: &[String], [gpu, host, ssd]: [TierStatus; 3], counters: &Counters) {
        let tiers =
            [("gpu", gpu, counters.gpu), ("host", host, counters.host), ("ssd", ssd, counters.ssd)];
        let mut lead = lead.to_vec();
        for (name, status, counters) in tiers {
            let idle = status == TierStatus::default() && counters == TierCounters::default();
            if idle && name != "host" {
                continue;
            }
            let mut line = lead.clone();
            line.extend([
                name.to_owned(),
                status.rows.to_string(),
                format_bytes(status.bytes),
                counters.hits.to_string(),
                counters.misses.to_string(),
                hit_rate(&counters),
                format_bytes(counters.bytes_read),
                format_bytes(counters.bytes_written),
            ]);
            self.lines.push(line);
            lead.iter_mut().for_each(String::clear);
        }
    }

    fn text(&self) -> String {
        let columns = self.lines[0].len();
        let width = |column: usize| {
            self.lines.iter().map(|line| line[column].chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..columns).map(width).collect();
        let mut text = String::new();
        for line in &self.lines {
            let cells = line.iter().enumerate().map(|(column, cell)| {
                let width = widths[column];
                match self.lines[0][column].as_str() {
                    "table" | "optimizer" | "tier" => format!("{cell:<width$}"),
                    _ => format!("{cell:>width$}"),
                }
            });
            text.push_str(cells.collect::<Vec<_>>().join("  ").trim_end());
            text.push('\n');
        }
        text
    }
}

fn hit_rate(counters: &TierCounters) -> String {
    match counters.hits + counters.misses {
        0 => "-".to_owned(),
        asked => format!("{:.1} %", 100.0 * counters.hits as f64 / asked as f64),
    }
}

fn sum(a: TierStatus, b: TierStatus) -> TierStatus {
    TierStatus { rows: a.rows + b.rows, bytes: a.bytes + b.bytes }
}

fn optimizer_name(optimizer: &Optimizer) -> &'static str {
    match optimizer {
        Optimizer::Sgd => "sgd",
        Optimizer::Adagrad { .. } => "adagrad",
        Optimizer::RowWiseAdagrad { .. } => "rwsadagrad",
        Optimizer::Adam { .. } => "adam",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use table::{Initializer, TableId, TableSpec, TableStatus};

    fn status() -> StoreStatus {
        let spec = TableSpec {
            name: "C1".to_owned(),
            dim: 16,
            optimizer: Optimizer::Sgd,
            initializer: Initializer::Zeros,
            seed: 1,
        };
        let counters = Counters {
            host: TierCounters { hits: 3, misses: 1, bytes_read: 64, bytes_written: 0 },
            ssd: TierCounters { misses: 1, ..TierCounters::default() },
            ..Counters::default()
        };
        let table = TableStatus {
            id: TableId(0),
            spec,
            rows: 12,
            gpu: TierStatus::default(),
            host: TierStatus { rows: 12, bytes: 1024 },
            ssd: TierStatus::default(),
            counters,
        };
        StoreStatus {
            tables: vec![table],
            host_ram_budget_bytes: 1 << 20,
            host_ram_used_bytes: 1024,
            pinned_rows: 0,
            opened_clean: true,
        }
    }

    #[test]
    fn a_line_for_each_tier_that_has_anything_to_say() {
        let text = tables_text(&status());
        let lines: Vec<Vec<&str>> =
            text.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(lines.len(), 3, "{text}");
        assert_eq!(
            lines[1],
            [
                "0", "C1", "16", "sgd", "12", "host", "12", "1KiB", "3", "1", "75.0", "%", "64B",
                "0B"
            ]
        );
        assert_eq!(lines[2], ["ssd", "0", "0B", "0", "1", "0.0", "%", "0B", "0B"]);
        let width = text.lines().map(|line| line.chars().count());
        assert!(width.clone().all(|w| w == width.clone().max().unwrap()), "{text}");
    }

    #[test]
    fn an_empty_server_says_so() {
        let empty = StoreStatus { tables: vec![], ..status() };
        assert_eq!(tables_text(&empty), "no tables\n");
    }

    #[test]
    fn json_is_the_status_itself() {
        let json = serde_json::to_string(&status()).unwrap();
        assert_eq!(serde_json::from_str::<StoreStatus>(&json).unwrap(), status());
    }
}
