//! The engine without a server: one session in the caller's own process. It opens no socket.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use prometheus_client::registry::Registry;
use table::Limits;
use tiers::TableShare;
use wire::Session;

use crate::engine::{Engine, EngineConfig, SsdConfig};
use crate::metrics::Metrics;
use crate::session::EngineSession;
use crate::{Error, Result};

/// What an embedded server is given.
#[derive(Debug, Clone)]
pub struct EmbeddedConfig {
    /// Where the rows live.
    pub dir: PathBuf,
    /// Bytes of host RAM for rows.
    pub host_ram_bytes: u64,
    /// Bytes of host RAM for the SSD tier's own caches.
    pub ssd_memory_bytes: u64,
    /// Bytes of GPU memory for rows; 0: no GPU is opened.
    pub gpu_cache_bytes: u64,
    /// The GPU's number.
    pub gpu_device: u32,
    /// A folder that keeps the code that is compiled for the GPU.
    pub gpu_code_dir: Option<PathBuf>,
    /// How long a stage waits for pinned rows to be let go.
    pub stage_wait: Duration,
    /// How the SSD tier is to be used.
    pub ssd: SsdConfig,
    /// Whether rows are locked in physical memory, so that the system can't swap them out.
    pub lock_memory: bool,
    /// Tables whose share of the host RAM is bounded.
    pub shares: Vec<TableShare>,
    /// What the session may ask for.
    pub limits: Limits,
}

/// A parameter server in this process, with its one session.
pub struct Embedded {
    engine: Arc<Engine>,
    session: Arc<EngineSession>,
}

/// Opens a parameter server in this process.
pub fn open_embedded(config: EmbeddedConfig) -> Result<Embedded> {
    let EmbeddedConfig {
        dir: data_dir,
        host_ram_bytes,
        ssd_memory_bytes,
        gpu_cache_bytes,
        gpu_device,
        gpu_code_dir,
        stage_wait,
        ssd,
        lock_memory,
        shares,
        limits,
    } = config;
    let engine_config = EngineConfig {
        data_dir,
        host_ram_bytes,
        ssd_memory_bytes,
        gpu_cache_bytes,
        gpu_device,
        gpu_code_dir,
        stage_wait,
        ssd,
        lock_memory,
        shares,
        limits,
    };
    let engine = Engine::open(engine_config, Metrics::new(&mut Registry::default()))?;
    let session = engine.open_session().map_err(|error| Error::System {
        context: "open the embedded session",
        source: std::io::Error::other(error),
    })?;
    Ok(Embedded { engine, session: Arc::new(session) })
}

impl EmbeddedConfig {
    /// The usual settings for rows in `dir` under a budget of `host_ram_bytes`.
    pub fn new(dir: impl Into<PathBuf>, host_ram_bytes: u64) -> Self {
        let toml = crate::ConfigToml::default();
        Self {
            dir: dir.into(),
            host_ram_bytes,
            ssd_memory_bytes: toml.ssd_memory.0,
            gpu_cache_bytes: toml.gpu_cache.0,
            gpu_device: toml.gpu_device,
            stage_wait: toml.stage_wait.0,
            ssd: toml.ssd(),
            gpu_code_dir: toml.gpu_code_dir,
            lock_memory: toml.lock_memory,
            shares: Vec::new(),
            limits: Limits::DEFAULT,
        }
    }
}

impl Embedded {
    /// The session. Clones are the same session.
    pub fn session(&self) -> Arc<dyn Session> {
        Arc::clone(&self.session) as Arc<dyn Session>
    }

    /// Ends the session, releasing what it staged, and writes every row down. Clones of the session
    /// answer [`wire::Code::Unavailable`] afterwards.
    pub fn close(self) -> Result<()> {
        self.session.end();
        self.engine.close(Duration::ZERO)
    }
}
