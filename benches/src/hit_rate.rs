//! `hit-rate`: the store's eviction policy beside LRU, LFU, S3-FIFO, W-TinyLFU and offline MIN, on
//! generated streams and on recorded ones (where `EMBEDDING_PS_DATA` names their folder). Keys
//! only: index, hand and policy are the store's. It measures no time and no bytes.
//!
//! The policy is chosen on one set of cases. Others, of which nothing is chosen on, are run where
//! `--only "held out"` asks for them.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context, Result, ensure};
use testkit::ZipfKeys;

use crate::policies::{
    Batches, Foresight, Lfu, Lru, Min, S3Fifo, Staged, StaticTop, Swept, WTinyLfu, held_min, hits,
};
use crate::report::{Axis, Outcome, Plot, Row, Series, Settings};

/// Capacities, in hundredths of the distinct keys.
type Percents = [usize; 3];
const PERCENTS: Percents = [1, 5, 10];
/// The same of what is held out.
const HELD_OUT_PERCENTS: Percents = [2, 3, 7];
const HELD_OUT: &str = "held out";
/// Points of hit rate that our policy may lie under the best reference.
const UNDER_BEST_POINTS_MAX: f64 = 1.0;
const ONLINE_SHARE_MAX: f64 = 0.95;
const MIN_SHARE_MAX: f64 = 1.10;
/// Steps whose rows are held: the one that computes and, with the worker's default `--lookahead 8`,
/// those that are staged ahead of it. Rows that are held are slots that no policy has.
const STAGED_STEPS: usize = 9;
/// The same, were many more staged.
const WINDOW_STEPS: usize = 64;

/// The five largest features of the Criteo-like data: ranks that may appear, and Zipf exponent.
const BIG_TABLES: [(u64, f64); 5] = [
    (5_200_000_000, 1.061),
    (3_500_000, 1.080),
    (640_000_000, 1.062),
    (48_000_000, 1.069),
    (180_000_000, 1.065),
];
/// Other skews, for what is held out.
const FLAT_TABLES: [(u64, f64); 3] = [(2_000_000, 0.9), (500_000, 0.8), (50_000_000, 1.2)];
const TRACES: [&str; 5] =
    ["arc_oltp", "cache2k_orm_busy", "cache2k_orm_night", "cache2k_web07", "cache2k_web12"];

/// Keys numbered in the order of their first use.
struct Stream {
    name: String,
    keys: Vec<u32>,
    distinct: usize,
    percents: Percents,
    ids: Ids,
}

/// The names of a set's rows.
#[derive(Clone, Copy)]
struct Ids {
    online_policy: &'static str,
    rereads_vs_online: &'static str,
    rereads_vs_min: &'static str,
}

const CHOSEN_ON: Ids = Ids {
    online_policy: "online_policy",
    rereads_vs_online: "rereads_vs_online",
    rereads_vs_min: "rereads_vs_min",
};
const HELD_OUT_IDS: Ids = Ids {
    online_policy: "online_policy_held_out",
    rereads_vs_online: "rereads_vs_online_held_out",
    rereads_vs_min: "rereads_vs_min_held_out",
};

/// What a model of training draws.
struct Training {
    name: &'static str,
    samples: usize, // an epoch
    batch: usize,   // samples
    epochs: usize,
    tables: &'static [(u64, f64)],
    seed: u64,
    /// Draws after which one rank, drawn as they are, means another key from then on; 0 is never.
    drift: u64,
}

/// The Criteo-like epoch at a thirty-second of its size.
const EPOCH: Training = Training {
    name: "training",
    samples: 1_432_000,
    batch: 64,
    epochs: 1,
    tables: &BIG_TABLES,
    seed: 0,
    drift: 0,
};
const HALF: Training = Training { samples: 700_000, ..EPOCH };
const HELD_OUT_TRAININGS: [Training; 6] = [
    Training { name: "held out training, other seeds", seed: 40, ..HALF },
    Training {
        name: "held out training, batches of 16",
        seed: 41,
        samples: 300_000,
        batch: 16,
        ..EPOCH
    },
    Training { name: "held out training, batches of 256", seed: 42, batch: 256, ..EPOCH },
    Training { name: "held out training, keys drift", seed: 43, drift: 20, ..HALF },
    Training {
        name: "held out training, three epochs",
        seed: 44,
        samples: 250_000,
        epochs: 3,
        ..EPOCH
    },
    Training { name: "held out training, other skews", seed: 45, tables: &FLAT_TABLES, ..HALF },
];

