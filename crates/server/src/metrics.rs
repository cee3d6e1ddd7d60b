//! What the server counts, under which names. Durations are histograms in seconds; what is under
//! way is the difference of two counters. Rows and bytes of the tiers are read from the store when
//! the page is asked for: they are counted there, once.

use std::sync::Arc;
use std::time::Instant;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{
    DescriptorEncoder, EncodeLabelSet, EncodeLabelValue, EncodeMetric, LabelValueEncoder,
    NoLabelSet,
};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;
use table::{Latency, StoreStatus, TableStatus, TierCounters, TierStatus};

use crate::engine::Engine;

/// Seconds that a request took at the server, by operation. Histogram.
pub const REQUEST_DURATION_SECONDS: &str = "embedding_ps_request_duration_seconds";
/// Requests begun, by operation. Counter; less the finished ones it is what is under way.
pub const STARTED_REQUESTS: &str = "embedding_ps_started_requests";
/// Requests finished, well or not, by operation. Counter.
pub const FINISHED_REQUESTS: &str = "embedding_ps_finished_requests";
/// Requests that ended in an error, by operation and code. Counter.
pub const FAILED_REQUESTS: &str = "embedding_ps_failed_requests";
/// Sessions opened. Counter; less the closed ones it is those open now.
pub const OPENED_SESSIONS: &str = "embedding_ps_opened_sessions";
/// Sessions closed. Counter.
pub const CLOSED_SESSIONS: &str = "embedding_ps_closed_sessions";

/// Seconds that a pull waited because its step's staging had not ended; of the pulls that waited.
/// Histogram: its count is the stalled pulls.
pub const STALL_DURATION_SECONDS: &str = "embedding_ps_stall_duration_seconds";

