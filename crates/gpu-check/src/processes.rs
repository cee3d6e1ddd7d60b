//! Two processes on one device: this program starts itself once more, and the two exchange floats
//! in device memory that both have open, as a worker and a server on one device do. They talk in
//! lines over pipes. It knows nothing of rows.
#![allow(clippy::print_stdout)] // it is how the other process talks

use std::io::{BufRead, BufReader, Lines, StdinLock, Write};
use std::process::{ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use gpu::{Buffer, Device, Event, Memory, Stream};
use table::SharedBytes;

use crate::children::{Children, Running};
use crate::report::{CASES, Report, Row};

/// What the other process says, and the event that it records, come by then.
const PATIENCE: Duration = Duration::from_secs(20);

/// Lines that the other process may be ahead.
const LINES_AHEAD: usize = 4;

/// The flag that makes a process the other one.
pub const OTHER: &str = "--other-process";

/// How much is exchanged.
#[derive(Debug, Clone, Copy)]
pub struct Sizes {
    /// Bytes of the rows of a step, and of their gradients.
    pub slot_bytes: u64,
    /// Bytes that are copied for the bandwidth.
    pub copied_bytes: u64,
    /// Exchanges, each looked through.
    pub rounds: u32,
    /// Exchanges that are timed.
    pub timed: u32,
}

impl Sizes {
    /// Sizes at which figures say something.
    pub const FULL: Self =
        Self { slot_bytes: 16 << 20, copied_bytes: 1 << 30, rounds: 50, timed: 1000 };
    /// Sizes that show whether everything runs.
    pub const QUICK: Self = Self { slot_bytes: 4096, copied_bytes: 1 << 20, rounds: 4, timed: 5 };
}

/// What of the device both processes have.
struct Ends {
    stream: Stream,
    rows: Buffer,
    gradients: Buffer,
    large: Buffer,
    own: Buffer, // as long as `large`, of this process alone
    worker_done: Event,
    session_done: Event,
}

/// Exchanges floats with a second process, looks them through, and measures.
pub fn exchange(
    device: &Device,
    ordinal: u32,
    sizes: Sizes,
    children: &Children,
    report: &Report,
) -> Result<()> {
    if !device.shares() {
        eprintln!("gpu-check: skipped: the device shares no memory with other processes");
        return Ok(());
    }
    let Sizes { slot_bytes, copied_bytes, rounds, timed } = sizes;
    let mut memory = Memory::take_shared(device, 2 * slot_bytes + copied_bytes + 1024)?;
    let ends = Ends {
        stream: device.stream()?,
        rows: memory.buffer(slot_bytes)?,
        gradients: memory.buffer(slot_bytes)?,
        large: memory.buffer(copied_bytes)?,
        own: Memory::take(device, copied_bytes + 256)?.buffer(copied_bytes)?,
        worker_done: device.shared_event()?,
        session_done: device.shared_event()?,
    };
    let mut other = Other::start(ordinal, children)?;
    for part in [&ends.rows, &ends.gradients, &ends.large] {
        let SharedBytes { memory, offset, bytes } = part.share()?;
        other.say(&format!("{} {offset} {bytes}", hex(&memory)))?;
    }
    other.say(&hex(&ends.worker_done.share()?))?;
    other.say(&hex(&ends.session_done.share()?))?;

    let mut right = 0;
    for round in 0..rounds {
        let (up, down) = (byte_of(round, 1), byte_of(round, 2));
        ends.gradients.fill(&ends.stream, up)?;
        ends.stream.record(&ends.worker_done)?;
        other.say(&format!("exchange {up} {down}"))?;
        let read = other.hear()?;
        let begun = Instant::now();
        let late = || begun.elapsed() > PATIENCE;
        ensure!(ends.session_done.look(late)?, "an event did not happen");
        right += u32::from(read == "right" && is_all(&ends.rows, down)?);
    }
    report.add(Row {
        id: "processes.bits".to_owned(),
        case: format!("{} KiB each way in device memory", slot_bytes >> 10),
        unit: CASES,
        ours: f64::from(right),
        limit: f64::from(rounds),
        goal: Some(1.0),
    });

    let mut seconds = [Vec::new(), Vec::new()]; // an exchange, and its messages alone
    for _ in 0..timed {
        for (seconds, ask) in seconds.iter_mut().zip(["turn", "nothing"]) {
            let begun = Instant::now();
            ends.stream.record(&ends.worker_done)?;
            other.say(ask)?;
            other.hear()?;
            ends.stream.wait_for(&ends.session_done)?;
            seconds.push(begun.elapsed().as_secs_f64());
        }
    }
    let [turn, nothing] = seconds.map(median);
    report.add(Row {
        id: "processes.turns".to_owned(),
        case: format!("{:.1} us each; limit: its messages alone", turn * 1e6),
        unit: "turns/s",
        ours: 1.0 / turn,
        limit: 1.0 / nothing,
        goal: None,
    });

    other.say("copy")?;
    let said = other.hear()?;
    let seconds: Vec<f64> = said.split(' ').map(str::parse).collect::<Result<_, _>>()?;
    ensure!(seconds.len() == 2, "the other process said {said:?}");
    let rate = |seconds: f64| copied_bytes as f64 / seconds / 1e9;
    report.add(Row {
        id: "processes.copy".to_owned(),
        case: format!("{} MiB of the other process's; limit: its own", copied_bytes >> 20),
        unit: "GB/s read",
        ours: rate(seconds[0]),
        limit: rate(seconds[1]),
        goal: None,
    });
    other.say("end")?;
    ensure!(other.hear()? == "closed", "the other process did not close what it had open");
    drop(ends); // not before
    other.end()
}

/// What the other process does until it is told to end.
pub fn be_other(ordinal: u32) -> Result<()> {
    let device = Device::open(ordinal)?;
    let mut lines = std::io::stdin().lock().lines();
    let mut part = || -> Result<Buffer> {
        let line = hear(&mut lines)?;
        let words: Vec<&str> = line.split(' ').collect();
        let [memory, offset, bytes] = words[..] else { bail!("{line:?} is no memory") };
        let (offset, bytes) = (offset.parse()?, bytes.parse()?);
        Ok(device.open_buffer(&SharedBytes { memory: unhex(memory)?, offset, bytes })?)
    };
    let (rows, gradients, large) = (part()?, part()?, part()?);
    let mut event = || -> Result<Event> { Ok(device.open_event(&unhex(&hear(&mut lines)?)?)?) };
    let (worker_done, session_done) = (event()?, event()?);
    let own = Memory::take(&device, large.bytes() + 256)?.buffer(large.bytes())?;
    let ends =
        Ends { stream: device.stream()?, rows, gradients, large, own, worker_done, session_done };
    loop {
        let line = hear(&mut lines)?;
        let words: Vec<&str> = line.split(' ').collect();
        match words[..] {
            ["exchange", up, down] => {
                ensure!(ends.worker_done.look(|| false)?, "an event did not happen");
                let right = is_all(&ends.gradients, up.parse()?)?;
                ends.rows.fill(&ends.stream, down.parse()?)?;
                ends.stream.record(&ends.session_done)?;
                println!("{}", if right { "right" } else { "wrong" });
            }
            ["turn"] => {
                ensure!(ends.worker_done.look(|| false)?, "an event did not happen");
                ends.stream.record(&ends.session_done)?;
                ends.session_done.finish()?;
                println!("done");
            }
            ["nothing"] => println!("done"),
            ["copy"] => {
                let theirs = copy_seconds(&device, &ends, &ends.large)?;
                let within = Memory::take(&device, ends.own.bytes() + 256)?;
                let within = { within }.buffer(ends.own.bytes())?;
                println!("{theirs} {}", copy_seconds(&device, &ends, &within)?);
            }
            ["end"] => break,
            _ => bail!("{line:?} is nothing to do"),
        }
    }
    drop(ends);
    println!("closed");
    Ok(())
}

/// The median seconds of a copy into memory of this process.
fn copy_seconds(device: &Device, ends: &Ends, from: &Buffer) -> Result<f64> {
    let mut seconds = Vec::new();
    for _ in 0..7 {
        let (begun, ended) = (device.event()?, device.event()?);
        ends.stream.record(&begun)?;
        ends.own.copy_from(&ends.stream, from)?;
        ends.stream.record(&ended)?;
        ended.finish()?;
        seconds.push(ended.seconds_since(&begun)?);
    }
    Ok(median(seconds))
}

fn median(mut seconds: Vec<f64>) -> f64 {
    seconds.sort_by(f64::total_cmp);
    seconds[seconds.len() / 2].max(1e-9)
}

/// What a buffer is filled with in a round: never what it was in the round before.
fn byte_of(round: u32, way: u32) -> u8 {
    (2 * round + way) as u8 // 256 values, in turn
}

/// Whether all bytes are of that value.
fn is_all(buffer: &Buffer, byte: u8) -> Result<bool> {
    let mut bytes = vec![0_u8; buffer.bytes() as usize];
    buffer.read(0, &mut bytes)?;
    Ok(bytes.iter().all(|&found| found == byte))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex<const N: usize>(text: &str) -> Result<[u8; N]> {
    ensure!(text.len() == 2 * N && text.is_ascii(), "{text:?} is no handle");
    let mut bytes = [0; N];
    for (at, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&text[2 * at..2 * at + 2], 16)?;
    }
    Ok(bytes)
}

fn hear(lines: &mut Lines<StdinLock<'_>>) -> Result<String> {
    lines.next().ok_or_else(|| anyhow!("the first process ended"))?.context("read a line")
}

/// The other process, as the first one has it: ended when this is dropped.
struct Other<'a> {
    running: Running<'a>,
    to: ChildStdin,
    from: Receiver<std::io::Result<String>>,
}

