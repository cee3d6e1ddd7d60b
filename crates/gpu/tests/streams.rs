//! What CUDA leaves late or refuses between streams and threads, under a pretended CUDA that is as
//! strict.

#![allow(clippy::unwrap_used)] // a test that cannot go on fails

use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use gpu::{Device, Error, Graph, Memory};
use testkit::under_pretended_cuda;

const LIMIT: Duration = Duration::from_secs(60);

#[test]
fn what_was_written_is_there_for_every_stream() {
    if !under_pretended_cuda("what_was_written_is_there_for_every_stream", &[]) {
        return;
    }
    let device = Device::open(0).unwrap();
    let stream = device.stream().unwrap();
    let mut memory = Memory::take(&device, 1 << 16).unwrap();
    let values: Vec<u32> = (0..1000).collect();
    let written = memory.buffer_of(&values).unwrap();
    let copy = memory.buffer(written.bytes()).unwrap();
    copy.copy_from(&stream, &written).unwrap();
    stream.finish().unwrap();
    let mut found = vec![0_u32; values.len()];
    copy.read(0, &mut found).unwrap();
    assert_eq!(found, values);
}

#[test]
fn who_waits_for_the_whole_device_takes_turns_with_a_recording() {
    let own = "who_waits_for_the_whole_device_takes_turns_with_a_recording";
    if !under_pretended_cuda(own, &[]) {
        return;
    }
    let device = Device::open(0).unwrap();
    let stream = device.stream().unwrap();
    let filled = Memory::take(&device, 256).unwrap().buffer(64).unwrap();
    // opened twice, as by a store and by a model, the device has one context all the same
    let again = Device::open(0).unwrap();
    let written = Memory::take(&again, 256).unwrap().buffer(64).unwrap();
    let (writer, is_written) = (Mutex::new(None), Mutex::new(false));
    let graph = thread::scope(|scope| {
        Graph::record::<Error>(&stream, || {
            scope.spawn(|| {
                let task = std::fs::read_link("/proc/thread-self").unwrap();
                *writer.lock().unwrap() = Some(PathBuf::from("/proc").join(task));
                written.write(0, &[5_u8; 64]).unwrap();
                *is_written.lock().unwrap() = true;
            });
            let begun = Instant::now();
            while !writer.lock().unwrap().as_ref().is_some_and(|task| is_asleep(task)) {
                assert!(begun.elapsed() < LIMIT, "it neither wrote nor waited");
                thread::yield_now();
            }
            assert!(!*is_written.lock().unwrap(), "it waits for the recording's end");
            filled.fill(&stream, 7)
        })
        .unwrap()
    });
    graph.play(&stream).unwrap();
    for (buffer, byte) in [(&filled, 7), (&written, 5)] {
        let mut found = [0_u8; 64];
        buffer.read(0, &mut found).unwrap();
        assert_eq!(found, [byte; 64]);
    }
}

#[test]
fn a_recording_ends_with_work_that_panics() {
    if !under_pretended_cuda("a_recording_ends_with_work_that_panics", &[]) {
        return;
    }
    let device = Device::open(0).unwrap();
    let stream = device.stream().unwrap();
    let buffer = Memory::take(&device, 256).unwrap().buffer(64).unwrap();
    let recorded = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let _ = Graph::record::<Error>(&stream, || {
            buffer.fill(&stream, 9)?;
            panic!("half way")
        });
    }));
    assert!(recorded.is_err());
    buffer.fill(&stream, 3).unwrap();
    let mut found = [0_u8; 64];
    buffer.read(0, &mut found).unwrap();
    assert_eq!(found, [3; 64]);
}

/// Whether a thread waits for something.
fn is_asleep(task: &Path) -> bool {
    let stat = std::fs::read_to_string(task.join("stat")).unwrap();
    stat.rsplit_once(") ").is_some_and(|(_, state)| state.starts_with('S'))
}
