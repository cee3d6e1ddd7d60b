//! Holds the repository to its own rules: who may import whom, what every file begins with, where
//! unsafe code may stand, which links must lead somewhere. It reads files and runs no binary of
//! ours.
#![allow(clippy::unwrap_used)] // as in any test; clippy takes functions beside tests for code

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

/// Which crates of the workspace each crate may import. A crate that is not here has no place yet:
/// find it one in ARCHITECTURE.md first.
const MAY_IMPORT: [(&str, &[&str]); 15] = [
    ("table", &[]),
    ("optim", &["table"]),
    ("gpu", &["table", "optim"]),
    ("tiers", &["table", "optim", "gpu"]),
    ("wire", &["table"]),
    ("server", &["table", "optim", "tiers", "wire"]),
    ("dataset", &["table"]),
    ("dlrm", &["table", "optim", "gpu"]),
    ("worker", &["table", "wire", "dataset", "dlrm"]),
    ("admin", &["table", "wire"]),
    ("testkit", &["table", "optim"]),
    (
        "benches",
        &["table", "optim", "tiers", "dataset", "dlrm", "testkit", "server", "wire", "worker"],
    ),
    ("gpu-check", &["table", "optim", "gpu", "dataset", "dlrm", "tiers"]),
    ("xtask", &[]),
    // the binaries: they hand the worker its session
    ("embedding-ps", &["admin", "dataset", "dlrm", "server", "table", "wire", "worker"]),
];

/// The one door to each foreign library, by its name or its family's prefix with `-`. The gRPC
/// service is a trait that `wire` generates and `server` fills, so that door has two leaves.
const DOORS: [(&str, &[&str]); 14] = [
    ("rocksdb", &["tiers", "benches"]),
    ("librocksdb-", &["tiers"]),
    ("cudarc", &["gpu"]),
    ("libloading", &["gpu"]),
    ("tonic", &["wire", "server"]),
    ("tonic-", &["wire", "server"]),
    ("prost", &["wire", "server"]),
    ("protox", &["wire"]),
    ("arrow-", &["dataset"]),
    ("parquet", &["dataset"]),
    ("gemm", &["benches"]),
    ("memmap2", &["dataset", "tiers", "wire", "benches"]),
    ("axum", &["server"]),
    ("tokio", &["wire", "server", "admin", "embedding-ps"]),
];

/// The only places whose lint against unsafe code is lifted.
const UNSAFE_ALLOWED: [&str; 12] = [
    "crates/dataset/src/cache/map.rs",
    "crates/gpu/src/",
    "crates/gpu/tests/cache.rs",
    "crates/gpu-check/src/correctness.rs",
    "crates/gpu-check/src/end.rs",
    "crates/tiers/src/arena/",
    "crates/tiers/src/device/",
    "crates/tiers/tests/allocations.rs",
    "crates/dlrm/src/kernels/",
    "crates/dlrm/src/workers.rs",
    "benches/src/limits.rs",
    "benches/src/products.rs",
];

/// How a metric's name may end: in the unit of what it counts. The page adds `_total` to counters.
const METRIC_UNITS: [&str; 7] =
    ["seconds", "bytes", "rows", "keys", "requests", "sessions", "total"];

const COLUMNS_MAX: usize = 100;

#[test]
fn crates_import_only_what_the_table_allows() {
    let table = BTreeMap::from(MAY_IMPORT);
    let packages = packages();
    let mut faults = Vec::new();
    for (name, imports) in &packages {
        let Some(allowed) = table.get(name.as_str()) else {
            faults.push(format!("{name} has no row in MAY_IMPORT"));
            continue;
        };
        let ours = imports.iter().filter(|import| packages.contains_key(*import));
        let wrong = ours.filter(|import| !allowed.contains(&import.as_str()));
        faults.extend(wrong.map(|import| format!("{name} may not import {import}")));
    }
    let gone = table.keys().filter(|name| !packages.contains_key(**name));
    faults.extend(gone.map(|name| format!("MAY_IMPORT has a row for {name}, which is gone")));
    none(&faults);
}

#[test]
fn a_foreign_library_has_one_door() {
    let mut faults = Vec::new();
    for (name, imports) in &packages() {
        for (library, doors) in DOORS {
            let through = |import: &&String| {
                if library.ends_with('-') {
                    import.starts_with(library)
                } else {
                    *import == library
                }
            };
            let closed = imports.iter().filter(through).filter(|_| !doors.contains(&name.as_str()));
            faults.extend(closed.map(|import| format!("{name} imports {import}: use {doors:?}")));
        }
    }
    none(&faults);
}