/// Seconds that work of a tier took, by tier and work, each time. Histogram. `host`, `stage`: until
/// every key of a stage is resolved and pinned; `ssd`, `read`: a call that reads some rows of one
/// table; `ssd`, `write`: rows that are written back together; `gpu`, `stage`: until a stage's rows
/// are resolved in GPU memory, moves included; `gpu`, `move`: rows moved together between GPU
/// memory and host RAM.
pub const TIER_DURATION_SECONDS: &str = "embedding_ps_tier_duration_seconds";
/// Bytes of host RAM that rows and their index may take. Gauge.
pub const HOST_RAM_BUDGET_BYTES: &str = "embedding_ps_host_ram_budget_bytes";
/// Bytes of it in use. Gauge.
pub const HOST_RAM_USED_BYTES: &str = "embedding_ps_host_ram_used_bytes";
/// Bytes of GPU memory that rows may take. Gauge.
pub const GPU_CACHE_BYTES: &str = "embedding_ps_gpu_cache_bytes";
/// Stages whose rows were resolved to places in GPU memory or host RAM. Counter.
pub const GPU_STAGE_REQUESTS: &str = "embedding_ps_gpu_stage_requests";
/// Seconds that this took, moves of rows included. Counter; over the stages, the mean latency.
pub const GPU_STAGE_SECONDS: &str = "embedding_ps_gpu_stage_seconds";
/// Rows in RAM that a staged step holds. Gauge.
pub const PINNED_ROWS: &str = "embedding_ps_pinned_rows";
/// Rows that left RAM or are flushed, and are not written to SSD yet. Gauge.
pub const GOING_DOWN_ROWS: &str = "embedding_ps_going_down_rows";
/// Bytes that the SSD tier wrote to its files, merging and its log included. Counter; over the
/// bytes of rows written to the tier, the write amplification.
pub const SSD_FILE_WRITTEN_BYTES: &str = "embedding_ps_ssd_file_written_bytes";
/// Bytes that the SSD tier read from its files to merge them. Counter.
pub const SSD_FILE_MERGED_BYTES: &str = "embedding_ps_ssd_file_merged_bytes";
/// Rows that exist, by table, each counted once. Gauge.
pub const TABLE_ROWS: &str = "embedding_ps_table_rows";
/// Rows in a tier, by table and tier. Gauge.
pub const TIER_ROWS: &str = "embedding_ps_tier_rows";
/// Bytes in a tier, by table and tier. Gauge.
pub const TIER_BYTES: &str = "embedding_ps_tier_bytes";
/// Keys found in a tier, by table and tier. Counter.
pub const HIT_KEYS: &str = "embedding_ps_hit_keys";
/// Keys looked for in a tier and not found, by table, tier and cause. Counter. The cause is
/// `first_touch`: the row was nowhere; `expired`: it was, too old, wherever it was; `conflict`, in
/// GPU memory alone: its set there was full of staged rows, so that it was used in host RAM; or
/// `capacity`: it was in a tier below. In host RAM no miss is due to a conflict: a row that fits
/// the budget stays whatever its neighbours are, for a full bucket passes rows on. A tier's
/// conditional hit rate is its hits over its hits and misses; its overall one, its hits over those
/// of the topmost tier and the keys not admitted.
pub const MISSED_KEYS: &str = "embedding_ps_missed_keys";
/// Bytes of rows read from a tier, by table and tier. Counter.
pub const READ_BYTES: &str = "embedding_ps_read_bytes";
/// Bytes of rows written to a tier, by table and tier. Counter.
pub const WRITTEN_BYTES: &str = "embedding_ps_written_bytes";
/// Rows made because their key was touched for the first time, by table. Counter.
pub const FIRST_TOUCH_ROWS: &str = "embedding_ps_first_touch_rows";
/// Rows fetched from SSD again after they had left RAM, by table. Counter.
pub const REREAD_ROWS: &str = "embedding_ps_reread_rows";
/// Keys staged that the table's admission kept out, by table. Counter.
pub const NOT_ADMITTED_KEYS: &str = "embedding_ps_not_admitted_keys";
/// Rows forgotten because nobody had staged them for too long, by table. Counter.
pub const EXPIRED_ROWS: &str = "embedding_ps_expired_rows";
/// Of those, rows dropped on SSD before anybody staged them again, by table. Counter.
pub const DROPPED_ROWS: &str = "embedding_ps_dropped_rows";
/// Keys staged or looked up whose record on SSD could not be read, by table. Counter.
pub const FAILED_KEYS: &str = "embedding_ps_failed_keys";
/// Rows that left RAM, by table. Counter.
pub const EVICTED_ROWS: &str = "embedding_ps_evicted_rows";
/// Rows that came up into GPU memory, by table. Counter.
pub const PROMOTED_ROWS: &str = "embedding_ps_promoted_rows";
/// Rows that left GPU memory, by table. Counter.
pub const DEMOTED_ROWS: &str = "embedding_ps_demoted_rows";
/// Rows written to SSD because they were dirty, by table. Counter.
pub const WRITTEN_BACK_ROWS: &str = "embedding_ps_written_back_rows";

/// What a request does, as a label.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Operation {
    /// Taking a stage in.
    Stage,
    /// Resolving, fetching and pinning a staged step's rows, on the session's staging thread.
    Staging,
    /// Gathering rows, the wait for their staging included.
    Pull,
    /// Updating rows.
    Push,
    /// Unpinning rows.
    Release,
    /// Reading rows without staging.
    Lookup,
    /// Setting rows.
    Assign,
    /// Opening a worker's slots on a device.
    ShareDevice,
    /// Making a table.
    CreateTable,
    /// Listing tables.
    ListTables,
    /// Reading the status.
    GetStatus,
}

impl Operation {
    const ALL: [Operation; 11] = [
        Operation::Stage,
        Operation::Staging,
        Operation::Pull,
        Operation::Push,
        Operation::Release,
        Operation::Lookup,
        Operation::Assign,
        Operation::ShareDevice,
        Operation::CreateTable,
        Operation::ListTables,
        Operation::GetStatus,
    ];

    fn label(self) -> &'static str {
        match self {
            Operation::Stage => "stage",
            Operation::Staging => "staging",
            Operation::Pull => "pull",
            Operation::Push => "push",
            Operation::Release => "release",
            Operation::Lookup => "lookup",
            Operation::Assign => "assign",
            Operation::ShareDevice => "share_device",
            Operation::CreateTable => "create_table",
            Operation::ListTables => "list_tables",
            Operation::GetStatus => "get_status",
        }
    }
}

