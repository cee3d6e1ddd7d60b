//! The settings, typed twice: [`ConfigToml`] as people write them, with documented defaults, and
//! [`Config`] as the server uses them, every field checked. Flags override the file's fields.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use serde::Deserialize;
use table::Limits;
use table::units::{format_bytes, parse_bytes, parse_duration, parse_rate};
use tiers::{Durability, TableShare};

use crate::args::Safety;
use crate::{Args, EngineConfig, Error, Result, SsdConfig};

/// The configuration file. Every field may be left out; an unknown one is an error with its line.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ConfigToml {
    /// Addresses for workers: `IP:PORT` or `unix:PATH`. Default `["127.0.0.1:7070"]`.
    pub listen: Vec<Listen>,
    /// Address for metrics and health over HTTP, or `off`. Default `127.0.0.1:7071`.
    pub http: Switch,
    /// Where the rows live. No default.
    pub data_dir: Option<PathBuf>,
    /// Host RAM for rows, bookkeeping and index included. Default `1GiB`.
    pub host_ram: Size,
    /// Host RAM for the SSD tier's own caches and buffers. Default `64MiB`.
    pub ssd_memory: Size,
    /// GPU memory for rows, taken at start; `0`, the default: none.
    pub gpu_cache: Size,
    /// The GPU, by its number. Default 0.
    pub gpu_device: u32,
    /// The folder that keeps the code that is compiled for the GPU. Default: `embedding-ps/kernels`
    /// among the caches of the user who starts it.
    pub gpu_code_dir: Option<PathBuf>,
    /// How long a stage waits for pinned rows to be let go before it is refused. Default `10s`.
    pub stage_wait: Span,
    /// What may be written to files on SSD a second, merging included, or `off`, the default: as
    /// fast as the device takes it. The log of `durability = "log"` comes on top.
    pub ssd_write_rate: Rate,
    /// Threads that read rows from SSD. Default 16.
    pub ssd_read_threads: u32,
    /// When a row that left RAM is safe from a crash: from the next `flush` on, the default, or
    /// from a moment after it left, through a `log`.
    pub durability: Durability,
    /// Whether rows are locked in physical memory. Default false.
    pub lock_memory: bool,
    /// What a session may ask for.
    pub limits: LimitsToml,
    /// Bounds on single tables, by name. None by default.
    pub tables: BTreeMap<String, TableToml>,
}

/// Bounds on one table's rows in host RAM, in the configuration file.
#[derive(Debug, Clone, Copy, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TableToml {
    /// Below it no other table takes rows away from this one. Default 0.
    pub host_ram_min: Option<Size>,
    /// Above it this table takes rows only from itself. Default: the whole budget.
    pub host_ram_max: Option<Size>,
}

/// The limits of a session, in the configuration file.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LimitsToml {
    /// The largest message. Default `256MiB`.
    pub message: Size,
    /// Steps staged and neither pushed nor released. Default 256.
    pub staged_steps: u32,
    /// Keys that one request names. Default 4194304.
    pub batch_keys: u32,
    /// Tables that the server holds. Default 4096.
    pub tables: u32,
    /// Sessions open at once. Default 64.
    pub sessions: u32,
}

/// What the server runs with.
#[derive(Debug, Clone)]
pub struct Config {
    /// Addresses for workers, at least one.
    pub listen: Vec<Listen>,
    /// Address for metrics and health, if wanted.
    pub http: Option<SocketAddr>,
    /// The store and the limits.
    pub engine: EngineConfig,
    /// Where to write the bound addresses once the server is ready.
    pub ready_file: Option<PathBuf>,
}

/// An address for workers.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub enum Listen {
    /// `IP:PORT`; port 0 takes any free one.
    Tcp(SocketAddr),
    /// `unix:PATH`.
    Unix(PathBuf),
}

/// An address, or `off`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Switch(pub Option<SocketAddr>);

/// Bytes, written `64MiB`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Size(pub u64);

/// Bytes a second, written `200MiB/s`, or `off`: no bound.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Rate(pub Option<u64>);

/// A table's bounds as a flag, written `NAME=MIN..MAX`; either bound may be left out.
#[derive(Debug, Clone, PartialEq)]
pub struct TableRam {
    /// The table's name.
    pub table: String,
    /// Its bounds.
    pub bounds: TableToml,
}

/// A time, written `250ms`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Span(pub Duration);

