//! Pull and push of a step for a worker on the same device: rows go from where they lie into the
//! worker's buffer, gradients from its buffer into the rows. Work is ordered in the exchange's
//! stream and not waited for. A step that was pushed is kept, its rows where they are, until its
//! work is done; whoever comes by asks, and lets go of what is. It moves no row.
#![allow(unsafe_code)]

use std::collections::VecDeque;
use std::sync::Arc;

use gpu::{Absent, Buffer, DirectLists, DirectRun, Event};
use table::{DeviceId, DevicePlaces, DeviceSlot, DeviceSlots, Key, SharedSlot};

use super::steps::{alike, range_of};
use super::{DeviceTier, Resolved};
use crate::staging::{Run, Staged};
use crate::store::Inner;
use crate::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use crate::sync::{Condvar, Mutex};
use crate::{Error, Result};

const FLOAT_BYTES: u64 = size_of::<f32>() as u64;
/// Pushes that are under way at once, at most: a worker that waits for its losses has two.
const UNDER_WAY_MAX: usize = 8;
/// Lists of addresses that are kept for later stages, at most.
const SPARE_MAX: usize = 64;

/// A worker's places on the device, and what its pushes came to.
pub struct Places {
    slots: Vec<Slot>, // of a worker in another process: opened, and closed when this is dropped
    outcomes: Arc<Outcomes>,
}

struct Slot {
    rows: Buffer,
    gradients: Buffer,
    worker_done: Event,
    session_done: Event,
    /// Of a worker in another process, whose events no stream waits for: the caller has looked.
    is_elsewhere: bool,
}

/// What became of the pushes from some places.
#[derive(Default)]
struct Outcomes {
    /// Guards: the counts. Held for moments.
    known: Mutex<Known>,
    changed: Condvar,
}

#[derive(Default)]
struct Known {
    under_way: usize,
    error: Option<Error>, // the first that was not told yet
}

/// Work that was ordered and not waited for.
#[derive(Default)]
pub(super) struct Ordered {
    /// Guards: the steps that were pushed, in their order. Held for moments, after all other locks.
    under_way: Mutex<VecDeque<Pushed>>,
    /// Guards: lists for later stages. Held for moments.
    spare: Mutex<Vec<DirectLists>>,
    has_places: AtomicBool,
    calls: AtomicU64, // that ordered work so far; counted before their tables' locks are let go
    calls_done: AtomicU64, // that somebody waited for
}

/// A step whose push is under way.
struct Pushed {
    staged: Arc<Staged>,
    outcomes: Arc<Outcomes>,
}

impl DeviceTier {
    pub(crate) fn id(&self) -> DeviceId {
        self.device.description().id
    }

    /// Whether any worker has places here, so that stages send their addresses up.
    pub(super) fn has_places(&self) -> bool {
        self.ordered.has_places.load(Ordering::Acquire)
    }

    /// Keeps lists, with which no work is under way, for a later stage.
    pub(super) fn keep_lists(&self, lists: DirectLists) {
        let mut spare = self.ordered.spare.lock();
        if spare.len() < SPARE_MAX {
            spare.push(lists);
        }
    }

    fn spare_lists(&self, keys: usize, runs: usize, absent: &Absent) -> Option<DirectLists> {
        let mut spare = self.ordered.spare.lock();
        let at = spare.iter().position(|lists| lists.hold(keys, runs, absent))?;
        Some(spare.swap_remove(at))
    }

    /// Whether other processes may share places on the device.
    pub(crate) fn shares(&self) -> bool {
        self.device.shares()
    }

    /// Opens a slot of a worker in another process.
    fn open_slot(&self, slot: &SharedSlot) -> gpu::Result<Slot> {
        Ok(Slot {
            rows: self.device.open_buffer(&slot.rows)?,
            gradients: self.device.open_buffer(&slot.gradients)?,
            worker_done: self.device.open_event(&slot.worker_done)?,
            session_done: self.device.open_event(&slot.session_done)?,
            is_elsewhere: true,
        })
    }

