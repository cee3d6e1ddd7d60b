//! The table of a cache, the moves of its rows and their exchange as their owner uses them, against
//! a map, under a pretended CUDA. The kernels alone have their vectors.

#![allow(clippy::unwrap_used)] // a test that cannot go on fails
#![allow(unsafe_code)]

use std::collections::BTreeMap;
use std::sync::Arc;

use gpu::{
    Device, Error, Exchange, Kernels, Memory, Mover, PartKeys, RowMoves, RowsGathered, RowsUpdated,
    SlotKey, SlotTable, compile, pinned,
};
use table::Optimizer;
use testkit::{Random, under_pretended_cuda};

/// Of the part of table 0, and of that of the others.
const SETS: [u32; 3] = [1, 0, 2];
const WIDTH: u32 = 8;

fn opened() -> (Device, Arc<Kernels>) {
    let device = Device::open(0).unwrap();
    let capability = device.description().compute_capability;
    let code = |source| Ok::<_, Error>(compile(source, capability).unwrap());
    let kernels = Arc::new(Kernels::load(&device, code).unwrap());
    (device, kernels)
}

/// Keys in order, of which table 0's belong to the first part, the others' to the third.
fn parts_of(keys: &[SlotKey]) -> [PartKeys; 2] {
    let of_the_first = keys.partition_point(|key| key.table == 0);
    [PartKeys { part: 0, end: of_the_first }, PartKeys { part: 2, end: keys.len() }]
}

fn some_keys(random: &mut Random, most: u64) -> Vec<SlotKey> {
    let mut keys: Vec<SlotKey> = (0..most)
        .map(|_| SlotKey { table: random.below(3) as u32, number: random.below(100) })
        .collect();
    keys.sort_unstable();
    keys.dedup();
    keys
}

#[test]
fn a_cache_keeps_what_a_map_keeps_and_evicts_nothing_that_is_staged() {
    if !under_pretended_cuda(
        "a_cache_keeps_what_a_map_keeps_and_evicts_nothing_that_is_staged",
        &[],
    ) {
        return;
    }
    let (device, kernels) = opened();
    let mut memory = Memory::take(&device, 64 << 10).unwrap();
    let mut mover = Mover::new(&device, Arc::clone(&kernels)).unwrap();
    let table = SlotTable::new(&mut memory, &mover, &SETS).unwrap();
    assert_eq!(table.slots(), 96);
    let mut map: BTreeMap<SlotKey, (u32, u32)> = BTreeMap::new(); // slot, step
    let mut random = Random::new(5);
    let (mut evictions, mut refusals) = (0, 0);
    for step in 1..60 {
        let floor = step - step.min(4);
        let keys = some_keys(&mut random, 60);
        let found = mover.find(&table, step, &keys, &parts_of(&keys)).unwrap();
        let expected: Vec<Option<u32>> =
            keys.iter().map(|key| map.get(key).map(|at| at.0)).collect();
        assert_eq!(found, expected, "step {step}");
        let mut missing: Vec<SlotKey> = Vec::new();
        for (key, slot) in keys.iter().zip(found) {
            match slot {
                Some(slot) => drop(map.insert(*key, (slot, step))),
                None => missing.push(*key),
            }
        }
        let inserted = mover.insert(&table, step, floor, &missing, &parts_of(&missing)).unwrap();
        for (key, inserted) in missing.iter().zip(inserted) {
            if let Some(gone) = inserted.evicted {
                let (slot, taken) = map.remove(&gone).expect("it was there");
                assert!(taken < floor && Some(slot) == inserted.slot, "{gone:?} at {step}");
                evictions += 1;
            }
            match inserted.slot {
                Some(slot) => {
                    let part = if key.table == 0 { 0 } else { 2 };
                    assert!(table.slots_of(part).contains(&slot), "{key:?} in {slot}");
                    assert!(map.values().all(|at| at.0 != slot), "slot {slot} twice");
                    map.insert(*key, (slot, step));
                }
                None => refusals += 1,
            }
        }
        let kept = map.iter().map(|(key, at)| (at.0, *key));
        assert_eq!(
            table.taken().unwrap(),
            kept.collect::<BTreeMap<_, _>>().into_iter().collect::<Vec<_>>()
        );
        if step % 5 == 0 {
            let (key, at) = map.iter().next().map(|(key, at)| (*key, *at)).unwrap();
            mover.clear(&table, &[at.0]).unwrap();
            map.remove(&key);
        }
    }
    assert!(evictions > 100 && refusals > 10, "{evictions} evictions, {refusals} refusals");
    assert!(mover.clear(&table, &[96]).is_err(), "a slot that is none");
    let key = [SlotKey { table: 0, number: 1 }];
    for (part, end) in [(1, 1), (3, 1), (0, 2), (0, 0)] {
        let refused = mover.find(&table, 1, &key, &[PartKeys { part, end }]);
        assert!(refused.is_err(), "part {part}, which has no slots, or {end} keys");
    }
}

