//! `dlrm-worker`: opens the session that `--ps` names, in this process or over a connection, hands
//! it to the command, and turns the outcome into an exit code. It does nothing else.
//!
//! Exit codes: 0 done, 1 the world failed (server gone, disk full), 2 bad input, 130 ended by a
//! signal after everything trained was saved.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result};
use clap::Parser;
use server::{Durability, EmbeddedConfig, SsdConfig, open_embedded};
use signal_hook::consts::{SIGINT, SIGTERM};
use tracing_subscriber::filter::{EnvFilter, LevelFilter};
use tracing_subscriber::layer::{Layer, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;
use wire::client::{CONNECT_TIMEOUT, GrpcSession};
use wire::{Endpoint, Session};
use worker::cli::{Cli, Command, PsArgs, Safety};

const INTERRUPTED: u8 = 130;

fn main() -> ExitCode {
    let command = Cli::parse().command;
    let stop = Arc::new(AtomicBool::new(false));
    match traced(&command, &stop) {
        Ok(lines) => {
            // a closed pipe is the reader's choice
            let _ = std::io::stdout().write_all(lines.as_bytes());
            if stop.load(Ordering::Relaxed) {
                ExitCode::from(INTERRUPTED)
            } else {
                ExitCode::SUCCESS
            }
        }
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "dlrm-worker: {error:#}");
            ExitCode::from(if is_bad_input(&error) { 2 } else { 1 })
        }
    }
}

/// Sets up what listens to logs and, with `--trace`, to spans; then runs the command. The trace is
/// whole whatever the outcome.
fn traced(command: &Command, stop: &Arc<AtomicBool>) -> Result<String> {
    let (spans, trace) = command.trace().map(worker::trace_to).transpose()?.unzip();
    let wanted = EnvFilter::builder().with_default_directive(LevelFilter::WARN.into());
    let logs = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    let logs = logs.with_filter(wanted.from_env_lossy());
    tracing_subscriber::registry().with(spans).with(logs).init();
    let outcome = run(command, stop);
    let written = trace.map_or(Ok(()), worker::TraceFile::finish);
    let lines = outcome?;
    written?;
    Ok(lines)
}

fn run(command: &Command, stop: &Arc<AtomicBool>) -> Result<String> {
    for signal in [SIGINT, SIGTERM] {
        signal_hook::flag::register(signal, Arc::clone(stop)).context("register signal")?;
    }
    match (command, command.ps()) {
        (Command::Generate(args), _) => Ok(worker::generate_command(args)?),
        (Command::Cache(args), _) => Ok(worker::cache_command(args, stop)?),
        (_, None) => anyhow::bail!("this command needs --ps"),
        (_, Some(ps)) => {
            let gpu = (command.gpu()?, command.gpu_code_dir());
            with_session(ps, gpu, |session| carry_out(command, session, stop))
        }
    }
}

fn carry_out(command: &Command, session: &dyn Session, stop: &AtomicBool) -> Result<String> {
    Ok(match command {
        Command::Train(args) => worker::train_command(args, session, stop)?.1,
        Command::Eval(args) => worker::evaluate_command(args, session)?.1,
        Command::Predict(args) => worker::predict_command(args, session)?,
        Command::Export(args) => worker::export_command(args, session)?,
        Command::Generate(args) => worker::generate_command(args)?,
        Command::Cache(args) => worker::cache_command(args, stop)?,
    })
}

/// Runs `body` with the session of `--ps`. An embedded store is closed cleanly whatever `body`
/// says, so that nothing that was trained is lost to a bad flag of a later phase.
fn with_session(
    ps: &PsArgs,
    (gpu, gpu_code_dir): (u32, Option<PathBuf>),
    body: impl FnOnce(&dyn Session) -> Result<String>,
) -> Result<String> {
    let endpoint = ps.ps.parse()?;
    let Endpoint::Embedded(dir) = endpoint else {
        return body(&GrpcSession::open(&endpoint, CONNECT_TIMEOUT, "dlrm-worker")?);
    };
    let mut config = EmbeddedConfig::new(dir, ps.host_ram);
    config.ssd_memory_bytes = ps.ssd_memory;
    config.gpu_cache_bytes = ps.gpu_cache;
    config.gpu_device = gpu;
    config.gpu_code_dir = gpu_code_dir;
    config.ssd = SsdConfig {
        write_bytes_per_s: ps.ssd_write_rate.0,
        read_threads: ps.ssd_read_threads,
        durability: match ps.durability {
            Safety::Flush => Durability::Flush,
            Safety::Log => Durability::Log,
        },
    };
    config.lock_memory = ps.lock_memory;
    let embedded = open_embedded(config)?;
    let outcome = body(&*embedded.session());
    let closed = embedded.close().context("close the store");
    let lines = outcome?;
    closed?;
    Ok(lines)
}

fn is_bad_input(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        let worker = cause.downcast_ref::<worker::Error>();
        let wire = cause.downcast_ref::<wire::Error>();
        let server = cause.downcast_ref::<server::Error>();
        worker.is_some_and(worker::Error::is_bad_input)
            || wire.is_some_and(|error| error.code().is_bad_input())
            || server.is_some_and(server::Error::is_bad_input)
    })
}
