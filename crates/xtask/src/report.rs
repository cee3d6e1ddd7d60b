//! The JSON that `dlrm-worker --report` writes, as the demo and the benchmarks read it. It computes
//! nothing: what is not in the file is an error.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::columns::{bytes, columns, grouped};

/// A worker's report.
#[derive(Debug)]
pub(crate) struct Report(Value);

impl Report {
    pub(crate) fn read(path: &Path) -> Result<Report> {
        let text = fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
        let value = serde_json::from_str(&text);
        Ok(Report(value.with_context(|| format!("parse {}", path.display()))?))
    }

    /// The number at a path of names such as `tiers.host.hits`.
    pub(crate) fn number(&self, path: &str) -> Result<f64> {
        let lacks = || format!("the worker's report lacks the number {path}");
        self.at(path).and_then(Value::as_f64).with_context(lacks)
    }

    /// The count at a path of names.
    pub(crate) fn count(&self, path: &str) -> Result<u64> {
        let lacks = || format!("the worker's report lacks the count {path}");
        self.at(path).and_then(Value::as_u64).with_context(lacks)
    }

    fn at(&self, path: &str) -> Option<&Value> {
        path.split('.').try_fold(&self.0, |value, name| value.get(name))
    }

    /// The sum over all tables of the count at a path below each.
    fn over_tables(&self, path: &str) -> Result<u64> {
        let tables = self.at("store.tables").and_then(Value::as_array);
        let tables = tables.context("the worker's report lacks store.tables")?;
        tables.iter().map(|table| Report(table.clone()).count(path)).sum()
    }

    /// Quality beside that of always answering the base rate and, on generated data, the best.
    pub(crate) fn quality_table(&self) -> Result<String> {
        let four = |number: f64| format!("{number:.4}");
        let line = |name: &str, auc, logloss| vec![name.to_owned(), auc, logloss];
        let heading = format!("on {} rows not trained on", grouped(self.count("rows")?));
        let mut lines = vec![
            line(&heading, "AUC".to_owned(), "logloss".to_owned()),
            line("trained", four(self.number("auc")?), four(self.number("logloss")?)),
        ];
        let base = format!("always answering {}", four(self.number("base_rate")?));
        lines.push(line(&base, four(0.5), four(self.number("base_logloss")?)));
        if let (Ok(auc), Ok(logloss)) = (self.number("bayes_auc"), self.number("bayes_logloss")) {
            lines.push(line("the best possible", four(auc), four(logloss)));
        }
        Ok(columns(&lines))
    }

    /// What each tier held and did, all tables together.
    pub(crate) fn tier_table(&self) -> Result<String> {
        let heading = ["tier", "rows", "bytes", "hits", "misses", "hit rate", "read", "written"];
        let mut lines = vec![heading.map(str::to_owned).to_vec()];
        for (tier, name) in [("gpu", "GPU memory"), ("host", "host RAM"), ("ssd", "SSD")] {
            let hits = self.count(&format!("tiers.{tier}.hits"))?;
            let misses = self.count(&format!("tiers.{tier}.misses"))?;
            let rate = 100.0 * hits as f64 / (hits + misses).max(1) as f64;
            lines.push(vec![
                name.to_owned(),
                grouped(self.over_tables(&format!("{tier}.rows"))?),
                bytes(self.over_tables(&format!("{tier}.bytes"))?),
                grouped(hits),
                grouped(misses),
                if hits + misses == 0 { "-".to_owned() } else { format!("{rate:.1} %") },
                bytes(self.count(&format!("tiers.{tier}.bytes_read"))?),
                bytes(self.count(&format!("tiers.{tier}.bytes_written"))?),
            ]);
        }
        let mut text = columns(&lines);
        let count = |name: &str| self.count(&format!("tiers.{name}")).map(grouped);
        text.push_str(&format!(
            "{} rows created at their first touch, {} evicted, {} written back, {} read again\n\
             host RAM: {} of {} used; {:.0} bytes a row with all bookkeeping\n",
            count("first_touch")?,
            count("evictions")?,
            count("writebacks")?,
            count("ssd_rereads")?,
            bytes(self.count("store.host_ram_used_bytes")?),
            bytes(self.count("store.host_ram_budget_bytes")?),
            self.number("tiers.host_bytes_per_row")?,
        ));
        Ok(text)
    }

    /// One line on the speed of training.
    pub(crate) fn speed_line(&self) -> Result<String> {
        Ok(format!(
            "{} rows in {} steps, {:.1} s: {} samples/s; {} pulls waited for their staging\n",
            grouped(self.count("samples")?),
            grouped(self.count("steps")?),
            self.number("train_s")?,
            grouped(self.number("samples_per_s")?.round() as u64),
            grouped(self.count("stalled_pulls")?),
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const REPORT: &str = r#"{
        "steps": 2046, "samples": 261876, "train_s": 12.25, "samples_per_s": 21377.6,
        "stalled_pulls": 3, "rows": 32735, "auc": 0.785, "logloss": 0.4364, "base_rate": 0.2375,
        "base_logloss": 0.548, "accuracy": 0.81,
        "tiers": {
            "gpu": {"hits": 0, "misses": 0, "bytes_read": 0, "bytes_written": 0},
            "host": {"hits": 900, "misses": 100, "bytes_read": 2048, "bytes_written": 1024},
            "ssd": {"hits": 60, "misses": 40, "bytes_read": 4096, "bytes_written": 512},
            "first_touch": 40, "ssd_rereads": 60, "evictions": 70, "writebacks": 65,
            "host_bytes_per_row": 73.4
        },
        "store": {
            "host_ram_budget_bytes": 1048576, "host_ram_used_bytes": 1000000,
            "tables": [
                {"gpu": {"rows": 0, "bytes": 0}, "host": {"rows": 10, "bytes": 800},
                 "ssd": {"rows": 25, "bytes": 2000}},
                {"gpu": {"rows": 0, "bytes": 0}, "host": {"rows": 5, "bytes": 200},
                 "ssd": {"rows": 15, "bytes": 1000}}
            ]
        }
    }"#;

    fn report() -> Report {
        Report(serde_json::from_str(REPORT).unwrap())
    }

    #[test]
    fn a_number_is_found_by_its_path_and_its_lack_is_named() {
        assert_eq!(report().count("tiers.host.hits").unwrap(), 900);
        assert_eq!(report().number("auc").unwrap(), 0.785);
        let error = report().number("tiers.host.warmth").unwrap_err();
        assert!(error.to_string().contains("tiers.host.warmth"), "{error}");
    }

    #[test]
    fn the_tables_hold_what_the_report_says() {
        let quality = report().quality_table().unwrap();
        let expected = "\
on 32 735 rows not trained on     AUC  logloss
trained                        0.7850   0.4364
always answering 0.2375        0.5000   0.5480
";
        assert_eq!(quality, expected);
        let tiers = report().tier_table().unwrap();
        let host: Vec<&str> = tiers.lines().nth(2).unwrap().split_whitespace().collect();
        let cells = "host RAM 15 1000 B 900 100 90.0 % 2.0 KiB 1.0 KiB";
        assert_eq!(host, cells.split(' ').collect::<Vec<_>>());
        assert!(tiers.contains("65 written back, 60 read again"), "{tiers}");
        assert!(report().speed_line().unwrap().starts_with("261 876 rows in 2 046 steps, 12.2"));
    }
}
