//! A cache against its source: the same batches, the right next uses, and every way in which a file
//! can be wrong.

#![allow(clippy::unwrap_used)] // a test says what went wrong by panicking

use std::fs;
use std::path::Path;

use dataset::{
    Batch, CacheSize, DenseColumns, DenseTransform, Distinct, Error, ReadOptions, RowSelection,
    Shuffle, Source, Unique, cache_card, open, unique, write_cache,
};
use table::{KeyBatch, TableId};

const ROWS: u64 = 300;
const BATCH_ROWS: usize = 32;

fn source() -> Source {
    format!("synthetic:scale=0.0005,rows={ROWS},seed=5").parse().unwrap()
}

fn options() -> ReadOptions {
    let dense_transform = DenseTransform::Log1p;
    ReadOptions { dense_transform, ..ReadOptions::new(BATCH_ROWS) }
}

fn cache_of(path: &Path, options: &ReadOptions) -> CacheSize {
    write_cache(&source(), options, path, &mut |_| true).unwrap().unwrap()
}

fn cached(path: &Path) -> Source {
    Source::Cache { path: path.to_owned() }
}

fn read(source: &Source, options: &ReadOptions) -> Result<Vec<Batch>, Error> {
    let mut reader = open(source, options)?;
    let mut batches = vec![];
    loop {
        let mut batch = Batch::new();
        if !reader.next_batch(&mut batch)? {
            assert_eq!(batch.rows(), 0);
            return Ok(batches);
        }
        batches.push(batch);
    }
}

#[test]
fn the_batches_are_those_of_the_source() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.cache");
    for options in [
        options(),
        ReadOptions { missing_indicator: true, max_ind_range: Some(50), ..options() },
        ReadOptions { rows: RowSelection::Train, batches_max: Some(3), ..options() },
        ReadOptions { shuffle: Some(Shuffle { window_rows: 100, seed: 3 }), ..options() },
    ] {
        let size = cache_of(&path, &options);
        let plain = read(&source(), &options).unwrap();
        assert_eq!(size.batches, plain.len() as u64);
        assert_eq!(size.rows, plain.iter().map(|batch| batch.rows() as u64).sum::<u64>());
        assert_eq!(size.file_bytes, fs::metadata(&path).unwrap().len());
        let asked = ReadOptions { shuffle: None, batches_max: None, ..options.clone() };
        let from_cache = read(&cached(&path), &asked).unwrap();
        let tables: Vec<TableId> = (0..26).rev().map(|n| TableId(3 * n + 1)).collect();
        let (mut slow, mut fast) = (Unique::default(), Unique::default());
        for (a, b) in plain.iter().zip(&from_cache) {
            unique(a, &tables, &mut slow).unwrap();
            unique(b, &tables, &mut fast).unwrap();
            assert_eq!(slow.inverse, fast.inverse);
            assert!(fast.keys.next_uses().is_some() && slow.keys.next_uses().is_none());
            fast.keys.set_next_uses(vec![]).unwrap();
            assert_eq!(slow.keys, fast.keys);
            // features of one table: as from any source, and what is known of next uses is not
            unique(a, &[TableId(0); 26], &mut slow).unwrap();
            unique(b, &[TableId(0); 26], &mut fast).unwrap();
            assert!(slow.keys == fast.keys && slow.inverse == fast.inverse);
        }
        let bare = |batch: Batch| Batch { distinct: Distinct::default(), ..batch };
        let plain: Vec<Batch> = plain.into_iter().map(bare).collect();
        assert!(plain == from_cache.into_iter().map(bare).collect::<Vec<_>>());
        let card = cache_card(&path).unwrap();
        assert_eq!((card.rows, card.shuffle), (options.rows, options.shuffle));
        assert_eq!(card.source, source().to_string());
        assert_eq!(card.table_rows.unwrap().len(), 26);
    }
}

