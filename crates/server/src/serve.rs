//! A running server: it binds, opens the store, serves, and stops in order. It reads no flags.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use prometheus_client::registry::Registry;
use tokio::net::TcpListener;
use tokio::runtime::{Builder, Runtime};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::service::Routes;
use tonic::transport::server::TcpIncoming;
use wire::proto::{FILE_DESCRIPTOR_SET, FRAME_BYTES_MAX, WINDOW_BYTES};

use crate::config::{Config, Listen};
use crate::engine::Engine;
use crate::listen::Bound;
use crate::metrics::Metrics;
use crate::{Error, Result, grpc, http};

/// Threads of the network; the store's work runs on the sessions' own.
const NETWORK_THREADS: usize = 2;
/// A peer that answers no probe for this long is gone, and its session with it.
const PROBE_INTERVAL: Duration = Duration::from_secs(10);
const PROBE_TIMEOUT: Duration = Duration::from_secs(20);
/// How long a stop waits for sessions, beyond the longest that a request may take.
const STOP_PATIENCE: Duration = Duration::from_secs(10);
/// How long it then waits for connections to be taken leave of.
const FAREWELL: Duration = Duration::from_secs(2);
/// Between two progress lines.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(10);

/// A server that serves until it is stopped.
pub struct Server {
    engine: Arc<Engine>,
    stage_wait: Duration,
    addresses: Addresses,
    stopping: watch::Sender<bool>,
    stopped: watch::Sender<bool>, // the store is closed: the page of metrics may go too
    tasks: Vec<JoinHandle<()>>,   // one for each address of workers
    runtime: Runtime,
}

/// Where a server listens, with the ports that were really bound.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Addresses {
    /// The first address for workers, as `--ps` and `--server` take it.
    pub grpc: String,
    /// The page of metrics and health: `http://IP:PORT`.
    pub http: Option<String>,
    /// Every address for workers, in the order of the settings.
    pub listen: Vec<String>,
}

impl Server {
    /// Binds every address, opens the store, and serves.
    pub fn start(config: Config) -> Result<Self> {
        let Config { listen, http, engine: engine_config, ready_file: _ } = config;
        let runtime = Builder::new_multi_thread()
            .worker_threads(NETWORK_THREADS)
            .thread_name("network")
            .enable_all()
            .build()
            .map_err(|source| Error::System { context: "start the network", source })?;
        let (bound, page) = runtime.block_on(bind(&listen, http))?;
        let addresses = addresses(&bound, page.as_ref());
        let mut registry = Registry::default();
        let metrics = Metrics::new(&mut registry);
        let stage_wait = engine_config.stage_wait;
        let engine = Engine::open(engine_config, metrics)?;

        let (stopping, stopped) = (watch::Sender::new(false), watch::Sender::new(false));
        let context = runtime.enter();
        let routes = routes(&engine, &stopping)?;
        let tasks = bound
            .into_iter()
            .map(|bound| tokio::spawn(serve(bound, routes.clone(), is_true(&stopping))))
            .collect();
        if let Some(listener) = page {
            let router = http::router(&engine, registry, stopping.subscribe());
            let served = axum::serve(listener, router).with_graceful_shutdown(is_true(&stopped));
            tokio::spawn(async move {
                if let Err(error) = served.await {
                    tracing::error!(%error, "http server failed");
                }
            });
        }
        tokio::spawn(tell_progress(Arc::clone(&engine), is_true(&stopping)));
        drop(context);
        Ok(Self { engine, stage_wait, addresses, stopping, stopped, tasks, runtime })
    }

    /// Where it listens.
    pub fn addresses(&self) -> &Addresses {
        &self.addresses
    }

    /// The engine that it serves.
    pub fn engine(&self) -> &Arc<Engine> {
        &self.engine
    }

    /// From now on SIGTERM and SIGINT no longer end the process; the returned function waits for
    /// either and tells its name.
    pub fn catch_signals(&self) -> Result<impl FnOnce() -> &'static str + '_> {
        let _context = self.runtime.enter();
        let fault = |source| Error::System { context: "catch signals", source };
        let mut terminate = signal(SignalKind::terminate()).map_err(fault)?;
        let mut interrupt = signal(SignalKind::interrupt()).map_err(fault)?;
        Ok(move || {
            self.runtime.block_on(async {
                tokio::select! {
                    _ = terminate.recv() => "SIGTERM",
                    _ = interrupt.recv() => "SIGINT",
                }
            })
        })
    }

