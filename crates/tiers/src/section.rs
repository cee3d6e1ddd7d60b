//! A part of the rows of one layout: which rows are there, in which slots, which of them are
//! pinned. One lock each; a batch takes it once. It reads and writes no floats, and it knows
//! neither steps nor SSD.

use std::io;
use std::sync::Arc;

use table::{RowLayout, TableId};

use crate::arena::{Arena, Kernel, Lanes, MemoryUse, Row, run_widest};
use crate::budget::Budget;
use crate::gains::Sign;
use crate::index::{
    self, At, BUCKET_BYTES, Entry, Found, Home, Homes, Index, Mark, Meta, Probe, buckets_for,
};
use crate::policy::{Policy, Sweep};

/// Keys whose home buckets are asked for one after the other.
const ASKED_TOGETHER: usize = 16;
/// Groups of so many between asking for a home bucket and looking into it.
const GROUPS_AHEAD: usize = 2;
/// Keys between asking for the buckets behind a home and looking into them.
const BEHIND_PROBES_AHEAD: usize = 12;
/// Rows that are used never again but may not leave yet, which are passed over in a row of calls
/// that look for some that may: they come in the order of the stages, so that behind a few of them
/// hardly any other is.
const DONE_PASSED_MAX: usize = 8;
/// Names of such rows between asking for one and looking at it.
const DONE_AHEAD: usize = 8;
/// Bytes of rows that a section takes from the budget at least, unless a row is longer.
const CHUNK_BYTES: usize = 4 << 10;
/// The index grows by one bucket in so many at least.
const STEP_SHARE: usize = 1024;
/// Slots that a section can number.
const SLOTS_MAX: u64 = 1 << 24;

/// What is known of a row that comes in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Past {
    /// It was never here.
    None,
    /// It may have been.
    Unknown,
    /// It was, and this was stored with it, if anything.
    Known(Option<u8>),
}

/// A row that a probe found.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Hit {
    pub(crate) slot: u32,
    pub(crate) row: Row,
    pub(crate) loading: bool, // from SSD, and not there yet
}

/// Who is told what a probe found of each key.
pub(crate) trait Finder {
    /// A row that is here, and is held from now on; or that there is none. To be `inline(always)`,
    /// so that it is compiled with the loop over probes.
    fn found(&mut self, probe: &Probe, hit: Option<Hit>);
}

pub(crate) struct Section {
    arena: Arc<Arena>,
    place: Place,
    index: Index,
    pins: Vec<u64>, // a bit for each slot: whether a list held it when these were made
    slots: u32,     // that the budget has paid for
    touched: u32,   // slots from here on were never used
    free: Vec<u32>, // vacant slots below `touched`
    rows: u32,
    hand: u32,  // the place in the index that is swept next
    swept: u64, // rows that the hand looked at
    policy: Policy,
    /// Changes of the lists of pinned rows that `pins` was made after.
    pub(crate) changes_seen: u64,
}

/// Where a section's rows lie in their arena, and which hashes are its own.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Place {
    pub(crate) number: u64,
    pub(crate) base: u64, // the number of its first row
    pub(crate) slots_max: u32,
    pub(crate) hash_bits: u32, // the high bits of a hash, which chose the section
}

/// Slots that a section numbers at most, for rows of so many bytes under a share of the budget.
pub(crate) fn slots_max(row_bytes: usize, share_bytes: u64) -> u32 {
    (share_bytes / row_bytes as u64).clamp(1, SLOTS_MAX) as u32
}

/// Slots that come and go together.
fn chunk_slots(row_bytes: usize) -> u32 {
    (CHUNK_BYTES / row_bytes).clamp(1, 64) as u32
}

/// Bytes of the budget for so many slots in one section.
pub(crate) fn bytes_for(row_bytes: usize, slots: u64) -> u64 {
    let chunk = u64::from(chunk_slots(row_bytes));
    let slots = slots.div_ceil(chunk) * chunk;
    paid(row_bytes, slots) + (buckets_for(slots as usize) * BUCKET_BYTES) as u64
}