    fn slot(&self, slot: &DeviceSlot) -> Slot {
        let bytes = slot.floats * FLOAT_BYTES;
        let device = &self.device;
        // SAFETY: the worker vouches for the memory and the events, in this process and until it
        // lends other places or none, and orders no pull or push beyond that.
        unsafe {
            Slot {
                rows: Buffer::lent(device, slot.rows, bytes),
                gradients: Buffer::lent(device, slot.gradients, bytes),
                worker_done: Event::lent(device, slot.worker_done),
                session_done: Event::lent(device, slot.session_done),
                is_elsewhere: false,
            }
        }
    }
}

impl Inner {
    pub(crate) fn lend_places(&self, places: &DevicePlaces) -> Result<Places> {
        let expected = self.device.as_ref().map(|tier| tier.id());
        let (Some(tier), true) = (&self.device, expected == Some(places.device)) else {
            return Err(Error::OtherDevice { found: places.device, expected });
        };
        let slots = match &places.slots {
            DeviceSlots::Here(slots) => slots.iter().map(|slot| tier.slot(slot)).collect(),
            DeviceSlots::Shared(slots) => {
                let opened = slots.iter().map(|slot| tier.open_slot(slot));
                opened.collect::<gpu::Result<_>>().map_err(Error::Slots)?
            }
        };
        tier.ordered.has_places.store(true, Ordering::Release);
        Ok(Places { slots, outcomes: Arc::default() })
    }

    /// See [`crate::Store::pull_on_device`].
    pub(crate) fn pull_on_device(
        &self,
        staged: &Arc<Staged>,
        places: &Places,
        slot: u32,
    ) -> Result<()> {
        let _gate = self.enter()?;
        staged.check_whole()?;
        let (plan, slot) = self.begin_on_device(staged, places, slot)?;
        let runs = staged.runs();
        let lists = self.lists_of(plan, runs, staged.keys())?;
        let _read: Vec<_> = runs.iter().map(|run| run.table.rows.read()).collect();
        self.lost(plan.gather_into(lists, runs, slot))?;
        plan.count_pull(runs);
        Ok(())
    }

    /// See [`crate::Store::push_on_device`].
    pub(crate) fn push_on_device(
        &self,
        staged: &Arc<Staged>,
        places: &Places,
        slot: u32,
        rate: f32,
    ) -> Result<()> {
        let _gate = self.enter()?;
        staged.check_whole()?;
        let (plan, slot) = self.begin_on_device(staged, places, slot)?;
        if !rate.is_finite() {
            return Err(Error::LearningRate { found: rate });
        }
        let ordered = &plan.tier.ordered;
        if ordered.under_way.lock().len() >= UNDER_WAY_MAX {
            self.let_go_of_one()?;
        }
        let runs = staged.runs();
        let lists = self.lists_of(plan, runs, staged.keys())?;
        let updated = {
            let _write: Vec<_> = runs.iter().map(|run| run.table.rows.write()).collect();
            for (changed, slots) in &plan.slots {
                slots.iter().for_each(|&slot| changed.set(slot));
            }
            self.lost(plan.update_from(lists, runs, slot, rate))
        };
        staged.note_pushed(); // on a fault too: what changed is for nobody to say
        updated?;
        plan.count_push(runs);
        places.outcomes.known.lock().under_way += 1;
        let (staged, outcomes) = (Arc::clone(staged), Arc::clone(&places.outcomes));
        ordered.under_way.lock().push_back(Pushed { staged, outcomes });
        self.live.announce(); // a stage that waits for room may wait for this push
        Ok(())
    }

    /// See [`crate::Store::look_for_worker`].
    pub(crate) fn look_for_worker(
        &self,
        places: &Places,
        slot: u32,
        given_up: impl FnMut() -> bool,
    ) -> Result<bool> {
        self.lost(slot_of(places, slot)?.worker_done.look(given_up))
    }

    /// See [`crate::Store::finish_slot`].
    pub(crate) fn finish_slot(&self, places: &Places, slot: u32) -> Result<()> {
        self.lost(slot_of(places, slot)?.session_done.finish())
    }

    /// See [`crate::Store::settle_on_device`].
    pub(crate) fn settle_on_device(&self, places: &Places) -> Result<()> {
        while self.let_go_of_one()? {}
        let mut known = places.outcomes.known.lock();
        while known.under_way > 0 {
            places.outcomes.changed.wait(&mut known); // another thread has it in hand
        }
        known.error.take().map_or(Ok(()), Err)
    }

