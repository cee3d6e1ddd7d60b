//! `psctl`: what a running server says of itself, for people and for scripts. It speaks the
//! protocol and nothing else; it opens no store.

mod args;
mod report;

use std::io::{self, Write};
use std::process::ExitCode;

use table::TableSpec;
use wire::client::Connection;

pub use args::{Args, Command};
pub use report::{status_text, tables_text};

/// Runs one command, prints to `out`, and tells what is wrong on `err`: 0 done, 2 bad input, 1 the
/// server can't be reached or answers with a fault.
pub fn run(args: Args, out: &mut dyn Write, err: &mut dyn Write) -> ExitCode {
    match carry_out(&args, out) {
        Ok(()) => ExitCode::SUCCESS,
        Err(Fault::Session(error)) => {
            let _ = writeln!(err, "psctl: {error}");
            ExitCode::from(if error.code().is_bad_input() { 2 } else { 1 })
        }
        // whoever read the output has had enough of it
        Err(Fault::Output(error)) if error.kind() == io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(Fault::Output(error)) => {
            let _ = writeln!(err, "psctl: can't write the output: {error}");
            ExitCode::FAILURE
        }
    }
}

enum Fault {
    Session(wire::Error),
    Output(io::Error),
}

impl From<wire::Error> for Fault {
    fn from(error: wire::Error) -> Self {
        Fault::Session(error)
    }
}

impl From<io::Error> for Fault {
    fn from(error: io::Error) -> Self {
        Fault::Output(error)
    }
}

fn carry_out(args: &Args, out: &mut dyn Write) -> Result<(), Fault> {
    let connect = || Connection::open(&args.server, args.timeout);
    match &args.command {
        Command::Status { json } => {
            let connection = connect()?;
            let status = connection.status()?;
            if *json {
                return print_json(&status, out);
            }
            out.write_all(status_text(&connection, &status).as_bytes())?;
        }
        Command::Tables { json } => {
            let status = connect()?.status()?;
            if *json {
                return print_json(&status, out);
            }
            out.write_all(tables_text(&status).as_bytes())?;
        }
        Command::CreateTable(table) => {
            let spec: TableSpec = table.spec();
            spec.validate().map_err(wire::Error::from)?;
            let id = connect()?.create_table(&spec)?;
            writeln!(out, "{} is {id}", spec.name)?;
        }
    }
    Ok(())
}

fn print_json(status: &table::StoreStatus, out: &mut dyn Write) -> Result<(), Fault> {
    serde_json::to_writer_pretty(&mut *out, status).map_err(|error| Fault::Output(error.into()))?;
    writeln!(out)?;
    Ok(())
}