/// Bytes of the host-RAM budget that one cached row takes when the budget is full: the row itself,
/// four bits, and its share of the index (64 bytes for 4.15 rows).
pub fn host_bytes_per_row(layout: RowLayout) -> u64 {
    bytes_per_row(layout.bytes()).ceil() as u64
}

/// What one of very many rows of so many bytes takes of the budget.
pub(crate) fn bytes_per_row(row_bytes: usize) -> f64 {
    const ROWS: u64 = 1 << 20; // so that rounding vanishes
    bytes_for(row_bytes, ROWS) as f64 / ROWS as f64
}

/// Two bits that say whether a row is dirty and pinned, and two of the policy's ghosts, make half a
/// byte for each slot.
fn paid(row_bytes: usize, slots: u64) -> u64 {
    slots * row_bytes as u64 + slots.div_ceil(2)
}

impl Section {
    /// An empty section. No memory is touched until rows come.
    pub(crate) fn reserve(arena: Arc<Arena>, place: Place, memory: MemoryUse) -> io::Result<Self> {
        let slots = place.slots_max as usize;
        Ok(Self {
            arena,
            place,
            index: Index::reserve(slots, place.hash_bits, place.number, memory)?,
            pins: Vec::new(),
            slots: 0,
            touched: 0,
            free: Vec::new(),
            rows: 0,
            hand: 0,
            swept: 0,
            policy: Policy::new(0),
            changes_seen: 0,
        })
    }

    pub(crate) fn rows(&self) -> u32 {
        self.rows
    }

    /// Slots that a row may take at once.
    pub(crate) fn vacant(&self) -> usize {
        self.free.len() + (self.slots - self.touched) as usize
    }

    pub(crate) fn row(&self, slot: u32) -> Row {
        assert!(slot < self.touched, "slot {slot} was never used");
        Row::new(self.place.base + u64::from(slot))
    }

    /// Places for rows, taken or not, and what is at each.
    pub(crate) fn places(&self) -> u32 {
        self.index.places()
    }

    /// The row at a place, if one is there.
    pub(crate) fn nth(&self, place: u32) -> Option<(At, Mark)> {
        self.index.nth(place)
    }

    /// Where the index lies.
    #[cfg(test)]
    #[cfg(not(feature = "shuttle"))]
    pub(crate) fn index_mapping(&self) -> std::ops::Range<usize> {
        self.index.mapping()
    }

    /// How often all rows got other places.
    pub(crate) fn builds(&self) -> u64 {
        self.index.builds()
    }

    /// From now on it is noted which rows move from the places from `next` on to those before;
    /// `None` ends it.
    pub(crate) fn walk_from(&mut self, next: Option<u32>) {
        self.index.walk_from(next);
    }

    /// Where those are that did.
    pub(crate) fn overtaken(&self) -> Vec<At> {
        self.index.overtaken()
    }

    /// Rows that pass one bucket, at most.
    #[cfg(test)]
    #[cfg(not(feature = "shuttle"))]
    pub(crate) fn passed_max(&self) -> u32 {
        self.index.passed_max()
    }

    pub(crate) fn entry(&self, at: At) -> Entry {
        self.index.entry(at)
    }

    pub(crate) fn mark(&self, at: At) -> Mark {
        self.index.mark(at)
    }

    pub(crate) fn set_meta(&mut self, at: At, meta: Meta) {
        self.index.set_meta(at, meta);
    }

    /// Rows that the hand looked at so far.
    pub(crate) fn swept(&self) -> u64 {
        self.swept
    }

    /// What is worth keeping of a row's past when it leaves.
    pub(crate) fn history(&self, code: u8) -> u8 {
        self.policy.history(code)
    }

    /// Looks keys up, and tells `finder` of each. A hit counts as a use, which the policy hears of.
    ///
    /// Rows that are not at home in a full index come last: the buckets behind are asked for some
    /// keys ahead, as the homes are.
    pub(crate) fn probe(
        &mut self,
        probes: &[Probe],
        next_uses: Option<&[u32]>,
        now: u64,
        finder: &mut impl Finder,
    ) {
        let mut unsure: Vec<&Probe> = Vec::new();
        let mut uses = Uses { policy: &mut self.policy, base: self.place.base, next_uses, now };
        run_widest(ProbeHomes {
            homes: self.index.homes(),
            uses: &mut uses,
            probes,
            unsure: &mut unsure,
            finder,
        });
        for (i, probe) in unsure.iter().enumerate() {
            if let Some(ahead) = unsure.get(i + BEHIND_PROBES_AHEAD) {
                self.index.ask_behind(ahead.hash);
            }
            let hit = self.index.found(probe).map(|row| uses.hit(probe, row));
            finder.found(probe, hit);
        }
    }