#[test]
fn rows_move_and_are_exchanged_wherever_they_lie() {
    if !under_pretended_cuda("rows_move_and_are_exchanged_wherever_they_lie", &[]) {
        return;
    }
    let (device, kernels) = opened();
    let mut memory = Memory::take(&device, 1 << 20).unwrap();
    let (n, row_bytes) = (100_u64, u64::from(WIDTH) * 4);
    let here = memory.buffer(n * row_bytes).unwrap();
    let there = pinned(&device, n * row_bytes).unwrap();
    let host: Vec<f32> = (0..n * u64::from(WIDTH)).map(|i| i as f32).collect();
    there.write(0, &host).unwrap();
    let mut mover = Mover::new(&device, Arc::clone(&kernels)).unwrap();
    // the even rows go up, each to the place of the one before from behind
    let from: Vec<u64> = (0..n).step_by(2).map(|i| there.address() + i * row_bytes).collect();
    let to: Vec<u64> = (0..n).step_by(2).map(|i| here.address() + (98 - i) * row_bytes).collect();
    let moves = |to| RowMoves { floats: WIDTH, from: &from, to };
    // SAFETY: rows of two buffers, each once.
    unsafe { mover.move_rows(&[moves(&to)]) }.unwrap();
    // SAFETY: refused before anything is launched.
    let refused = unsafe { mover.move_rows(&[moves(&to[1..])]) };
    assert!(matches!(refused, Err(Error::Length { .. })), "{refused:?}");

    // rows by turns from the device and from the host, through one list
    let row = |i: u64| match i % 2 {
        0 => here.address() + (98 - i) * row_bytes,
        _ => there.address() + i * row_bytes,
    };
    let addresses: Vec<u64> = (0..n).map(row).collect();
    let mut exchange = Exchange::new(&device, kernels).unwrap();
    let mut out = vec![0.0; host.len()];
    // SAFETY: rows of two buffers that stay.
    unsafe { exchange.gather(WIDTH, &addresses, &mut out) }.unwrap();
    assert_eq!(out, host);
    let gradients = vec![2.0; host.len()];
    // SAFETY: as above, each once.
    unsafe { exchange.update(&Optimizer::Sgd, WIDTH, &addresses, &[], &gradients, 0.5) }.unwrap();
    // SAFETY: as above.
    unsafe { exchange.gather(WIDTH, &addresses, &mut out) }.unwrap();
    let updated: Vec<f32> = host.iter().map(|x| x - 1.0).collect();
    assert_eq!(out, updated);
    // SAFETY: refused before anything is launched.
    let refused = unsafe { exchange.gather(WIDTH, &addresses, &mut out[1..]) };
    assert!(matches!(refused, Err(Error::Length { .. })), "{refused:?}");
}