pub(crate) fn run(settings: &Settings) -> Result<Outcome> {
    let mut outcome = Outcome::default();
    let held_out = settings.only.contains(HELD_OUT);
    let data = std::env::var_os("EMBEDDING_PS_DATA");
    let mut streams = generated(settings.quick, held_out);
    let wanted = |name: &&str| {
        let name = short_name(name);
        let name = if held_out { format!("{HELD_OUT}, {name}") } else { name.to_owned() };
        // a half of a held-out trace has more to its name
        name.contains(&settings.only) || held_out && settings.only.contains(&name)
    };
    for name in TRACES.into_iter().filter(wanted) {
        match &data {
            Some(data) => {
                let trace = trace(&Path::new(data).join("traces"), name)?;
                streams.extend(if held_out { held_out_of(&trace) } else { vec![trace] });
            }
            None => outcome.add([not_there(name, held_out)]),
        }
    }
    for stream in streams.iter().filter(|stream| stream.name.contains(&settings.only)) {
        online(stream, &mut outcome);
    }
    let trainings = if held_out { &HELD_OUT_TRAININGS[..] } else { &[EPOCH] };
    for model in trainings.iter().filter(|model| model.name.contains(&settings.only)) {
        training(model, settings.quick, &mut outcome);
    }
    outcome.notes.push(
        "Index, hand and policy are the store's. Training is a model of the Criteo-like epoch at a \
         thirty-second of its size, samples and batch alike; capacities are shares of the rows \
         that it touches. References know no window and count no memory of their own. A first \
         touch is no re-read."
            .to_owned(),
    );
    Ok(outcome)
}

/// A policy's name beside how it is run.
type Contender<'a> = (&'static str, Box<dyn Fn(usize, &Stream) -> u64 + Sync + 'a>);

/// The references that our online policy is held to; others follow them for the plot.
const ONLINE: usize = 4;

fn references() -> Vec<Contender<'static>> {
    vec![
        ("LRU", Box::new(|rows, stream| hits(&mut Lru::new(rows), &stream.keys))),
        ("LFU", Box::new(|rows, stream| hits(&mut Lfu::new(rows), &stream.keys))),
        ("S3-FIFO", Box::new(|rows, stream| hits(&mut S3Fifo::new(rows), &stream.keys))),
        ("W-TinyLFU", Box::new(|rows, stream| hits(&mut WTinyLfu::new(rows), &stream.keys))),
        (
            "W-TinyLFU, climbing",
            Box::new(|rows, stream| hits(&mut WTinyLfu::climbing(rows), &stream.keys)),
        ),
        (
            "static top by frequency",
            Box::new(|rows, stream| hits(&mut StaticTop::new(rows, &stream.keys), &stream.keys)),
        ),
        ("MIN", Box::new(|rows, stream| hits(&mut Min::new(rows, &stream.keys), &stream.keys))),
    ]
}

/// Hit rates of every policy at every capacity: lookups, of which nothing is known beforehand.
fn online(stream: &Stream, outcome: &mut Outcome) {
    let mut contenders = references();
    contenders.push(("ours", Box::new(|rows, stream| hits(&mut Swept::new(rows), &stream.keys))));
    let found = race(&contenders, stream);
    for (&percent, hits) in stream.percents.iter().zip(&found) {
        let rate = |hits: u64| 100.0 * hits as f64 / stream.keys.len() as f64;
        let (best, limit) = best_of(&hits[..ONLINE], |a, b| a > b);
        let (ours, limit) = (rate(hits[hits.len() - 1]), rate(limit));
        outcome.rows.push(Row {
            id: stream.ids.online_policy,
            case: format!("{}, {percent} % (best: {})", stream.name, contenders[best].0),
            unit: "% hits",
            ours,
            limit,
            goal: format!("at most {UNDER_BEST_POINTS_MAX} point under limit"),
            holds: ours >= limit - UNDER_BEST_POINTS_MAX,
        });
    }
    let names = contenders.iter().map(|contender| contender.0).collect::<Vec<_>>();
    let misses = |hits: u64| (stream.keys.len() - stream.distinct) as f64 - hits as f64;
    outcome.plots.push(plot(stream, &names, &found, misses));
}

