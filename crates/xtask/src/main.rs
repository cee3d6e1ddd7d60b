//! `cargo xtask …`: the project's own commands. Each installs what is missing, builds and runs.
//! It is a tool of the repository; no other crate imports it and it imports none of them.
#![allow(clippy::print_stdout)] // its whole purpose is to speak to the person who runs it

mod bench;
mod ci;
mod columns;
mod demo;
mod gpu_check;
mod machine;
mod nvrtc;
mod peers;
mod report;
mod rocksdb;
mod suite;
mod workspace;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::workspace::Workspace;

/// The project's own commands.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Train on the flights data with tables larger than their RAM, and show what came of it
    Demo(demo::DemoArgs),
    /// Run every test; those that need data of their own run where EMBEDDING_PS_DATA names it
    Test {
        /// Only tests whose name contains this
        name: Option<String>,
    },
    /// What CI runs: formatting, lints, then `test`
    Ci,
    /// Measure: one table of benches/README.md
    Bench {
        /// Which
        name: bench::Bench,
        /// Write the rows as JSON too
        #[arg(long, value_name = "FILE")]
        json: Option<PathBuf>,
        /// Only some cases: a part of their names, for peers a whole id
        #[arg(long, value_name = "TEXT")]
        only: Option<String>,
        /// Tiny sizes: whether it runs, not how fast
        #[arg(long)]
        quick: bool,
    },
    /// Build the program that checks and measures the GPU's code on a machine that has one
    GpuCheck,
    /// Install what is missing and build RocksDB once for this machine; the others begin with it
    Setup,
}

fn main() -> ExitCode {
    match run(Cli::parse()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: Cli) -> anyhow::Result<ExitCode> {
    let workspace = Workspace::open()?;
    match cli.command {
        Command::Demo(args) => {
            setup(&workspace)?;
            demo::run(&workspace, &args)
        }
        Command::Test { name } => {
            setup(&workspace)?;
            Ok(suite::run(&workspace, name.as_deref())?.conclude())
        }
        Command::Ci => ci::run(&workspace),
        Command::Bench { name, json, only, quick } => {
            setup(&workspace)?;
            bench::run(&workspace, name, json.as_deref(), only.as_deref(), quick)
        }
        Command::GpuCheck => {
            gpu_check::build(&workspace)?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Setup => {
            setup(&workspace)?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

/// What every build needs: a C++ compiler, libclang, and RocksDB as a library.
pub(crate) fn setup(workspace: &Workspace) -> anyhow::Result<()> {
    machine::provide()?;
    rocksdb::provide(workspace)
}