#[test]
fn lists_of_ids_come_back_from_a_cache_and_from_parquet() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.cache");
    for indices in ["1..5", "mlperf"] {
        let spec = format!("synthetic:scale=0.0005,rows={ROWS},seed=5,indices={indices}");
        let source: Source = spec.parse().unwrap();
        let bare = |batch: Batch| Batch { distinct: Distinct::default(), ..batch };
        let bare_all = |batches: Vec<Batch>| batches.into_iter().map(bare).collect::<Vec<_>>();
        let plain = bare_all(read(&source, &options()).unwrap());
        assert!(plain[0].features[20].values.len() > BATCH_ROWS);
        write_cache(&source, &options(), &path, &mut |_| true).unwrap().unwrap();
        let from_cache = read(&cached(&path), &options()).unwrap();
        assert!(plain == bare_all(from_cache));
        let parquet = Source::Parquet { path: dir.path().join("a.parquet") };
        let Source::Synthetic(spec) = &source else { unreachable!() };
        dataset::write(spec, RowSelection::All, &parquet).unwrap();
        assert!(plain == bare_all(read(&parquet, &options()).unwrap()));
        let text = Source::Tsv { path: dir.path().join("a.tsv") };
        let error = dataset::write(spec, RowSelection::All, &text).unwrap_err();
        assert!(error.to_string().contains("one id in a column"), "{error}");
    }
}

#[test]
fn the_same_data_gives_the_same_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let bytes = ["a", "b"].map(|name| {
        cache_of(&dir.path().join(name), &options());
        fs::read(dir.path().join(name)).unwrap()
    });
    assert!(bytes[0] == bytes[1]);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2, "no other file is left");
}

/// The next uses of every batch, as a session would be told.
fn next_uses(path: &Path, options: &ReadOptions) -> Vec<(KeyBatch, Vec<u32>)> {
    let tables: Vec<TableId> = (0..26).map(TableId).collect();
    let mut found = Unique::default();
    let told = read(&cached(path), options).unwrap().into_iter().map(|batch| {
        unique(&batch, &tables, &mut found).unwrap();
        let next_uses = found.keys.next_uses().unwrap().to_vec();
        (found.keys.clone(), next_uses)
    });
    told.collect()
}

#[test]
fn next_uses_are_those_that_a_search_finds() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.cache");
    cache_of(&path, &options());
    let whole = read(&cached(&path), &options()).unwrap().len();
    for (batches_max, more_passes) in
        [(None, false), (None, true), (Some(4), false), (Some(4), true), (Some(99), true)]
    {
        let options = ReadOptions { batches_max, more_passes, ..options() };
        let steps = next_uses(&path, &options);
        let reaches_on = more_passes && steps.len() == whole;
        let has = |keys: &KeyBatch, table: TableId, key| {
            keys.runs().any(|(t, run)| t == table && keys.keys()[run].contains(&key))
        };
        let (mut later_uses, mut never) = (0, 0);
        for (now, (keys, next_uses)) in steps.iter().enumerate() {
            for (table, run) in keys.runs() {
                for place in run {
                    let key = keys.keys()[place];
                    let twice = steps.iter().chain(steps.iter().filter(|_| reaches_on));
                    let later = twice.skip(now + 1).position(|(keys, _)| has(keys, table, key));
                    let expected = later.map_or(KeyBatch::NEVER, |later| later as u32 + 1);
                    assert_eq!(next_uses[place], expected, "batch {now}, {table}, key {key}");
                    later_uses += u32::from(later.is_some());
                    never += u32::from(later.is_none());
                }
            }
        }
        assert!(later_uses > 100 && (never > 100) != reaches_on, "{later_uses} {never}");
    }
}

