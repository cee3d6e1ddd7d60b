//! The flags of `embedding-ps`. They carry no defaults of their own: what is not given comes from
//! the configuration file, or from its defaults.

use std::path::PathBuf;

use tiers::Durability;

use crate::config::{Listen, Rate, Size, Span, Switch, TableRam};

const EXAMPLES: &str = "\
Examples:
  Serve workers of this machine, 4 GiB of rows in RAM, the rest on SSD:
    embedding-ps --data-dir /var/lib/embedding-ps --host-ram 4GiB
  The same over a unix socket alone, which is faster:
    embedding-ps --data-dir DIR --listen unix:/run/embedding-ps.sock
  Settings from a file, one of them overridden:
    embedding-ps --config ops/config/embedding-ps.toml --host-ram 64GiB
  Spare the SSD, and let no other table crowd C1 out of RAM:
    embedding-ps --data-dir DIR --ssd-write-rate 200MiB/s --table-host-ram C1=512MiB..
  Rows that left RAM survive a crash, at the price of one more write of each:
    embedding-ps --data-dir DIR --durability log
  Then, elsewhere:
    dlrm-worker train --ps http://127.0.0.1:7070 ...
    psctl --server http://127.0.0.1:7070 tables

SIGTERM or Ctrl-C stops it cleanly: every row is written down.
Sizes take B, KiB, MiB, GiB, TiB; times take s, ms, us; rates are sizes with /s.
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
    /// GPU memory for rows, taken at start [default: 0, none]
    #[arg(long, value_name = "SIZE")]
    pub gpu_cache: Option<Size>,
    /// The GPU, by its number [default: 0]
    #[arg(long, value_name = "N")]
    pub gpu_device: Option<u32>,
    /// Keep the code that is compiled for the GPU in this folder [default: embedding-ps/kernels
    /// among this user's caches]
    #[arg(long, value_name = "DIR")]
    pub gpu_code_dir: Option<PathBuf>,
    /// How long a stage waits for pinned rows to be let go [default: 10s]
    #[arg(long, value_name = "TIME")]
    pub stage_wait: Option<Span>,
    /// Bounds on a table's rows in host RAM, MIN kept from other tables and MAX at most; one may
    /// be left out (C1=64MiB.., C1=..1GiB); may be repeated. Without it a table takes what serves
    /// best
    #[arg(long, value_name = "NAME=MIN..MAX")]
    pub table_host_ram: Vec<TableRam>,
    /// Lock rows in physical memory, so that the system can't swap them out; needs a large enough
    /// `ulimit -l`
    #[arg(long)]
    pub lock_memory: bool,
    /// What may be written to files on SSD a second, merging included, such as 200MiB/s, or off: as
    /// fast as the device takes it. The log of `--durability log` comes on top [default: off]
    #[arg(long, value_name = "RATE", help_heading = "SSD")]
    pub ssd_write_rate: Option<Rate>,
    /// Threads that read rows from SSD: the depth of the device's queue [default: 16]
    #[arg(long, value_name = "N", help_heading = "SSD")]
    pub ssd_read_threads: Option<u32>,
    /// When a row that left RAM is safe from a crash [default: flush]
    #[arg(long, value_enum, help_heading = "SSD")]
    pub durability: Option<Safety>,
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

/// When a row that left RAM is safe from a crash.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Safety {
    /// From the next flush or clean stop on
    Flush,
    /// From a moment after it left RAM on: each row goes through a log. It outlives the process,
    /// and is not waited for until the device has it
    Log,
}

impl Safety {
    /// The same as a setting of the store.
    pub fn durability(self) -> Durability {
        match self {
            Safety::Flush => Durability::Flush,
            Safety::Log => Durability::Log,
        }
    }
}