    /// Where a row is, if it is here. No use is counted and nothing is pinned.
    pub(crate) fn find(&self, hash: u64, table: TableId) -> Option<At> {
        self.index.find(hash, table)
    }

    /// Asks for the place in the index that a row would be entered at.
    pub(crate) fn ask(&self, probe: &Probe) {
        self.index.ask_home(probe);
    }

    /// Takes a vacant slot for a row, which the caller holds from now on. There must be one.
    pub(crate) fn claim(
        &mut self,
        probe: &Probe,
        meta: Meta,
        past: Past,
        next_use: Option<u32>,
        now: u64,
    ) -> Hit {
        let slot = self.free.pop().unwrap_or_else(|| {
            assert!(self.touched < self.slots, "there is a vacant slot for every row that comes");
            self.touched += 1;
            self.touched - 1
        });
        let code = match (next_use, past) {
            (Some(next_use), _) => self.policy.foreseen(now, next_use),
            (None, Past::None) => self.policy.first_touch(),
            (None, Past::Unknown) => self.policy.insert(probe.hash, None),
            (None, Past::Known(history)) => self.policy.insert(probe.hash, history),
        };
        let at = self.index.insert(probe.hash, Mark { meta, slot, code });
        if next_use == Some(u32::MAX) {
            self.policy.note_done(self.index.name(at));
        }
        self.rows += 1;
        Hit { slot, row: self.row(slot), loading: meta.is_loading() }
    }

    /// Tells the policy what was stored with a row, now that it has been read.
    pub(crate) fn recall(&mut self, at: At, history: u8) {
        let code = self.policy.recall(self.index.mark(at).code, history);
        self.index.set_code(at, code);
    }

    /// Forgets a row because others want its place more.
    pub(crate) fn leave(&mut self, row: &Entry) {
        let hash = index::hash(row.meta.table(), row.key);
        self.policy.left(hash, row.code);
        let at = self.index.find(hash, row.meta.table());
        self.forget(at.expect("a row leaves once"));
    }

    /// Forgets a row.
    pub(crate) fn forget(&mut self, at: At) {
        self.free.push(self.index.mark(at).slot);
        self.index.remove(at);
        self.rows -= 1;
    }

    fn pin(&mut self, slot: u32) {
        let word = slot as usize / 64;
        if word >= self.pins.len() {
            self.pins.resize(word + 1, 0);
        }
        self.pins[word] |= 1 << (slot % 64);
    }

    fn is_pinned(&self, slot: u32) -> bool {
        self.pins.get(slot as usize / 64).is_some_and(|word| word >> (slot % 64) & 1 != 0)
    }

    /// Forgets what is pinned.
    pub(crate) fn clear_pins(&mut self) {
        self.pins.fill(0);
    }

    /// Notes that a list holds these.
    pub(crate) fn add_pins(&mut self, slots: &[u32]) {
        slots.iter().for_each(|&slot| self.pin(slot));
    }

    /// Every row that nobody holds and that is not on its way in.
    pub(crate) fn unheld(&self) -> impl Iterator<Item = Entry> {
        let rows = (0..self.index.places()).filter_map(|place| self.index.nth(place));
        rows.filter(|(_, row)| !row.meta.is_loading() && !self.is_pinned(row.slot))
            .map(|(at, _)| self.index.entry(at))
    }

    /// What is missed for want of room.
    pub(crate) fn sign(&self, now: u64) -> Sign {
        Sign { rows: u64::from(self.rows), foregone: self.policy.foregone(now) }
    }