#[test]
fn a_cache_is_read_as_it_was_written_or_not_at_all() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.cache");
    let train = ReadOptions { rows: RowSelection::Train, ..options() };
    cache_of(&path, &train);
    read(&cached(&path), &train).unwrap();
    read(&cached(&path), &options()).unwrap(); // all that is there
    let shuffle = Some(Shuffle { window_rows: 9, seed: 1 });
    let columns = dataset::Schema { label: "y".to_owned(), ..dataset::Schema::criteo() };
    for (what, options) in [
        ("batch rows \"33\": expected 32", ReadOptions { batch_rows: 33, ..options() }),
        ("rows \"test\": expected train", ReadOptions { rows: RowSelection::Test, ..options() }),
        ("shuffle window \"9\"", ReadOptions { shuffle, ..options() }),
        ("columns", ReadOptions { schema: Some(columns), ..options() }),
        ("dense columns \"3\"", ReadOptions { dense_columns: DenseColumns::First(3), ..options() }),
        (
            "dense transform \"none\": expected log1p",
            ReadOptions { dense_transform: DenseTransform::None, ..options() },
        ),
        ("missing indicator", ReadOptions { missing_indicator: true, ..options() }),
        ("max-ind-range \"7\"", ReadOptions { max_ind_range: Some(7), ..options() }),
    ] {
        let error = read(&cached(&path), &options).unwrap_err();
        assert!(error.is_bad_input());
        assert!(error.to_string().contains(what), "{what}: {error}");
    }
}

#[test]
fn a_flipped_bit_a_cut_and_an_added_byte_are_told_wherever_they_are() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.cache");
    let few = ReadOptions { batches_max: Some(2), ..ReadOptions { batch_rows: 3, ..options() } };
    cache_of(&path, &few);
    let asked = ReadOptions { batches_max: None, ..few };
    let sound = fs::read(&path).unwrap();
    assert_eq!(read(&cached(&path), &asked).unwrap().len(), 2);
    let refused = |bytes: &[u8], what: &str| {
        fs::write(&path, bytes).unwrap();
        let error = read(&cached(&path), &asked).map(|_| ()).expect_err(what);
        assert!(error.is_bad_input(), "{what}: {error}");
        let text = error.to_string();
        assert!(text.contains("a.cache, byte ") && text.contains("expected"), "{what}: {text}");
        text
    };
    for at in 0..sound.len() {
        let mut bytes = sound.clone();
        bytes[at] ^= 1 << (at % 8);
        refused(&bytes, &format!("byte {at}"));
    }
    for length in (0..sound.len()).step_by(7) {
        refused(&sound[..length], &format!("{length} bytes"));
    }
    refused(&[&sound[..], &[0]].concat(), "a byte more");
    let text = refused("1\t2\t3\n".repeat(20).as_bytes(), "text");
    assert!(text.contains("this is not a cache"), "{text}");
    let mut older = sound.clone();
    older[8] = 1;
    let text = refused(&older, "older");
    assert!(text.contains("version 1, expected version 2: write the cache anew"), "{text}");
    let mut newer = sound.clone();
    newer[8] = 3;
    let text = refused(&newer, "newer");
    assert!(text.contains("byte 8: found version 3, expected version 2"), "{text}");
}

#[test]
fn a_file_that_is_cut_short_while_it_is_read_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.cache");
    cache_of(&path, &options());
    let mut reader = open(&cached(&path), &options()).unwrap();
    let mut batch = Batch::new();
    assert!(reader.next_batch(&mut batch).unwrap());
    let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
    file.set_len(file.metadata().unwrap().len() / 2).unwrap();
    let error = reader.next_batch(&mut batch).unwrap_err();
    assert!(error.is_bad_input() && error.to_string().contains("cut short since"), "{error}");
}

#[test]
fn what_cannot_be_cached_leaves_no_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.cache");
    let nobody = |source: &Source, options: &ReadOptions, go_on: bool| {
        let written = write_cache(source, options, &path, &mut |_| go_on);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
        written
    };
    assert!(matches!(nobody(&source(), &options(), false), Ok(None)));
    let none = ReadOptions { batches_max: Some(0), ..options() };
    let error = nobody(&source(), &none, true).unwrap_err();
    assert!(error.to_string().contains("at least one row"), "{error}");
    let error = nobody(&cached(&path), &options(), true).unwrap_err();
    assert!(error.to_string().contains("anything but a cache"), "{error}");
    let missing = read(&cached(&path), &options()).unwrap_err();
    assert!(missing.is_bad_input(), "{missing}");
}