impl EncodeLabelValue for Operation {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> Result<(), std::fmt::Error> {
        self.label().encode(encoder)
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByOperation {
    operation: Operation,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByFailure {
    operation: Operation,
    code: String,
}

/// The server's own counters. Clones count together.
#[derive(Clone)]
pub struct Metrics {
    durations: Family<ByOperation, Histogram, fn() -> Histogram>,
    stalls: Histogram,
    started: Family<ByOperation, Counter>,
    finished: Family<ByOperation, Counter>,
    failed: Family<ByFailure, Counter>,
    sessions_opened: Counter,
    sessions_closed: Counter,
}

/// A request under way.
pub(crate) struct Timer {
    operation: Operation,
    begun: Instant,
}

impl Metrics {
    /// Counters on the page of `registry`.
    pub fn new(registry: &mut Registry) -> Self {
        let metrics = Self {
            durations: Family::new_with_constructor(duration_histogram),
            stalls: duration_histogram(),
            started: Family::default(),
            finished: Family::default(),
            failed: Family::default(),
            sessions_opened: Counter::default(),
            sessions_closed: Counter::default(),
        };
        for operation in Operation::ALL {
            // every series is there from the start, so that a first scrape shows zeros and not gaps
            let labels = ByOperation { operation };
            drop(metrics.durations.get_or_create(&labels));
            drop(metrics.started.get_or_create(&labels));
            drop(metrics.finished.get_or_create(&labels));
        }
        let m = metrics.clone();
        registry.register(REQUEST_DURATION_SECONDS, "Time a request took", m.durations);
        registry.register(STALL_DURATION_SECONDS, "Time that stalled pulls waited", m.stalls);
        registry.register(STARTED_REQUESTS, "Requests begun", m.started);
        registry.register(FINISHED_REQUESTS, "Requests finished, well or not", m.finished);
        registry.register(FAILED_REQUESTS, "Requests that ended in an error", m.failed);
        registry.register(OPENED_SESSIONS, "Sessions opened", m.sessions_opened);
        registry.register(CLOSED_SESSIONS, "Sessions closed", m.sessions_closed);
        metrics
    }

    pub(crate) fn session_opened(&self) {
        self.sessions_opened.inc();
    }

    pub(crate) fn session_closed(&self) {
        self.sessions_closed.inc();
    }

    /// Counts a pull that had to wait for its step's staging.
    pub(crate) fn stalled(&self, waited: std::time::Duration) {
        self.stalls.observe(waited.as_secs_f64());
    }

    /// Pushes finished so far, for the progress line.
    pub(crate) fn pushes(&self) -> u64 {
        self.finished.get_or_create(&ByOperation { operation: Operation::Push }).get()
    }

    pub(crate) fn start(&self, operation: Operation) -> Timer {
        self.started.get_or_create(&ByOperation { operation }).inc();
        Timer { operation, begun: Instant::now() }
    }
}

impl Timer {
    /// Counts the request as finished, and its error if it ended in one.
    pub(crate) fn finish(self, metrics: &Metrics, error: Option<&wire::Error>) {
        let Timer { operation, begun } = self;
        let labels = ByOperation { operation };
        metrics.durations.get_or_create(&labels).observe(begun.elapsed().as_secs_f64());
        metrics.finished.get_or_create(&labels).inc();
        if let Some(error) = error {
            let code = format!("{:?}", error.code());
            metrics.failed.get_or_create(&ByFailure { operation, code }).inc();
        }
    }
}

fn duration_histogram() -> Histogram {
    Histogram::new(exponential_buckets(20e-6, 2.0, 20)) // 20 us to 10 s
}

/// Reads the store whenever the page is asked for.
pub(crate) struct StoreCollector(pub(crate) Arc<Engine>);

impl std::fmt::Debug for StoreCollector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("StoreCollector")
    }
}

impl Collector for StoreCollector {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), std::fmt::Error> {
        let status: StoreStatus = self.0.status();
        for (name, help, value) in [
            (HOST_RAM_BUDGET_BYTES, "Host RAM for rows", status.host_ram_budget_bytes),
            (HOST_RAM_USED_BYTES, "Host RAM in use by rows", status.host_ram_used_bytes),
            (GPU_CACHE_BYTES, "GPU memory for rows", status.gpu_cache_bytes),
            (PINNED_ROWS, "Rows that staged steps hold, once for each step", status.pinned_rows),
            (GOING_DOWN_ROWS, "Rows not written to SSD yet", status.going_down_rows),
        ] {
            let gauge = ConstGauge::new(signed(value));
            let metric = encoder.encode_descriptor(name, help, None, gauge.metric_type())?;
            gauge.encode(metric)?;
        }
        let seconds = ConstCounter::new(status.gpu_stages_us as f64 / 1e6);
        let help = "Time that stages took to be resolved in GPU memory";
        let kind = seconds.metric_type();
        seconds.encode(encoder.encode_descriptor(GPU_STAGE_SECONDS, help, None, kind)?)?;
        for (name, help, value) in [
            (GPU_STAGE_REQUESTS, "Stages resolved in GPU memory", status.gpu_stages),
            (
                SSD_FILE_WRITTEN_BYTES,
                "Bytes written to files on SSD, merging and the log included",
                status.ssd_file_bytes_written,
            ),
            (
                SSD_FILE_MERGED_BYTES,
                "Bytes read from files on SSD to merge them",
                status.ssd_file_bytes_merged,
            ),
        ] {
            let counter = ConstCounter::new(value);
            let metric = encoder.encode_descriptor(name, help, None, counter.metric_type())?;
            counter.encode(metric)?;
        }
        for (name, help, read) in TABLE_GAUGES {
            by_table(&mut encoder, name, help, &status, |t| ConstGauge::new(signed(read(t))))?;
        }
        for (name, help, read) in TABLE_COUNTERS {
            by_table(&mut encoder, name, help, &status, |t| ConstCounter::new(read(t)))?;
        }
        for (name, help, read) in TIER_GAUGES {
            by_tier(&mut encoder, name, help, &status, |t, tier| {
                ConstGauge::new(signed(read(tier.of(t).0)))
            })?;
        }
        for (name, help, read) in TIER_COUNTERS {
            by_tier(&mut encoder, name, help, &status, |t, tier| {
                ConstCounter::new(read(tier.of(t).1))
            })?;
        }
        misses_by_cause(&mut encoder, &status)?;
        durations_by_tier(&mut encoder, &status)
    }
}