    /// Bytes of the budget that it has.
    pub(crate) fn paid_bytes(&self) -> u64 {
        let index_bytes = (self.index.buckets() * BUCKET_BYTES) as u64;
        paid(self.arena.layout().bytes(), u64::from(self.slots)) + index_bytes
    }

    /// Finds up to `wanted` rows that may leave: not pinned, not on their way in, and of a table
    /// that `may` lets go. Those that are used never again come first. Then the hand goes round
    /// once as the policy says; if that is not enough, a second time for the least worth keeping of
    /// those that it passed.
    pub(crate) fn sweep(
        &mut self,
        wanted: usize,
        mut may: impl FnMut(TableId) -> bool,
        leaving: &mut Vec<Entry>,
    ) {
        let mut seen = [0_u32; 256];
        let before = leaving.len();
        self.take_done(wanted, &mut may, leaving);
        for round in 0..2 {
            let missing = (wanted - (leaving.len() - before)) as u32;
            let least = (round == 1).then(|| least_of(&seen, missing));
            for _ in 0..self.places() {
                if leaving.len() - before >= wanted {
                    return;
                }
                let place = self.hand;
                self.hand = if place + 1 >= self.places() { 0 } else { place + 1 };
                let place = self.index.scattered(place);
                let Some((at, row)) = self.index.nth(place) else { continue };
                if row.meta.is_loading() || self.is_pinned(row.slot) {
                    continue;
                }
                self.swept += 1;
                let goes = match least {
                    Some(least) => self.policy.worth(row.code) <= least,
                    None => match self.policy.sweep(row.code) {
                        Sweep::Evict => true,
                        Sweep::Keep(code) => {
                            self.index.set_code(at, code);
                            seen[usize::from(self.policy.worth(code))] += 1;
                            false
                        }
                    },
                };
                if goes && may(row.meta.table()) {
                    leaving.push(self.index.entry(at));
                    self.pin(row.slot); // so that it is not taken twice
                }
            }
        }
    }

    /// Finds up to `wanted` rows that may leave among those that the policy has noted as used never
    /// again. No hand moves.
    fn take_done(
        &mut self,
        wanted: usize,
        mut may: impl FnMut(TableId) -> bool,
        leaving: &mut Vec<Entry>,
    ) {
        let before = leaving.len();
        let (mut held, mut passed) = ([None; DONE_PASSED_MAX], 0);
        while leaving.len() - before < wanted && passed < DONE_PASSED_MAX {
            if let Some(ahead) = self.policy.nth_done(DONE_AHEAD) {
                self.index.ask_named(ahead);
            }
            let Some(name) = self.policy.take_done() else { break };
            let Some((at, row)) =
                self.index.named(name).filter(|(_, row)| row.code == Policy::NEVER)
            else {
                continue; // it left, or is used again after all
            };
            if row.meta.is_loading() || self.is_pinned(row.slot) {
                held[passed] = Some(name);
                passed += 1;
            } else if !may(row.meta.table()) {
                // its table may need all of its rows for long: others come first
                self.policy.note_done(name);
                passed += 1;
            } else {
                leaving.push(self.index.entry(at));
                self.pin(row.slot); // so that it is not taken twice
            }
        }
        for name in held.into_iter().flatten().rev() {
            self.policy.put_done_back(name);
        }
    }

    /// Pays for `wanted` more vacant slots than there are, if the budget has the bytes; if it has
    /// not, for as many as it has, which are then not enough.
    pub(crate) fn grow(&mut self, wanted: usize, fair_bytes: u64, budget: &Budget) -> bool {
        let row_bytes = self.arena.layout().bytes();
        let chunk = chunk_slots(row_bytes);
        // an eighth more than there are, so that growing is seldom; only what is wanted, if that is
        // all that can be had
        for ahead in [self.slots / 8, 0] {
            let more = (wanted as u32).max(ahead).div_ceil(chunk) * chunk;
            let Some(slots) = self.slots.checked_add(more) else { continue };
            if slots <= self.place.slots_max && self.grow_to(slots, fair_bytes, budget) {
                return true;
            }
        }
        // at 16 and a half bytes a slot beside the row if the index has to grow, by a step at least
        let step = ((self.index.buckets() / STEP_SHARE + 1) * BUCKET_BYTES) as u64;
        for (left, halves) in [(budget.left(), 1), (budget.left().saturating_sub(step), 33)] {
            let last = (2 * left / (2 * row_bytes as u64 + halves)).min(wanted as u64) as u32;
            let slots = self.slots.saturating_add(last / chunk * chunk).min(self.place.slots_max);
            if slots > self.slots && self.grow_to(slots, fair_bytes, budget) {
                break;
            }
        }
        false
    }

