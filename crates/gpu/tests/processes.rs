//! Memory and events of a device that two processes have, under a pretended CUDA: a test starts
//! itself once more as the other process, and the two talk in lines.

#![allow(clippy::unwrap_used)] // a test that cannot go on fails

use std::io::{BufRead, BufReader, Lines, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use gpu::{Buffer, Device, Error, Event, Memory, Stream};
use table::{DeviceHandle, SharedBytes};
use testkit::under_pretended_cuda;

/// Tells a test that it is the other process.
const OTHER: &str = "THE_OTHER_PROCESS";
const FLOATS: usize = 3000;
const BYTES: u64 = 4 * FLOATS as u64;
const LIMIT: Duration = Duration::from_secs(60);

/// The other process, killed when this is dropped.
struct Other {
    child: Child,
    to: ChildStdin,
    from: Lines<BufReader<ChildStdout>>,
}

impl Other {
    /// Starts the calling test once more, with further variables.
    fn start(test: &str, variables: &[(&str, &str)]) -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", test, "--nocapture", "--test-threads=1"]).env(OTHER, "1");
        command.envs(variables.iter().copied());
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let (to, from) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        Self { child, to, from: BufReader::new(from).lines() }
    }

    fn say(&mut self, line: &str) {
        writeln!(self.to, "{line}").unwrap();
    }

    /// What it says next.
    fn hear(&mut self) -> String {
        loop {
            let line = self.from.next().expect("the other process ended").unwrap();
            if let Some((_, said)) = line.split_once("said: ") {
                return said.to_owned();
            }
        }
    }

    fn end(mut self) {
        assert!(self.child.wait().unwrap().success());
    }
}

