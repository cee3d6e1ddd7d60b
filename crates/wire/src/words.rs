//! Messages to words and back: every message is checked here, once, on receipt. It does not look at
//! limits or at what the server holds.

use table::{
    Admission, Counters, DeviceHandle, DeviceId, DevicePlaces, DeviceSlots, Expiry, Initializer,
    Key, KeyBatch, KeyRun, Latencies, Latency, Limits, Optimizer, RowStatus, SharedBytes,
    SharedSlot, Step, StoreStatus, TableId, TableSpec, TableStatus, TierCounters, TierStatus,
};

use crate::proto;
use crate::proto::initializer::Distribution;
use crate::proto::optimizer::Rule;
use crate::proto::table_spec::Expiry as ExpireAfter;
use crate::{Code, Error, Result, packed};

impl From<&KeyBatch> for proto::Keys {
    fn from(batch: &KeyBatch) -> Self {
        let run = |run: &KeyRun| proto::KeyRun { table: run.table.0, rows: run.rows };
        let runs = batch.key_runs().iter().map(run).collect();
        proto::Keys { runs, keys: packed::pack_keys(batch.keys()) }
    }
}

impl TryFrom<proto::Keys> for KeyBatch {
    type Error = Error;

    fn try_from(message: proto::Keys) -> Result<Self> {
        let run = |run: proto::KeyRun| KeyRun { table: TableId(run.table), rows: run.rows };
        let keys: Vec<Key> = packed::unpack_keys("keys", &message.keys)?;
        Ok(KeyBatch::from_parts(message.runs.into_iter().map(run).collect(), keys)?)
    }
}

/// The request that stages `keys`, with their next uses where they are known.
pub(crate) fn stage_of(step: Step, keys: &KeyBatch) -> proto::Stage {
    let next_uses = keys.next_uses().map(packed::pack_counts).unwrap_or_default();
    proto::Stage { step: step.0, keys: Some(keys.into()), next_uses }
}

impl TryFrom<proto::Stage> for (Step, KeyBatch) {
    type Error = Error;

    fn try_from(message: proto::Stage) -> Result<Self> {
        let proto::Stage { step, keys, next_uses } = message;
        let missing = || Error::new(Code::InvalidArgument, "the request comes without its keys");
        let mut keys: KeyBatch = keys.ok_or_else(missing)?.try_into()?;
        keys.set_next_uses(packed::unpack_counts("next_uses", &next_uses)?)?;
        Ok((Step(step), keys))
    }
}

impl TryFrom<&DevicePlaces> for proto::ShareDevice {
    type Error = Error;

    fn try_from(places: &DevicePlaces) -> Result<Self> {
        let DeviceSlots::Shared(slots) = &places.slots else {
            let message = "slots of this process's own addresses mean nothing to a server";
            return Err(Error::new(Code::InvalidArgument, message));
        };
        let handle = |handle: &DeviceHandle| handle.to_vec().into();
        let bytes = |part: &SharedBytes| {
            let SharedBytes { memory, offset, bytes } = part;
            Some(proto::DeviceBytes { memory: handle(memory), offset: *offset, bytes: *bytes })
        };
        let slot = |slot: &SharedSlot| proto::DeviceSlot {
            rows: bytes(&slot.rows),
            gradients: bytes(&slot.gradients),
            worker_done: handle(&slot.worker_done),
            session_done: handle(&slot.session_done),
        };
        let device = places.device.0.to_vec().into();
        Ok(proto::ShareDevice { device, slots: slots.iter().map(slot).collect() })
    }
}

impl TryFrom<proto::ShareDevice> for DevicePlaces {
    type Error = Error;

    fn try_from(message: proto::ShareDevice) -> Result<Self> {
        let device = device_of(&message.device)?;
        let (count, most) = (message.slots.len(), DeviceSlots::MAX);
        if count > most {
            let message = format!("{count} slots are shared, the limit is {most}");
            return Err(Error::new(Code::TooLarge, message));
        }
        let slots: Vec<SharedSlot> =
            message.slots.into_iter().map(slot_of).collect::<Result<_>>()?;
        Ok(DevicePlaces { device, slots: DeviceSlots::Shared(slots) })
    }
}

