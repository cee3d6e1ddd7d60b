//! What CI runs, stage after stage, with the time of each. It checks nothing itself.

use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Result, bail};

use crate::columns::{columns, minutes};
use crate::nvrtc;
use crate::suite::{self, Sums};
use crate::workspace::{Workspace, call};

/// Formatting, setup, lints, licences where cargo-deny is there, CUDA's compiler, tests. A stage
/// that fails ends the run.
pub(crate) fn run(workspace: &Workspace) -> Result<ExitCode> {
    let mut stages = Stages { times: Vec::new() };
    let outcome = run_stages(workspace, &mut stages);
    eprint!("\n{}", stages.table());
    Ok(outcome?.conclude())
}

fn run_stages(workspace: &Workspace, stages: &mut Stages) -> Result<Sums> {
    stages.run("fmt", || {
        require(workspace, "fmt")?;
        call(workspace.cargo().args(["fmt", "--all", "--", "--check"]))
    })?;
    stages.run("setup", || crate::setup(workspace))?;
    stages.run("clippy", || {
        require(workspace, "clippy")?;
        let mut clippy = workspace.cargo();
        // `--release` as in all else, so that build scripts run once for checking and building
        clippy.args(["clippy", "--release", "--locked", "--workspace", "--all-targets"]);
        call(clippy.args(["--", "--deny", "warnings"]))?;
        let mut scheduled = workspace.cargo();
        scheduled.args(["clippy", "--release", "--locked", "--all-targets"]);
        scheduled.args(["--package", "tiers", "--features", "shuttle"]);
        call(scheduled.args(["--", "--deny", "warnings"]))
    })?;
    if is_installed(workspace, "deny") {
        stages.run("deny", || {
            let mut deny = workspace.cargo();
            deny.args(["deny", "--workspace", "--locked", "check", "--hide-inclusion-graph"]);
            call(deny.args(["licenses", "bans", "sources"]))
        })?;
    } else {
        eprintln!("\nxtask: cargo-deny is not installed, so deny.toml is not held to");
    }
    stages.run("nvrtc", || nvrtc::provide(workspace))?;
    stages.run("test", || suite::run(workspace, None))
}

/// The stages that have run, and how long each took.
#[derive(Debug)]
struct Stages {
    times: Vec<(&'static str, u64)>, // seconds
}

impl Stages {
    fn run<T>(&mut self, name: &'static str, stage: impl FnOnce() -> Result<T>) -> Result<T> {
        eprintln!("\nxtask: {name}");
        let began = Instant::now();
        let outcome = stage();
        self.times.push((name, began.elapsed().as_secs()));
        outcome
    }

    fn table(&self) -> String {
        let mut lines = vec![vec!["stage".to_owned(), "m:ss".to_owned()]];
        let stages = self.times.iter();
        lines.extend(stages.map(|(name, seconds)| vec![(*name).to_owned(), minutes(*seconds)]));
        columns(&lines)
    }
}

fn require(workspace: &Workspace, name: &str) -> Result<()> {
    if !is_installed(workspace, name) {
        bail!("cargo {name} is not installed: rustup component add clippy rustfmt");
    }
    Ok(())
}

fn is_installed(workspace: &Workspace, name: &str) -> bool {
    let found = workspace.cargo().args([name, "--version"]).output();
    found.is_ok_and(|output| output.status.success())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stage_that_fails_has_its_time_too() {
        let mut stages = Stages { times: Vec::new() };
        assert_eq!(stages.run("fmt", || Ok(7)).unwrap(), 7);
        assert!(stages.run::<()>("clippy", || bail!("lint")).is_err());
        assert_eq!(stages.table(), "stage   m:ss\nfmt     0:00\nclippy  0:00\n");
    }
}