#[test]
fn the_documentation_tells_of_every_crate() {
    let text = read("ARCHITECTURE.md");
    let crates = MAY_IMPORT.iter().map(|(name, _)| *name).filter(|name| *name != "embedding-ps");
    let untold = crates.filter(|name| !text.contains(&format!("`{name}`")));
    none(
        &untold.map(|name| format!("ARCHITECTURE.md does not tell of {name}")).collect::<Vec<_>>(),
    );
}

#[test]
fn every_source_says_first_what_it_is() {
    let silent = sources().into_iter().filter(|(_, text)| !text.starts_with("//! "));
    none(&silent.map(|(path, _)| format!("{path}: begin with `//! `")).collect::<Vec<_>>());
}

#[test]
fn nothing_is_left_for_later_in_a_comment() {
    let notes = [concat!("TO", "DO"), concat!("FIX", "ME"), concat!("dbg", "!(")];
    none(&lines_where(&sources(), |line| {
        let note = notes.iter().find(|note| line.contains(**note))?;
        Some(format!("{note}: write an issue, or do it"))
    }));
}

#[test]
fn lines_fit_the_width() {
    none(&lines_where(&sources(), |line| {
        let columns = line.chars().count();
        (columns > COLUMNS_MAX).then(|| format!("{columns} columns"))
    }));
}

#[test]
fn unsafe_code_stands_where_it_may() {
    let lifted = concat!("(unsafe", "_code)");
    let sources = sources();
    let (allowed, others): (Vec<_>, Vec<_>) = sources
        .into_iter()
        .partition(|(path, _)| UNSAFE_ALLOWED.iter().any(|place| path.starts_with(place)));
    none(&lines_where(&others, |line| {
        line.contains(lifted).then(|| "unsafe code has no place here".to_owned())
    }));
    let idle = UNSAFE_ALLOWED.iter().filter(|place| {
        !allowed.iter().any(|(path, text)| path.starts_with(**place) && text.contains(lifted))
    });
    none(&idle.map(|place| format!("{place} is safe: take it off the list")).collect::<Vec<_>>());
}

#[test]
fn links_lead_somewhere() {
    let mut faults = Vec::new();
    for (path, text) in texts(&["md"]) {
        let folder = root().join(&path).parent().unwrap().to_owned();
        for link in links(&text) {
            let (file, anchor) = link.split_once('#').unwrap_or((&link, ""));
            let target = if file.is_empty() { root().join(&path) } else { folder.join(file) };
            if !target.exists() {
                faults.push(format!("{path}: {link} leads nowhere"));
            } else if !anchor.is_empty()
                && !headings(&fs::read_to_string(&target).unwrap_or_default()).contains(anchor)
            {
                faults.push(format!("{path}: {link} has no such heading"));
            }
        }
    }
    none(&faults);
}

#[test]
fn every_decision_is_whole_and_in_the_index() {
    let index = read("ops/adr/README.md");
    let mut faults = Vec::new();
    for (path, text) in texts(&["md"]) {
        let Some(name) = path.strip_prefix("ops/adr/").filter(|name| *name != "README.md") else {
            continue;
        };
        if !index.contains(&format!("]({name})")) {
            faults.push(format!("ops/adr/README.md lacks {name}"));
        }
        let parts = ["## Context", "## Decision", "## Consequences"];
        let lacking = parts.iter().filter(|part| !text.contains(**part));
        faults.extend(lacking.map(|part| format!("{path} lacks {part:?}")));
    }
    none(&faults);
}

#[test]
fn metrics_end_in_their_unit() {
    let text = read("crates/server/src/metrics.rs");
    let names = text.split('"').filter(|word| word.starts_with("embedding_ps_"));
    let (sound, others): (Vec<&str>, Vec<&str>) = names.partition(|name| {
        METRIC_UNITS.iter().any(|unit| name.strip_suffix(unit).is_some_and(|n| n.ends_with('_')))
    });
    assert!(!sound.is_empty(), "no metric is found: look for their names elsewhere");
    none(&others.iter().map(|name| format!("{name} ends in no unit")).collect::<Vec<_>>());
}

