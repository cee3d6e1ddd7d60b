//! The status as tables of text. It asks nothing.

use std::fmt::Write;

use table::units::format_bytes;
use table::{
    Admission, Counters, Expiry, Latencies, Latency, Optimizer, StoreStatus, TableStatus,
    TierCounters, TierStatus,
};
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
        ("going down", format!("{} rows", status.going_down_rows)),
        ("opened clean", if status.opened_clean { "yes" } else { "no" }.to_owned()),
        ("first touches", counters.first_touch.to_string()),
        ("SSD rereads", counters.ssd_rereads.to_string()),
        ("evictions", counters.evictions.to_string()),
        ("write-backs", counters.writebacks.to_string()),
        ("not admitted", counters.not_admitted.to_string()),
        ("expired", format!("{}, {} of them dropped on SSD", counters.expired, counters.dropped)),
        ("unreadable", format!("{} keys", counters.failed)),
        ("SSD files", ssd_files(status)),
    ];
    let gpu = (status.gpu_cache_bytes > 0).then(|| ("GPU memory", gpu_cache(status)));
    let mut text = String::new();
    for (name, value) in lines.into_iter().chain(gpu) {
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
    text.push('\n');
    text.push_str(&latencies_text(&status.latencies));
    text
}

/// How long what the tiers did took: of what was done at all.
fn latencies_text(latencies: &Latencies) -> String {
    let mut grid = Grid::new(&WORK_HEADER);
    for (tier, work, latency) in latencies.named() {
        let Some(mean_ns) = latency.mean_ns() else { continue };
        let bound = |share: f64| match latency.bucket_at(share).map(Latency::below_us) {
            Some(Some(us)) => format!("{us} us"),
            Some(None) | None => "more".to_owned(),
        };
        grid.lines.push(vec![
            tier.to_owned(),
            work.to_owned(),
            latency.times().to_string(),
            format!("{:.1} us", mean_ns as f64 / 1e3),
            bound(0.5),
            bound(0.99),
        ]);
    }
    grid.text()
}

/// What moved between GPU memory and host RAM, and what it took.
fn gpu_cache(status: &StoreStatus) -> String {
    let Counters { promotions, demotions, .. } = status.totals();
    let budget = format_bytes(status.gpu_cache_bytes);
    let mean_us = match status.gpu_stages {
        0 => "-".to_owned(),
        stages => format!("{} us", status.gpu_stages_us / stages),
    };
    format!("{budget}; {promotions} rows went up, {demotions} down; a stage there took {mean_us}")
}

/// What the SSD tier did to its files, beside the rows that it was given.
fn ssd_files(status: &StoreStatus) -> String {
    let written = format_bytes(status.ssd_file_bytes_written);
    let merged = format_bytes(status.ssd_file_bytes_merged);
    let amplification = match status.write_amplification() {
        Some(times) => format!("{times:.2}"),
        None => "-".to_owned(),
    };
    format!("{written} written, {merged} read to merge; write amplification {amplification}")
}

/// Every table with its tiers, a line each; then what may enter and what it kept out, of the tables
/// that have a rule.
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
    let mut text = grid.text();
    let mut rules = Grid::new(&RULE_HEADER);
    for TableStatus { spec, counters, .. } in &status.tables {
        if spec.admission != Admission::FirstSight || spec.expiry != Expiry::Never {
            rules.lines.push(vec![
                spec.name.clone(),
                spec.admission.to_string(),
                counters.not_admitted.to_string(),
                spec.expiry.to_string(),
                counters.expired.to_string(),
                counters.dropped.to_string(),
            ]);
        }
    }
    if rules.lines.len() > 1 {
        text.push('\n');
        text.push_str(&rules.text());
    }
    text
}

const TABLE_HEADER: [&str; 5] = ["id", "table", "dim", "optimizer", "total rows"];
/// The hit rate is of the keys that reached the tier; "of all", of the keys that were staged.
const TIER_HEADER: [&str; 9] =
    ["tier", "rows", "bytes", "hits", "misses", "hit rate", "of all", "read", "written"];
/// Bounds are of buckets: half, or 99 in a hundred, took less.
const WORK_HEADER: [&str; 6] = ["tier", "work", "times", "mean", "half below", "99 % below"];
/// "Dropped": of the expired rows, on SSD, before anybody staged them again.
const RULE_HEADER: [&str; 6] =
    ["table", "admission", "not admitted", "expiry", "expired", "dropped"];

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
        let staged = counters.keys_staged();
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
                share(counters.hits, counters.hits + counters.misses),
                share(counters.hits, staged),
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
                    "table" | "optimizer" | "tier" | "work" | "admission" | "expiry" => {
                        format!("{cell:<width$}")
                    }
                    _ => format!("{cell:>width$}"),
                }
            });
            text.push_str(cells.collect::<Vec<_>>().join("  ").trim_end());
            text.push('\n');
        }
        text
    }
}