/// A device by the bytes of its UUID.
pub(crate) fn device_of(bytes: &[u8]) -> Result<DeviceId> {
    Ok(DeviceId(bytes_of("the UUID of a device", bytes)?))
}

fn slot_of(slot: proto::DeviceSlot) -> Result<SharedSlot> {
    let slot = SharedSlot {
        rows: part_of("rows", slot.rows)?,
        gradients: part_of("gradients", slot.gradients)?,
        worker_done: bytes_of("the handle of an event", &slot.worker_done)?,
        session_done: bytes_of("the handle of an event", &slot.session_done)?,
    };
    let (rows, gradients) = (slot.rows.bytes, slot.gradients.bytes);
    if rows != gradients {
        let message = format!("a slot has {rows} bytes for rows and {gradients} for gradients");
        return Err(Error::new(Code::InvalidArgument, message));
    }
    Ok(slot)
}

fn part_of(what: &str, part: Option<proto::DeviceBytes>) -> Result<SharedBytes> {
    let wrong = |why: &str| {
        Error::new(Code::InvalidArgument, format!("the place of a slot's {what} {why}"))
    };
    let proto::DeviceBytes { memory, offset, bytes } = part.ok_or_else(|| wrong("is missing"))?;
    if !offset.is_multiple_of(16) || !bytes.is_multiple_of(4) {
        return Err(wrong(&format!(
            "is {bytes} bytes from byte {offset}, expected multiples of 4 from one of 16"
        )));
    }
    if offset.checked_add(bytes).is_none() {
        return Err(wrong(&format!("is {bytes} bytes from byte {offset}, beyond all memory")));
    }
    Ok(SharedBytes { memory: bytes_of("the handle of memory", &memory)?, offset, bytes })
}

fn bytes_of<const N: usize>(what: &str, bytes: &[u8]) -> Result<[u8; N]> {
    bytes.try_into().map_err(|_| {
        let message = format!("{what} has {} bytes, expected {N}", bytes.len());
        Error::new(Code::InvalidArgument, message)
    })
}

impl From<&Error> for proto::Status {
    fn from(error: &Error) -> Self {
        proto::Status { code: error.code() as u32, message: error.message().to_owned() }
    }
}

impl From<proto::Status> for Error {
    fn from(message: proto::Status) -> Self {
        Error::new(Code::from_number(message.code), message.message)
    }
}

/// Packs the statuses of a pull or a lookup, one byte a row.
pub fn pack_statuses(statuses: &[RowStatus]) -> bytes::Bytes {
    statuses.iter().map(|status| *status as u8).collect::<Vec<u8>>().into()
}

/// Unpacks the statuses of a pull or a lookup.
pub fn unpack_statuses(packed: &[u8]) -> Result<Vec<RowStatus>> {
    let unknown = |byte| {
        Error::new(Code::InvalidArgument, format!("status of a row is {byte}, expected 1 to 6"))
    };
    packed.iter().map(|&byte| RowStatus::from_byte(byte).ok_or_else(|| unknown(byte))).collect()
}

impl From<Limits> for proto::Limits {
    fn from(limits: Limits) -> Self {
        let Limits {
            message_bytes_max,
            staged_steps_max,
            batch_keys_max,
            tables_max,
            sessions_max,
        } = limits;
        proto::Limits {
            message_bytes_max,
            staged_steps_max,
            batch_keys_max,
            tables_max,
            sessions_max,
        }
    }
}

impl From<proto::Limits> for Limits {
    fn from(message: proto::Limits) -> Self {
        Limits {
            message_bytes_max: message.message_bytes_max,
            staged_steps_max: message.staged_steps_max,
            batch_keys_max: message.batch_keys_max,
            tables_max: message.tables_max,
            sessions_max: message.sessions_max,
        }
    }
}