#[test]
fn what_is_more_than_a_launch_takes_several() {
    if !under_pretended_cuda("what_is_more_than_a_launch_takes_several", &[]) {
        return;
    }
    let (device, kernels) = opened();
    let mut memory = Memory::take(&device, 8 << 20).unwrap();
    let mut mover = Mover::new(&device, Arc::clone(&kernels)).unwrap();
    // a launch takes 65,536 keys: the third part's begin in the first launch and end in the second
    let table = SlotTable::new(&mut memory, &mover, &[2000, 0, 2000]).unwrap();
    let key = |i: u64| SlotKey { table: u32::from(i >= 34_000), number: i };
    let keys: Vec<SlotKey> = (0..68_000).map(key).collect();
    let inserted = mover.insert(&table, 1, 1, &keys, &parts_of(&keys)).unwrap();
    let slots: Vec<Option<u32>> = inserted.iter().map(|inserted| inserted.slot).collect();
    assert!(slots.iter().flatten().count() > 60_000, "most sets have room");
    assert_eq!(mover.find(&table, 0, &keys, &parts_of(&keys)).unwrap(), slots);

    // rows of one float and of four, and some that there are not
    let (narrow, wide) = (memory.buffer(40_000 * 4).unwrap(), memory.buffer(30_000 * 16).unwrap());
    let numbers: Vec<f32> = (0..160_000).map(|i| i as f32).collect();
    narrow.write(0, &numbers[..40_000]).unwrap();
    wide.write(0, &numbers[40_000..]).unwrap();
    let there = |buffer: &gpu::Buffer, n: u64, bytes: u64| -> Vec<u64> {
        let at = buffer.address();
        (0..n).map(|i| if i % 100 == 7 { 0 } else { at + i * bytes }).collect()
    };
    let (narrow, wide) = (there(&narrow, 40_000, 4), there(&wide, 30_000, 16));
    let gathered = [
        RowsGathered { floats: 1, addresses: &narrow },
        RowsGathered { floats: 4, addresses: &wide },
    ];
    let mut exchange = Exchange::new(&device, kernels).unwrap();
    let mut out = vec![0.0; numbers.len()];
    // SAFETY: rows of two buffers that stay.
    unsafe { exchange.gather_all(&gathered, &mut out) }.unwrap();
    let is_none = |i: usize| if i < 40_000 { i % 100 == 7 } else { (i - 40_000) / 4 % 100 == 7 };
    for (i, (found, number)) in out.iter().zip(&numbers).enumerate() {
        assert!(is_none(i) || found == number, "float {i}: {found}");
    }
    let rule = Optimizer::Sgd;
    let updated = gathered.map(|RowsGathered { floats, addresses }| RowsUpdated {
        optimizer: &rule,
        floats,
        addresses,
        states: &[],
    });
    // SAFETY: as above, each once.
    unsafe { exchange.update_all(&updated, &numbers, 1.0) }.unwrap();
    // SAFETY: as above.
    unsafe { exchange.gather_all(&gathered, &mut out) }.unwrap();
    let moved = out.iter().enumerate().filter(|(i, x)| !is_none(*i) && **x != 0.0);
    assert_eq!(moved.count(), 0, "each row less its own floats is zero");
    // SAFETY: refused before anything is launched.
    let refused = unsafe { exchange.update_all(&updated, &numbers[1..], 1.0) };
    assert!(matches!(refused, Err(Error::Length { .. })), "{refused:?}");
}

#[test]
fn after_a_launch_that_failed_nothing_is_launched() {
    let name = "after_a_launch_that_failed_nothing_is_launched";
    if !under_pretended_cuda(name, &[("FAIL_AFTER_LAUNCHES", "1")]) {
        return;
    }
    let (device, kernels) = opened();
    let mut memory = Memory::take(&device, 64 << 10).unwrap();
    let mut mover = Mover::new(&device, kernels).unwrap();
    let table = SlotTable::new(&mut memory, &mover, &SETS).unwrap();
    let keys = [SlotKey { table: 0, number: 1 }];
    let parts = parts_of(&keys);
    assert_eq!(mover.find(&table, 1, &keys, &parts), Ok(vec![None]));
    let failed = mover.insert(&table, 1, 1, &keys, &parts).unwrap_err();
    assert!(failed.to_string().contains("cuLaunchKernel"), "{failed}");
    assert_eq!(mover.find(&table, 2, &keys, &parts), Err(failed));
}
