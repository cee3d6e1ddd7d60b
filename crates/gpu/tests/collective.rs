//! Sums over devices against the pretended NCCL: ranks that are threads, each with a device of its
//! own. Whether the library does the same is for a machine that has it.

#![allow(clippy::unwrap_used)] // a test that cannot go on fails

use std::thread;

use gpu::{Collective, Communicator, Device, Error, Memory, UniqueId};
use testkit::under_pretended_cuda;

/// Floats of rank r.
fn own(rank: u32, sum: u32) -> Vec<f32> {
    (0..1000).map(|i| (i * (rank + 1) + sum) as f32).collect()
}

#[test]
fn without_the_library_the_answer_names_it() {
    if let Err(error) = Collective::open() {
        assert_eq!(error, Error::NoCollective { missing: "libnccl.so.2" });
        assert_eq!(error.to_string(), "no NCCL found (libnccl.so.2)");
    }
}

#[test]
fn every_rank_has_the_sum_of_all() {
    const RANKS: u32 = 3;
    let name = "every_rank_has_the_sum_of_all";
    if !under_pretended_cuda(name, &[("PRETENDED_DEVICES", "3")]) {
        return;
    }
    let collective = Collective::open().unwrap();
    assert_eq!(collective.version().unwrap(), 22707);
    let id = collective.unique_id().unwrap();
    assert_ne!(collective.unique_id().unwrap(), id, "each communicator has a name of its own");
    let id = UniqueId::from_bytes(*id.bytes());
    thread::scope(|scope| {
        let ranks: Vec<_> = (0..RANKS)
            .map(|rank| {
                let (collective, id) = (&collective, &id);
                scope.spawn(move || sums(collective, id, rank, RANKS))
            })
            .collect();
        // what a rank holds goes when all have ended
        let held: Vec<_> = ranks.into_iter().map(|rank| rank.join().unwrap()).collect();
        drop(held);
    });
}

/// Sums twice what a copy in the stream has just brought, and waits once.
fn sums(
    collective: &Collective,
    id: &UniqueId,
    rank: u32,
    ranks: u32,
) -> (Communicator, Memory, Vec<gpu::Buffer>) {
    let device = Device::open(rank).unwrap();
    let stream = device.stream().unwrap();
    let communicator = Communicator::join(collective, &device, id, rank, ranks).unwrap();
    assert_eq!(communicator.ranks(), ranks);
    let mut memory = Memory::take(&device, 1 << 20).unwrap();
    let mut buffers = Vec::new();
    for sum in 0..2 {
        let brought = memory.buffer_of(&own(rank, sum)).unwrap();
        let floats = memory.buffer(4000).unwrap();
        buffers.extend([brought, floats]);
    }
    for pair in buffers.chunks_exact(2) {
        pair[1].copy_from(&stream, &pair[0]).unwrap();
        communicator.sum(&stream, &pair[1]).unwrap();
    }
    stream.finish().unwrap();
    for (sum, pair) in buffers.chunks_exact(2).enumerate() {
        let mut found = vec![0.0_f32; 1000];
        pair[1].read(0, &mut found).unwrap();
        let all: Vec<Vec<f32>> = (0..ranks).map(|rank| own(rank, sum as u32)).collect();
        let expected: Vec<f32> =
            (0..1000).map(|i| all.iter().map(|own| own[i]).sum::<f32>()).collect();
        assert_eq!(found, expected, "sum {sum} of rank {rank}");
    }
    (communicator, memory, buffers)
}

#[test]
fn what_is_no_sum_is_refused() {
    if !under_pretended_cuda("what_is_no_sum_is_refused", &[]) {
        return;
    }
    let collective = Collective::open().unwrap();
    let id = collective.unique_id().unwrap();
    let device = Device::open(0).unwrap();
    let beyond = Communicator::join(&collective, &device, &id, 1, 1).unwrap_err();
    assert!(beyond.to_string().contains("a rank, below the number of ranks"), "{beyond}");
    let communicator = Communicator::join(&collective, &device, &id, 0, 1).unwrap();
    let buffer = Memory::take(&device, 256).unwrap().buffer(6).unwrap();
    let stream = device.stream().unwrap();
    let half = communicator.sum(&stream, &buffer).unwrap_err();
    assert!(half.to_string().starts_with("floats, in a stream"), "{half}");
    let other = Device::open(0).unwrap().stream().unwrap();
    let buffer = buffer.part(0, 4).unwrap();
    assert!(communicator.sum(&other, &buffer).is_err(), "a stream of another device");
    communicator.sum(&stream, &buffer).unwrap();
    stream.finish().unwrap();
}
