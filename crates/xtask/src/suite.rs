//! Runs every test of the workspace and adds up what the test binaries say. It has no list of
//! tests: cargo finds them. A test that needs something from outside is ignored as
//! `needs VARIABLE`; where that variable is set, it runs in a second round. The orders of threads
//! are tried in a round of their own, for the store is built otherwise for it.

use std::env;
use std::io::{BufRead, BufReader, Read, Write};
use std::process::{ExitCode, Stdio};

use anyhow::{Context, Result};

use crate::nvrtc::{self, NVRTC};
use crate::workspace::{Workspace, line};

/// Variables that hold a path. Tests run in their crate's folder, so that a relative one would lead
/// elsewhere.
const PATHS: [&str; 3] = ["EMBEDDING_PS_DATA", "EMBEDDING_PS_PYTHON", "EMBEDDING_PS_FUZZ_CORPUS"];

const LIBRARY_PATH: &str = "LD_LIBRARY_PATH";

/// Every test but those of [`ORDERS`].
const ALL: [&str; 4] = ["--workspace", "--lib", "--bins", "--tests"];
/// The module of tests under a scheduler, and how it is built.
const ORDERS: &str = "interleavings";
const UNDER_A_SCHEDULER: [&str; 5] = ["--package", "tiers", "--features", "shuttle", "--lib"];

/// Runs the tests whose name contains `name`, or all.
pub(crate) fn run(workspace: &Workspace, name: Option<&str>) -> Result<Sums> {
    let named = |name: Option<&str>| name.map(str::to_owned).into_iter().collect();
    let mut sums = round(workspace, &ALL, named(name))?;
    if name.is_none_or(|name| name.contains(ORDERS)) {
        let orders = round(workspace, &UNDER_A_SCHEDULER, named(name.or(Some(ORDERS))))?;
        sums.add(orders);
    }
    let is_set = |variable: &str| match variable {
        NVRTC => nvrtc::installed().is_some(),
        _ => env::var_os(variable).is_some_and(|value| !value.is_empty()),
    };
    let needed = sums.take_runnable(is_set);
    if !needed.is_empty() {
        let filters = ["--ignored".to_owned(), "--exact".to_owned()].into_iter().chain(needed);
        sums.add(round(workspace, &ALL, filters.collect())?);
    }
    if !sums.skipped.is_empty() {
        eprintln!("xtask: skipped, for what they need is not there:");
        sums.skipped.iter().for_each(|test| eprintln!("  {}, {}", test.name, test.reason));
    }
    Ok(sums)
}

/// One run of all test binaries that `selection` names.
fn round(workspace: &Workspace, selection: &[&str], arguments: Vec<String>) -> Result<Sums> {
    let mut command = workspace.cargo();
    command.args(["test", "--release", "--no-fail-fast"]).args(selection).arg("--");
    command.args(arguments);
    for variable in PATHS {
        if let Some(path) = env::var_os(variable).filter(|path| !path.is_empty()) {
            command.env(variable, std::path::absolute(path).context(variable)?);
        }
    }
    if let Some(folder) = nvrtc::installed() {
        let before = env::var_os(LIBRARY_PATH).unwrap_or_default();
        let folders = [folder].into_iter().chain(env::split_paths(&before));
        command.env(LIBRARY_PATH, env::join_paths(folders).context(LIBRARY_PATH)?);
    }
    eprintln!("xtask: {}", line(&command));
    let mut child = command.stdout(Stdio::piped()).spawn().context("run cargo test")?;
    let output = child.stdout.take().context("read the tests' output")?;
    let mut sums = follow(output, &mut std::io::stdout())?;
    let status = child.wait().context("wait for cargo test")?;
    if !status.success() && sums.failed == 0 {
        eprintln!("xtask: cargo test ended with {status}, and not by a test that failed");
        sums.failed = 1; // it did not build, or a test binary died before it could count
    }
    Ok(sums)
}

/// What all test binaries together counted.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Sums {
    passed: u64,
    failed: u64,
    /// The ignored ones.
    skipped: Vec<Skipped>,
}

/// A test that was ignored.
#[derive(Debug, PartialEq, Eq)]
struct Skipped {
    name: String,
    /// As the test gives it; empty where it gives none.
    reason: String,
}

