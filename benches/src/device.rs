//! The device under the scratch folder: 4 KiB reads at random places past the page cache, by some
//! threads that each wait for their read. It writes nothing but its own file.

use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use memmap2::MmapMut;
use tempfile::NamedTempFile;
use testkit::Random;

use crate::measure::rate;

/// What a read asks for.
pub(crate) const READ_BYTES: usize = 4096;
/// Written at once while the file is made.
const WRITE_BYTES: usize = 4 << 20;

/// A file on the device, opened past the page cache.
pub(crate) struct Device {
    direct: File,
    bytes: u64,
    _file: NamedTempFile,
}

impl Device {
    /// Makes a file of so many bytes that nothing compresses.
    pub(crate) fn create(scratch: &Path, bytes: u64) -> Result<Device> {
        let mut file = NamedTempFile::new_in(scratch).context("make a file for device reads")?;
        let mut random = Random::new(bytes);
        let mut written = 0;
        while written < bytes {
            let block: Vec<u64> = (0..WRITE_BYTES / 8).map(|_| random.next_u64()).collect();
            file.write_all(bytemuck::cast_slice(&block)).context("write the file")?;
            written += WRITE_BYTES as u64;
        }
        file.as_file().sync_all().context("write the file down")?;
        let direct = OpenOptions::new()
            .read(true)
            .custom_flags(rustix::fs::OFlags::DIRECT.bits().cast_signed())
            .open(file.path())
            .context("open a file with O_DIRECT: the scratch folder must be on a device")?;
        Ok(Device { direct, bytes: written, _file: file })
    }

    /// Reads a second by so many threads, each with one read under way, over `time`.
    /// Another `seed` reads other places.
    pub(crate) fn random_reads(&self, threads: usize, seed: u64, time: Duration) -> Result<f64> {
        let seed = Random::new(seed).next_u64() >> 1;
        rate(0..threads, |thread| {
            // a mapping of its own is aligned to a page, as O_DIRECT wants it
            let mut buffer = MmapMut::map_anon(READ_BYTES).context("map a buffer")?;
            let mut random = Random::new(seed + thread as u64);
            let blocks = self.bytes / READ_BYTES as u64;
            let started = Instant::now();
            let mut reads = 0;
            while started.elapsed() < time {
                let at = random.below(blocks) * READ_BYTES as u64;
                self.direct.read_exact_at(&mut buffer, at).context("read at random")?;
                reads += 1;
            }
            Ok(reads)
        })
    }
}

/// Bytes that this process has had read from devices so far; what the page cache gave is not in it.
pub(crate) fn process_read_bytes() -> Result<u64> {
    process_count("/proc/self/io", "read_bytes:")
}

/// Bytes that this process has had written to devices so far, or will: the system counts a page
/// when it becomes dirty.
pub(crate) fn process_written_bytes() -> Result<u64> {
    process_count("/proc/self/io", "write_bytes:")
}

/// Bytes of RAM that this process has in its pages now.
pub(crate) fn process_resident_bytes() -> Result<u64> {
    Ok(process_count("/proc/self/status", "VmRSS:")? * 1024)
}

fn process_count(path: &str, name: &str) -> Result<u64> {
    let text = std::fs::read_to_string(path).with_context(|| format!("read {path}"))?;
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    let word = line.and_then(|line| line.split_whitespace().next());
    word.and_then(|word| word.parse().ok()).with_context(|| format!("{path} lacks {name}"))
}