impl From<&TableSpec> for proto::TableSpec {
    fn from(spec: &TableSpec) -> Self {
        let TableSpec { name, dim, optimizer, initializer, seed, admission, expiry } = spec;
        proto::TableSpec {
            name: name.clone(),
            dim: *dim,
            optimizer: Some((*optimizer).into()),
            initializer: Some((*initializer).into()),
            seed: *seed,
            admit_after_sights: match *admission {
                Admission::FirstSight => None,
                Admission::AfterSights(sights) => Some(sights),
            },
            expiry: match *expiry {
                Expiry::Never => None,
                Expiry::Steps(steps) => Some(ExpireAfter::ExpireAfterSteps(steps)),
                Expiry::Seconds(seconds) => Some(ExpireAfter::ExpireAfterS(seconds)),
            },
        }
    }
}

impl TryFrom<proto::TableSpec> for TableSpec {
    type Error = Error;

    fn try_from(message: proto::TableSpec) -> Result<Self> {
        let proto::TableSpec {
            name,
            dim,
            optimizer,
            initializer,
            seed,
            admit_after_sights,
            expiry,
        } = message;
        let lacks = |field| {
            Error::new(Code::InvalidArgument, format!("table {name:?} comes without its {field}"))
        };
        let rule = optimizer.and_then(|optimizer| optimizer.rule);
        let distribution = initializer.and_then(|initializer| initializer.distribution);
        let optimizer = rule.ok_or_else(|| lacks("optimizer"))?.into();
        let initializer = distribution.ok_or_else(|| lacks("initializer"))?.into();
        let admission = admit_after_sights.map_or(Admission::FirstSight, Admission::AfterSights);
        let expiry = match expiry {
            None => Expiry::Never,
            Some(ExpireAfter::ExpireAfterSteps(steps)) => Expiry::Steps(steps),
            Some(ExpireAfter::ExpireAfterS(seconds)) => Expiry::Seconds(seconds),
        };
        let spec = TableSpec { name, dim, optimizer, initializer, seed, admission, expiry };
        spec.validate()?;
        Ok(spec)
    }
}

impl From<Optimizer> for proto::Optimizer {
    fn from(optimizer: Optimizer) -> Self {
        use proto::optimizer::{Adagrad, Adam, Sgd};
        let rule = match optimizer {
            Optimizer::Sgd => Rule::Sgd(Sgd {}),
            Optimizer::Adagrad { eps, initial_accumulator } => {
                Rule::Adagrad(Adagrad { eps, initial_accumulator })
            }
            Optimizer::RowWiseAdagrad { eps, initial_accumulator } => {
                Rule::RowWiseAdagrad(Adagrad { eps, initial_accumulator })
            }
            Optimizer::Adam { beta1, beta2, eps } => Rule::Adam(Adam { beta1, beta2, eps }),
        };
        proto::Optimizer { rule: Some(rule) }
    }
}

impl From<Rule> for Optimizer {
    fn from(rule: Rule) -> Self {
        match rule {
            Rule::Sgd(_) => Optimizer::Sgd,
            Rule::Adagrad(r) => {
                Optimizer::Adagrad { eps: r.eps, initial_accumulator: r.initial_accumulator }
            }
            Rule::RowWiseAdagrad(r) => {
                Optimizer::RowWiseAdagrad { eps: r.eps, initial_accumulator: r.initial_accumulator }
            }
            Rule::Adam(r) => Optimizer::Adam { beta1: r.beta1, beta2: r.beta2, eps: r.eps },
        }
    }
}

impl From<Initializer> for proto::Initializer {
    fn from(initializer: Initializer) -> Self {
        use proto::initializer::{Normal, Uniform, UniformByRows, Zeros};
        let distribution = match initializer {
            Initializer::UniformByRows { rows } => {
                Distribution::UniformByRows(UniformByRows { rows })
            }
            Initializer::Uniform { bound } => Distribution::Uniform(Uniform { bound }),
            Initializer::Normal { mean, std } => Distribution::Normal(Normal { mean, std }),
            Initializer::Zeros => Distribution::Zeros(Zeros {}),
        };
        proto::Initializer { distribution: Some(distribution) }
    }
}

