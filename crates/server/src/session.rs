//! [`EngineSession`]: a session in this process. Its stages are begun on a thread of its own, one
//! after the other, and awaited on another, so that one step's rows come in from SSD while the next
//! steps are resolved; pull, push and all else run on the caller's thread. It holds no rows: what
//! is staged is pinned in the tiers.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crossbeam::channel::{Receiver, Sender, bounded};
use parking_lot::{Condvar, Mutex};
use table::{
    DeviceId, DevicePlaces, KeyBatch, Limits, RowStatus, Step, StoreStatus, TableId, TableSpec,
};
use tiers::{Places, Staged, Staging};
use wire::{Code, Error, Pulled, Result, Session};

use crate::engine::Engine;
use crate::metrics::{Operation, Timer};

/// A session over the tiers of this process. Ending it, or dropping it, releases what it staged.
///
/// A step whose staging failed stays known, and its pull tells the error each time, until it is
/// released. A push that is refused (shape, a value that is not finite) changes no row and leaves
/// its step staged: push again, or release.
pub struct EngineSession {
    engine: Arc<Engine>,
    steps: Arc<Steps>,
    stages: Sender<(Step, KeyBatch)>, // as long as steps may be staged: sending never waits
    stagers: Mutex<Option<[JoinHandle<()>; 2]>>, // taken by the end of the session
    places: Mutex<Option<Arc<Places>>>, // the worker's, on the device; held for moments
    number: u64,
}

/// The steps of a session, shared with its staging threads.
struct Steps {
    known: Mutex<Known>, // bookkeeping alone; never held while the store works
    changed: Condvar,
}

#[derive(Default)]
struct Known {
    steps: BTreeMap<Step, Stage>,
    last: Option<Step>,
    ended: bool,
}

/// How far the staging of a step has come.
enum Stage {
    UnderWay,
    Done(Arc<Staged>),
    Failed(Error),
}

/// A step whose rows are there.
pub(crate) struct Ready {
    /// Its rows.
    pub(crate) rows: usize,
    /// The floats that they have together.
    pub(crate) floats: usize,
    /// How long the wait for them was.
    pub(crate) stalled: Duration,
}

impl EngineSession {
    pub(crate) fn start(engine: Arc<Engine>, number: u64) -> Result<Self> {
        let steps = Arc::new(Steps { known: Mutex::default(), changed: Condvar::new() });
        let (stages, queue) = bounded(engine.limits().staged_steps_max as usize);
        let (begun, coming) = bounded(engine.limits().staged_steps_max as usize);
        // if the second can't be started, the first ends with the queue that is dropped here
        let waiter = spawn(format!("await-{number}"), &engine, &steps, move |engine, steps| {
            await_all(engine, steps, &coming);
        })?;
        let stager = spawn(format!("stage-{number}"), &engine, &steps, move |engine, steps| {
            begin_all(engine, steps, &queue, &begun);
        })?;
        let stagers = Mutex::new(Some([stager, waiter]));
        Ok(Self { engine, steps, stages, stagers, places: Mutex::new(None), number })
    }

    /// The session's number, for logs.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// Releases every step and stops the staging threads. What is asked afterwards is refused.
    pub fn end(&self) {
        let released = {
            let mut known = self.steps.known.lock();
            known.ended = true;
            std::mem::take(&mut known.steps)
        };
        drop(released); // unpins, which may let the stage under way go on
        if let Some(places) = self.places.lock().take() {
            // what is under way is waited for; nobody is left to be told how it went
            let _ = self.told(self.engine.store().settle_on_device(&places));
        }
        self.steps.changed.notify_all();
        let Some(stagers) = self.stagers.lock().take() else { return };
        // a step below all others that is not known: it only wakes the thread
        let _ = self.stages.try_send((Step(0), KeyBatch::new()));
        for stager in stagers {
            if stager.join().is_err() {
                tracing::error!(session = self.number, "staging thread panicked");
            }
        }
        self.engine.session_ended();
    }

    /// Waits for a step's staging.
    pub(crate) fn wait_staged(&self, step: Step) -> Result<Ready> {
        let (staged, stalled) = self.staged_for_pull(step)?;
        Ok(Ready { rows: staged.statuses().len(), floats: staged.rows_floats(), stalled })
    }

    /// The floats that the rows of `keys` have together.
    pub(crate) fn rows_floats(&self, keys: &KeyBatch) -> Result<usize> {
        self.check_keys(keys)?;
        self.told(self.engine.store().rows_floats(keys))
    }

    /// [`Self::staged`], its wait counted as a stall.
    fn staged_for_pull(&self, step: Step) -> Result<(Arc<Staged>, Duration)> {
        let (staged, stalled) = self.staged(step)?;
        if stalled > Duration::ZERO {
            self.engine.metrics().stalled(stalled);
        }
        Ok((staged, stalled))
    }