impl Default for ConfigToml {
    fn default() -> Self {
        Self {
            listen: vec![Listen::Tcp((Ipv4Addr::LOCALHOST, 7070).into())],
            http: Switch(Some((Ipv4Addr::LOCALHOST, 7071).into())),
            data_dir: None,
            host_ram: Size(1 << 30),
            ssd_memory: Size(64 << 20),
            gpu_cache: Size(0),
            gpu_device: 0,
            gpu_code_dir: None,
            stage_wait: Span(Duration::from_secs(10)),
            ssd_write_rate: Rate(None),
            ssd_read_threads: 16,
            durability: Durability::Flush,
            lock_memory: false,
            limits: LimitsToml::default(),
            tables: BTreeMap::new(),
        }
    }
}

impl Default for LimitsToml {
    fn default() -> Self {
        let Limits {
            message_bytes_max,
            staged_steps_max,
            batch_keys_max,
            tables_max,
            sessions_max,
        } = Limits::DEFAULT;
        Self {
            message: Size(message_bytes_max),
            staged_steps: staged_steps_max,
            batch_keys: batch_keys_max,
            tables: tables_max,
            sessions: sessions_max,
        }
    }
}

impl ConfigToml {
    /// Reads a configuration file.
    pub fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| Error::ConfigFile { path: path.to_owned(), source })?;
        toml::from_str(&text).map_err(|source| Error::ConfigSyntax {
            path: path.to_owned(),
            source: Box::new(source),
        })
    }

    /// How the SSD tier is to be used.
    pub(crate) fn ssd(&self) -> SsdConfig {
        SsdConfig {
            write_bytes_per_s: self.ssd_write_rate.0,
            read_threads: self.ssd_read_threads,
            durability: self.durability,
        }
    }

    /// The file's fields with those of the flags that were given in their place.
    fn overridden(self, args: Args) -> (Self, Option<PathBuf>) {
        let Args {
            config: _,
            listen,
            http,
            data_dir,
            host_ram,
            ssd_memory,
            gpu_cache,
            gpu_device,
            gpu_code_dir,
            stage_wait,
            ssd_write_rate,
            ssd_read_threads,
            durability,
            lock_memory,
            table_host_ram,
            message_max,
            staged_steps_max,
            batch_keys_max,
            tables_max,
            sessions_max,
            ready_file,
        } = args;
        let mut tables = self.tables;
        tables.extend(table_host_ram.into_iter().map(|TableRam { table, bounds }| (table, bounds)));
        let toml = Self {
            listen: if listen.is_empty() { self.listen } else { listen },
            http: http.unwrap_or(self.http),
            data_dir: data_dir.or(self.data_dir),
            host_ram: host_ram.unwrap_or(self.host_ram),
            ssd_memory: ssd_memory.unwrap_or(self.ssd_memory),
            gpu_cache: gpu_cache.unwrap_or(self.gpu_cache),
            gpu_device: gpu_device.unwrap_or(self.gpu_device),
            gpu_code_dir: gpu_code_dir.or(self.gpu_code_dir),
            stage_wait: stage_wait.unwrap_or(self.stage_wait),
            ssd_write_rate: ssd_write_rate.unwrap_or(self.ssd_write_rate),
            ssd_read_threads: ssd_read_threads.unwrap_or(self.ssd_read_threads),
            durability: durability.map_or(self.durability, Safety::durability),
            lock_memory: lock_memory || self.lock_memory,
            limits: LimitsToml {
                message: message_max.unwrap_or(self.limits.message),
                staged_steps: staged_steps_max.unwrap_or(self.limits.staged_steps),
                batch_keys: batch_keys_max.unwrap_or(self.limits.batch_keys),
                tables: tables_max.unwrap_or(self.limits.tables),
                sessions: sessions_max.unwrap_or(self.limits.sessions),
            },
            tables,
        };
        (toml, ready_file)
    }
}

impl Config {
    /// The file that the flags name, if any, the flags over it, every field checked.
    pub fn from_args(args: Args) -> Result<Self> {
        let toml = match &args.config {
            Some(path) => ConfigToml::read(path)?,
            None => ConfigToml::default(),
        };
        let (toml, ready_file) = toml.overridden(args);
        Ok(Config { ready_file, ..Self::from_toml(toml)? })
    }

