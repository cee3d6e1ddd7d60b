//! `standalone`: the same training through `embedding-ps` on a unix socket and through the store in
//! this process, both all in RAM, in turn. It measures no other transport.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;
use testkit::Process;
use wire::Endpoint;
use wire::client::GrpcSession;

use crate::measure::{interleaved, rounds};
use crate::ours::{self, HOST_RAM_BYTES, KAGGLE, Watched};
use crate::report::{Outcome, Row, Settings};

const THREADS: usize = 2;
const BATCHES: u64 = 64;
/// Of the samples a second in this process.
const SHARE: f64 = 0.75;
const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) fn run(settings: &Settings) -> Result<Outcome> {
    let server = settings.server.as_deref().context("--server names the embedding-ps to run")?;
    let dir = TempDir::new_in(&settings.scratch).context("make a directory")?;
    let batches = if settings.quick { 2 } else { BATCHES };
    let cache = dir.path().join("batches.cache");
    ours::write_batches(&ours::generated(settings, batches), KAGGLE.batch, &cache)?;
    let data = format!("cache:{}", cache.display());
    // a socket's path is bounded to about 100 bytes, and scratch folders may lie deep
    let socket_dir = TempDir::new().context("make a directory for the socket")?;
    let place = format!("unix:{}", socket_dir.path().join("ps").display());
    let (ram, data_dir) = (HOST_RAM_BYTES.to_string(), dir.path().join("served"));
    let data_dir = data_dir.display().to_string();
    let ready = dir.path().join("ready.json");
    let ready_file = ready.display().to_string();
    let mut flags = vec!["--data-dir", &data_dir, "--listen", &place, "--http", "off"];
    flags.extend(["--host-ram", &ram, "--ready-file", &ready_file]);
    let log = dir.path().join("server.log");
    let mut process = Process::start(server, flags, log).context("start embedding-ps")?;
    let started = Instant::now();
    while !ready.exists() {
        ensure!(started.elapsed() < PATIENCE, "embedding-ps: {}", process.log_text());
        std::thread::sleep(Duration::from_millis(10));
    }
    let endpoint: Endpoint = place.parse()?;
    let served = Watched::new(std::sync::Arc::new(
        GrpcSession::open(&endpoint, PATIENCE, "bench").with_context(|| process.log_text())?,
    ));
    let (store, embedded) = ours::open(&dir.path().join("embedded"), HOST_RAM_BYTES)?;
    let train = |session: &Watched| -> Result<f64> {
        let steps = (THREADS, batches, 1);
        Ok(ours::train(session, &KAGGLE, &data, steps, &[])?.samples_per_s)
    };
    train(&served)?; // first touches
    train(&embedded)?;
    let [of_served, of_embedded] =
        interleaved(rounds(settings.quick), [&mut || train(&served), &mut || train(&embedded)])?;
    drop((served, embedded));
    store.close().context("close the store")?;
    process.terminate()?;
    let status = process.wait(PATIENCE)?;
    ensure!(status.success(), "embedding-ps ended with {status}: {}", process.log_text());
    let mut outcome = Outcome::default();
    outcome.add([Row::at_least(
        "standalone",
        format!("{}, batch {}, {THREADS} threads, unix socket", KAGGLE.name, KAGGLE.batch),
        "samples/s",
        (of_served, of_embedded),
        SHARE,
    )]);
    outcome.notes.push(
        "the limit is the same training with the store in this process; the server shares the \
         cores with the worker"
            .to_owned(),
    );
    Ok(outcome)
}