/// Re-reads of training, a batch after the other, beside those of policies that know no batches.
fn training(model: &Training, quick: bool, outcome: &mut Outcome) {
    let batches = batches(model, quick);
    let is_held_out = model.name.contains(HELD_OUT);
    let stream = Stream {
        name: model.name.to_owned(),
        keys: batches.keys.clone(),
        distinct: batches.distinct,
        percents: if is_held_out { HELD_OUT_PERCENTS } else { PERCENTS },
        ids: if is_held_out { HELD_OUT_IDS } else { CHOSEN_ON },
    };
    let passed = Mutex::new(Vec::new()); // rows, and rows that the hand passed for each that left
    let staged = |rows: usize, steps: usize, foresight: Foresight| {
        let mut staged = Staged::new(rows, steps, foresight);
        staged.run(&batches);
        if foresight == Foresight::NextUses && steps == STAGED_STEPS {
            let mut passed = passed.lock().expect("no policy panicked");
            passed.push((rows, staged.passed_per_leaving()));
        }
        (stream.keys.len() - stream.distinct) as u64 - staged.rereads
    };
    let mut contenders = references();
    let reference_count = contenders.len();
    let ours: [(&str, usize, Foresight); 4] = [
        ("ours, next uses", STAGED_STEPS, Foresight::NextUses),
        ("ours, window", STAGED_STEPS, Foresight::Batch),
        ("ours, next uses, 64 steps held", WINDOW_STEPS, Foresight::NextUses),
        ("ours, window, 64 steps held", WINDOW_STEPS, Foresight::Batch),
    ];
    for (name, steps, foresight) in ours {
        contenders.push((name, Box::new(move |rows, _| staged(rows, steps, foresight))));
    }
    let of_held_min = |rows: usize| {
        (stream.keys.len() - stream.distinct) as u64
            - held_min::rereads(&batches, rows, STAGED_STEPS)
    };
    contenders.push(("MIN of what is not held", Box::new(move |rows, _| of_held_min(rows))));
    let found = race(&contenders, &stream);
    let rereads = |hits: u64| (stream.keys.len() - stream.distinct) as f64 - hits as f64;
    let prefix = if is_held_out { format!("{}, ", model.name) } else { String::new() };
    let passed = passed.lock().expect("no policy panicked");
    for (&percent, hits) in stream.percents.iter().zip(&found) {
        let (best, limit) = best_of(&hits[..ONLINE], |a, b| a > b);
        let (next_uses, window) = (hits[reference_count], hits[reference_count + 1]);
        let row = |id, beside: &str, ours: u64, limit: u64, share: f64| Row {
            id,
            case: format!("{prefix}{percent} % ({beside})"),
            unit: "re-reads",
            ours: rereads(ours),
            limit: rereads(limit),
            goal: format!("at most {share} of limit"),
            holds: rereads(ours) <= share * rereads(limit),
        };
        let name = format!("best: {}", contenders[best].0);
        let min = hits[reference_count - 1];
        outcome.rows.push(row(
            stream.ids.rereads_vs_online,
            &name,
            window,
            limit,
            ONLINE_SHARE_MAX,
        ));
        outcome.rows.push(row(stream.ids.rereads_vs_min, "MIN", next_uses, min, MIN_SHARE_MAX));
        let rows = stream.rows_at(percent);
        let passed = passed.iter().find(|of| of.0 == rows).map_or(0.0, |of| of.1);
        outcome.notes.push(format!(
            "{prefix}{percent} %, with {WINDOW_STEPS} steps held instead of {STAGED_STEPS}: {} \
             re-reads with next uses, {} without. MIN of the rows that no step holds: {}. With \
             next uses the hand passed {passed:.1} rows for each that left.",
            rereads(hits[reference_count + 2]),
            rereads(hits[reference_count + 3]),
            rereads(hits[reference_count + 4]),
        ));
    }
    let names = contenders.iter().map(|contender| contender.0).collect::<Vec<_>>();
    outcome.plots.push(plot(&stream, &names, &found, rereads));
}