    fn staged(&self, step: Step) -> Result<(Arc<Staged>, Duration)> {
        let mut known = self.steps.known.lock();
        let mut waiting_since = None;
        loop {
            match known.find(step)? {
                Stage::Done(staged) => {
                    let stalled =
                        waiting_since.map_or(Duration::ZERO, |since: Instant| since.elapsed());
                    return Ok((Arc::clone(staged), stalled));
                }
                Stage::Failed(error) => return Err(error.clone()),
                Stage::UnderWay => {}
            }
            waiting_since.get_or_insert_with(Instant::now);
            self.steps.changed.wait(&mut known);
        }
    }

    /// Looks until a worker in another process has done in a slot what it said it had ordered.
    pub(crate) fn look_for_worker(
        &self,
        slot: u32,
        given_up: impl FnMut() -> bool,
    ) -> Result<bool> {
        let places = self.shared_places()?;
        self.told(self.engine.store().look_for_worker(&places, slot, given_up))
    }

    /// Waits until what was ordered in a slot is done.
    pub(crate) fn finish_slot(&self, slot: u32) -> Result<()> {
        let places = self.shared_places()?;
        self.told(self.engine.store().finish_slot(&places, slot))
    }

    fn shared_places(&self) -> Result<Arc<Places>> {
        let missing = || Error::new(Code::InvalidArgument, "no places on the device were shared");
        self.places.lock().clone().ok_or_else(missing)
    }

    fn check_keys(&self, keys: &KeyBatch) -> Result<()> {
        let keys_max = self.engine.limits().batch_keys_max;
        if keys.len() <= keys_max as usize {
            return Ok(());
        }
        let message = format!("the request names {} keys, the limit is {keys_max}", keys.len());
        Err(Error::new(Code::TooLarge, message))
    }

    fn told<T>(&self, outcome: tiers::Result<T>) -> Result<T> {
        outcome.map_err(|error| self.engine.told(&error))
    }
}

impl Session for EngineSession {
    fn limits(&self) -> Limits {
        self.engine.limits()
    }

    fn tables(&self) -> Result<Vec<(TableId, TableSpec)>> {
        Ok(self.engine.tables())
    }

    fn create_table(&self, spec: &TableSpec) -> Result<TableId> {
        self.engine.create_table(spec)
    }

    fn stage(&self, step: Step, keys: &KeyBatch) -> Result<()> {
        self.check_keys(keys)?;
        let keys = keys.clone();
        let mut known = self.steps.known.lock();
        known.check_next(step, self.engine.limits().staged_steps_max)?;
        if self.stages.try_send((step, keys)).is_err() {
            // steps released before their turn still stand in the queue
            return Err(Error::new(Code::SlowDown, format!("{step}: the queue of stages is full")));
        }
        known.steps.insert(step, Stage::UnderWay);
        known.last = Some(step);
        Ok(())
    }

    fn pull(&self, step: Step, rows: &mut [f32]) -> Result<Pulled> {
        let (staged, stalled) = self.staged_for_pull(step)?;
        self.told(self.engine.store().pull(&staged, rows))?;
        Ok(Pulled { stalled })
    }

    fn pull_with_statuses(
        &self,
        step: Step,
        rows: &mut [f32],
        statuses: &mut [RowStatus],
    ) -> Result<Pulled> {
        let (staged, stalled) = self.staged_for_pull(step)?;
        let told = staged.statuses();
        if told.len() != statuses.len() {
            let message = format!("{} statuses for {} keys", statuses.len(), told.len());
            return Err(Error::new(Code::InvalidArgument, message));
        }
        self.told(self.engine.store().pull_some(&staged, rows))?;
        statuses.copy_from_slice(told);
        Ok(Pulled { stalled })
    }

    fn push(&self, step: Step, gradients: &[f32], learning_rate: f32) -> Result<()> {
        let (staged, _) = self.staged(step)?;
        self.told(self.engine.store().push(&staged, gradients, learning_rate))?;
        self.steps.known.lock().steps.remove(&step);
        Ok(())
    }

    fn release(&self, step: Step) -> Result<()> {
        let mut known = self.steps.known.lock();
        known.find(step)?;
        let released = known.steps.remove(&step);
        drop(known);
        drop(released); // unpins outside the lock
        Ok(())
    }

    fn settle(&self) -> Result<()> {
        // a push through the host is done when it returns
        let places = self.places.lock().clone();
        places.map_or(Ok(()), |places| self.told(self.engine.store().settle_on_device(&places)))
    }

    fn lookup(&self, keys: &KeyBatch, rows: &mut [f32], statuses: &mut [RowStatus]) -> Result<()> {
        self.check_keys(keys)?;
        self.told(self.engine.store().lookup(keys, rows, statuses))
    }

    fn assign(&self, keys: &KeyBatch, rows: &[f32]) -> Result<()> {
        self.check_keys(keys)?;
        self.told(self.engine.store().assign(keys, rows))
    }

