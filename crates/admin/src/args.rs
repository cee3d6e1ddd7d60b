//! The flags of `psctl`. They are read here and used elsewhere.

use std::time::Duration;

use clap::{Parser, Subcommand, ValueEnum};
use table::units::parse_duration;
use table::{Admission, Expiry, Initializer, Optimizer, TableSpec};
use wire::Endpoint;

const EXAMPLES: &str = "\
Examples:
  psctl tables
  psctl --server unix:/run/embedding-ps.sock status
  psctl --server http://127.0.0.1:7070 tables --json | jq '.tables[].rows'
  psctl create-table --name C1 --dim 16 --optimizer rwsadagrad --init-uniform 0.05
  psctl create-table --name C2 --dim 16 --admit-after 3 --expire-after 7d

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
    /// Rows, bytes, hits and hit rates of every table and tier: "hit rate" of the keys that reached
    /// the tier, "of all" of the keys that were staged; what admission and expiry refused
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
    /// Give a key its row the N-th time that it is staged, 1 to 15, as a counting sketch counts;
    /// without it, the first time
    #[arg(long, value_name = "N")]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=i64::from(Admission::SIGHTS_MAX)))]
    pub admit_after: Option<u32>,
    /// Forget a row that nobody staged for so many steps or so long: 1000000steps, 7d, 12h, 30min,
    /// 90s
    #[arg(long, value_name = "AGE", default_value = "never")]
    pub expire_after: Expiry,
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
        let admission = self.admit_after.map_or(Admission::FirstSight, Admission::AfterSights);
        let expiry = self.expire_after;
        TableSpec { name, dim, optimizer, initializer, seed, admission, expiry }
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
    fn a_table_is_asked_for_with_what_may_enter_and_how_long_it_stays() {
        let create = |more: &[&str]| {
            let flags = [&["psctl", "create-table", "--name", "a", "--dim", "4"], more].concat();
            match Args::try_parse_from(flags).map(|args| args.command) {
                Ok(Command::CreateTable(table)) => Ok(table.spec()),
                Ok(other) => panic!("{other:?}"),
                Err(error) => Err(error.to_string()),
            }
        };
        let usual = create(&[]).unwrap();
        assert_eq!((usual.admission, usual.expiry), (Admission::FirstSight, Expiry::Never));
        let spec = create(&["--admit-after", "3", "--expire-after", "7d"]).unwrap();
        assert_eq!(spec.admission, Admission::AfterSights(3));
        assert_eq!(spec.expiry, Expiry::Seconds(7 * 86_400));
        spec.validate().unwrap();
        let spec = create(&["--expire-after", "1000000steps"]).unwrap();
        assert_eq!(spec.expiry, Expiry::Steps(1_000_000));
        assert!(create(&["--admit-after", "16"]).unwrap_err().contains("1..=15"));
        assert!(create(&["--admit-after", "0"]).unwrap_err().contains("1..=15"));
        assert!(create(&["--expire-after", "7"]).unwrap_err().contains("such as 7d"));
    }

    #[test]
    fn an_address_that_is_none_is_bad_input() {
        let error = Args::try_parse_from(["psctl", "--server", "localhost", "tables"]).unwrap_err();
        assert_eq!(error.exit_code(), 2);
        assert!(error.to_string().contains("expected embedded:DIR"), "{error}");
    }
}