    /// A checked configuration. The tiers check their budgets' ranges themselves.
    pub fn from_toml(toml: ConfigToml) -> Result<Self> {
        let ssd = toml.ssd();
        let ConfigToml {
            listen,
            http,
            data_dir,
            host_ram,
            ssd_memory,
            gpu_cache,
            gpu_device,
            gpu_code_dir,
            stage_wait,
            ssd_write_rate: _, // these three are in `ssd`
            ssd_read_threads: _,
            durability: _,
            lock_memory,
            limits,
            tables: bounds,
        } = toml;
        let LimitsToml { message, staged_steps, batch_keys, tables, sessions } = limits;
        if listen.is_empty() {
            return Err(setting("listen", "empty", "at least one IP:PORT or unix:PATH"));
        }
        let Some(data_dir) = data_dir else {
            return Err(setting("data_dir", "missing", "a directory (--data-dir DIR)"));
        };
        // a message holds at least one row of the largest dimension, and fits prost's 31 bits
        let message = in_range("limits.message", message, 64 << 10, (2 << 30) - 1)?;
        for (name, count) in [
            ("limits.staged_steps", staged_steps),
            ("limits.batch_keys", batch_keys),
            ("limits.tables", tables),
            ("limits.sessions", sessions),
        ] {
            if count == 0 {
                return Err(setting(name, "0", "at least 1"));
            }
        }
        let limits = Limits {
            message_bytes_max: message,
            staged_steps_max: in_count("limits.staged_steps", staged_steps, 1 << 16)?,
            batch_keys_max: batch_keys,
            tables_max: tables,
            sessions_max: in_count("limits.sessions", sessions, 1 << 12)?,
        };
        let engine = EngineConfig {
            data_dir,
            host_ram_bytes: host_ram.0,
            ssd_memory_bytes: ssd_memory.0,
            gpu_cache_bytes: gpu_cache.0,
            gpu_device,
            gpu_code_dir: gpu_code_dir.or_else(tiers::usual_code_dir),
            stage_wait: stage_wait.0,
            ssd: checked_ssd(ssd)?,
            lock_memory,
            shares: bounds.into_iter().map(share).collect::<Result<_>>()?,
            limits,
        };
        Ok(Config { listen, http: http.0, engine, ready_file: None })
    }
}

/// The least with which the tier still moves.
const WRITE_BYTES_PER_S_MIN: u64 = 1 << 20;

fn checked_ssd(ssd: SsdConfig) -> Result<SsdConfig> {
    let SsdConfig { write_bytes_per_s, read_threads, durability: _ } = ssd;
    if let Some(bytes) = write_bytes_per_s
        && bytes < WRITE_BYTES_PER_S_MIN
    {
        let expected = "off, or 1MiB/s and more";
        return Err(setting("ssd_write_rate", &format!("{}/s", format_bytes(bytes)), expected));
    }
    if !(1..=1024).contains(&read_threads) {
        return Err(setting("ssd_read_threads", &read_threads.to_string(), "1 to 1024"));
    }
    Ok(ssd)
}

/// The bounds of one table, the lower not above the upper. Whether all tables' lower bounds fit the
/// budget is checked by the tiers, which know what a row takes.
fn share((table, bounds): (String, TableToml)) -> Result<TableShare> {
    let TableToml { host_ram_min, host_ram_max } = bounds;
    let host_bytes_min = host_ram_min.map_or(0, |size| size.0);
    let host_bytes_max = host_ram_max.map_or(u64::MAX, |size| size.0);
    if host_bytes_min > host_bytes_max {
        let found = format!("{} for table {table}", format_bytes(host_bytes_min));
        let expected = format!("at most its host_ram_max, {}", format_bytes(host_bytes_max));
        return Err(setting("tables.host_ram_min", &found, &expected));
    }
    Ok(TableShare { table, host_bytes_min, host_bytes_max })
}

fn in_range(name: &'static str, size: Size, min: u64, max: u64) -> Result<u64> {
    if (min..=max).contains(&size.0) {
        return Ok(size.0);
    }
    let expected = format!("{} to {max} bytes", format_bytes(min));
    Err(setting(name, &format_bytes(size.0), &expected))
}

fn in_count(name: &'static str, count: u32, max: u32) -> Result<u32> {
    if count <= max {
        return Ok(count);
    }
    Err(setting(name, &count.to_string(), &format!("1 to {max}")))
}

fn setting(setting: &'static str, found: &str, expected: &str) -> Error {
    Error::Setting { setting, found: found.to_owned(), expected: expected.to_owned() }
}

impl FromStr for Listen {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        match text.strip_prefix("unix:") {
            Some("") => Err("unix: lacks its path".to_owned()),
            Some(path) => Ok(Listen::Unix(path.into())),
            None => Ok(Listen::Tcp(parse_address(text, "IP:PORT or unix:PATH")?)),
        }
    }
}