    /// Lets go of the steps whose pushes are done; waits for none.
    pub(crate) fn let_go_of_done(&self) -> Result<()> {
        let Some(tier) = &self.device else { return Ok(()) };
        loop {
            let mut under_way = tier.ordered.under_way.lock();
            let Some(first) = under_way.front() else { return Ok(()) };
            let done = first.staged.lists().map_or(Ok(true), DirectLists::are_done);
            if let Ok(false) = done {
                return Ok(());
            }
            let pushed = under_way.pop_front();
            drop(under_way);
            pushed.into_iter().for_each(|pushed| self.conclude(pushed));
            self.lost(done)?;
        }
    }

    /// Waits for the oldest push that is under way and lets go of its step; false if there is none.
    pub(crate) fn let_go_of_one(&self) -> Result<bool> {
        let Some(tier) = &self.device else { return Ok(false) };
        let Some(pushed) = tier.ordered.under_way.lock().pop_front() else { return Ok(false) };
        let done = pushed.staged.lists().map_or(Ok(()), DirectLists::finish);
        self.conclude(pushed);
        self.lost(done).map(|()| true)
    }

    /// Waits for all work on rows that was ordered so far, if some was. The caller holds the lock
    /// of the table whose rows it reads or writes, so that none comes to these meanwhile.
    pub(crate) fn quiet(&self) -> Result<()> {
        let Some(tier) = &self.device else { return Ok(()) };
        let calls = tier.ordered.calls.load(Ordering::Acquire);
        if tier.ordered.calls_done.load(Ordering::Acquire) >= calls {
            return Ok(());
        }
        self.lost(tier.direct.finish())?;
        tier.ordered.calls_done.fetch_max(calls, Ordering::AcqRel);
        Ok(())
    }

    /// Takes note of what a push came to, and lets go of its step.
    fn conclude(&self, pushed: Pushed) {
        let Pushed { staged, outcomes } = pushed;
        let mut refused = None;
        if let (Some(plan), Some(lists)) = (staged.resolved(), staged.lists())
            && let Ok(found) = self.lost(lists.refused())
        {
            plan.busy.store(false, Ordering::Release);
            refused = found;
        }
        let error = refused.map(|first| not_finite(&staged, first));
        drop(staged); // before anybody hears that it is done
        let mut known = outcomes.known.lock();
        known.under_way -= 1;
        known.error = known.error.take().or(error);
        outcomes.changed.notify_all();
    }

    /// Checks that a step fits a slot, and tells what went wrong before.
    fn begin_on_device<'a>(
        &self,
        staged: &'a Staged,
        places: &'a Places,
        slot: u32,
    ) -> Result<(&'a Resolved, &'a Slot)> {
        self.let_go_of_done()?;
        if let Some(error) = places.outcomes.known.lock().error.take() {
            return Err(error);
        }
        let slot = slot_of(places, slot)?;
        let room = slot.rows.bytes().min(slot.gradients.bytes()) / FLOAT_BYTES;
        let (found, expected) = (room as usize, staged.rows_floats());
        if expected > found {
            let what = "the floats of a slot on the device";
            return Err(Error::InvalidArgument { what, found, expected });
        }
        let plan = staged.resolved().expect("with a device every staged step is resolved");
        Ok((plan, slot))
    }

    /// The addresses of a step on the device, sent up if they were not yet.
    pub(super) fn lists_of<'a>(
        &self,
        plan: &'a Resolved,
        runs: &[Run],
        keys: &[Key],
    ) -> Result<&'a DirectLists> {
        if let Some(lists) = plan.lists.get() {
            return Ok(lists);
        }
        let absent = absent_of(runs, keys, &plan.embeddings);
        let (tier, rows) = (&plan.tier, &plan.embeddings);
        let described: Vec<DirectRun> = runs.chunk_by(alike).map(direct_run).collect();
        let mut lists = match tier.spare_lists(rows.len(), described.len(), &absent) {
            Some(lists) => lists,
            None => self.lost(tier.direct.lists(rows.len(), described.len(), &absent))?,
        };
        let has_states = runs.iter().any(|run| run.table.layout.state > 0);
        let states = if has_states { &plan.states[..] } else { &[] };
        // SAFETY: spare lists are those whose work is done; the addresses are the plan's, which
        // lives until the work with the lists is done; a batch has no row twice.
        self.lost(unsafe { tier.direct.send(&mut lists, rows, states, &described, &absent) })?;
        Ok(plan.lists.get_or_init(|| lists))
    }
}

