//! The server through its own doors: sessions in this process, over TCP and over unix sockets, the
//! page of metrics, the operator's tool. Processes and crashes are the root package's tests.

#![allow(clippy::unwrap_used)] // a test says what went wrong by panicking

mod contract;
mod damaged;
mod engine;
mod grpc;
mod page;
mod raw;
mod sockets;

use std::path::Path;
use std::time::{Duration, Instant};

use server::{Config, ConfigToml, Embedded, EmbeddedConfig, Listen, Server, Size, Span, Switch};
use table::{Initializer, Key, KeyBatch, Limits, Optimizer, RowStatus, Step, TableId, TableSpec};
use testkit::Random;
use wire::client::GrpcSession;
use wire::{Endpoint, Session};

const HOST_RAM_BYTES: u64 = 16 << 20;
const TIMEOUT: Duration = Duration::from_secs(10);

fn spec(name: &str, dim: u32, optimizer: Optimizer) -> TableSpec {
    let initializer = Initializer::Uniform { bound: 0.5 };
    TableSpec::new(name, dim, optimizer, initializer, 7)
}

fn batch(runs: &[(u32, &[u64])]) -> KeyBatch {
    let mut batch = KeyBatch::new();
    for (table, keys) in runs {
        let keys: Vec<Key> = keys.iter().copied().map(Key).collect();
        batch.push_run(TableId(*table), &keys).unwrap();
    }
    batch
}

fn embedded(dir: &Path, limits: Limits) -> Embedded {
    server::open_embedded(EmbeddedConfig { limits, ..EmbeddedConfig::new(dir, HOST_RAM_BYTES) })
        .unwrap()
}

/// A configuration that listens at a free port and at `dir/ps.sock`, its store in `dir/rows`.
fn toml(dir: &Path) -> ConfigToml {
    ConfigToml {
        listen: vec!["127.0.0.1:0".parse().unwrap(), Listen::Unix(dir.join("ps.sock"))],
        http: Switch(Some("127.0.0.1:0".parse().unwrap())),
        data_dir: Some(dir.join("rows")),
        host_ram: Size(HOST_RAM_BYTES),
        stage_wait: Span(Duration::from_secs(1)),
        ..ConfigToml::default()
    }
}

fn start(toml: ConfigToml) -> Server {
    Server::start(Config::from_toml(toml).unwrap()).unwrap()
}

fn tcp(server: &Server) -> Endpoint {
    server.addresses().listen[0].parse().unwrap()
}

fn unix(server: &Server) -> Endpoint {
    server.addresses().listen[1].parse().unwrap()
}

fn connect(endpoint: &Endpoint) -> GrpcSession {
    GrpcSession::open(endpoint, TIMEOUT, "test").unwrap()
}

/// The rows of `keys`, `floats` in all, with where they came from.
fn look(session: &dyn Session, keys: &KeyBatch, floats: usize) -> (Vec<f32>, Vec<RowStatus>) {
    let mut rows = vec![0.0; floats];
    let mut statuses = vec![RowStatus::Failed; keys.len()];
    session.lookup(keys, &mut rows, &mut statuses).unwrap();
    (rows, statuses)
}

fn bits(rows: &[f32]) -> Vec<u32> {
    rows.iter().map(|x| x.to_bits()).collect()
}

/// Waits for what another thread is about to make true.
fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + TIMEOUT;
    while !holds() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Two tables, and `steps` of training on them with `lookahead` steps staged ahead, all from one
/// stream of numbers. Returns the bits of every pull and, at the end, of every row.
fn train(session: &dyn Session, steps: u64, lookahead: u64) -> Vec<u32> {
    let adagrad = Optimizer::Adagrad { eps: 1e-10, initial_accumulator: 0.0 };
    let a = session.create_table(&spec("a", 4, adagrad)).unwrap();
    let b = session.create_table(&spec("b", 7, Optimizer::Sgd)).unwrap();
    let keys_of = |step: u64| {
        let mut random = Random::new(step);
        let mut batch = KeyBatch::new();
        for table in [a, b] {
            let mut keys: Vec<Key> = (0..40).map(|_| Key(random.next_u64() % 200)).collect();
            keys.sort_unstable();
            keys.dedup();
            batch.push_run(table, &keys).unwrap();
        }
        let floats: usize =
            batch.runs().map(|(table, range)| range.len() * if table == a { 4 } else { 7 }).sum();
        (batch, floats)
    };
    let mut seen = Vec::new();
    for step in 0..lookahead {
        session.stage(Step(step), &keys_of(step).0).unwrap();
    }
    for step in 0..steps {
        session.stage(Step(step + lookahead), &keys_of(step + lookahead).0).unwrap();
        let mut rows = vec![0.0; keys_of(step).1];
        session.pull(Step(step), &mut rows).unwrap();
        let mut random = Random::new(!step);
        let gradients: Vec<f32> =
            rows.iter().map(|x| x + (random.next_u64() % 1000) as f32 / 999.0 - 0.5).collect();
        session.push(Step(step), &gradients, 0.05).unwrap();
        seen.extend(bits(&rows));
    }
    for step in steps..steps + lookahead {
        session.release(Step(step)).unwrap();
    }
    session.settle().unwrap();
    let every: Vec<u64> = (0..200).collect();
    let (rows, statuses) = look(session, &batch(&[(a.0, &every), (b.0, &every)]), 200 * 11);
    assert!(statuses.iter().all(|s| matches!(s, RowStatus::Host | RowStatus::Initialised)));
    seen.extend(bits(&rows));
    seen
}