impl FromStr for Switch {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        match text {
            "off" => Ok(Switch(None)),
            text => Ok(Switch(Some(parse_address(text, "IP:PORT or off")?))),
        }
    }
}

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        parse_bytes(text).map(Size).map_err(|error| error.to_string())
    }
}

impl FromStr for Rate {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        parse_rate(text).map(Rate).map_err(|error| error.to_string())
    }
}

impl FromStr for TableRam {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let wrong =
            || format!("{text:?} is not NAME=MIN..MAX, such as C1=64MiB..1GiB or C1=..1GiB");
        let (table, range) = text.split_once('=').ok_or_else(wrong)?;
        let (min, max) = range.split_once("..").ok_or_else(wrong)?;
        let bound = |text: &str| match text {
            "" => Ok(None),
            text => parse_bytes(text).map(|bytes| Some(Size(bytes))).map_err(|_| wrong()),
        };
        let bounds = TableToml { host_ram_min: bound(min)?, host_ram_max: bound(max)? };
        if table.is_empty() || bounds == TableToml::default() {
            return Err(wrong());
        }
        Ok(TableRam { table: table.to_owned(), bounds })
    }
}

impl FromStr for Span {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        parse_duration(text).map(Span).map_err(|error| error.to_string())
    }
}

impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Listen::Tcp(address) => write!(f, "{address}"),
            Listen::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

fn parse_address(text: &str, expected: &str) -> std::result::Result<SocketAddr, String> {
    text.parse().map_err(|_| format!("{text:?} is not {expected}, such as 127.0.0.1:7070"))
}

macro_rules! read_as_text {
    ($($name:ty),*) => {$(
        impl TryFrom<String> for $name {
            type Error = String;

            fn try_from(text: String) -> std::result::Result<Self, String> {
                text.parse()
            }
        }
    )*};
}
read_as_text!(Listen, Switch, Size, Rate, Span);

#[cfg(test)]
mod tests {
    use super::*;

    const EXAMPLE: &str =
        concat!(env!("CARGO_MANIFEST_DIR"), "/../../ops/config/embedding-ps.toml");

    fn bounds(min: Option<u64>, max: Option<u64>) -> TableToml {
        TableToml { host_ram_min: min.map(Size), host_ram_max: max.map(Size) }
    }

    fn fault(text: &str) -> String {
        toml::from_str::<ConfigToml>(text).unwrap_err().to_string()
    }

    #[test]
    fn the_example_says_what_the_defaults_are() {
        let example = ConfigToml::read(Path::new(EXAMPLE)).unwrap();
        let data_dir = example.data_dir.clone();
        assert!(data_dir.is_some());
        assert_eq!(example, ConfigToml { data_dir, ..ConfigToml::default() });
        // and says all of it: the same file without its values has no field left to name
        let text = std::fs::read_to_string(EXAMPLE).unwrap();
        for field in [
            "listen",
            "http",
            "data_dir",
            "host_ram",
            "ssd_memory",
            "gpu_cache",
            "stage_wait",
            "ssd_write_rate",
            "ssd_read_threads",
            "durability",
            "lock_memory",
            "message",
            "staged_steps",
            "batch_keys",
            "tables",
            "sessions",
        ] {
            assert!(text.contains(&format!("\n{field} = ")), "{field}");
        }
        Config::from_toml(example).unwrap();
        // the part that has no default stands behind signs of comment: it reads once they are gone
        let bounds = text.split_once("\n# [tables.").unwrap().1.replace("\n# ", "\n");
        let bounded: ConfigToml = toml::from_str(&format!("[tables.{bounds}")).unwrap();
        let (name, table) = bounded.tables.iter().next().unwrap();
        assert_eq!(name, "C1");
        assert!(table.host_ram_min.is_some() && table.host_ram_max.is_some());
    }

    #[test]
    fn a_fault_in_the_file_is_told_with_its_line() {
        let unknown = fault("host_ram = \"1GiB\"\nhost_rma = \"2GiB\"\n");
        assert!(unknown.contains("line 2, column 1"), "{unknown}");
        assert!(unknown.contains("unknown field `host_rma`"), "{unknown}");
        let size = fault("\nhost_ram = \"1GB\"\n");
        assert!(size.contains("line 2"), "{size}");
        assert!(size.contains("64MiB"), "{size}");
        let limits = fault("[limits]\nsteps = 3\n");
        assert!(limits.contains("line 2") && limits.contains("staged_steps"), "{limits}");
        assert!(fault("listen = [\"localhost\"]").contains("IP:PORT or unix:PATH"));
        assert!(fault("stage_wait = \"10\"").contains("250ms"));
        assert!(fault("ssd_write_rate = \"200MiB\"").contains("200MiB/s"));
        assert!(fault("durability = \"fsync\"").contains("`flush` or `log`"));
        assert!(fault("[tables.C1]\nram = \"1GiB\"").contains("host_ram_min"));
    }

