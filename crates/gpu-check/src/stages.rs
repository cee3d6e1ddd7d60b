//! A run, stage after stage: one that fails or panics is noted, and the next goes on unless the
//! device does nothing any more. What was found so far is told once, at the end of the stages or
//! of the time, whichever comes first. It knows no stage.
#![allow(clippy::print_stdout)] // it speaks to the person who runs it

use std::any::Any;
use std::io::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};

use crate::children::Children;
use crate::end::end_at_once;
use crate::report::Report;

/// What a run whose time is over, or that met a failure, ends with.
const FAILURE: u8 = 1;

/// A run so far.
#[derive(Debug)]
pub struct Run {
    /// What was found.
    pub report: Report,
    /// The programs that stages have started.
    pub children: Children,
    machine: String,
    commit: &'static str,
    folder: Option<PathBuf>, // for the JSON
    begun: Instant,
    /// Guards: how far it has come. Held for moments.
    at: Mutex<Place>,
    /// Guards: with what the run ends, once it was told. Held while it is told.
    told: Mutex<Option<u8>>,
}

#[derive(Debug)]
struct Place {
    stage: &'static str,
    /// Nothing more is asked of the device.
    is_lost: bool,
    /// A thread may still wait for the device, and so may whatever ends in order.
    is_stuck: bool,
}

impl Run {
    /// One that begins now, on that machine.
    pub fn begin(
        quick: bool,
        machine: String,
        commit: &'static str,
        folder: Option<PathBuf>,
    ) -> Self {
        Self {
            report: Report::new(quick),
            children: Children::default(),
            machine,
            commit,
            folder,
            begun: Instant::now(),
            at: Mutex::new(Place { stage: "start", is_lost: false, is_stuck: false }),
            told: Mutex::new(None),
        }
    }

    /// Has the run told and the process end after so many seconds, whatever it does then. What runs
    /// at an orderly exit may wait for the device, and so is left out.
    pub fn watch(self: &Arc<Self>, seconds: u64) {
        let run = Arc::clone(self);
        thread::spawn(move || {
            thread::sleep(Duration::from_secs(seconds));
            let code = run.tell(Some(seconds));
            run.end_at_once(code)
        });
    }

    /// Runs a stage and gives back what it brought; nothing where it failed, or was left out, for
    /// the device is lost. `is_alive` is asked after a failure.
    pub fn stage<T>(
        &self,
        stage: &'static str,
        is_alive: impl FnOnce() -> Result<()>,
        work: impl FnOnce() -> Result<T>,
    ) -> Option<T> {
        if self.at().is_lost {
            eprintln!("gpu-check: left out, for the device is lost: {stage}");
            return None;
        }
        self.at().stage = stage;
        eprintln!("gpu-check: {:.1} s: {stage}", self.begun.elapsed().as_secs_f64());
        let failed = match catch_unwind(AssertUnwindSafe(work)) {
            Ok(Ok(brought)) => return Some(brought),
            Ok(Err(error)) => format!("{stage}: {error:#}"),
            Err(panic) => format!("{stage}: it panicked: {}", words_of(&*panic)),
        };
        eprintln!("gpu-check: failed: {failed}");
        self.report.fail(failed);
        if self.at().is_stuck {
            return None;
        }
        if let Err(error) = is_alive() {
            self.at().is_lost = true;
            self.report.fail(format!("{stage}: the device is lost after it: {error:#}"));
        }
        None
    }

    /// The same of work that may never end: after so many seconds it is left to itself, with what
    /// it has of the device, and nothing more is asked of that.
    pub fn limited_stage(
        &self,
        stage: &'static str,
        seconds: u64,
        is_alive: impl FnOnce() -> Result<()>,
        work: impl FnOnce() -> Result<()> + Send + 'static,
    ) {
        self.stage(stage, is_alive, || {
            let (said, saying) = sync_channel(1);
            let thread = thread::spawn(move || {
                // nobody listens where it took too long
                let _ = said.send(work());
            });
            match saying.recv_timeout(Duration::from_secs(seconds)) {
                Ok(outcome) => outcome,
                Err(RecvTimeoutError::Disconnected) => {
                    let panic = thread.join().err();
                    let words = panic.map_or("it said nothing".to_owned(), |it| words_of(&*it));
                    Err(anyhow!("it panicked: {words}"))
                }
                Err(RecvTimeoutError::Timeout) => {
                    let mut at = self.at();
                    (at.is_lost, at.is_stuck) = (true, true);
                    drop(at);
                    self.children.end_all();
                    Err(anyhow!("not done after {seconds} s"))
                }
            }
        });
    }