type Read<T> = (&'static str, &'static str, fn(&T) -> u64);

const TABLE_GAUGES: [Read<TableStatus>; 1] = [(TABLE_ROWS, "Rows that exist", |t| t.rows)];
const TABLE_COUNTERS: [Read<TableStatus>; 10] = [
    (PROMOTED_ROWS, "Rows that came up into GPU memory", |t| t.counters.promotions),
    (DEMOTED_ROWS, "Rows that left GPU memory", |t| t.counters.demotions),
    (NOT_ADMITTED_KEYS, "Keys that admission kept out", |t| t.counters.not_admitted),
    (EXPIRED_ROWS, "Rows that nobody staged for too long", |t| t.counters.expired),
    (DROPPED_ROWS, "Expired rows dropped on SSD", |t| t.counters.dropped),
    (FAILED_KEYS, "Keys whose record on SSD could not be read", |t| t.counters.failed),
    (FIRST_TOUCH_ROWS, "Rows made at their first touch", |t| t.counters.first_touch),
    (REREAD_ROWS, "Rows fetched again from SSD", |t| t.counters.ssd_rereads),
    (EVICTED_ROWS, "Rows that left RAM", |t| t.counters.evictions),
    (WRITTEN_BACK_ROWS, "Dirty rows written to SSD", |t| t.counters.writebacks),
];
const TIER_GAUGES: [Read<TierStatus>; 2] =
    [(TIER_ROWS, "Rows in the tier", |t| t.rows), (TIER_BYTES, "Bytes in the tier", |t| t.bytes)];
const TIER_COUNTERS: [Read<TierCounters>; 3] = [
    (HIT_KEYS, "Keys found in the tier", |t| t.hits),
    (READ_BYTES, "Bytes of rows read from the tier", |t| t.bytes_read),
    (WRITTEN_BYTES, "Bytes of rows written to the tier", |t| t.bytes_written),
];

#[derive(Clone, Copy)]
enum Tier {
    Gpu,
    Host,
    Ssd,
}