    #[test]
    fn settings_out_of_range_are_named() {
        let sound = ConfigToml { data_dir: Some("d".into()), ..ConfigToml::default() };
        let limits = LimitsToml::default();
        let cases = [
            ("data_dir", ConfigToml { data_dir: None, ..sound.clone() }),
            ("listen", ConfigToml { listen: vec![], ..sound.clone() }),
            (
                "limits.sessions",
                ConfigToml {
                    limits: LimitsToml { sessions: 0, ..limits.clone() },
                    ..sound.clone()
                },
            ),
            ("ssd_write_rate", ConfigToml { ssd_write_rate: Rate(Some(1)), ..sound.clone() }),
            ("ssd_read_threads", ConfigToml { ssd_read_threads: 0, ..sound.clone() }),
            (
                "tables.host_ram_min",
                ConfigToml {
                    tables: BTreeMap::from([("C1".to_owned(), bounds(Some(2), Some(1)))]),
                    ..sound.clone()
                },
            ),
            (
                "limits.message",
                ConfigToml { limits: LimitsToml { message: Size(1), ..limits }, ..sound.clone() },
            ),
        ];
        for (name, toml) in cases {
            let error = Config::from_toml(toml).unwrap_err();
            assert!(
                matches!(&error, Error::Setting { setting, .. } if *setting == name),
                "{error}"
            );
        }
        Config::from_toml(sound).unwrap();
    }

    #[test]
    fn flags_stand_over_the_file() {
        use clap::Parser;
        let args = Args::try_parse_from([
            "embedding-ps",
            "--config",
            EXAMPLE,
            "--data-dir",
            "/tmp/x",
            "--host-ram",
            "2MiB",
            "--listen",
            "unix:/tmp/s",
            "--listen",
            "[::1]:0",
            "--http",
            "off",
            "--sessions-max",
            "3",
            "--stage-wait",
            "250ms",
            "--ssd-write-rate",
            "200MiB/s",
            "--ssd-read-threads",
            "4",
            "--durability",
            "log",
            "--lock-memory",
            "--table-host-ram",
            "C1=1MiB..2MiB",
            "--table-host-ram",
            "C2=..1MiB",
        ])
        .unwrap();
        let config = Config::from_args(args).unwrap();
        assert_eq!(config.engine.data_dir, Path::new("/tmp/x"));
        assert_eq!(config.engine.host_ram_bytes, 2 << 20);
        assert_eq!(config.engine.stage_wait, Duration::from_millis(250));
        assert_eq!(config.engine.limits, Limits { sessions_max: 3, ..Limits::DEFAULT });
        assert_eq!(config.http, None);
        let durability = Durability::Log;
        let ssd = SsdConfig { write_bytes_per_s: Some(200 << 20), read_threads: 4, durability };
        assert_eq!(config.engine.ssd, ssd);
        assert!(config.engine.lock_memory);
        let share = |table: &str, host_bytes_min, host_bytes_max| TableShare {
            table: table.to_owned(),
            host_bytes_min,
            host_bytes_max,
        };
        assert_eq!(config.engine.shares, [share("C1", 1 << 20, 2 << 20), share("C2", 0, 1 << 20)]);
        assert_eq!(
            config.listen.iter().map(Listen::to_string).collect::<Vec<_>>(),
            ["unix:/tmp/s", "[::1]:0"]
        );
    }

    #[test]
    fn bounds_of_a_table_read_as_people_write_them() {
        let ram = |text: &str| text.parse::<TableRam>().map(|ram| (ram.table, ram.bounds));
        assert_eq!(ram("a=1B..2B"), Ok(("a".to_owned(), bounds(Some(1), Some(2)))));
        assert_eq!(ram("a=1KiB.."), Ok(("a".to_owned(), bounds(Some(1024), None))));
        assert_eq!(ram("a=..1KiB"), Ok(("a".to_owned(), bounds(None, Some(1024)))));
        for text in ["", "a", "a=", "a=..", "=1B..2B", "a=1B-2B", "a=x.."] {
            assert!(ram(text).unwrap_err().contains("NAME=MIN..MAX"), "{text}");
        }
    }
}