    fn status(&self) -> Result<StoreStatus> {
        Ok(self.engine.status())
    }

    fn device(&self) -> Option<DeviceId> {
        self.engine.store().device()
    }

    fn share_device(&self, places: &DevicePlaces) -> Result<()> {
        let before = self.places.lock().take();
        if let Some(before) = before {
            self.told(self.engine.store().settle_on_device(&before))?;
        }
        let lent = self.told(self.engine.store().lend_places(places))?;
        *self.places.lock() = Some(Arc::new(lent));
        Ok(())
    }

    fn pull_on_device(&self, step: Step, slot: u32) -> Result<Pulled> {
        let places = self.shared_places()?;
        let (staged, stalled) = self.staged_for_pull(step)?;
        self.told(self.engine.store().pull_on_device(&staged, &places, slot))?;
        Ok(Pulled { stalled })
    }

    fn push_on_device(&self, step: Step, slot: u32, learning_rate: f32) -> Result<()> {
        let places = self.shared_places()?;
        let (staged, _) = self.staged(step)?;
        let store = self.engine.store();
        self.told(store.push_on_device(&staged, &places, slot, learning_rate))?;
        self.steps.known.lock().steps.remove(&step);
        Ok(())
    }
}

impl Drop for EngineSession {
    fn drop(&mut self) {
        self.end();
    }
}

impl Known {
    fn check_next(&self, step: Step, steps_max: u32) -> Result<()> {
        self.check_open()?;
        if let Some(last) = self.last
            && step <= last
        {
            let message = format!("{step} is staged after {last}; steps ascend");
            return Err(Error::new(Code::InvalidArgument, message));
        }
        if self.steps.len() >= steps_max as usize {
            let message = format!(
                "{step}: {steps_max} steps are staged and neither pushed nor released, the limit"
            );
            return Err(Error::new(Code::SlowDown, message));
        }
        Ok(())
    }

    fn find(&self, step: Step) -> Result<&Stage> {
        self.check_open()?;
        let missing = || Error::new(Code::NotFound, format!("{step} is not staged"));
        self.steps.get(&step).ok_or_else(missing)
    }

    fn check_open(&self) -> Result<()> {
        if self.ended {
            return Err(Error::new(Code::Unavailable, "the session has ended"));
        }
        Ok(())
    }
}

fn spawn(
    name: String,
    engine: &Arc<Engine>,
    steps: &Arc<Steps>,
    run: impl FnOnce(&Engine, &Steps) + Send + 'static,
) -> Result<JoinHandle<()>> {
    let (engine, steps) = (Arc::clone(engine), Arc::clone(steps));
    thread::Builder::new()
        .name(name)
        .spawn(move || run(&engine, &steps))
        .map_err(|e| Error::new(Code::Internal, format!("can't start a thread: {e}")))
}

/// A stage that was begun, on its way to the thread that awaits it.
struct Begun {
    step: Step,
    staging: Staging,
    timer: Timer,
}

/// The staging thread: begins one step after the other, in the order in which they came.
fn begin_all(
    engine: &Engine,
    steps: &Steps,
    queue: &Receiver<(Step, KeyBatch)>,
    begun: &Sender<Begun>,
) {
    for (step, keys) in queue {
        {
            let known = steps.known.lock();
            if known.ended {
                return;
            }
            if !known.steps.contains_key(&step) {
                continue; // released before its turn
            }
        }
        let timer = engine.metrics().start(Operation::Staging);
        match engine.store().begin_stage(&keys) {
            Ok(staging) => {
                if begun.send(Begun { step, staging, timer }).is_err() {
                    return; // the other thread panicked; the end of the session tells it
                }
            }
            Err(error) => conclude(engine, steps, step, timer, Err(error)),
        }
    }
}

/// The awaiting thread: waits until the rows of one step after the other are there. When the stages
/// end, it waits for those that were begun, and lets them go.
fn await_all(engine: &Engine, steps: &Steps, coming: &Receiver<Begun>) {
    for Begun { step, staging, timer } in coming {
        conclude(engine, steps, step, timer, staging.wait());
    }
}

/// Tells everyone who waits how a step's staging ended.
fn conclude(
    engine: &Engine,
    steps: &Steps,
    step: Step,
    timer: Timer,
    outcome: tiers::Result<Staged>,
) {
    let outcome = outcome.map_err(|error| engine.told(&error));
    timer.finish(engine.metrics(), outcome.as_ref().err());
    let outcome = match outcome {
        Ok(staged) => Stage::Done(Arc::new(staged)),
        Err(error) => Stage::Failed(error),
    };
    let mut known = steps.known.lock();
    let unwanted = match known.steps.get_mut(&step) {
        Some(stage) => {
            *stage = outcome;
            None
        }
        None => Some(outcome), // released meanwhile
    };
    drop(known);
    drop(unwanted); // unpins outside the lock
    steps.changed.notify_all();
}
