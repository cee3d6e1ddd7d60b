//! The flags of `psctl`. They are read here and used elsewhere.

use std::time::Duration;

use clap::{Parser, Subcommand, ValueEnum};
use table::units::parse_duration;
use table::{Initializer, Optimizer, TableSpec};
use wire::Endpoint;

const EXAMPLES: &str = "\
Examples:
  psctl tables
  psctl --server unix:/run/embedding-ps.sock status
  psctl --server http://127.0.0.1:7070 tables --json | jq '.tables[].rows'
  psctl create-table --name C1 --dim 16 --optimizer rwsadagrad --init-uniform 0.05

Exit code: 0 done, 2 bad input, 1 the server can't be reached or answers with a fault.";

/// Shows what a running embedding-ps holds, and where.
#[derive(Debug, Clone, Parser)]
#[command(name = "psctl", version, after_help = EXAMPLES)]
pub struct Args {
    /// The server: http://HOST:PORT or unix:PATH
    #[arg(long, global = true, value_name = "ADDR", default_value = "http://127.0.0.1:7070")]
    pub server: Endpoint,
    /// How long to wait for a connection
    #[arg(long, global = true, value_name = "TIME", default_value = "5s")]
    #[arg(value_parser = parse_duration)]
    pub timeout: Duration,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// A command of `psctl`.
#[derive(Debug, Clone, Subcommand)]
pub enum Command {
    /// The server as a whole: budget, pinned rows, totals of every tier
    Status {
        /// Print the whole status as JSON
        #[arg(long)]
        json: bool,
    },
    /// Rows, bytes, hits and hit rate of every table and tier
    Tables {
        /// Print the whole status as JSON
        #[arg(long)]
        json: bool,
    },
    /// Make a table, or find the one of that name with the same specification
    CreateTable(NewTable),
}

/// A table to make.
#[derive(Debug, Clone, clap::Args)]
pub struct NewTable {
    /// Its name: 1 to 64 characters of A-Z a-z 0-9 _ . -
    #[arg(long)]
    pub name: String,
    /// Floats in a row, 1 to 4096
    #[arg(long, value_name = "N")]
    pub dim: u32,
    /// The update rule of its rows
    #[arg(long, value_enum, default_value = "sgd")]
    pub optimizer: Rule,
    /// New rows are uniform in ±BOUND; zeros without it
    #[arg(long, value_name = "BOUND")]
    pub init_uniform: Option<f32>,
    /// The seed of its rows
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
}

/// An update rule with its usual constants.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum Rule {
    /// Plain stochastic gradient descent
    Sgd,
    /// An accumulator for each element, eps 1e-10
    Adagrad,
    /// One accumulator for a row, eps 1e-10
    Rwsadagrad,
    /// Betas 0.9 and 0.999, eps 1e-8
    Adam,
}

impl NewTable {
    /// The specification that the flags ask for.
    pub fn spec(&self) -> TableSpec {
        let (eps, initial_accumulator) = (1e-10, 0.0);
        let optimizer = match self.optimizer {
            Rule::Sgd => Optimizer::Sgd,
            Rule::Adagrad => Optimizer::Adagrad { eps, initial_accumulator },
            Rule::Rwsadagrad => Optimizer::RowWiseAdagrad { eps, initial_accumulator },
            Rule::Adam => Optimizer::Adam { beta1: 0.9, beta2: 0.999, eps: 1e-8 },
        };
        let initializer = match self.init_uniform {
            Some(bound) => Initializer::Uniform { bound },
            None => Initializer::Zeros,
        };
        let (name, dim, seed) = (self.name.clone(), self.dim, self.seed);
        TableSpec { name, dim, optimizer, initializer, seed }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_flags_are_consistent() {
        use clap::CommandFactory;
        Args::command().debug_assert();
    }

    #[test]
    fn an_address_that_is_none_is_bad_input() {
        let error = Args::try_parse_from(["psctl", "--server", "localhost", "tables"]).unwrap_err();
        assert_eq!(error.exit_code(), 2);
        assert!(error.to_string().contains("expected embedded:DIR"), "{error}");
    }
}