impl From<Distribution> for Initializer {
    fn from(distribution: Distribution) -> Self {
        match distribution {
            Distribution::UniformByRows(d) => Initializer::UniformByRows { rows: d.rows },
            Distribution::Uniform(d) => Initializer::Uniform { bound: d.bound },
            Distribution::Normal(d) => Initializer::Normal { mean: d.mean, std: d.std },
            Distribution::Zeros(_) => Initializer::Zeros,
        }
    }
}

impl From<&(TableId, TableSpec)> for proto::Table {
    fn from((table, spec): &(TableId, TableSpec)) -> Self {
        proto::Table { table: table.0, spec: Some(spec.into()) }
    }
}

impl TryFrom<proto::Table> for (TableId, TableSpec) {
    type Error = Error;

    fn try_from(message: proto::Table) -> Result<Self> {
        let id = TableId(message.table);
        Ok((id, spec_of(id, message.spec)?))
    }
}

impl From<&StoreStatus> for proto::StoreStatus {
    fn from(status: &StoreStatus) -> Self {
        let StoreStatus {
            tables,
            host_ram_budget_bytes,
            host_ram_used_bytes,
            gpu_cache_bytes,
            gpu_stages,
            gpu_stages_us,
            pinned_rows,
            going_down_rows,
            ssd_file_bytes_written,
            ssd_file_bytes_merged,
            latencies,
            opened_clean,
        } = status;
        proto::StoreStatus {
            tables: tables.iter().map(proto::TableStatus::from).collect(),
            host_ram_budget_bytes: *host_ram_budget_bytes,
            host_ram_used_bytes: *host_ram_used_bytes,
            pinned_rows: *pinned_rows,
            opened_clean: *opened_clean,
            ssd_file_bytes_written: *ssd_file_bytes_written,
            ssd_file_bytes_merged: *ssd_file_bytes_merged,
            gpu_cache_bytes: *gpu_cache_bytes,
            gpu_stages: *gpu_stages,
            gpu_stages_us: *gpu_stages_us,
            going_down_rows: *going_down_rows,
            latencies: Some(latencies.into()),
        }
    }
}

impl TryFrom<proto::StoreStatus> for StoreStatus {
    type Error = Error;

    fn try_from(message: proto::StoreStatus) -> Result<Self> {
        Ok(StoreStatus {
            tables: message.tables.into_iter().map(TryInto::try_into).collect::<Result<_>>()?,
            host_ram_budget_bytes: message.host_ram_budget_bytes,
            host_ram_used_bytes: message.host_ram_used_bytes,
            gpu_cache_bytes: message.gpu_cache_bytes,
            gpu_stages: message.gpu_stages,
            gpu_stages_us: message.gpu_stages_us,
            pinned_rows: message.pinned_rows,
            going_down_rows: message.going_down_rows,
            ssd_file_bytes_written: message.ssd_file_bytes_written,
            ssd_file_bytes_merged: message.ssd_file_bytes_merged,
            latencies: message.latencies.unwrap_or_default().into(),
            opened_clean: message.opened_clean,
        })
    }
}

impl From<&Latencies> for proto::Latencies {
    fn from(latencies: &Latencies) -> Self {
        let Latencies { host_stage, ssd_read, ssd_write, gpu_stage, gpu_move } = latencies;
        let told = |latency: &Latency| {
            let Latency { sum_ns, counts } = *latency;
            Some(proto::Latency { sum_ns, counts: counts.to_vec() })
        };
        proto::Latencies {
            host_stage: told(host_stage),
            ssd_read: told(ssd_read),
            ssd_write: told(ssd_write),
            gpu_stage: told(gpu_stage),
            gpu_move: told(gpu_move),
        }
    }
}

