//! The `psctl` program: reads flags and hands over to `admin`.

use std::io::{stderr, stdout};
use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    admin::run(admin::Args::parse(), &mut stdout().lock(), &mut stderr().lock())
}