impl Drop for Other {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The other process's side of the talk.
#[allow(clippy::print_stdout)] // it is how it talks
fn say(line: &str) {
    println!("\nsaid: {line}");
}

fn hear() -> String {
    let mut line = String::new();
    std::io::stdin().read_line(&mut line).unwrap();
    line.trim_end().to_owned()
}

fn is_other() -> bool {
    std::env::var_os(OTHER).is_some()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn bytes_of<const N: usize>(hex: &str) -> [u8; N] {
    let byte = |at: usize| u8::from_str_radix(&hex[2 * at..2 * at + 2], 16).unwrap();
    std::array::from_fn(byte)
}

fn part_in_words(part: &SharedBytes) -> String {
    let SharedBytes { memory, offset, bytes } = part;
    format!("{} {offset} {bytes}", hex(memory))
}

fn part_of(words: &str) -> SharedBytes {
    let words: Vec<&str> = words.split(' ').collect();
    let (offset, bytes) = (words[1].parse().unwrap(), words[2].parse().unwrap());
    SharedBytes { memory: bytes_of(words[0]), offset, bytes }
}

/// One process's view of what both have.
struct Ends {
    device: Device,
    stream: Stream,
    floats: Buffer,
    there: Event, // the owner has written
    back: Event,  // the other has
}

impl Ends {
    /// The owner's; the second buffer of its memory, so that it does not begin with it.
    fn made() -> Self {
        let device = Device::open(0).unwrap();
        let mut memory = Memory::take_shared(&device, 4 * BYTES).unwrap();
        let _first = memory.buffer(100).unwrap();
        let floats = memory.buffer(BYTES).unwrap();
        let stream = device.stream().unwrap();
        let (there, back) = (device.shared_event().unwrap(), device.shared_event().unwrap());
        Self { device, stream, floats, there, back }
    }

    fn tell(&self, other: &mut Other) {
        other.say(&part_in_words(&self.floats.share().unwrap()));
        other.say(&hex(&self.there.share().unwrap()));
        other.say(&hex(&self.back.share().unwrap()));
    }

    fn opened() -> Self {
        let device = Device::open(0).unwrap();
        let stream = device.stream().unwrap();
        let floats = device.open_buffer(&part_of(&hear())).unwrap();
        let there = device.open_event(&bytes_of(&hear())).unwrap();
        let back = device.open_event(&bytes_of(&hear())).unwrap();
        Self { device, stream, floats, there, back }
    }

    /// Orders all floats to be one value, and the event behind it.
    fn order(&self, byte: u8, event: &Event) {
        self.floats.fill(&self.stream, byte).unwrap();
        self.stream.record(event).unwrap();
    }

    /// What is there now for who waits for nothing: copied in a stream of its own.
    fn floats_now(&self) -> Vec<u8> {
        let mut memory = Memory::take(&self.device, 2 * BYTES).unwrap();
        let copy = memory.buffer(BYTES).unwrap();
        let stream = self.device.stream().unwrap();
        copy.copy_from(&stream, &self.floats).unwrap();
        stream.finish().unwrap();
        let mut bytes = vec![0_u8; BYTES as usize];
        copy.read(0, &mut bytes).unwrap();
        bytes
    }
}

fn within_the_limit() -> impl FnMut() -> bool {
    let begun = Instant::now();
    move || begun.elapsed() > LIMIT
}

#[test]
fn two_processes_exchange_a_buffer() {
    let test = "two_processes_exchange_a_buffer";
    if is_other() {
        let ends = Ends::opened();
        assert_eq!(ends.floats.bytes(), BYTES);
        for round in 0..20_u8 {
            hear();
            // what was ordered there is not done before somebody looks for it
            assert!(ends.floats_now().iter().all(|&byte| byte != 2 * round + 1), "{round}");
            assert!(ends.there.look(within_the_limit()).unwrap());
            assert!(ends.floats_now().iter().all(|&byte| byte == 2 * round + 1), "{round}");
            ends.order(2 * round + 2, &ends.back);
            say("ordered");
        }
        hear();
        drop(ends);
        return say("closed");
    }
    if !under_pretended_cuda(test, &[]) {
        return;
    }
    let ends = Ends::made();
    let mut other = Other::start(test, &[]);
    ends.tell(&mut other);
    for round in 0..20_u8 {
        ends.order(2 * round + 1, &ends.there);
        other.say("go");
        assert_eq!(other.hear(), "ordered");
        if round.is_multiple_of(2) {
            assert!(ends.back.look(within_the_limit()).unwrap());
        } else {
            // a stream that waits on the device gets it too
            ends.stream.wait_for(&ends.back).unwrap();
            ends.stream.finish().unwrap();
        }
        assert!(ends.floats_now().iter().all(|&byte| byte == 2 * round + 2), "{round}");
    }
    other.say("close");
    assert_eq!(other.hear(), "closed");
    drop(ends); // refused by the pretended driver while the other has it open
    other.end();
}

#[test]
fn a_process_that_is_killed_leaves_its_memory_and_no_work_behind() {
    let test = "a_process_that_is_killed_leaves_its_memory_and_no_work_behind";
    if is_other() {
        let ends = Ends::made();
        ends.floats.write(0, &[7_u8; BYTES as usize]).unwrap();
        ends.order(9, &ends.there);
        say(&part_in_words(&ends.floats.share().unwrap()));
        say(&hex(&ends.there.share().unwrap()));
        say(&hex(&ends.back.share().unwrap()));
        hear();
        unreachable!("it is killed");
    }
    if !under_pretended_cuda(test, &[]) {
        return;
    }
    let device = Device::open(0).unwrap();
    let mut other = Other::start(test, &[]);
    let shared = part_of(&other.hear());
    let events: [DeviceHandle; 2] = [bytes_of(&other.hear()), bytes_of(&other.hear())];
    let floats = device.open_buffer(&shared).unwrap();
    let [there, back] = events.each_ref().map(|event| device.open_event(event).unwrap());
    drop(other); // kills it

    // what it had ordered is never done, and who looks may give up
    let mut looks = 0;
    let given_up = || {
        looks += 1;
        looks > 5
    };
    assert!(!there.look(given_up).unwrap());
    // what it never recorded is nothing to wait for
    assert!(back.look(|| panic!("it looks again")).unwrap());
    // its memory is there until it is closed, and can be written
    let stream = device.stream().unwrap();
    let ends = Ends { device, stream, floats, there, back };
    assert!(ends.floats_now().iter().all(|&byte| byte == 7));
    ends.order(3, &ends.back);
    assert!(!ends.back.has_happened().unwrap(), "nobody waited for it");
    ends.back.finish().unwrap();
    assert!(ends.floats_now().iter().all(|&byte| byte == 3));
    let Ends { device, floats, .. } = ends;
    drop(floats);
    // nothing can be opened that nobody has
    let gone = device.open_buffer(&shared).unwrap_err();
    assert!(gone.to_string().contains("cuIpcOpenMemHandle"), "{gone}");
    assert!(device.open_event(&events[0]).is_err());
}

#[test]
fn what_cannot_be_shared_is_told_apart() {
    let test = "what_cannot_be_shared_is_told_apart";
    if is_other() {
        let device = Device::open(0).unwrap();
        let refused = device.open_buffer(&part_of(&hear())).unwrap_err();
        return say(&refused.to_string());
    }
    if !under_pretended_cuda(test, &[]) {
        return;
    }
    let ends = Ends::made();
    let (shared, event) = (ends.floats.share().unwrap(), ends.there.share().unwrap());
    assert!(shared.offset > 0);
    // a handle is for others
    assert_eq!(ends.device.open_buffer(&shared).unwrap_err(), Error::OwnHandle);
    assert_eq!(ends.device.open_event(&event).unwrap_err(), Error::OwnHandle);
    // bytes that are none
    let none = SharedBytes { memory: [0xff; 64], ..shared.clone() };
    assert!(matches!(ends.device.open_buffer(&none).unwrap_err(), Error::Driver { .. }));
    // memory that would open more than is meant, and an event that is the process's own
    let small = Memory::take(&ends.device, 4096).unwrap().buffer(10).unwrap();
    assert!(matches!(small.share().unwrap_err(), Error::Length { .. }));
    assert!(ends.device.event().unwrap().share().is_err());

    // another device, which goes by another name
    let mut other = Other::start(test, &[("DEVICE_UUID", "7")]);
    other.say(&part_in_words(&shared));
    assert!(other.hear().contains("PEER_ACCESS_UNSUPPORTED"));
    other.end();
    // more bytes than the whole has
    let mut other = Other::start(test, &[]);
    other.say(&part_in_words(&SharedBytes { offset: 1 << 21, bytes: 1, ..shared }));
    assert!(other.hear().contains("buffer"));
    other.end();
}

#[test]
fn a_device_that_shares_nothing_says_so() {
    if !under_pretended_cuda("a_device_that_shares_nothing_says_so", &[("NO_IPC", "1")]) {
        return;
    }
    let device = Device::open(0).unwrap();
    assert!(!device.shares());
    assert_eq!(device.shared_event().unwrap_err(), Error::NotShared);
    let buffer = Memory::take_shared(&device, 1).unwrap().buffer(1).unwrap();
    assert_eq!(buffer.share().unwrap_err(), Error::NotShared);
}
