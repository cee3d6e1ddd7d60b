//! The whole of `embedding-ps`: start, say so, wait for a signal, stop. Its flags are in `args`.

use std::io;
use std::path::Path;
use std::process::ExitCode;

use crate::{Addresses, Args, Config, Error, Result, Server};

/// Runs the server until SIGTERM or SIGINT. An error is logged; the code tells whose fault it was.
pub fn run(args: Args) -> ExitCode {
    match serve(args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error}");
            error.exit_code()
        }
    }
}

fn serve(args: Args) -> Result<()> {
    let config = Config::from_args(args)?;
    let ready_file = config.ready_file.clone();
    let data_dir = config.engine.data_dir.clone();
    let server = Server::start(config)?;
    let wait = server.catch_signals()?;
    let addresses = server.addresses();
    tracing::info!(
        listen = addresses.listen.join(" "),
        http = addresses.http.as_deref().unwrap_or("off"),
        data_dir = %data_dir.display(),
        "serving"
    );
    let written = ready_file.map_or(Ok(()), |path| write_ready(&path, addresses));
    let caught = written.is_ok().then(wait);
    tracing::info!(signal = caught, "asked to stop");
    server.stop()?;
    written?;
    tracing::info!("stopped, every row is written down");
    Ok(())
}

/// Writes the addresses whole or not at all: whoever waits for the file may read it at once.
fn write_ready(path: &Path, addresses: &Addresses) -> Result<()> {
    let fault = |source| Error::Write { path: path.to_owned(), source };
    let json = serde_json::to_vec(addresses).map_err(|error| fault(io::Error::other(error)))?;
    let mut partial = path.as_os_str().to_owned();
    partial.push(".partial");
    std::fs::write(&partial, json).map_err(fault)?;
    std::fs::rename(&partial, path).map_err(fault)
}