    /// Tells what was found, if nobody has: the table, the JSON, and what failed first. It gives
    /// back what the program ends with.
    pub fn tell(&self, out_of_time: Option<u64>) -> u8 {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        *told.get_or_insert_with(|| self.tell_now(out_of_time))
    }

    fn tell_now(&self, out_of_time: Option<u64>) -> u8 {
        let stage = self.at().stage;
        if let Some(seconds) = out_of_time {
            self.report.fail(format!("{stage}: not done after {seconds} s"));
        }
        println!("\n{}", self.report.table());
        if self.report.is_quick() {
            println!("quick: sizes at which figures say nothing; only vectors are held to\n");
        }
        if let Some(folder) = &self.folder
            && let Err(error) = self.report.write(folder, &self.machine, self.commit)
        {
            self.report.fail(format!("the JSON: {error:#}"));
        }
        let failures = self.report.failures();
        let Some(first) = failures.first() else {
            println!("gpu-check: all is right");
            return 0;
        };
        let late = out_of_time.map_or(String::new(), |seconds| {
            format!("out of time after {seconds} s, at {stage}; ")
        });
        println!("gpu-check: {late}{} failed; failed first: {first}", failures.len());
        FAILURE
    }

    /// Ends the process, if a thread is stuck, with that code; comes back if none is.
    pub fn end_if_stuck(&self, code: u8) {
        if self.at().is_stuck {
            self.end_at_once(code);
        }
    }

    fn end_at_once(&self, code: u8) -> ! {
        self.children.end_all();
        let _ = std::io::stdout().flush(); // nobody is left to tell
        end_at_once(code)
    }

    fn at(&self) -> MutexGuard<'_, Place> {
        self.at.lock().unwrap_or_else(PoisonError::into_inner) // all changes are whole
    }
}

fn words_of(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or("no words".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run() -> Run {
        Run::begin(true, "a machine".to_owned(), "abc", None)
    }

    #[test]
    fn what_fails_or_panics_is_noted_and_the_next_stage_goes_on() {
        let run = run();
        let alive = || Ok(());
        assert_eq!(run.stage("one", alive, || Ok(7)), Some(7));
        assert_eq!(run.stage::<()>("two", alive, || Err(anyhow!("no room"))), None);
        assert_eq!(run.stage::<()>("three", alive, || panic!("row {}", 3)), None);
        run.limited_stage("four", 60, alive, || panic!("of a thread"));
        run.limited_stage("five", 60, alive, || Ok(()));
        assert_eq!(run.stage("six", alive, || Ok(8)), Some(8));
        assert_eq!(
            run.report.failures(),
            ["two: no room", "three: it panicked: row 3", "four: it panicked: of a thread"]
        );
        assert_eq!(run.tell(None), FAILURE);
        assert_eq!(run.tell(Some(470)), FAILURE, "it was told");
        assert_eq!(run.report.failures().len(), 3);
    }

    #[test]
    fn after_the_device_is_lost_nothing_is_asked_of_it() {
        let run = run();
        let dead = || Err(anyhow!("no answer"));
        assert_eq!(run.stage::<()>("one", dead, || Err(anyhow!("refused"))), None);
        assert_eq!(run.stage("two", dead, || -> Result<u8> { panic!("it ran") }), None);
        assert_eq!(
            run.report.failures(),
            ["one: refused", "one: the device is lost after it: no answer"]
        );
        run.end_if_stuck(FAILURE); // comes back
    }

    #[test]
    fn work_that_does_not_end_is_left_to_itself() {
        let run = run();
        let (release, released) = sync_channel::<()>(0);
        run.limited_stage(
            "sums",
            0,
            || panic!("the device is not asked"),
            move || {
                let _ = released.recv();
                Ok(())
            },
        );
        assert_eq!(run.report.failures(), ["sums: not done after 0 s"]);
        assert_eq!(run.stage("next", || Ok(()), || Ok(1)), None);
        assert!(run.at().is_stuck);
        drop(release);
    }
}
