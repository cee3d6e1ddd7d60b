//! Pull and push in the slots of a worker that is another process on the same device. Before any
//! work is ordered in a slot the session looks for the event behind which the worker has done with
//! it, so that no stream of the server waits for a worker that was killed; and an answer goes out
//! when the work is done, so that no stream of the worker waits for a server that was.

use std::time::{Duration, Instant};

use table::Step;
use wire::{Code, Error, Pulled, Result, Session};

use crate::session::EngineSession;

/// How long work of a worker that has gone may still take to be done.
const PATIENCE: Duration = Duration::from_secs(2);

/// Gathers a step's rows into a slot, and waits until they are there. `gone` tells whether the
/// worker asks for nothing any more.
pub(crate) fn pull(
    session: &EngineSession,
    step: Step,
    slot: u32,
    gone: impl Fn() -> bool,
) -> Result<Pulled> {
    look(session, step, slot, gone)?;
    let pulled = session.pull_on_device(step, slot)?;
    session.finish_slot(slot)?;
    Ok(pulled)
}

/// Applies a slot's gradients, and waits until they are.
pub(crate) fn push(
    session: &EngineSession,
    step: Step,
    slot: u32,
    learning_rate: f32,
    gone: impl Fn() -> bool,
) -> Result<()> {
    look(session, step, slot, gone)?;
    session.push_on_device(step, slot, learning_rate)?;
    session.settle()
}

/// Looks until the worker's work is done; gives one up that has gone, after a while.
fn look(session: &EngineSession, step: Step, slot: u32, gone: impl Fn() -> bool) -> Result<()> {
    let mut absence = Absence::default();
    let given_up = || absence.is_too_long(gone(), Instant::now());
    if session.look_for_worker(slot, given_up)? {
        return Ok(());
    }
    tracing::warn!(session = session.number(), %step, "worker went before its work was done");
    let message = format!("{step}: the worker went before its work on the device was done");
    Err(Error::new(Code::Unavailable, message))
}

/// How long a worker has been gone.
#[derive(Default)]
struct Absence {
    since: Option<Instant>,
}

impl Absence {
    /// Takes note of whether it is gone now, and tells whether it is given up.
    fn is_too_long(&mut self, is_gone: bool, now: Instant) -> bool {
        is_gone && now.saturating_duration_since(*self.since.get_or_insert(now)) > PATIENCE
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_is_given_up_two_seconds_after_it_was_seen_gone() {
        let begun = Instant::now();
        let at = |ms: u64| begun + Duration::from_millis(ms);
        let mut absence = Absence::default();
        assert!(!absence.is_too_long(false, at(0)));
        assert!(!absence.is_too_long(false, at(60_000)), "it computes, however long");
        assert!(!absence.is_too_long(true, at(60_001)));
        assert!(!absence.is_too_long(true, at(62_001)));
        assert!(absence.is_too_long(true, at(62_002)));
        assert!(absence.is_too_long(true, at(90_000)));
    }
}