    pub(crate) fn grow_to(&mut self, slots: u32, fair_bytes: u64, budget: &Budget) -> bool {
        let row_bytes = self.arena.layout().bytes();
        let mut buckets = self.index.buckets();
        let needed = buckets_for(slots as usize);
        if buckets < needed {
            // The index is built anew each time: for a quarter more rows than now, but no more than
            // this section can hope for; and never for a few only, for then it would be built again
            // for each few that come while the last of the budget goes.
            let hope = u64::from(self.slots) + fair_bytes / (row_bytes as u64 + 16);
            let ahead = u64::from(slots + slots / 4).min(hope).min(u64::from(self.place.slots_max));
            let least = needed.max(buckets + buckets / STEP_SHARE);
            let most = buckets_for((ahead as usize).max(slots as usize)).max(least);
            let row_bytes = paid(row_bytes, u64::from(slots - self.slots));
            let bytes = |buckets: usize| ((buckets - self.index.buckets()) * BUCKET_BYTES) as u64;
            buckets = if bytes(most) + row_bytes <= budget.left() { most } else { least };
        }
        let index_bytes = ((buckets - self.index.buckets()) * BUCKET_BYTES) as u64;
        let row_slots = paid(row_bytes, u64::from(slots)) - paid(row_bytes, u64::from(self.slots));
        if !budget.take(row_slots + index_bytes) {
            return false;
        }
        let rows = |slots: std::ops::Range<u32>| {
            self.place.base + u64::from(slots.start)..self.place.base + u64::from(slots.end)
        };
        if !self.arena.lock_rows(rows(self.slots..slots)) || !self.index.lock(buckets) {
            budget.give(row_slots + index_bytes);
            return false;
        }
        self.slots = slots;
        if buckets > self.index.buckets() {
            self.index.resize(buckets);
        }
        self.policy.set_capacity(self.slots as usize);
        true
    }

    /// Gives slots back to the budget until `bytes` are given or no more can be: rows behind the
    /// new end move into vacant slots before it. Tells how many bytes came free.
    pub(crate) fn shrink(&mut self, bytes: u64, budget: &Budget) -> u64 {
        let row_bytes = self.arena.layout().bytes();
        let chunk = chunk_slots(row_bytes);
        let wanted = (bytes.div_ceil(row_bytes as u64) as u32).div_ceil(chunk) * chunk;
        let most = (self.vacant() as u32) / chunk * chunk;
        let mut end = self.slots - wanted.min(most).min(self.slots);
        let behind = |index: &Index, end: u32| -> Vec<(At, Mark)> {
            let rows = (0..index.places()).filter_map(|place| index.nth(place));
            rows.filter(|(_, row)| row.slot >= end).collect()
        };
        // what can't move stays, and with it all before it
        let mut moving = behind(&self.index, end);
        let stuck = |row: &Mark| row.meta.is_loading() || self.is_pinned(row.slot);
        if let Some(last) = moving.iter().filter(|(_, row)| stuck(row)).map(|row| row.1.slot).max()
        {
            end = ((last + 1).div_ceil(chunk) * chunk).min(self.slots);
            moving.retain(|(_, row)| row.slot >= end);
        }
        // taken from the back: slots that were used before, then the lowest that never were
        let mut vacant: Vec<u32> = (self.touched.min(end)..end).rev().collect();
        vacant.extend(self.free.iter().copied().filter(|&slot| slot < end));
        for (at, row) in moving {
            let to = vacant.pop().expect("there are vacant slots for all that move");
            self.touched = self.touched.max(to + 1);
            self.index.set_slot(at, to);
            let number = |slot: u32| Row::new(self.place.base + u64::from(slot));
            self.arena.relocate(number(row.slot), number(to));
        }
        let freed = paid(row_bytes, u64::from(self.slots)) - paid(row_bytes, u64::from(end));
        self.touched = self.touched.min(end);
        vacant.retain(|&slot| slot < self.touched);
        self.free = vacant;
        let base = self.place.base;
        let given = base + u64::from(end)..base + u64::from(self.slots);
        self.arena.give_back_rows(given, base + u64::from(self.place.slots_max));
        self.slots = end;
        budget.give(freed);
        let mut all = freed;
        if self.rows == 0 && self.slots == 0 {
            let index_bytes = (self.index.buckets() * BUCKET_BYTES) as u64;
            self.index.resize(0);
            self.hand = 0;
            budget.give(index_bytes);
            all += index_bytes;
        }
        self.policy.set_capacity(self.slots as usize);
        all
    }