impl From<proto::Latencies> for Latencies {
    fn from(message: proto::Latencies) -> Self {
        // of another version's buckets, those beyond the last are the last's
        let known = |latency: Option<proto::Latency>| {
            let proto::Latency { sum_ns, counts: told } = latency.unwrap_or_default();
            let mut counts = [0_u64; Latency::BUCKETS];
            for (bucket, count) in told.into_iter().enumerate() {
                let bucket = &mut counts[bucket.min(Latency::BUCKETS - 1)];
                *bucket = bucket.saturating_add(count);
            }
            Latency { sum_ns, counts }
        };
        Latencies {
            host_stage: known(message.host_stage),
            ssd_read: known(message.ssd_read),
            ssd_write: known(message.ssd_write),
            gpu_stage: known(message.gpu_stage),
            gpu_move: known(message.gpu_move),
        }
    }
}

impl From<&TableStatus> for proto::TableStatus {
    fn from(status: &TableStatus) -> Self {
        let TableStatus { id, spec, rows, gpu, host, ssd, counters } = status;
        let tier = |tier: &TierStatus| {
            let TierStatus { rows, bytes } = *tier;
            Some(proto::TierStatus { rows, bytes })
        };
        proto::TableStatus {
            table: id.0,
            spec: Some(spec.into()),
            rows: *rows,
            gpu: tier(gpu),
            host: tier(host),
            ssd: tier(ssd),
            counters: Some(counters.into()),
        }
    }
}

impl TryFrom<proto::TableStatus> for TableStatus {
    type Error = Error;

    fn try_from(message: proto::TableStatus) -> Result<Self> {
        let id = TableId(message.table);
        let tier = |tier: Option<proto::TierStatus>| {
            let proto::TierStatus { rows, bytes } = tier.unwrap_or_default();
            TierStatus { rows, bytes }
        };
        Ok(TableStatus {
            id,
            spec: spec_of(id, message.spec)?,
            rows: message.rows,
            gpu: tier(message.gpu),
            host: tier(message.host),
            ssd: tier(message.ssd),
            counters: message.counters.unwrap_or_default().into(),
        })
    }
}

impl From<&Counters> for proto::Counters {
    fn from(counters: &Counters) -> Self {
        let Counters {
            gpu,
            host,
            ssd,
            first_touch,
            ssd_rereads,
            evictions,
            writebacks,
            not_admitted,
            expired,
            promotions,
            demotions,
            dropped,
            failed,
            conflicts,
        } = *counters;
        let tier = |tier: TierCounters| {
            let TierCounters { hits, misses, bytes_read, bytes_written } = tier;
            Some(proto::TierCounters { hits, misses, bytes_read, bytes_written })
        };
        proto::Counters {
            gpu: tier(gpu),
            host: tier(host),
            ssd: tier(ssd),
            first_touch,
            ssd_rereads,
            evictions,
            writebacks,
            not_admitted,
            expired,
            promotions,
            demotions,
            dropped,
            failed,
            conflicts,
        }
    }
}

impl From<proto::Counters> for Counters {
    fn from(message: proto::Counters) -> Self {
        let tier = |tier: Option<proto::TierCounters>| {
            let proto::TierCounters { hits, misses, bytes_read, bytes_written } =
                tier.unwrap_or_default();
            TierCounters { hits, misses, bytes_read, bytes_written }
        };
        Counters {
            gpu: tier(message.gpu),
            host: tier(message.host),
            ssd: tier(message.ssd),
            first_touch: message.first_touch,
            ssd_rereads: message.ssd_rereads,
            evictions: message.evictions,
            writebacks: message.writebacks,
            not_admitted: message.not_admitted,
            expired: message.expired,
            promotions: message.promotions,
            demotions: message.demotions,
            dropped: message.dropped,
            failed: message.failed,
            conflicts: message.conflicts,
        }
    }
}

