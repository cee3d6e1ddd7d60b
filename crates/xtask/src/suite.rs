//! Runs every test of the workspace and adds up what the test binaries say. It has no list of
//! tests: cargo finds them.

use std::env;
use std::io::{BufRead, BufReader, Read, Write};
use std::process::{ExitCode, Stdio};

use anyhow::{Context, Result};

use crate::workspace::{Workspace, line};

/// The variable that names the folder of data that the repository does not carry.
const DATA: &str = "EMBEDDING_PS_DATA";

/// Runs the tests whose name contains `name`, or all.
pub(crate) fn run(workspace: &Workspace, name: Option<&str>) -> Result<Sums> {
    let mut command = workspace.cargo();
    command.args(["test", "--release", "--workspace", "--no-fail-fast"]);
    command.args(["--lib", "--bins", "--tests", "--"]);
    command.args(name);
    let data = env::var_os(DATA).filter(|folder| !folder.is_empty());
    if let Some(folder) = &data {
        // tests run in their crate's folder, so that a relative path would lead elsewhere
        command.env(DATA, std::path::absolute(folder).context("find the data")?);
        command.arg("--include-ignored");
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
    if !sums.skipped.is_empty() && data.is_none() {
        eprintln!("xtask: skipped, for {DATA} is not set:");
        sums.skipped.iter().for_each(|test| eprintln!("  {test}"));
    }
    Ok(sums)
}

/// What all test binaries together counted.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Sums {
    passed: u64,
    failed: u64,
    ignored: u64,
    /// The ignored ones by name, with the reason if one is given.
    skipped: Vec<String>,
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
                    "ignored" => self.ignored += number,
                    _ => {}
                }
            }
        } else if let Some(test) = line.strip_prefix("test ")
            && let Some((name, reason)) = test.split_once(" ... ignored")
        {
            self.skipped.push(format!("{name}{reason}"));
        }
    }

    fn line(&self) -> String {
        format!("{} passed, {} failed, {} skipped", self.passed, self.failed, self.ignored)
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
        assert_eq!((sums.passed, sums.failed, sums.ignored), (41, 1, 2));
        assert_eq!(sums.skipped, ["a::adult, needs EMBEDDING_PS_DATA", "b"]);
        assert_eq!(sums.line(), "41 passed, 1 failed, 2 skipped");
    }

    #[test]
    fn output_that_is_not_text_is_handed_on() {
        let mut shown = Vec::new();
        let sums = follow(&b"\xff\xfe\nno newline at the end"[..], &mut shown).unwrap();
        assert_eq!(shown, b"\xff\xfe\nno newline at the end");
        assert_eq!(sums, Sums::default());
    }
}