/// Hits by capacity and policy, two at a time.
fn race(contenders: &[Contender<'_>], stream: &Stream) -> Vec<Vec<u64>> {
    let jobs: Vec<(usize, usize)> = (0..stream.percents.len())
        .flat_map(|capacity| (0..contenders.len()).map(move |policy| (capacity, policy)))
        .collect();
    let found = Mutex::new(vec![vec![0; contenders.len()]; stream.percents.len()]);
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while let Some(&(capacity, policy)) = jobs.get(next.fetch_add(1, Ordering::Relaxed))
                {
                    let rows = stream.rows_at(stream.percents[capacity]);
                    let hits = contenders[policy].1(rows, stream);
                    found.lock().expect("no other policy panicked")[capacity][policy] = hits;
                }
            });
        }
    });
    found.into_inner().expect("no policy panicked")
}

/// Which of some counts is the best, and the count.
fn best_of(counts: &[u64], better: impl Fn(u64, u64) -> bool) -> (usize, u64) {
    let mut best = (0, counts[0]);
    for (place, &count) in counts.iter().enumerate() {
        if better(count, best.1) {
            best = (place, count);
        }
    }
    best
}

impl Stream {
    fn rows_at(&self, percent: usize) -> usize {
        self.distinct * percent / 100
    }
}