    /// Gives buckets back to the budget if there are an eighth more than the slots need. Tells how
    /// many bytes came free.
    pub(crate) fn shrink_index(&mut self, budget: &Budget) -> u64 {
        let (have, needed) = (self.index.buckets(), buckets_for(self.slots as usize));
        if have <= needed + needed / 8 {
            return 0;
        }
        self.index.resize(needed);
        self.hand %= self.places();
        let freed = ((have - needed) * BUCKET_BYTES) as u64;
        budget.give(freed);
        freed
    }
}

/// The loop over probes that looks where rows are at home. No bit is set for a row that is found,
/// which would be one more access to memory for each key: bits are made from the lists when rows
/// are to leave.
///
/// Homes are asked for in groups. A prefetch whose address has to be translated first holds up
/// what comes after it, so that only those that follow each other closely are translated side by
/// side; with all that is done for a key between two of them, none are.
struct ProbeHomes<'a, 'u, 'p, F: Finder> {
    homes: Homes<'a>,
    uses: &'a mut Uses<'u>,
    probes: &'p [Probe],
    unsure: &'a mut Vec<&'p Probe>,
    finder: &'a mut F,
}

impl<F: Finder> Kernel for ProbeHomes<'_, '_, '_, F> {
    #[inline(always)]
    fn run(self, lanes: impl Lanes) {
        let Self { mut homes, uses, probes, unsure, finder } = self;
        let mut ahead = probes.chunks(ASKED_TOGETHER);
        ahead.by_ref().take(GROUPS_AHEAD).flatten().for_each(|probe| homes.ask(probe));
        for group in probes.chunks(ASKED_TOGETHER) {
            ahead.next().into_iter().flatten().for_each(|probe| homes.ask(probe));
            for probe in group {
                match homes.look(probe, lanes) {
                    Home::Here(row) => finder.found(probe, Some(uses.hit(probe, row))),
                    Home::Unsure => unsure.push(probe),
                    Home::Absent => finder.found(probe, None),
                }
            }
        }
    }
}

/// What becomes of rows that are used.
struct Uses<'a> {
    policy: &'a mut Policy,
    base: u64, // the number of the section's first row
    next_uses: Option<&'a [u32]>,
    now: u64,
}

impl Uses<'_> {
    /// Tells the policy that a probe found a row.
    #[inline(always)]
    fn hit(&mut self, probe: &Probe, mut row: Found<'_>) -> Hit {
        let next_use = self.next_uses.map(|uses| uses[probe.position as usize]);
        let (code, slot) = (row.code(), row.slot());
        let new = self.policy.used(probe.hash, code, next_use, self.now);
        // a line that is not written need not go back to memory
        if new != code {
            row.set_code(new);
        }
        if next_use == Some(u32::MAX) {
            self.policy.note_done(row.name());
        }
        let number = Row::new(self.base + u64::from(slot));
        Hit { slot, row: number, loading: row.is_loading() }
    }
}

/// The least worth so that `missing` rows have it or less.
fn least_of(seen: &[u32; 256], missing: u32) -> u8 {
    let mut sum = 0;
    let enough = (0..=u8::MAX).find(|&worth| {
        sum += seen[usize::from(worth)];
        sum >= missing
    });
    enough.unwrap_or(u8::MAX)
}
