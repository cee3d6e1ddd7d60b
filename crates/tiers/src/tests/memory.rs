//! The memory behind the rows, as the system tells it: it stays within the budget when row lengths
//! take it over from each other, lies in huge pages where they pay, and is locked where that is
//! wanted.

use std::fs::{self, File};
use std::ops::Range;
use std::os::unix::fs::FileExt;

use table::{Optimizer, TableId};
use testkit::RowStore;

use super::{Scratch, TINY, batch, spec, step};
use crate::Store;

const PAGE_BYTES: usize = 4096;
/// Below what huge pages are asked for.
const SMALL: u64 = 32 << 20;
/// As much as they are asked for from.
const LARGE: u64 = 64 << 20;

/// Where rows and their index lie.
fn mappings(scratch: &Scratch) -> Vec<Range<usize>> {
    let classes = scratch.store().inner().classes_now();
    let of_class = classes.iter().flat_map(|class| {
        let indexes = class.sections.iter().map(|section| section.lock().index_mapping());
        class.arena.mappings().into_iter().chain(indexes).collect::<Vec<_>>()
    });
    of_class.collect()
}

/// Bytes of these that are in memory.
fn resident_bytes(mappings: &[Range<usize>]) -> usize {
    let pages = File::open("/proc/self/pagemap").unwrap();
    let of_mapping = |mapping: &Range<usize>| {
        let pages_of = mapping.end.div_ceil(PAGE_BYTES) - mapping.start / PAGE_BYTES;
        let mut entries = vec![0; 8 * pages_of];
        pages.read_exact_at(&mut entries, (8 * (mapping.start / PAGE_BYTES)) as u64).unwrap();
        entries.chunks_exact(8).filter(|entry| entry[7] & 0x80 != 0).count() * PAGE_BYTES
    };
    mappings.iter().map(of_mapping).sum()
}

/// Bytes of these that the system says this of: `hg`, huge pages are asked for; `lo`, locked.
fn flagged_bytes(mappings: &[Range<usize>], flag: &str) -> usize {
    let text = fs::read_to_string("/proc/self/smaps").unwrap();
    let (mut area, mut bytes) = (0..0, 0);
    for line in text.lines() {
        let first = line.split_whitespace().next().unwrap_or_default();
        if let Some((begin, end)) = first.split_once('-')
            && let (Ok(begin), Ok(end)) =
                (usize::from_str_radix(begin, 16), usize::from_str_radix(end, 16))
        {
            area = begin..end;
        } else if let Some(flags) = line.strip_prefix("VmFlags:")
            && flags.split_whitespace().any(|found| found == flag)
        {
            let shared = |mapping: &Range<usize>| {
                let end = mapping.end.next_multiple_of(PAGE_BYTES).min(area.end);
                end.saturating_sub(mapping.start.max(area.start))
            };
            bytes += mappings.iter().map(shared).sum::<usize>();
        }
    }
    bytes
}

fn whole_bytes(mappings: &[Range<usize>]) -> usize {
    mappings.iter().map(|mapping| mapping.len().next_multiple_of(PAGE_BYTES)).sum()
}

fn two_lengths(scratch: &Scratch) -> [TableId; 2] {
    let short = scratch.create_table(&spec("short", 16, Optimizer::Sgd)).unwrap();
    let long = scratch.create_table(&spec("long", 600, Optimizer::Sgd)).unwrap();
    [short, long]
}

/// Fills the budget with rows of one length, then with those of the other, and again.
fn take_over(scratch: &Scratch, [short, long]: [TableId; 2], mut then: impl FnMut(&[u64; 2])) {
    for _ in 0..2 {
        for start in (0..400_000).step_by(20_000) {
            step(scratch.store(), &batch(short, start..start + 20_000), 1.0);
        }
        then(&rows_in_ram(scratch));
        for start in (0..12_000).step_by(300) {
            step(scratch.store(), &batch(long, start..start + 300), 1.0);
        }
        then(&rows_in_ram(scratch));
    }
}

fn rows_in_ram(scratch: &Scratch) -> [u64; 2] {
    let tables = scratch.store().status().tables;
    [tables[0].host.rows, tables[1].host.rows]
}

#[test]
fn memory_that_rows_of_another_length_took_over_goes_back_to_the_system() {
    let scratch = Scratch::new(SMALL);
    let tables = two_lengths(&scratch);
    let mut most = [0; 2];
    take_over(&scratch, tables, |rows| {
        most = [most[0].max(rows[0]), most[1].max(rows[1])];
        let resident = resident_bytes(&mappings(&scratch));
        // a page for each mapping, and what the index had for rows that left
        assert!(resident < SMALL as usize * 17 / 16, "{resident} bytes, {rows:?} rows");
    });
    // one after the other they had more than there is
    let most_bytes = most[0] * 64 + most[1] * 2400;
    assert!(most_bytes > SMALL * 17 / 16, "{most:?} rows");
}

#[test]
fn huge_pages_are_asked_for_where_the_budget_is_large_and_not_below() {
    if !fs::exists("/sys/kernel/mm/transparent_hugepage").unwrap() {
        eprintln!("skipped: this system has no huge pages");
        return;
    }
    for (budget, asked) in [(LARGE, true), (SMALL, false)] {
        let scratch = Scratch::new(budget);
        two_lengths(&scratch);
        let mappings = mappings(&scratch);
        let flagged = flagged_bytes(&mappings, "hg");
        assert_eq!(flagged, if asked { whole_bytes(&mappings) } else { 0 }, "{budget}");
    }
}

#[test]
fn rows_are_locked_as_they_come_and_unlocked_when_they_go() {
    let mut scratch = Scratch::new(SMALL);
    scratch.config.lock_memory = true;
    scratch.store().close().unwrap();
    scratch.store = None;
    scratch.store = match Store::open(scratch.config.clone()) {
        Ok(store) => Some(store),
        Err(error) => panic!("{error}"), // no table, no memory yet
    };
    let short = match scratch.store().create_table(&spec("short", 16, Optimizer::Sgd)) {
        Ok(table) => table,
        Err(error) => {
            assert!(error.to_string().contains("map and lock the host RAM"), "{error}");
            eprintln!("skipped: this system locks less than the budget ({error})");
            return;
        }
    };
    let long = scratch.create_table(&spec("long", 600, Optimizer::Sgd)).unwrap();
    let locked = || flagged_bytes(&mappings(&scratch), "lo");
    assert_eq!(locked(), 0, "address space is not memory");
    step(scratch.store(), &batch(short, 0..1000), 1.0);
    let few = locked();
    assert!((1000 * 64..TINY as usize).contains(&few), "{few} bytes for 1000 rows");
    take_over(&scratch, [short, long], |rows| {
        let (locked, resident) = (locked(), resident_bytes(&mappings(&scratch)));
        assert!(resident <= locked, "{resident} bytes, {locked} of them locked");
        assert!(locked < SMALL as usize * 17 / 16, "{locked} bytes are locked, {rows:?} rows");
    });
    scratch.store().close().unwrap();
}
