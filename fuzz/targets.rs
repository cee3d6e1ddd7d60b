//! What each decoder must do with any bytes: refuse them, or make something sound of them; never
//! panic, and never take memory that the bytes don't pay for. The fuzzer (`fuzz/fuzz_targets`) and
//! the test on stable Rust (`tests/fuzz.rs`) both call these. It makes no bytes up, but for seeds.
#![allow(clippy::unwrap_used)] // a panic is how a target says that something is wrong

use std::fs;
use std::path::{Path, PathBuf};

use dataset::{BadRows, Batch, DenseTransform, ReadOptions, Source};
use dlrm::{Architecture, DenseOptimizer, Interaction, Loss, Model};
use prost::Message;
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use table::{
    DeviceId, DevicePlaces, DeviceSlots, Initializer, Key, KeyBatch, Limits, Optimizer, RowStatus,
    SharedBytes, SharedSlot, Step, StoreStatus, TableId, TableSpec,
};
use wire::proto::{request, response};
use wire::{packed, proto};
use xxhash_rust::xxh3::Xxh3Default;

/// A decoder under test.
pub(crate) type Target = (&'static str, fn(&[u8]), fn() -> Vec<Vec<u8>>);

/// Every decoder: its name, what it must hold, valid input to begin from.
pub(crate) const TARGETS: [Target; 6] = [
    ("messages", messages, message_seeds),
    ("text", text, text_seeds),
    ("cache", cache, cache_seeds),
    ("weights", weights, weights_seeds),
    ("records", records, record_seeds),
    ("flags", flags, flag_seeds),
];

/// Messages of the protocol, both ways, and the packed bytes in them.
pub(crate) fn messages(bytes: &[u8]) {
    if let Ok(message) = proto::Request::decode(bytes) {
        match message.request {
            Some(request::Request::Stage(stage)) => {
                if let Ok((_, keys)) = <(Step, KeyBatch)>::try_from(stage) {
                    sound_keys(&keys);
                }
            }
            Some(request::Request::Lookup(lookup)) => keys(lookup.keys),
            Some(request::Request::Assign(assign)) => {
                keys(assign.keys);
                floats(&assign.rows);
            }
            Some(request::Request::Push(push)) => floats(&push.gradients),
            Some(request::Request::ShareDevice(share)) => sound_slots(share),
            Some(
                request::Request::Open(_)
                | request::Request::Pull(_)
                | request::Request::Release(_)
                | request::Request::PullOnDevice(_)
                | request::Request::PushOnDevice(_),
            )
            | None => {}
        }
    }
    if let Ok(message) = proto::Response::decode(bytes) {
        if let Some(status) = message.status {
            let _ = wire::Error::from(status);
        }
        match message.result {
            Some(response::Result::Opened(opened)) => {
                let _ = opened.limits.map(Limits::from);
            }
            Some(response::Result::Rows(rows)) => {
                floats(&rows.rows);
                statuses(&rows.statuses);
            }
            Some(response::Result::LookedUp(found)) => {
                floats(&found.rows);
                statuses(&found.statuses);
            }
            Some(response::Result::Done(_) | response::Result::PulledOnDevice(_)) | None => {}
        }
    }
    if let Ok(Ok(table)) = proto::Table::decode(bytes).map(<(TableId, TableSpec)>::try_from) {
        table.1.validate().unwrap();
        assert_eq!(<(TableId, TableSpec)>::try_from(proto::Table::from(&table)).unwrap(), table);
    }
    if let Ok(Ok(status)) = proto::StoreStatus::decode(bytes).map(StoreStatus::try_from) {
        let again = StoreStatus::try_from(proto::StoreStatus::from(&status)).unwrap();
        assert_eq!(format!("{again:?}"), format!("{status:?}"));
    }
}

fn keys(message: Option<proto::Keys>) {
    if let Some(Ok(keys)) = message.map(KeyBatch::try_from) {
        sound_keys(&keys);
    }
}

/// Tables ascend, keys ascend within a table, runs are all keys; and it goes out as it came in.
fn sound_keys(keys: &KeyBatch) {
    let mut last = None;
    let mut end = 0;
    for (table, range) in keys.runs() {
        assert!(last < Some(table) && range.start == end);
        assert!(keys.keys()[range.clone()].is_sorted_by(|a, b| a < b));
        (last, end) = (Some(table), range.end);
    }
    assert_eq!(end, keys.len());
    let again = KeyBatch::try_from(proto::Keys::from(keys)).unwrap();
    assert_eq!(again.keys(), keys.keys());
    assert!(keys.next_uses().is_none_or(|uses| uses.len() == keys.len()));
}

/// Slots lie within what memory can be, and go out as they came in.
fn sound_slots(message: proto::ShareDevice) {
    let Ok(places) = DevicePlaces::try_from(message) else { return };
    let DeviceSlots::Shared(slots) = &places.slots else { panic!("slots of this process") };
    assert!(slots.len() <= DeviceSlots::MAX);
    for part in slots.iter().flat_map(|slot| [&slot.rows, &slot.gradients]) {
        assert!(part.offset.checked_add(part.bytes).is_some() && part.offset.is_multiple_of(16));
    }
    let again = DevicePlaces::try_from(proto::ShareDevice::try_from(&places).unwrap()).unwrap();
    assert_eq!(again, places);
}

fn floats(bytes: &[u8]) {
    match packed::count_floats("floats", bytes) {
        Ok(count) => {
            let mut floats = vec![0.0; count];
            packed::unpack_floats(bytes, &mut floats);
            assert_eq!(packed::pack_floats(&floats), bytes);
        }
        Err(_) => assert!(!bytes.len().is_multiple_of(4)),
    }
    if let Ok(counts) = packed::unpack_counts("counts", bytes) {
        assert_eq!(packed::pack_counts(&counts), bytes);
    }
}

fn statuses(bytes: &[u8]) {
    if let Ok(statuses) = wire::unpack_statuses(bytes) {
        assert_eq!(wire::pack_statuses(&statuses), bytes);
    }
}

/// Text with a header and Criteo's, plain or gzip; and Parquet by its first bytes.
pub(crate) fn text(bytes: &[u8]) {
    let path = file(bytes);
    for source in [Source::Tsv { path: path.clone() }, Source::Criteo { path: path.clone() }] {
        for (bad_rows, range, missing_indicator) in [
            (BadRows::Error, None, true),
            (BadRows::Skip { rows_max: 1000 }, Some(1 + bytes.len() as u64), false),
        ] {
            let mut options = ReadOptions::new(3);
            (options.bad_rows, options.max_ind_range) = (bad_rows, range);
            options.missing_indicator = missing_indicator;
            options.dense_transform = DenseTransform::SignedLog1p;
            let keys_max = range.unwrap_or(u64::MAX);
            read(&source, &options, |batch| {
                assert!(batch.features.iter().all(|f| f.values.len() == batch.rows()));
                let keys = batch.features.iter().flat_map(|feature| &feature.values);
                assert!(keys.into_iter().all(|key| key.0 < keys_max || range.is_none()));
            });
        }
    }
    fs::remove_file(path).unwrap();
}

/// A cache of batches, as the bytes are and with its checksums put right, for sums can be right
/// where counts are wrong.
pub(crate) fn cache(bytes: &[u8]) {
    for bytes in [bytes.to_vec(), resealed(bytes)] {
        let path = file(&bytes);
        if let Ok(card) = dataset::cache_card(&path) {
            let mut options = ReadOptions::new(card.batch_rows);
            options.dense_transform = card.dense_transform.clone();
            options.missing_indicator = card.missing_indicator;
            options.max_ind_range = card.max_ind_range;
            options.more_passes = true;
            read(&Source::Cache { path: path.clone() }, &options, |batch| {
                let distinct = &batch.distinct;
                let counts: usize = distinct.counts.iter().map(|&count| count as usize).sum();
                assert_eq!((counts, counts), (distinct.keys.len(), distinct.next_uses.len()));
                assert!(distinct.next_uses.iter().all(|&next_use| next_use > 0));
            });
        }
        fs::remove_file(path).unwrap();
    }
}

/// Reads all batches, which are sound as long as there is no error.
fn read(source: &Source, options: &ReadOptions, check: impl Fn(&Batch)) {
    let Ok(mut reader) = dataset::open(source, options) else { return };
    let mut batch = Batch::new();
    while let Ok(true) = reader.next_batch(&mut batch) {
        let rows = batch.rows();
        assert!((1..=options.batch_rows).contains(&rows), "{rows} rows");
        assert_eq!(batch.dense.len(), rows * reader.dense_width());
        assert!(batch.labels.iter().all(|label| (0.0..=1.0).contains(label)));
        assert!(batch.dense.iter().all(|x| x.is_finite()));
        for feature in &batch.features {
            assert_eq!(feature.offsets.len(), rows + 1);
            assert!(feature.offsets.is_sorted() && feature.offsets[0] == 0);
            assert_eq!(*feature.offsets.last().unwrap() as usize, feature.values.len());
        }
        check(&batch);
    }
}

/// A cache with its length and all checksums put right, as far as there are blocks.
fn resealed(bytes: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    if bytes.len() < 64 {
        return bytes;
    }
    let word = |bytes: &[u8], at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
    let sum = |parts: [&[u8]; 2]| {
        let mut sum = Xxh3Default::new();
        parts.iter().for_each(|part| sum.update(part));
        sum.digest().to_le_bytes()
    };
    let length = bytes.len() as u64;
    bytes[40..48].copy_from_slice(&length.to_le_bytes());
    let card_bytes = u32::from_le_bytes(bytes[12..16].try_into().unwrap()) as usize;
    let Some(card) = bytes.get(64..64 + card_bytes) else { return bytes };
    let header = sum([&bytes[..56], card]);
    bytes[56..64].copy_from_slice(&header);
    let mut at = 64 + card_bytes;
    while at + 40 <= bytes.len() {
        let end = (at as u64).saturating_add(word(&bytes, at)).min(length) as usize;
        if end < at + 40 {
            break;
        }
        let block = sum([&bytes[at..at + 32], &bytes[at + 40..end]]);
        bytes[at + 32..at + 40].copy_from_slice(&block);
        at = end;
    }
    bytes
}

/// Safetensors: a dense part, and a whole model with its tables.
pub(crate) fn weights(bytes: &[u8]) {
    let mut model = model();
    let before: Vec<Vec<f32>> = model.parameters().map(|p| p.values().to_vec()).collect();
    if model.load_safetensors(bytes).is_err() {
        let after: Vec<Vec<f32>> = model.parameters().map(|p| p.values().to_vec()).collect();
        assert_eq!(after, before, "a model is as it was after a refusal");
    }
    let path = file(bytes);
    if let Ok(rows) = worker::embedding_rows(&path, 2, 4) {
        assert_eq!(rows.len(), 2);
    }
    let _ = worker::init_from(&path, &mut model, &[TableId(0), TableId(1)], &Sink);
    fs::remove_file(path).unwrap();
}

fn model() -> Model {
    let architecture = Architecture {
        sparse_feature_size: 4,
        features: 2,
        mlp_bottom: vec![2, 4],
        mlp_top: vec![1],
        interaction: Interaction::Dot,
        loss: Loss::Bce,
    };
    Model::new(architecture, DenseOptimizer::Adam { beta1: 0.9, beta2: 0.999, eps: 1e-8 }, 1, 1, 1)
        .unwrap()
}

/// A session that takes rows and keeps none.
struct Sink;

impl wire::Session for Sink {
    fn limits(&self) -> Limits {
        unreachable!("weights need no limits")
    }

    fn tables(&self) -> wire::Result<Vec<(TableId, TableSpec)>> {
        Ok(Vec::new())
    }

    fn create_table(&self, _: &TableSpec) -> wire::Result<TableId> {
        Ok(TableId(0))
    }

    fn stage(&self, _: Step, _: &KeyBatch) -> wire::Result<()> {
        Ok(())
    }

    fn pull(&self, _: Step, _: &mut [f32]) -> wire::Result<wire::Pulled> {
        Ok(wire::Pulled::default())
    }

    fn pull_with_statuses(
        &self,
        _: Step,
        _: &mut [f32],
        _: &mut [RowStatus],
    ) -> wire::Result<wire::Pulled> {
        Ok(wire::Pulled::default())
    }

    fn push(&self, _: Step, _: &[f32], _: f32) -> wire::Result<()> {
        Ok(())
    }

    fn release(&self, _: Step) -> wire::Result<()> {
        Ok(())
    }

    fn settle(&self) -> wire::Result<()> {
        Ok(())
    }

    fn lookup(&self, _: &KeyBatch, _: &mut [f32], _: &mut [RowStatus]) -> wire::Result<()> {
        Ok(())
    }

    fn assign(&self, keys: &KeyBatch, rows: &[f32]) -> wire::Result<()> {
        assert_eq!(rows.len(), keys.len() * 4, "floats of the rows");
        Ok(())
    }

    fn status(&self) -> wire::Result<StoreStatus> {
        unreachable!("weights ask for no status")
    }
}

/// The store's own records and rows.
pub(crate) fn records(bytes: &[u8]) {
    tiers::decode_any(bytes);
}

/// What a command line names: data, servers, widths.
pub(crate) fn flags(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    if let Ok(source) = text.parse::<Source>() {
        let again = source.to_string().parse::<Source>().unwrap();
        assert_eq!(again.to_string(), source.to_string());
    }
    if let Ok(endpoint) = text.parse::<wire::Endpoint>() {
        assert_eq!(endpoint.to_string().parse::<wire::Endpoint>().unwrap(), endpoint);
    }
    let _ = dlrm::parse_widths(&text);
}

/// A file with these bytes.
fn file(bytes: &[u8]) -> PathBuf {
    use std::sync::atomic::{AtomicU64, Ordering};
    static FILES: AtomicU64 = AtomicU64::new(0);
    let number = FILES.fetch_add(1, Ordering::Relaxed);
    let name = format!("embedding-ps-fuzz-{}-{number}", std::process::id());
    let path = std::env::temp_dir().join(name);
    fs::write(&path, bytes).unwrap();
    path
}

fn some_keys() -> KeyBatch {
    let mut keys = KeyBatch::new();
    keys.push_run(TableId(0), &[Key(1), Key(7), Key(u64::MAX)]).unwrap();
    keys.push_run(TableId(3), &[Key(0)]).unwrap();
    keys
}

fn message_seeds() -> Vec<Vec<u8>> {
    let keys = proto::Keys::from(&some_keys());
    let rows = packed::pack_floats(&[1.0, -2.5, f32::NAN, 0.0]);
    let next_uses = packed::pack_counts(&[1, 2, 3, 4]);
    let asked = [
        request::Request::Open(proto::Open { client: "worker".to_owned() }),
        request::Request::Stage(proto::Stage { step: 9, keys: Some(keys.clone()), next_uses }),
        request::Request::Pull(proto::Pull { step: 9, statuses: true }),
        request::Request::Push(proto::Push {
            step: 9,
            learning_rate: 0.1,
            gradients: rows.clone(),
        }),
        request::Request::Lookup(proto::Lookup { keys: Some(keys.clone()) }),
        request::Request::Assign(proto::Assign { keys: Some(keys), rows: rows.clone() }),
        request::Request::ShareDevice((&some_slots()).try_into().unwrap()),
        request::Request::PushOnDevice(proto::PushOnDevice {
            step: 9,
            slot: 1,
            learning_rate: 0.1,
        }),
    ];
    let asked = asked
        .map(|request| proto::Request { request_id: 3, request: Some(request) }.encode_to_vec());
    let statuses = wire::pack_statuses(&[RowStatus::Host, RowStatus::Ssd]);
    let found = proto::Rows { rows, stalled_ns: 5, statuses };
    let answer = proto::Response {
        request_id: 3,
        status: None,
        result: Some(response::Result::Rows(found)),
    };
    let table = (TableId(4), spec());
    let table = proto::Table::from(&table).encode_to_vec();
    asked.into_iter().chain([answer.encode_to_vec(), table]).collect()
}

fn some_slots() -> DevicePlaces {
    let part = |offset| SharedBytes { memory: [7; 64], offset, bytes: 4096 };
    let slot = |at| SharedSlot {
        rows: part(at),
        gradients: part(at + 4096),
        worker_done: [8; 64],
        session_done: [9; 64],
    };
    let slots = DeviceSlots::Shared(vec![slot(0), slot(8192)]);
    DevicePlaces { device: DeviceId([5; 16]), slots }
}

fn spec() -> TableSpec {
    let optimizer = Optimizer::Adagrad { eps: 1e-10, initial_accumulator: 0.1 };
    TableSpec::new("clicks", 16, optimizer, Initializer::Uniform { bound: 0.5 }, 7)
}

fn text_seeds() -> Vec<Vec<u8>> {
    let criteo = |label: u8| {
        let numbers: Vec<String> = (0..13).map(|i| (i * 37 - 2).to_string()).collect();
        let tokens: Vec<String> = (0..26_u32).map(|i| format!("{:08x}", i * 0x0123_4567)).collect();
        format!("{label}\t{}\t{}\n", numbers.join("\t"), tokens.join("\t"))
    };
    let header = "label\tI1\tI2\tC1\tC2\n1\t0.5\t-3\tred\tone\n0\t\t1e9\t\ttwo\r\n1\t7\t\tx\ty";
    vec![
        (criteo(1) + &criteo(0)).into_bytes(),
        header.as_bytes().to_vec(),
        criteo(1).replace("35", "").into_bytes(),
        b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03\x4b\x04\x00\x43\xbe\xb7\xe8\x01\x00\x00\x00"
            .to_vec(),
    ]
}

fn cache_seeds() -> Vec<Vec<u8>> {
    let to = file(&[]);
    let write = |source: &Source, options: &ReadOptions| {
        dataset::write_cache(source, options, &to, &mut |_| true).unwrap().unwrap();
        fs::read(&to).unwrap()
    };
    let from = file(&text_seeds()[0]);
    let criteo = write(&Source::Criteo { path: from.clone() }, &ReadOptions::new(1));
    let generated: Source = "synthetic:scale=0.0001,rows=7,seed=4".parse().unwrap();
    let generated = write(&generated, &ReadOptions::new(3));
    fs::remove_file(from).unwrap();
    fs::remove_file(&to).unwrap();
    vec![criteo, generated]
}

fn weights_seeds() -> Vec<Vec<u8>> {
    let bare = model().to_safetensors().unwrap();
    let dense = SafeTensors::deserialize(&bare).unwrap();
    let table = |rows: usize| TensorView::new(Dtype::F32, vec![rows, 4], &[0; 32][..16 * rows]);
    let tables = [("emb_l.0.weight", table(1).unwrap()), ("emb_l.1.weight", table(2).unwrap())];
    let weights = dense.iter().filter(|(name, _)| !name.starts_with("optim."));
    let whole = safetensors::serialize(weights.chain(tables), None).unwrap();
    vec![bare, whole]
}

fn record_seeds() -> Vec<Vec<u8>> {
    tiers::record_seeds(&spec())
}

fn flag_seeds() -> Vec<Vec<u8>> {
    let seeds = [
        "synthetic:scale=0.01,rows=1000,seed=3",
        "tsv:some/file.tsv",
        "cache:x",
        "http://[::1]:7070,a:1",
        "unix:/run/ps.sock",
        "13-512-256-64-16",
    ];
    seeds.iter().map(|seed| seed.as_bytes().to_vec()).collect()
}

/// Inputs that once went wrong, kept beside the target's name.
pub(crate) fn regressions(folder: &Path, target: &str) -> Vec<Vec<u8>> {
    let entries = fs::read_dir(folder.join(target)).into_iter().flatten().flatten();
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
    paths.sort();
    paths.iter().map(|path| fs::read(path).unwrap()).collect()
}