fn spec_of(id: TableId, spec: Option<proto::TableSpec>) -> Result<TableSpec> {
    let lacks =
        || Error::new(Code::InvalidArgument, format!("{id} comes without its specification"));
    spec.ok_or_else(lacks)?.try_into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use prost::Message;

    fn optimizers() -> impl Strategy<Value = Optimizer> {
        let unit = 0.0_f32..1.0;
        prop_oneof![
            Just(Optimizer::Sgd),
            (1e-12_f32..1.0, 0.0_f32..2.0).prop_map(|(eps, initial_accumulator)| {
                Optimizer::Adagrad { eps, initial_accumulator }
            }),
            (1e-12_f32..1.0, 0.0_f32..2.0).prop_map(|(eps, initial_accumulator)| {
                Optimizer::RowWiseAdagrad { eps, initial_accumulator }
            }),
            (unit.clone(), unit, 1e-12_f32..1.0)
                .prop_map(|(beta1, beta2, eps)| { Optimizer::Adam { beta1, beta2, eps } }),
        ]
    }

    fn initializers() -> impl Strategy<Value = Initializer> {
        prop_oneof![
            (1_u64..).prop_map(|rows| Initializer::UniformByRows { rows }),
            (0.0_f32..9.0).prop_map(|bound| Initializer::Uniform { bound }),
            (-9.0_f32..9.0, 0.0_f32..9.0).prop_map(|(mean, std)| Initializer::Normal { mean, std }),
            Just(Initializer::Zeros),
        ]
    }

    fn admissions() -> impl Strategy<Value = Admission> {
        prop_oneof![
            Just(Admission::FirstSight),
            (1..=Admission::SIGHTS_MAX).prop_map(Admission::AfterSights),
        ]
    }

    fn expiries() -> impl Strategy<Value = Expiry> {
        prop_oneof![
            Just(Expiry::Never),
            (1_u32..).prop_map(Expiry::Steps),
            (1_u32..).prop_map(Expiry::Seconds),
        ]
    }

    prop_compose! {
        fn specs()(
            name in "[A-Za-z0-9_.-]{1,64}",
            dim in 1_u32..=4096,
            optimizer in optimizers(),
            initializer in initializers(),
            seed: u64,
            admission in admissions(),
            expiry in expiries(),
        ) -> TableSpec {
            TableSpec { name, dim, optimizer, initializer, seed, admission, expiry }
        }
    }

    prop_compose! {
        fn counters()(n in prop::array::uniform23(0_u64..)) -> Counters {
            let tier = |i: usize| TierCounters {
                hits: n[i], misses: n[i + 1], bytes_read: n[i + 2], bytes_written: n[i + 3],
            };
            Counters {
                gpu: tier(0), host: tier(4), ssd: tier(8),
                first_touch: n[12], ssd_rereads: n[13], evictions: n[14], writebacks: n[15],
                not_admitted: n[16], expired: n[17], promotions: n[18], demotions: n[19],
                dropped: n[20], failed: n[21], conflicts: n[22],
            }
        }
    }

    prop_compose! {
        fn latencies()(
            sums in prop::array::uniform5(0_u64..),
            counts in prop::array::uniform5(prop::array::uniform24(0_u64..)),
        ) -> Latencies {
            let of = |i: usize| Latency { sum_ns: sums[i], counts: counts[i] };
            Latencies {
                host_stage: of(0), ssd_read: of(1), ssd_write: of(2),
                gpu_stage: of(3), gpu_move: of(4),
            }
        }
    }

    prop_compose! {
        fn statuses()(
            tables in prop::collection::vec((specs(), counters()), 0..4),
            n in prop::array::uniform16(0_u64..),
            latencies in latencies(),
            opened_clean: bool,
        ) -> StoreStatus {
            let tier = |i: usize| TierStatus { rows: n[i], bytes: n[i + 1] };
            let tables = tables.into_iter().enumerate().map(|(i, (spec, counters))| TableStatus {
                id: TableId(i as u32), spec, rows: n[0],
                gpu: tier(1), host: tier(3), ssd: tier(5), counters,
            });
            StoreStatus {
                tables: tables.collect(),
                host_ram_budget_bytes: n[7],
                host_ram_used_bytes: n[8],
                pinned_rows: n[9],
                ssd_file_bytes_written: n[10],
                ssd_file_bytes_merged: n[11],
                gpu_cache_bytes: n[12],
                gpu_stages: n[13],
                gpu_stages_us: n[14],
                going_down_rows: n[15],
                latencies,
                opened_clean,
            }
        }
    }

    proptest! {
        #[test]
        fn a_specification_comes_back(spec in specs()) {
            let bytes = proto::TableSpec::from(&spec).encode_to_vec();
            let message = proto::TableSpec::decode(&bytes[..]).unwrap();
            prop_assert_eq!(TableSpec::try_from(message).unwrap(), spec);
        }

        #[test]
        fn a_status_comes_back(status in statuses()) {
            let bytes = proto::StoreStatus::from(&status).encode_to_vec();
            let message = proto::StoreStatus::decode(&bytes[..]).unwrap();
            prop_assert_eq!(StoreStatus::try_from(message).unwrap(), status);
        }

        #[test]
        fn keys_come_back(tables in prop::collection::btree_map(
            any::<u32>(), prop::collection::btree_set(any::<u64>(), 1..20), 0..5))
        {
            let mut batch = KeyBatch::new();
            for (table, keys) in tables {
                let keys: Vec<Key> = keys.into_iter().map(Key).collect();
                batch.push_run(TableId(table), &keys).unwrap();
            }
            let bytes = proto::Keys::from(&batch).encode_to_vec();
            let message = proto::Keys::decode(&bytes[..]).unwrap();
            prop_assert_eq!(KeyBatch::try_from(message).unwrap(), batch);
        }

        #[test]
        fn a_stage_comes_back_with_its_next_uses(
            step: u64,
            next_uses in prop::collection::btree_map(any::<u64>(), any::<u32>(), 0..20),
            known: bool)
        {
            let mut batch = KeyBatch::new();
            let keys: Vec<Key> = next_uses.keys().copied().map(Key).collect();
            batch.push_run(TableId(3), &keys).unwrap();
            if known {
                batch.set_next_uses(next_uses.into_values().collect()).unwrap();
            }
            let bytes = stage_of(Step(step), &batch).encode_to_vec();
            let message = proto::Stage::decode(&bytes[..]).unwrap();
            prop_assert_eq!(<(Step, KeyBatch)>::try_from(message).unwrap(), (Step(step), batch));
        }

        #[test]
        fn slots_come_back(
            device: [u8; 16],
            slots in prop::collection::vec((any::<u8>(), 0_u64..1 << 40, 0_u64..1 << 40), 0..17))
        {
            let slot = |(byte, offset, floats): (u8, u64, u64)| {
                let (offset, bytes) = (16 * offset, 4 * floats);
                let bytes = SharedBytes { memory: [byte; 64], offset, bytes };
                SharedSlot {
                    rows: bytes.clone(),
                    gradients: SharedBytes { offset: 0, ..bytes },
                    worker_done: [byte ^ 1; 64],
                    session_done: [byte ^ 2; 64],
                }
            };
            let slots = DeviceSlots::Shared(slots.into_iter().map(slot).collect());
            let places = DevicePlaces { device: DeviceId(device), slots };
            let message = proto::ShareDevice::try_from(&places).unwrap().encode_to_vec();
            let message = proto::ShareDevice::decode(&message[..]).unwrap();
            match DevicePlaces::try_from(message) {
                Ok(again) => prop_assert_eq!(again, places),
                Err(error) => {
                    prop_assert_eq!(error.message(), "17 slots are shared, the limit is 16");
                    prop_assert_eq!(places.slots.len(), 17);
                }
            }
        }

        #[test]
        fn arbitrary_bytes_are_refused_or_read_and_never_panic(
            bytes in prop::collection::vec(any::<u8>(), 0..512))
        {
            use proto::request::Request as R;
            if let Ok(message) = proto::Request::decode(&bytes[..])
                && let Some(
                    R::Lookup(proto::Lookup { keys: Some(keys) })
                    | R::Assign(proto::Assign { keys: Some(keys), .. }),
                ) = message.request
            {
                let _ = KeyBatch::try_from(keys);
            }
            let _ = proto::Stage::decode(&bytes[..]).map(<(Step, KeyBatch)>::try_from);
            let _ = proto::Keys::decode(&bytes[..]).map(KeyBatch::try_from);
            let _ = proto::ShareDevice::decode(&bytes[..]).map(DevicePlaces::try_from);
            let _ = proto::TableSpec::decode(&bytes[..]).map(TableSpec::try_from);
            let _ = proto::StoreStatus::decode(&bytes[..]).map(StoreStatus::try_from);
            let _ = proto::Response::decode(&bytes[..]);
            let _ = unpack_statuses(&bytes);
        }

        #[test]
        fn arbitrary_runs_are_refused_or_read_and_never_panic(
            runs in prop::collection::vec((0_u32..4, prop_oneof![0_u32..4, any::<u32>()]), 0..5),
            keys in prop::collection::vec(any::<u8>(), 0..64))
        {
            let runs = runs.into_iter().map(|(table, rows)| proto::KeyRun { table, rows });
            let message = proto::Keys { runs: runs.collect(), keys: keys.into() };
            if let Ok(batch) = KeyBatch::try_from(message.clone()) {
                prop_assert_eq!(proto::Keys::from(&batch).keys, message.keys);
            }
        }
    }

    #[test]
    fn what_a_message_lacks_is_named() {
        let spec = proto::TableSpec { name: "C1".into(), dim: 4, ..Default::default() };
        let error = TableSpec::try_from(spec).unwrap_err();
        assert_eq!(error.message(), "table \"C1\" comes without its optimizer");
        let error = <(Step, KeyBatch)>::try_from(proto::Stage::default()).unwrap_err();
        assert_eq!(error.message(), "the request comes without its keys");
        let keys = Some(proto::Keys::default());
        let stage = proto::Stage { keys, next_uses: vec![0; 4].into(), ..Default::default() };
        let error = <(Step, KeyBatch)>::try_from(stage).unwrap_err();
        assert_eq!(error.message(), "1 next uses for 0 keys");
        let error = DevicePlaces::try_from(proto::ShareDevice::default()).unwrap_err();
        assert_eq!(error.message(), "the UUID of a device has 0 bytes, expected 16");
        let share = |slot: proto::DeviceSlot| {
            let device = vec![0; 16].into();
            DevicePlaces::try_from(proto::ShareDevice { device, slots: vec![slot] })
        };
        let error = share(proto::DeviceSlot::default()).unwrap_err();
        assert_eq!(error.message(), "the place of a slot's rows is missing");
        let part =
            |offset, bytes| Some(proto::DeviceBytes { memory: vec![0; 64].into(), offset, bytes });
        let slot = |rows, gradients| proto::DeviceSlot { rows, gradients, ..Default::default() };
        for (rows, gradients, words) in [
            (part(8, 4), part(0, 4), "multiples of 4 from one of 16"),
            (part(0, 3), part(0, 3), "multiples of 4"),
            (part(u64::MAX - 15, 16), part(0, 16), "beyond all memory"),
            (part(0, 4), part(0, 4), "the handle of an event has 0 bytes"),
        ] {
            let error = share(slot(rows, gradients)).unwrap_err();
            assert!(error.message().contains(words), "{error}");
        }
        let unequal = proto::DeviceSlot {
            worker_done: vec![0; 64].into(),
            session_done: vec![0; 64].into(),
            ..slot(part(0, 4), part(0, 8))
        };
        let error = share(unequal).unwrap_err();
        assert_eq!(error.message(), "a slot has 4 bytes for rows and 8 for gradients");
        let here = DevicePlaces { device: DeviceId([0; 16]), slots: DeviceSlots::Here(vec![]) };
        assert!(proto::ShareDevice::try_from(&here).is_err());
        let error = unpack_statuses(&[1, 6, 0]).unwrap_err();
        assert_eq!(error.message(), "status of a row is 0, expected 1 to 6");
    }
}