impl Sums {
    /// Prints the sums, on the last line of all and alone there, and tells the exit code.
    pub(crate) fn conclude(&self) -> ExitCode {
        println!("\n{}", self.line());
        if self.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    }

    /// Takes in one line of a test binary's output; most mean nothing here.
    fn take(&mut self, line: &str) {
        if let Some(counts) = line.strip_prefix("test result: ") {
            for count in counts.split(['.', ';']) {
                let Some((number, what)) = count.trim().split_once(' ') else { continue };
                let Ok(number) = number.parse::<u64>() else { continue };
                match what {
                    "passed" => self.passed += number,
                    "failed" => self.failed += number,
                    _ => {}
                }
            }
        } else if let Some(test) = line.strip_prefix("test ")
            && let Some((name, reason)) = test.split_once(" ... ignored")
        {
            let reason = reason.trim_start_matches([',', ' ']).to_owned();
            self.skipped.push(Skipped { name: name.to_owned(), reason });
        }
    }

    fn line(&self) -> String {
        format!("{} passed, {} failed, {} skipped", self.passed, self.failed, self.skipped.len())
    }

    /// The names of the skipped tests whose needs are met; they are skipped no longer.
    fn take_runnable(&mut self, is_set: impl Fn(&str) -> bool) -> Vec<String> {
        let met = |test: &mut Skipped| test.reason.strip_prefix("needs ").is_some_and(&is_set);
        self.skipped.extract_if(.., met).map(|test| test.name).collect()
    }

    fn add(&mut self, other: Sums) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped.extend(other.skipped);
    }
}

/// Hands the output on as it comes and counts.
fn follow(output: impl Read, to: &mut impl Write) -> Result<Sums> {
    let mut sums = Sums::default();
    let mut reader = BufReader::new(output);
    let mut bytes = Vec::new();
    while reader.read_until(b'\n', &mut bytes).context("read the tests' output")? > 0 {
        to.write_all(&bytes).context("show the tests' output")?;
        sums.take(String::from_utf8_lossy(&bytes).trim_end());
        bytes.clear();
    }
    Ok(sums)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lines_of_several_binaries_are_added_up() {
        let output = "\
running 3 tests
test a::one ... ok
test a::adult ... ignored, needs EMBEDDING_PS_DATA
test a::two ... FAILED

test result: FAILED. 1 passed; 1 failed; 1 ignored; 0 measured; 7 filtered out; finished in 0.00s

test b ... ignored

test result: ok. 40 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 12.34s
";
        let mut shown = Vec::new();
        let sums = follow(output.as_bytes(), &mut shown).unwrap();
        assert_eq!(shown, output.as_bytes());
        assert_eq!((sums.passed, sums.failed), (41, 1));
        let skipped =
            |name: &str, reason: &str| Skipped { name: name.to_owned(), reason: reason.to_owned() };
        assert_eq!(
            sums.skipped,
            [skipped("a::adult", "needs EMBEDDING_PS_DATA"), skipped("b", "")]
        );
        assert_eq!(sums.line(), "41 passed, 1 failed, 2 skipped");
    }

    #[test]
    fn a_test_whose_need_is_met_runs_in_a_second_round_and_is_counted_once() {
        let output = "\
test a ... ignored, needs A
test b ... ignored, needs B
test c ... ignored, takes an hour
test result: ok. 5 passed; 0 failed; 3 ignored; 0 measured; 0 filtered out; finished in 0.00s
";
        let mut sums = follow(output.as_bytes(), &mut Vec::new()).unwrap();
        assert_eq!(sums.take_runnable(|variable| variable == "B"), ["b"]);
        let second = "\
test b ... ok
test result: ok. 1 passed; 0 failed; 0 ignored; 0 measured; 7 filtered out; finished in 0.00s
";
        sums.add(follow(second.as_bytes(), &mut Vec::new()).unwrap());
        assert_eq!(sums.line(), "6 passed, 0 failed, 2 skipped");
        assert_eq!(sums.take_runnable(|_| true), ["a"], "c has another reason");
    }

    #[test]
    fn output_that_is_not_text_is_handed_on() {
        let mut shown = Vec::new();
        let sums = follow(&b"\xff\xfe\nno newline at the end"[..], &mut shown).unwrap();
        assert_eq!(shown, b"\xff\xfe\nno newline at the end");
        assert_eq!(sums, Sums::default());
    }
}
