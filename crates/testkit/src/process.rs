//! Real processes for tests: started with their output in a file, watched, asked to stop or killed,
//! always by their own process id. It starts no shell.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

const POLL: Duration = Duration::from_millis(10);

/// A running process; it is killed when this is dropped.
#[derive(Debug)]
pub struct Process {
    child: Child,
    log: PathBuf,
    exited: Option<ExitStatus>,
}

impl Process {
    /// Starts `program`; what it prints, on either stream, goes to the file `log`.
    pub fn start<A: AsRef<OsStr>>(
        program: impl AsRef<Path>,
        args: impl IntoIterator<Item = A>,
        log: impl Into<PathBuf>,
    ) -> io::Result<Process> {
        let mut command = Command::new(program.as_ref());
        command.args(args);
        Self::start_command(command, log)
    }

    /// Starts a prepared command (environment, directory) in the same way.
    pub fn start_command(mut command: Command, log: impl Into<PathBuf>) -> io::Result<Process> {
        let log = log.into();
        let out = File::create(&log)?;
        command.stdin(Stdio::null()).stdout(out.try_clone()?).stderr(out);
        Ok(Process { child: command.spawn()?, log, exited: None })
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// What it has printed so far.
    pub fn log_text(&self) -> String {
        fs::read(&self.log).map_or_else(
            |error| format!("(no log: {error})"),
            |bytes| String::from_utf8_lossy(&bytes).into_owned(),
        )
    }

    /// Waits until a line with `needle` is in the log and returns the first such line. An error
    /// carries the log: the process ended first, or the time is over.
    pub fn wait_for_log(&mut self, needle: &str, limit: Duration) -> io::Result<String> {
        self.wait_for(&format!("a line with {needle:?}"), limit, |log| {
            // only whole lines: the last may still be on its way
            let whole = log.rfind('\n').map_or("", |end| &log[..end]);
            whole.lines().find(|line| line.contains(needle)).map(str::to_owned)
        })
    }

    /// Waits until `found` answers, which is asked with what the process has printed so far. An
    /// error carries the log: the process ended first, or the time is over.
    pub fn wait_for<T>(
        &mut self,
        what: &str,
        limit: Duration,
        mut found: impl FnMut(&str) -> Option<T>,
    ) -> io::Result<T> {
        let deadline = Instant::now() + limit;
        loop {
            let ended = self.try_wait()?; // before it is asked: what it left behind counts
            let log = self.log_text();
            if let Some(found) = found(&log) {
                return Ok(found);
            }
            if let Some(status) = ended {
                let reason = format!("ended with {status} and without {what}:\n{log}");
                return Err(io::Error::other(reason));
            }
            if Instant::now() >= deadline {
                let reason = format!("no {what} within {limit:?}:\n{log}");
                return Err(io::Error::new(io::ErrorKind::TimedOut, reason));
            }
            thread::sleep(POLL);
        }
    }

    /// Asks it to stop (SIGTERM).
    pub fn terminate(&self) -> io::Result<()> {
        self.signal(Signal::TERM)
    }

    /// Kills it (SIGKILL); it gets no chance to write anything.
    pub fn kill(&self) -> io::Result<()> {
        self.signal(Signal::KILL)
    }

    /// Waits for its end; an error carries the log when the time is over.
    pub fn wait(&mut self, limit: Duration) -> io::Result<ExitStatus> {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(status) = self.try_wait()? {
                return Ok(status);
            }
            if Instant::now() >= deadline {
                let reason = format!("did not end within {limit:?}:\n{}", self.log_text());
                return Err(io::Error::new(io::ErrorKind::TimedOut, reason));
            }
            thread::sleep(POLL);
        }
    }

    /// The most memory that it has had resident so far, in bytes. Only while it runs.
    pub fn peak_rss_bytes(&self) -> io::Result<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kib = line.and_then(|line| line.trim().strip_suffix("kB"));
        let kib = kib.and_then(|kib| kib.trim().parse::<u64>().ok());
        kib.map(|kib| kib << 10).ok_or_else(|| io::Error::other("no VmHWM in the process's status"))
    }

    fn try_wait(&mut self) -> io::Result<Option<ExitStatus>> {
        if self.exited.is_none() {
            self.exited = self.child.try_wait()?;
        }
        Ok(self.exited)
    }

    /// The child is not reaped before `exited` is set, so that its id is still its own here.
    fn signal(&self, signal: Signal) -> io::Result<()> {
        if self.exited.is_some() {
            return Ok(());
        }
        let pid = i32::try_from(self.id()).ok().and_then(Pid::from_raw);
        let pid = pid.ok_or_else(|| io::Error::other("the process id is out of range"))?;
        Ok(kill_process(pid, signal)?)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.exited.is_none() {
            // an error means that it is gone already
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// A port of the loopback interface that was free a moment ago.
pub fn free_loopback_port() -> io::Result<u16> {
    Ok(TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port())
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;

    use super::*;

    const LIMIT: Duration = Duration::from_secs(20);

    fn start(script: &str) -> (tempfile::TempDir, Process) {
        let dir = tempfile::tempdir().unwrap();
        let process = Process::start("/bin/sh", ["-c", script], dir.path().join("log")).unwrap();
        (dir, process)
    }

    #[test]
    fn a_process_is_watched_and_stopped() {
        let (_dir, mut process) = start("echo ready >&2; exec sleep 60");
        assert_eq!(process.wait_for_log("read", LIMIT).unwrap(), "ready");
        assert!(process.peak_rss_bytes().unwrap() > 0);
        process.terminate().unwrap();
        assert_eq!(process.wait(LIMIT).unwrap().signal(), Some(15));
    }

    #[test]
    fn a_process_is_killed_and_one_that_ends_early_tells_its_log() {
        let (_dir, mut process) = start("trap '' TERM; echo up; while :; do sleep 0.05; done");
        process.wait_for_log("up", LIMIT).unwrap();
        process.kill().unwrap();
        assert_eq!(process.wait(LIMIT).unwrap().signal(), Some(9));
        let (_dir, mut process) = start("echo broken; exit 3");
        let error = process.wait_for_log("never", LIMIT).unwrap_err();
        assert!(error.to_string().contains("broken"), "{error}");
        assert_eq!(process.wait(LIMIT).unwrap().code(), Some(3));
    }

    #[test]
    fn a_free_port_can_be_bound() {
        let port = free_loopback_port().unwrap();
        assert!(TcpListener::bind(("127.0.0.1", port)).is_ok());
    }
}
