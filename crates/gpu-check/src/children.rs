//! Programs that this one has started: each ends when it is dropped, and all of them when the run
//! ends in a hurry. It talks with none.

use std::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command, ExitStatus};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};

/// Between two looks at a program.
const REST: Duration = Duration::from_millis(20);

/// The programs that were started and not yet waited for.
#[derive(Debug, Default)]
pub struct Children {
    /// Guards: their list. Held for moments.
    running: Mutex<Vec<Arc<Mutex<Child>>>>,
}

/// One of them.
#[derive(Debug)]
pub struct Running<'a> {
    children: &'a Children,
    child: Arc<Mutex<Child>>, // locked for moments
}

impl Children {
    /// Starts one.
    pub fn start(&self, command: &mut Command) -> Result<Running<'_>> {
        let program = command.get_program().to_string_lossy().into_owned();
        let child = command.spawn().with_context(|| format!("start {program}"))?;
        let child = Arc::new(Mutex::new(child));
        locked(&self.running).push(Arc::clone(&child));
        Ok(Running { children: self, child })
    }

    /// Ends all of them.
    pub fn end_all(&self) {
        for child in locked(&self.running).drain(..) {
            end(&child);
        }
    }
}

impl Running<'_> {
    /// Its pipes, those that it was started with and nobody took yet.
    pub fn pipes(&self) -> (Option<ChildStdin>, Option<ChildStdout>, Option<ChildStderr>) {
        let mut child = locked(&self.child);
        (child.stdin.take(), child.stdout.take(), child.stderr.take())
    }

    /// Waits for its end; an error if that does not come in time.
    pub fn wait(&self, limit: Duration) -> Result<ExitStatus> {
        let begun = Instant::now();
        loop {
            if let Some(status) = locked(&self.child).try_wait()? {
                return Ok(status);
            }
            if begun.elapsed() > limit {
                return Err(anyhow!("not done after {} s", limit.as_secs()));
            }
            thread::sleep(REST);
        }
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        end(&self.child);
        locked(&self.children.running).retain(|child| !Arc::ptr_eq(child, &self.child));
    }
}

fn end(child: &Mutex<Child>) {
    let mut child = locked(child);
    // an error means that it is gone already
    let _ = child.kill();
    let _ = child.wait();
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner) // no change is done by halves
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sleeper() -> Command {
        let mut sleep = Command::new("sleep");
        sleep.arg("600");
        sleep
    }

    #[test]
    fn a_program_ends_with_its_name_here_and_all_end_at_once() {
        let children = Children::default();
        let one = children.start(&mut sleeper()).unwrap();
        let late = one.wait(Duration::ZERO).unwrap_err();
        assert_eq!(late.to_string(), "not done after 0 s");
        drop(one);
        assert!(locked(&children.running).is_empty());
        let other = children.start(&mut sleeper()).unwrap();
        children.end_all();
        assert!(!other.wait(Duration::from_secs(60)).unwrap().success());
        let missing = children.start(&mut Command::new("/no/such/program")).unwrap_err();
        assert_eq!(missing.to_string(), "start /no/such/program");
    }
}