fn plot(
    stream: &Stream,
    names: &[&'static str],
    found: &[Vec<u64>],
    rereads: impl Fn(u64) -> f64,
) -> Plot {
    let accesses = stream.keys.len();
    let series = names.iter().enumerate().map(|(policy, name)| Series {
        name: (*name).to_owned(),
        points: (stream.percents.iter().zip(found))
            .map(|(&percent, hits)| {
                (percent as f64, 100.0 * rereads(hits[policy]) / accesses as f64)
            })
            .collect(),
    });
    let file = stream.name.replace(|c: char| !c.is_ascii_alphanumeric() && c != '_', "-");
    Plot {
        name: format!("hit-rate-{file}"),
        title: format!("Misses that are no first touches: {}", stream.name),
        x: Axis { label: "capacity, % of distinct keys".to_owned(), log: true },
        y: Axis { label: "re-reads, % of accesses".to_owned(), log: false },
        series: series.collect(),
    }
}

fn generated(quick: bool, held_out: bool) -> Vec<Stream> {
    let samples = |samples: usize| if quick { samples / 50 } else { samples };
    let stream = |name: &str, count: usize, tables: &[(u64, f64)], seed: u64, drift: u64| {
        let mut draws = Draws::new(tables, seed, drift);
        let keys: Vec<u32> = (0..samples(count) * tables.len())
            .map(|draw| draws.next(draw % tables.len()))
            .collect();
        let (percents, ids) =
            if held_out { (HELD_OUT_PERCENTS, HELD_OUT_IDS) } else { (PERCENTS, CHOSEN_ON) };
        let distinct = draws.numbers.len();
        Stream { name: name.to_owned(), keys, distinct, percents, ids }
    };
    if held_out {
        return vec![
            stream("held out, criteo-like, other seeds", 400_000, &BIG_TABLES, 40, 0),
            stream("held out, criteo-like, keys drift", 400_000, &BIG_TABLES, 40, 20),
            stream("held out, zipf 1.0, 1 M keys", 1_000_000, &[(1_000_000, 1.0)], 41, 0),
            stream("held out, zipf 1.2, 1 M keys", 1_000_000, &[(1_000_000, 1.2)], 42, 0),
            stream("held out, zipf 0.6, keys drift fast", 1_000_000, &[(100_000, 0.6)], 43, 5),
            stream("held out, zipf 0.9, keys drift fast", 1_000_000, &[(200_000, 0.9)], 44, 3),
        ];
    }
    vec![
        stream("criteo-like, five tables", 400_000, &BIG_TABLES, 0, 0),
        stream("criteo-like, C3", 1_000_000, &BIG_TABLES[..1], 0, 0),
        stream("criteo-like, C4", 1_000_000, &BIG_TABLES[1..2], 0, 0),
        stream("zipf 0.8, 300 k keys", 1_000_000, &[(300_000, 0.8)], 0, 0),
    ]
}

/// A recorded stream at other capacities, and each of its halves.
fn held_out_of(trace: &Stream) -> Vec<Stream> {
    let (first, second) = trace.keys.split_at(trace.keys.len() / 2);
    let parts = [("", &trace.keys[..]), (", first half", first), (", second half", second)];
    let part = |(part, keys): (&str, &[u32])| {
        let mut numbers = HashMap::new();
        let number = |&key: &u32| {
            let next = numbers.len() as u32;
            *numbers.entry(key).or_insert(next)
        };
        let keys = keys.iter().map(number).collect();
        let name = format!("{HELD_OUT}, {}{part}", trace.name);
        let (percents, ids) = (HELD_OUT_PERCENTS, HELD_OUT_IDS);
        Stream { name, keys, distinct: numbers.len(), percents, ids }
    };
    parts.map(part).into()
}

/// Draws of keys by table, each numbered when it first comes.
struct Draws {
    tables: Vec<ZipfKeys>,
    numbers: HashMap<(usize, u64), u32>,
    drift: u64,
    draws: u64,
    renamed: HashMap<(usize, u64), u64>, // what a table's rank means now, where it is not itself
}

impl Draws {
    fn new(tables: &[(u64, f64)], seed: u64, drift: u64) -> Self {
        let zipf = |(at, &(keys, s)): (u64, &(u64, f64))| ZipfKeys::new(seed + at, keys, s);
        let tables = (1..).zip(tables).map(zipf).collect();
        Self { tables, numbers: HashMap::new(), drift, draws: 0, renamed: HashMap::new() }
    }

    fn next(&mut self, table: usize) -> u32 {
        let rank = self.tables[table].next_rank();
        self.draws += 1;
        if self.drift > 0 && self.draws.is_multiple_of(self.drift) {
            let renamed = self.tables[table].next_rank();
            self.renamed.insert((table, renamed), u64::MAX - self.draws);
        }
        let key = *self.renamed.get(&(table, rank)).unwrap_or(&rank);
        let next = self.numbers.len() as u32;
        *self.numbers.entry((table, key)).or_insert(next)
    }
}

/// Epochs of tables in batches, each key once a batch.
fn batches(model: &Training, quick: bool) -> Batches {
    let (samples, batch) = if quick { (8_000, 16) } else { (model.samples, model.batch) };
    let tables = model.tables.len();
    let mut draws = Draws::new(model.tables, model.seed, model.drift);
    let steps = samples / batch;
    let epoch: Vec<u32> =
        (0..steps * batch * tables).map(|draw| draws.next(draw % tables)).collect();
    let (mut keys, mut ends) = (Vec::new(), Vec::new());
    let mut seen = vec![0; draws.numbers.len()]; // [keys] the last step that has the key, from 1
    for _ in 0..model.epochs {
        for drawn in epoch.chunks(batch * tables) {
            let step = ends.len() + 1;
            for &key in drawn {
                if std::mem::replace(&mut seen[key as usize], step) != step {
                    keys.push(key);
                }
            }
            ends.push(keys.len());
        }
    }
    Batches::new(keys, ends, draws.numbers.len())
}

/// A recorded stream: little-endian numbers of keys, compressed.
fn trace(folder: &Path, name: &str) -> Result<Stream> {
    let path = folder.join(name).with_extension("u32.zst");
    let file = std::fs::File::open(&path).with_context(|| format!("open {}", path.display()))?;
    let bytes = zstd::decode_all(file).with_context(|| format!("read {}", path.display()))?;
    let (words, rest) = bytes.as_chunks::<4>();
    ensure!(rest.is_empty(), "{} is not of whole 4-byte keys", path.display());
    let keys: Vec<u32> = words.iter().map(|word| u32::from_le_bytes(*word)).collect();
    let mut distinct = 0;
    for &key in &keys {
        ensure!(key <= distinct, "{}: key {key} comes before key {distinct}", path.display());
        distinct = distinct.max(key + 1);
    }
    let name = short_name(name).to_owned();
    Ok(Stream { name, keys, distinct: distinct as usize, percents: PERCENTS, ids: CHOSEN_ON })
}

fn short_name(trace: &str) -> &str {
    trace.trim_start_matches("cache2k_")
}

/// The row of a trace that nobody has: nothing that was asked of it holds.
fn not_there(trace: &str, held_out: bool) -> Row {
    Row {
        id: if held_out { HELD_OUT_IDS } else { CHOSEN_ON }.online_policy,
        case: format!("{}: not measured, EMBEDDING_PS_DATA is not set", short_name(trace)),
        unit: "% hits",
        ours: 0.0,
        limit: 0.0,
        goal: format!("at most {UNDER_BEST_POINTS_MAX} point under limit"),
        holds: false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[ignore = "needs EMBEDDING_PS_DATA"]
    fn lru_and_min_have_their_published_hit_rates() {
        let data = std::env::var_os("EMBEDDING_PS_DATA").unwrap();
        let stream = trace(&Path::new(&data).join("traces"), "arc_oltp").unwrap();
        for (rows, lru, min) in [
            (1000, 32.83, 53.61),
            (2000, 42.47, 60.40),
            (5000, 53.65, 68.27),
            (10_000, 60.70, 73.02),
            (15_000, 64.63, 75.14),
        ] {
            let rate = |hits: u64| 100.0 * hits as f64 / stream.keys.len() as f64;
            let found = rate(hits(&mut Lru::new(rows), &stream.keys));
            assert!((found - lru).abs() < 0.006, "LRU of {rows}: {found}, published {lru}");
            let found = rate(hits(&mut Min::new(rows, &stream.keys), &stream.keys));
            assert!((found - min).abs() < 0.006, "MIN of {rows}: {found}, published {min}");
        }
    }

    #[test]
    fn batches_name_a_key_once_and_know_its_next_use() {
        let batches = batches(&Training { samples: 640, batch: 16, ..EPOCH }, false);
        let steps: Vec<&[u32]> = batches.steps().collect();
        let mut place = 0;
        for (step, keys) in steps.iter().enumerate() {
            for (at, key) in keys.iter().enumerate() {
                assert!(!keys[..at].contains(key), "step {step} names {key} twice");
                let later = steps[step + 1..].iter().position(|keys| keys.contains(key));
                let expected = later.map_or(u32::MAX, |steps| steps as u32 + 1);
                assert_eq!(batches.next_uses[place], expected, "step {step}, key {key}");
                place += 1;
            }
        }
    }

    #[test]
    fn what_is_held_out_has_rows_of_its_own() {
        let settings = Settings {
            quick: true,
            scratch: std::path::PathBuf::new(), // nothing is written
            worker: None,
            server: None,
            python: None,
            dlrm: None,
            only: "held out training, o".to_owned(), // other seeds, other skews
        };
        let outcome = run(&settings).unwrap();
        let ids: Vec<&str> = outcome.rows.iter().map(|row| row.id).collect();
        let of_one = ["rereads_vs_online_held_out", "rereads_vs_min_held_out"].repeat(3);
        assert_eq!(ids, of_one.repeat(2));
        let generated = generated(true, true);
        assert!(generated.iter().all(|stream| stream.name.starts_with(HELD_OUT)));
    }
}