#[test]
fn no_file_names_a_path_of_one_machine() {
    let places = [concat!("/wo", "rk/"), concat!("/ro", "ot/"), concat!("/ho", "me/")];
    none(&lines_where(&texts(&[]), |line| {
        let place = places.iter().find(|place| line.contains(**place))?;
        Some(format!("names {place}"))
    }));
}

#[test]
fn links_and_headings_are_read_as_they_are_rendered() {
    let text =
        "# One Two: `x`\n[a](b.md#c) ![i](d.svg) <https://e> [f](https://g)\n```\n[h](i)\n```";
    assert_eq!(links(text), ["b.md#c", "d.svg"]);
    assert_eq!(headings(text), BTreeSet::from(["one-two-x".to_owned()]));
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// Every package of the workspace with what it imports, development apart.
fn packages() -> BTreeMap<String, Vec<String>> {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(["metadata", "--format-version", "1", "--no-deps", "--offline"]);
    let output = command.current_dir(root()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
    let name = |value: &Value| value["name"].as_str().unwrap().to_owned();
    let imports = |package: &Value| {
        let dependencies = package["dependencies"].as_array().unwrap().iter();
        dependencies.filter(|import| import["kind"] != "dev").map(name).collect()
    };
    let packages = metadata["packages"].as_array().unwrap().iter();
    packages.map(|package| (name(package), imports(package))).collect()
}

/// The Rust sources: path and text.
fn sources() -> Vec<(String, String)> {
    texts(&["rs"])
}

/// The files of the repository that are text and end as given; all endings where none is given.
fn texts(endings: &[&str]) -> Vec<(String, String)> {
    let paths = files().into_iter().filter(|path| {
        let ending = Path::new(path).extension().unwrap_or_default();
        endings.is_empty() || endings.iter().any(|wanted| *wanted == ending)
    });
    // what is gone since git was asked, or is no text, has nothing to be held to
    paths
        .filter_map(|path| fs::read_to_string(root().join(&path)).ok().map(|t| (path, t)))
        .collect()
}

/// Paths of the repository's files, ignored ones left out; sorted.
fn files() -> Vec<String> {
    let mut command = Command::new("git");
    command.args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"]);
    let listed = command.current_dir(root()).output().ok().filter(|out| out.status.success());
    let mut files = match listed {
        Some(output) => {
            let text = String::from_utf8(output.stdout).unwrap();
            text.split_terminator('\0').map(str::to_owned).collect()
        }
        None => walk(root()), // an archive without git's folder
    };
    files.sort();
    assert!(files.iter().any(|path| path == "Cargo.toml"), "no files are found");
    files
}

fn walk(folder: &Path) -> Vec<String> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).unwrap().map(Result::unwrap) {
        let path: PathBuf = entry.path();
        let name = entry.file_name().to_string_lossy().into_owned();
        if name == ".git" || name == "runs" || name == "rocksdb.toml" || name.starts_with("target")
        {
            continue;
        }
        if path.is_dir() {
            files.extend(walk(&path));
        } else {
            files.push(path.strip_prefix(root()).unwrap().to_string_lossy().into_owned());
        }
    }
    files
}

/// Where `fault` finds something in a line: the file, the line's number and what it found.
fn lines_where(texts: &[(String, String)], fault: impl Fn(&str) -> Option<String>) -> Vec<String> {
    let mut faults = Vec::new();
    for (path, text) in texts {
        for (index, line) in text.lines().enumerate() {
            faults.extend(fault(line).map(|fault| format!("{path}:{}: {fault}", index + 1)));
        }
    }
    faults
}

fn none(faults: &[String]) {
    assert!(faults.is_empty(), "\n{}", faults.join("\n"));
}

/// The relative links of a Markdown text, blocks of code left out.
fn links(text: &str) -> Vec<String> {
    let prose: Vec<&str> = text.split("```").step_by(2).collect();
    let prose = prose.concat();
    let targets = prose.split("](").skip(1).filter_map(|rest| rest.split_once(')'));
    let targets = targets.map(|(target, _)| target.to_owned());
    targets.filter(|link| !link.contains("://") && !link.starts_with("mailto:")).collect()
}

/// The anchors of a Markdown text's headings.
fn headings(text: &str) -> BTreeSet<String> {
    let titles = text.lines().filter(|line| line.starts_with('#'));
    titles.map(|line| anchor(line.trim_start_matches('#').trim())).collect()
}

fn anchor(title: &str) -> String {
    let kept = title.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
    kept.map(|c| if c == ' ' { '-' } else { c.to_ascii_lowercase() }).collect()
}