impl Staged {
    fn lists(&self) -> Option<&DirectLists> {
        self.resolved()?.lists.get()
    }
}

impl Resolved {
    fn begin(&self, lists: &DirectLists, slot: &Slot) -> gpu::Result<()> {
        self.busy.store(true, Ordering::Release);
        self.tier.ordered.calls.fetch_add(1, Ordering::AcqRel);
        let after = (!slot.is_elsewhere).then_some(&slot.worker_done);
        self.tier.direct.begin(lists, after)
    }

    /// Orders the gather of all rows into a slot. The caller holds the tables' locks.
    fn gather_into(&self, lists: &DirectLists, runs: &[Run], slot: &Slot) -> gpu::Result<()> {
        let direct = &self.tier.direct;
        self.begin(lists, slot)?;
        let out = slot.rows.part(0, floats_of(runs) * FLOAT_BYTES)?;
        // SAFETY: the plan lives until the work is done, so that its rows stay where they are;
        // others write them in the same stream, or after they waited for it (`quiet`).
        unsafe { direct.gather(lists, &out) }?;
        direct.end(lists, &slot.session_done)
    }

    /// Orders the update of all rows by the gradients in a slot. The caller holds the tables' locks
    /// exclusively.
    fn update_from(
        &self,
        lists: &DirectLists,
        runs: &[Run],
        slot: &Slot,
        rate: f32,
    ) -> gpu::Result<()> {
        let direct = &self.tier.direct;
        self.begin(lists, slot)?;
        let gradients = slot.gradients.part(0, floats_of(runs) * FLOAT_BYTES)?;
        direct.check(lists, &gradients)?;
        // SAFETY: as above.
        unsafe { direct.update(lists, &gradients, rate) }?;
        direct.tell(lists)?;
        direct.end(lists, &slot.session_done)
    }
}

/// Tables that lie side by side and are updated alike, as the device has them.
fn direct_run(side_by_side: &[Run]) -> DirectRun {
    let table = &side_by_side[0].table;
    DirectRun {
        rows: range_of(side_by_side).len(),
        floats: table.layout.dim as u32,
        optimizer: table.spec.optimizer,
    }
}

fn floats_of(runs: &[Run]) -> u64 {
    runs.iter().map(|run| (run.range.len() * run.table.layout.dim) as u64).sum()
}

fn slot_of(places: &Places, slot: u32) -> Result<&Slot> {
    let (found, expected) = (places.slots.len(), slot as usize + 1);
    let what = "the slots on the device";
    let missing = Error::InvalidArgument { what, found, expected };
    places.slots.get(slot as usize).ok_or(missing)
}

/// The keys without a row, with the floats of their initial rows.
fn absent_of(runs: &[Run], keys: &[Key], rows: &[u64]) -> Absent {
    let mut absent = Absent::default();
    for run in runs {
        let dim = run.table.layout.dim;
        for at in run.range.clone().filter(|&at| rows[at] == 0) {
            let first = absent.floats.len().next_multiple_of(4);
            absent.floats.resize(first + dim, 0.0);
            run.table.spec.initial_embedding(keys[at], &mut absent.floats[first..]);
            absent.keys.push((at, first));
        }
    }
    absent
}

/// Names the row of a gradient that is not finite.
fn not_finite(staged: &Staged, first: u64) -> Error {
    let mut left = first as usize;
    for run in staged.runs() {
        let dim = run.table.layout.dim;
        let floats = run.range.len() * dim;
        if left < floats {
            let key = staged.keys()[run.range.start + left / dim];
            return Error::NotFinite { table: run.table.id, key, position: left % dim };
        }
        left -= floats;
    }
    unreachable!("the device looked at {} floats", staged.rows_floats())
}