impl Tier {
    const ALL: [(Tier, &'static str); 3] =
        [(Tier::Gpu, "gpu"), (Tier::Host, "host"), (Tier::Ssd, "ssd")];

    fn of(self, table: &TableStatus) -> (&TierStatus, &TierCounters) {
        match self {
            Tier::Gpu => (&table.gpu, &table.counters.gpu),
            Tier::Host => (&table.host, &table.counters.host),
            Tier::Ssd => (&table.ssd, &table.counters.ssd),
        }
    }
}

/// What each tier did, and how long it took.
fn durations_by_tier(
    encoder: &mut DescriptorEncoder,
    status: &StoreStatus,
) -> Result<(), std::fmt::Error> {
    let help = "Time that work of a tier took";
    let kind = MetricType::Histogram;
    let mut family = encoder.encode_descriptor(TIER_DURATION_SECONDS, help, None, kind)?;
    for (tier, work, latency) in status.latencies.named() {
        let buckets = latency.counts.iter().enumerate().map(|(bucket, &count)| {
            let below_us = Latency::below_us(bucket);
            (below_us.map_or(f64::INFINITY, |us| us as f64 / 1e6), count)
        });
        let buckets: Vec<(f64, u64)> = buckets.collect();
        let labels = [("tier", tier), ("work", work)];
        let (sum, times) = (latency.sum_ns as f64 / 1e9, latency.times());
        let mut metric = family.encode_family(&labels)?;
        metric.encode_histogram::<NoLabelSet>(sum, times, &buckets, None)?;
    }
    Ok(())
}

/// Every tier's misses with their causes, which add up to them.
fn misses_by_cause(
    encoder: &mut DescriptorEncoder,
    status: &StoreStatus,
) -> Result<(), std::fmt::Error> {
    if status.tables.is_empty() {
        return Ok(());
    }
    let help = "Keys not found in the tier: rows that were nowhere, expired, met a full set, or \
                were in a tier below";
    let kind = ConstCounter::new(0_u64).metric_type();
    let mut family = encoder.encode_descriptor(MISSED_KEYS, help, None, kind)?;
    for table in &status.tables {
        for (tier, tier_name) in Tier::ALL {
            let counters = &table.counters;
            let mut rest = tier.of(table).1.misses;
            // what was nowhere was missed in every tier; counted at other moments, so bounded
            let mut of_rest = |count: u64| {
                let count = count.min(rest);
                rest -= count;
                count
            };
            let first_touch = of_rest(counters.first_touch);
            let expired = of_rest(counters.expired_misses());
            let conflict = matches!(tier, Tier::Gpu).then(|| of_rest(counters.conflicts));
            let causes = [("first_touch", Some(first_touch)), ("expired", Some(expired))];
            let causes =
                causes.into_iter().chain([("conflict", conflict), ("capacity", Some(rest))]);
            for (cause, count) in causes {
                let Some(count) = count else { continue };
                let labels =
                    [("table", table.spec.name.as_str()), ("tier", tier_name), ("cause", cause)];
                ConstCounter::new(count).encode(family.encode_family(&labels)?)?;
            }
        }
    }
    Ok(())
}

fn by_table<M: EncodeMetric>(
    encoder: &mut DescriptorEncoder,
    name: &str,
    help: &str,
    status: &StoreStatus,
    metric: impl Fn(&TableStatus) -> M,
) -> Result<(), std::fmt::Error> {
    let Some(first) = status.tables.first() else { return Ok(()) };
    let kind = metric(first).metric_type();
    let mut family = encoder.encode_descriptor(name, help, None, kind)?;
    for table in &status.tables {
        let labels = [("table", table.spec.name.as_str())];
        metric(table).encode(family.encode_family(&labels)?)?;
    }
    Ok(())
}

fn by_tier<M: EncodeMetric>(
    encoder: &mut DescriptorEncoder,
    name: &str,
    help: &str,
    status: &StoreStatus,
    metric: impl Fn(&TableStatus, Tier) -> M,
) -> Result<(), std::fmt::Error> {
    let Some(first) = status.tables.first() else { return Ok(()) };
    let kind = metric(first, Tier::Host).metric_type();
    let mut family = encoder.encode_descriptor(name, help, None, kind)?;
    for table in &status.tables {
        for (tier, tier_name) in Tier::ALL {
            let labels = [("table", table.spec.name.as_str()), ("tier", tier_name)];
            metric(table, tier).encode(family.encode_family(&labels)?)?;
        }
    }
    Ok(())
}

/// A gauge's value: what is over 63 bits stays at the top.
fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}