    /// Stops accepting, ends the sessions, writes every row down, and lets the addresses go.
    pub fn stop(self) -> Result<()> {
        let Self { engine, stage_wait, addresses: _, stopping, stopped, tasks, runtime } = self;
        stopping.send_replace(true);
        tracing::info!(sessions = engine.sessions_open(), "stopping");
        let closed = engine.close(stage_wait + STOP_PATIENCE);
        runtime.block_on(async {
            for mut task in tasks {
                if tokio::time::timeout(FAREWELL, &mut task).await.is_err() {
                    task.abort(); // a client that reads nothing more
                    let _ = task.await;
                }
            }
        });
        stopped.send_replace(true);
        runtime.shutdown_timeout(FAREWELL);
        closed
    }
}

async fn bind(
    listen: &[Listen],
    http: Option<std::net::SocketAddr>,
) -> Result<(Vec<Bound>, Option<TcpListener>)> {
    let mut bound = Vec::with_capacity(listen.len());
    for address in listen {
        bound.push(Bound::new(address).await?);
    }
    let page = match http {
        None => None,
        Some(address) => Some(TcpListener::bind(address).await.map_err(|error| Error::Listen {
            address: format!("{address} (http)"),
            reason: error.to_string(),
        })?),
    };
    Ok((bound, page))
}

fn addresses(bound: &[Bound], page: Option<&TcpListener>) -> Addresses {
    let listen: Vec<String> = bound.iter().map(Bound::endpoint).collect();
    let http = page.and_then(|page| page.local_addr().ok());
    Addresses {
        grpc: listen[0].clone(), // the configuration has at least one
        http: http.map(|address| format!("http://{address}")),
        listen,
    }
}

/// The parameter server, its health, and its description for tools.
fn routes(engine: &Arc<Engine>, stopping: &watch::Sender<bool>) -> Result<Routes> {
    type Service = wire::proto::parameter_server_server::ParameterServerServer<grpc::Service>;
    let (reporter, health) = tonic_health::server::health_reporter();
    let (mut poisoned, stop) = (engine.poisoned(), is_true(stopping));
    tokio::spawn(async move {
        reporter.set_serving::<Service>().await;
        tokio::select! {
            _ = poisoned.wait_for(Option::is_some) => {}
            () = stop => {}
        }
        reporter.set_not_serving::<Service>().await;
    });
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(FILE_DESCRIPTOR_SET)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .build_v1()
        .map_err(|error| Error::System {
            context: "describe the protocol",
            source: std::io::Error::other(error),
        })?;
    Ok(Routes::new(grpc::service(engine, stopping.subscribe()))
        .add_service(health)
        .add_service(reflection))
}

/// Serves one address until `stop`.
async fn serve(bound: Bound, routes: Routes, stop: impl Future<Output = ()>) {
    let endpoint = bound.endpoint();
    let server = tonic::transport::Server::builder()
        .initial_stream_window_size(WINDOW_BYTES)
        .initial_connection_window_size(WINDOW_BYTES)
        .max_frame_size(FRAME_BYTES_MAX)
        .http2_keepalive_interval(Some(PROBE_INTERVAL))
        .http2_keepalive_timeout(Some(PROBE_TIMEOUT))
        .add_routes(routes);
    let served = match bound {
        Bound::Tcp(listener) => {
            let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
            server.serve_with_incoming_shutdown(incoming, stop).await
        }
        Bound::Unix(listener, file) => {
            let incoming = UnixListenerStream::new(listener);
            let served = server.serve_with_incoming_shutdown(incoming, stop).await;
            drop(file); // the socket's file goes last
            served
        }
    };
    if let Err(error) = served {
        tracing::error!(endpoint, %error, "server failed");
    }
}

/// Logs how far the pushes have come, as long as they come.
async fn tell_progress(engine: Arc<Engine>, stop: impl Future<Output = ()>) {
    let mut stop = std::pin::pin!(stop);
    let mut told = engine.metrics().pushes();
    while tokio::time::timeout(PROGRESS_INTERVAL, &mut stop).await.is_err() {
        let pushes = engine.metrics().pushes();
        if pushes > told {
            let pushes_per_s = (pushes - told) as f64 / PROGRESS_INTERVAL.as_secs_f64();
            tracing::info!(sessions = engine.sessions_open(), pushes, pushes_per_s, "progress");
        }
        told = pushes;
    }
}

fn is_true(switch: &watch::Sender<bool>) -> impl Future<Output = ()> + Send + 'static {
    let mut switch = switch.subscribe();
    async move {
        // a sender that is gone has nothing left to keep running
        let _ = switch.wait_for(|on| *on).await;
    }
}
