//! Sums over devices by NCCL, checked and measured: one rank, whose sum is its own floats, and as
//! many ranks as this process sees devices, each in a thread. Where there is no NCCL it says so and
//! leaves them out.

use std::thread;

use anyhow::{Context, Result, anyhow};
use gpu::{Buffer, Collective, Communicator, Device, Memory, UniqueId, probe};

use crate::report::{CASES, Report, Row};

const ROUNDS: usize = 5;

/// Sums of so many floats.
pub fn sums(device: &Device, floats: usize, report: &Report) -> Result<()> {
    let collective = match Collective::open() {
        Ok(collective) => collective,
        Err(error) => {
            eprintln!("gpu-check: sums over devices are left out: {error}");
            return Ok(());
        }
    };
    let version = collective.version()?;
    let mut all = vec![vec![device.clone()]];
    let visible = probe().map_err(|reason| anyhow!("{reason}"))?.len() as u32;
    if visible > 1 {
        let devices = (0..visible).map(Device::open);
        all.push(devices.collect::<std::result::Result<_, _>>().map_err(|no| anyhow!("{no}"))?);
    }
    for devices in all {
        let ranks = devices.len();
        let found = of_ranks(&collective, &devices, floats)
            .with_context(|| format!("sum of {ranks} ranks, NCCL {version}"))?;
        let right = found.iter().filter(|found| found.right).count();
        report.add(Row {
            id: format!("vectors.sum_of_{}", if ranks == 1 { "one" } else { "all" }),
            case: format!("{ranks} ranks whose sum is exact, NCCL {version}"),
            unit: CASES,
            ours: right as f64,
            limit: ranks as f64,
            goal: Some(1.0),
        });
        // what each rank sends and receives at least; one rank need do nothing
        let moved = (4 * floats) as f64 * (2.0 * (ranks as f64 - 1.0) / ranks as f64).max(1.0);
        let seconds = found.iter().map(|found| found.seconds).fold(0.0, f64::max);
        report.add(Row {
            id: format!("sum.{}", if ranks == 1 { "one" } else { "all" }),
            case: format!("{floats} floats, {ranks} ranks, {:.1} us", seconds * 1e6),
            unit: "GB/s",
            ours: moved / seconds / 1e9,
            limit: 0.0,
            goal: None,
        });
    }
    Ok(())
}

/// What a rank found.
struct Found {
    right: bool,
    seconds: f64, // the median round
    /// Kept until all ranks have ended, for another's sum may be under way.
    _kept: (Communicator, Memory, Buffer),
}

fn of_ranks(collective: &Collective, devices: &[Device], floats: usize) -> Result<Vec<Found>> {
    let id = collective.unique_id()?;
    thread::scope(|scope| {
        let ranks: Vec<_> = devices
            .iter()
            .enumerate()
            .map(|(rank, device)| {
                let (rank, ranks) = (rank as u32, devices.len() as u32);
                scope.spawn(move || of_rank(collective, device, &id, rank, ranks, floats))
            })
            .collect();
        let joined =
            ranks.into_iter().map(|rank| rank.join().map_err(|_| anyhow!("it panicked"))?);
        joined.collect()
    })
}

fn of_rank(
    collective: &Collective,
    device: &Device,
    id: &UniqueId,
    rank: u32,
    ranks: u32,
    floats: usize,
) -> Result<Found> {
    let communicator = Communicator::join(collective, device, id, rank, ranks)?;
    let bytes = (4 * floats).next_multiple_of(256) as u64;
    let mut memory = Memory::take(device, bytes)?;
    // whole numbers, whose sums are exact in any order
    let own = |rank: u32| move |i: usize| ((i * 7 + rank as usize * 13) % 1000) as f32;
    let values: Vec<f32> = (0..floats).map(own(rank)).collect();
    let buffer = memory.buffer_of(&values)?;
    let stream = device.stream()?;
    communicator.sum(&stream, &buffer)?;
    stream.finish()?;
    let mut found = vec![0.0_f32; floats];
    buffer.read(0, &mut found)?;
    let expected = |i: usize| (0..ranks).map(|rank| own(rank)(i)).sum::<f32>();
    let right = found.iter().enumerate().all(|(i, &sum)| sum == expected(i));
    buffer.fill(&stream, 0)?; // so that rounds do not grow
    let (begin, end) = (device.event()?, device.event()?);
    let mut seconds = Vec::new();
    for _ in 0..ROUNDS {
        stream.record(&begin)?;
        communicator.sum(&stream, &buffer)?;
        stream.record(&end)?;
        end.finish()?;
        seconds.push(end.seconds_since(&begin)?.max(1e-9));
    }
    seconds.sort_by(f64::total_cmp);
    Ok(Found { right, seconds: seconds[ROUNDS / 2], _kept: (communicator, memory, buffer) })
}
