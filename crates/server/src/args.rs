//! The flags of `embedding-ps`. They carry no defaults of their own: what is not given comes from
//! the configuration file, or from its defaults.

use std::path::PathBuf;

use crate::config::{Listen, Size, Span, Switch};

const EXAMPLES: &str = "\
Examples:
  Serve workers of this machine, 4 GiB of rows in RAM, the rest on SSD:
    embedding-ps --data-dir /var/lib/embedding-ps --host-ram 4GiB
  The same over a unix socket alone, which is faster:
    embedding-ps --data-dir DIR --listen unix:/run/embedding-ps.sock
  Settings from a file, one of them overridden:
    embedding-ps --config ops/config/embedding-ps.toml --host-ram 64GiB
  Then, elsewhere:
    dlrm-worker train --ps http://127.0.0.1:7070 ...
    psctl --server http://127.0.0.1:7070 tables

SIGTERM or Ctrl-C stops it cleanly: every row is written down.
Sizes take B, KiB, MiB, GiB, TiB; times take s, ms, us.
Exit code: 0 stopped cleanly, 2 bad input, 1 anything else.";

/// A parameter server: embedding tables over host RAM and SSD, served to training workers.
#[derive(Debug, Clone, Default, clap::Parser)]
#[command(name = "embedding-ps", version, after_help = EXAMPLES)]
pub struct Args {
    /// Configuration file; flags override its fields
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Address for workers, IP:PORT or unix:PATH; may be repeated [default: 127.0.0.1:7070]
    #[arg(long, value_name = "ADDR")]
    pub listen: Vec<Listen>,
    /// Address for /metrics and /healthz, or off [default: 127.0.0.1:7071]
    #[arg(long, value_name = "ADDR")]
    pub http: Option<Switch>,
    /// Where the rows live; made if it does not exist
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// Host RAM for rows, bookkeeping and index included [default: 1GiB]
    #[arg(long, value_name = "SIZE")]
    pub host_ram: Option<Size>,
    /// Host RAM for the SSD tier's caches and buffers [default: 64MiB]
    #[arg(long, value_name = "SIZE")]
    pub ssd_memory: Option<Size>,
    /// GPU memory for rows; there is no GPU tier yet, so only 0 [default: 0]
    #[arg(long, value_name = "SIZE")]
    pub gpu_cache: Option<Size>,
    /// How long a stage waits for pinned rows to be let go [default: 10s]
    #[arg(long, value_name = "TIME")]
    pub stage_wait: Option<Span>,
    /// The largest message [default: 256MiB]
    #[arg(long, value_name = "SIZE", help_heading = "Limits")]
    pub message_max: Option<Size>,
    /// Steps staged and neither pushed nor released, a session [default: 256]
    #[arg(long, value_name = "N", help_heading = "Limits")]
    pub staged_steps_max: Option<u32>,
    /// Keys that one request names [default: 4194304]
    #[arg(long, value_name = "N", help_heading = "Limits")]
    pub batch_keys_max: Option<u32>,
    /// Tables that the server holds [default: 4096]
    #[arg(long, value_name = "N", help_heading = "Limits")]
    pub tables_max: Option<u32>,
    /// Sessions open at once [default: 64]
    #[arg(long, value_name = "N", help_heading = "Limits")]
    pub sessions_max: Option<u32>,
    /// Write the bound addresses here as JSON once the server is ready
    #[arg(long, value_name = "PATH")]
    pub ready_file: Option<PathBuf>,
}