impl<'a> Other<'a> {
    fn start(ordinal: u32, children: &'a Children) -> Result<Self> {
        let program = std::env::current_exe().context("find this program")?;
        let mut command = Command::new(program);
        command.args([OTHER, "--device", &ordinal.to_string()]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let running = children.start(&mut command)?;
        let (Some(to), Some(from), _) = running.pipes() else {
            bail!("the other process has no pipes");
        };
        let (hear, heard) = sync_channel(LINES_AHEAD);
        // ends with the pipe, or with whoever listens
        thread::spawn(move || {
            BufReader::new(from).lines().all(|line| hear.send(line).is_ok());
        });
        Ok(Self { running, to, from: heard })
    }

    fn say(&mut self, line: &str) -> Result<()> {
        writeln!(self.to, "{line}").context("tell the other process")
    }

    fn hear(&mut self) -> Result<String> {
        let line = self.from.recv_timeout(PATIENCE).map_err(|why| match why {
            RecvTimeoutError::Timeout => anyhow!("the other process says nothing"),
            RecvTimeoutError::Disconnected => {
                anyhow!("the other process ended: what it met stands above")
            }
        })?;
        line.context("hear the other process")
    }

    fn end(self) -> Result<()> {
        let status = self.running.wait(PATIENCE).context("wait for the other process")?;
        ensure!(status.success(), "the other process ended with {status}");
        Ok(())
    }
}