fn share(part: u64, whole: u64) -> String {
    match whole {
        0 => "-".to_owned(),
        whole => format!("{:.1} %", 100.0 * part as f64 / whole as f64),
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
    use table::{Initializer, TableId, TableSpec};

    fn status() -> StoreStatus {
        let spec = TableSpec::new("C1", 16, Optimizer::Sgd, Initializer::Zeros, 1);
        let counters = Counters {
            host: TierCounters { hits: 3, misses: 1, bytes_read: 64, bytes_written: 0 },
            ssd: TierCounters { hits: 1, misses: 0, bytes_read: 0, bytes_written: 100 },
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
            gpu_cache_bytes: 0,
            gpu_stages: 0,
            gpu_stages_us: 0,
            pinned_rows: 0,
            going_down_rows: 0,
            ssd_file_bytes_written: 250,
            ssd_file_bytes_merged: 150,
            latencies: Latencies::default(),
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
                "0", "C1", "16", "sgd", "12", "host", "12", "1KiB", "3", "1", "75.0", "%", "75.0",
                "%", "64B", "0B"
            ]
        );
        // the one key that reached the SSD tier was found there: one of the four that were staged
        let ssd = ["ssd", "0", "0B", "1", "0", "100.0", "%", "25.0", "%", "0B", "100B"];
        assert_eq!(lines[2], ssd);
        let width = text.lines().map(|line| line.chars().count());
        assert!(width.clone().all(|w| w == width.clone().max().unwrap()), "{text}");
    }

    #[test]
    fn what_admission_and_expiry_refused_is_told_of_the_tables_that_have_them() {
        let mut status = status();
        assert!(!tables_text(&status).contains("admission"));
        let table = &mut status.tables[0];
        table.spec.admission = Admission::AfterSights(3);
        table.spec.expiry = Expiry::Seconds(86_400);
        table.counters.not_admitted = 4;
        (table.counters.expired, table.counters.dropped) = (2, 1);
        let text = tables_text(&status);
        let lines: Vec<Vec<&str>> =
            text.lines().rev().take(2).map(|line| line.split_whitespace().collect()).collect();
        let header = ["table", "admission", "not", "admitted", "expiry", "expired", "dropped"];
        assert_eq!(lines[1], header, "{text}");
        assert_eq!(lines[0], ["C1", "after", "3", "sights", "4", "1d", "2", "1"], "{text}");
        assert!(text.contains("75.0 %  37.5 %"), "of all keys, those kept out too\n{text}");
    }

    #[test]
    fn the_files_of_the_ssd_tier_are_told_with_their_write_amplification() {
        assert_eq!(
            ssd_files(&status()),
            "250B written, 150B read to merge; write amplification 2.50"
        );
        let mut idle = status();
        idle.tables.clear();
        assert!(ssd_files(&idle).ends_with("write amplification -"));
    }

    #[test]
    fn what_was_done_is_told_with_the_time_that_it_took() {
        let mut latencies = Latencies::default();
        latencies.host_stage.sum_ns = 1_000_000;
        (latencies.host_stage.counts[4], latencies.host_stage.counts[7]) = (90, 10);
        (latencies.ssd_read.sum_ns, latencies.ssd_read.counts[23]) = (5_000_000_000, 1);
        let text = latencies_text(&latencies);
        let lines: Vec<Vec<&str>> =
            text.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(lines.len(), 3, "{text}");
        assert_eq!(lines[1], ["host", "stage", "100", "10.0", "us", "16", "us", "128", "us"]);
        assert_eq!(lines[2], ["ssd", "read", "1", "5000000.0", "us", "more", "more"]);
    }

    #[test]
    fn what_moves_in_gpu_memory_is_told_with_what_a_stage_takes() {
        let mut status = status();
        (status.gpu_cache_bytes, status.gpu_stages, status.gpu_stages_us) = (8 << 30, 4, 1000);
        (status.tables[0].counters.promotions, status.tables[0].counters.demotions) = (70, 20);
        assert_eq!(gpu_cache(&status), "8GiB; 70 rows went up, 20 down; a stage there took 250 us");
        status.tables[0].counters.gpu.hits = 1;
        assert!(tables_text(&status).lines().nth(1).unwrap().contains("gpu"));
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
