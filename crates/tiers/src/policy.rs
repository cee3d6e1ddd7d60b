//! Which rows to keep: one byte for each row, read and written by whoever holds the rows, and a few
//! numbers for a section. It holds no rows, finds none and does no I/O.
//!
//! **The byte** has two parts. *Life* says how long a row is worth keeping, in turns of the hand
//! that sweeps the slots: a row comes in with none and leaves on the hand's next turn unless it is
//! used by then. Its first use gives it some, each further use more, and each turn takes a little.
//! How much a turn takes is regulated so that one swept row in sixteen leaves. A turn is then as
//! long as it takes to replace a sixteenth of the rows; so long are rows on probation, and all else
//! is kept for those that proved themselves. *Level* is the logarithm of all uses that are known
//! of.
//!
//! **Ghosts** are digests of rows that left not long ago, a quarter of a byte for each row cached
//! (more while there are few). A row that comes back while its ghost is there was taken too early:
//! it gets much life.
//!
//! **History** is a byte that is stored with a row on SSD and comes back with it: its level, so
//! that what is used often over a long time is known again however long it was away.
//!
//! **Next uses**, where they are known, take the byte over: it is then the step of the next use, on
//! a clock of wide ticks, and the hand takes the rows whose next use is farthest. Where no row has
//! a next use told for a whole turn of the hand, the policy goes back to lives.
//!
//! Figures of the policy beside others: `cargo xtask bench hit-rate`.

/// What the hand does with a row that it passes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sweep {
    /// The row may leave.
    Evict,
    /// The row stays, with this byte from now on.
    Keep(u8),
}

/// The policy of one section of rows.
#[derive(Debug)]
pub struct Policy {
    aging: Aging,
    ghosts: Ghosts,
    horizon: Horizon,
    dice: u64,
}

impl Policy {
    /// For a section of so many rows.
    pub fn new(capacity_rows: usize) -> Self {
        let mut policy = Self {
            aging: Aging::new(),
            ghosts: Ghosts::new(),
            horizon: Horizon::new(),
            dice: 0x9e37_79b9_7f4a_7c15,
        };
        policy.set_capacity(capacity_rows);
        policy
    }

    /// The section has so many rows from now on.
    pub fn set_capacity(&mut self, capacity_rows: usize) {
        self.aging.set_capacity(capacity_rows);
        self.ghosts.set_capacity(capacity_rows);
        self.horizon.set_capacity(capacity_rows);
    }

    /// Bytes of memory beyond the struct itself, at this capacity.
    pub fn bytes(&self) -> usize {
        self.ghosts.buckets.len() * size_of::<u128>()
    }

    /// The byte of a row that was never seen before. No ghost of it needs to be looked for.
    pub fn first_touch(&mut self) -> u8 {
        FRESH
    }

    /// The byte of a row that comes in. With `history` it was read from SSD; without, only the
    /// ghosts can tell of its past.
    pub fn insert(&mut self, key_hash: u64, history: Option<u8>) -> u8 {
        let code = if self.ghosts.take(key_hash) { RETURNED } else { FRESH };
        match history {
            Some(history) => self.recall(code, history),
            None => code,
        }
    }

    /// The byte of a row whose history became known only after it came in.
    pub fn recall(&mut self, code: u8, history: u8) -> u8 {
        if self.horizon.is_told() {
            return code;
        }
        let level = self.raised(history & LEVEL_MAX);
        let life = life(code).max(LIFE_OF_LEVEL[usize::from(level)]);
        level << LEVEL_SHIFT | life
    }

    /// The byte of a row after a use.
    #[inline]
    pub fn hit(&mut self, _key_hash: u64, code: u8) -> u8 {
        let level = self.raised(code >> LEVEL_SHIFT);
        let life = if life(code) == 0 { LIFE_USED } else { life(code) + LIFE_PER_USE };
        level << LEVEL_SHIFT | life.max(LIFE_OF_LEVEL[usize::from(level)]).min(LIFE_MAX)
    }

    /// One more use: a level counts about two to its power of them.
    #[inline]
    fn raised(&mut self, level: u8) -> u8 {
        self.dice =
            self.dice.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
        let up = self.dice >> (64 - u32::from(level)).min(63) == 0 || level == 0;
        (level + u8::from(up)).min(LEVEL_MAX)
    }

    /// The hand passes a row that nobody holds.
    #[inline]
    pub fn sweep(&mut self, code: u8) -> Sweep {
        if self.horizon.is_told() { self.horizon.sweep(code) } else { self.aging.sweep(code) }
    }

    /// What a row's byte is worth beside others': for a hand that must have rows and finds too few.
    pub fn worth(&self, code: u8) -> u8 {
        if self.horizon.is_told() { self.horizon.nearness(code) } else { life(code) }
    }

    /// What to store with a row that is written down.
    pub fn history(&self, code: u8) -> u8 {
        if self.horizon.is_told() { 0 } else { code >> LEVEL_SHIFT }
    }

    /// A row left. To be called once for each, with the byte that it had.
    pub fn left(&mut self, key_hash: u64, _code: u8) {
        if !self.horizon.is_told() {
            self.ghosts.put(key_hash);
        }
    }

    /// The byte of a row that is used at step `now`, and `steps` later again; `u32::MAX` is never.
    #[inline]
    pub fn foreseen(&mut self, now: u64, steps: u32) -> u8 {
        self.horizon.code(now, steps)
    }
}

/// The upper bits of a byte are a row's level, the lower ones its life.
const LEVEL_SHIFT: u32 = 5;
const LEVEL_MAX: u8 = 7;
const LIFE_MAX: u8 = (1 << LEVEL_SHIFT) - 1;
/// The byte of a row on probation.
const FRESH: u8 = 0;
/// The life after the first use.
const LIFE_USED: u8 = 5;
/// What each further use adds.
const LIFE_PER_USE: u8 = 16;
/// The byte of a row whose ghost was there.
const RETURNED: u8 = 27;
/// The least life of a row that was used so often.
const LIFE_OF_LEVEL: [u8; LEVEL_MAX as usize + 1] = [0, 1, 2, 4, 8, 16, 31, 31];
/// One in so many swept rows is to leave.
const SWEPT_PER_LEAVING: u64 = 16;

#[inline]
fn life(code: u8) -> u8 {
    code & LIFE_MAX
}

/// Takes from each row what a turn of the hand costs, and regulates that.
#[derive(Debug)]
struct Aging {
    window: u64,   // swept rows after which the rate is looked at
    rate: u32,     // taken from each swept row, in 1/256
    fraction: u32, // what was not yet taken, in 1/256
    swept: u64,
    leaving: u64,
}

impl Aging {
    const RATE_MIN: u32 = 1;
    const RATE_MAX: u32 = 16 << 8;

    fn new() -> Self {
        Self { window: 1, rate: 128, fraction: 0, swept: 0, leaving: 0 }
    }

    fn set_capacity(&mut self, capacity_rows: usize) {
        self.window = (capacity_rows as u64 / 8).max(2 * SWEPT_PER_LEAVING);
    }

    #[inline]
    fn sweep(&mut self, code: u8) -> Sweep {
        self.fraction += self.rate;
        let cost = self.fraction >> 8;
        self.fraction &= 0xff;
        self.swept += 1;
        let leaves = life(code) == 0 || u32::from(life(code)) <= cost;
        self.leaving += u64::from(leaves);
        if self.swept >= self.window {
            self.regulate();
        }
        if leaves { Sweep::Evict } else { Sweep::Keep(code - cost as u8) }
    }

    fn regulate(&mut self) {
        let (leaving, wanted) = (self.leaving * SWEPT_PER_LEAVING, self.swept);
        // an eighth where it is off by half or more, a thirty-second near the goal
        let step = if leaving > 2 * wanted || 2 * leaving < wanted { 8 } else { 32 };
        let change = (self.rate / step).max(1);
        let rate =
            if leaving > wanted { self.rate.saturating_sub(change) } else { self.rate + change };
        self.rate = rate.clamp(Self::RATE_MIN, Self::RATE_MAX);
        (self.swept, self.leaving) = (0, 0);
    }
}

/// Next uses on a clock of 126 ticks that goes round; a tick is a power of two of steps. One bit of
/// the byte says by which of two widths of a tick it was written: the width follows the rows that
/// leave, and a turn of the hand brings every byte to the new one.
#[derive(Debug)]
struct Horizon {
    now: u64,      // the latest step that was told
    shift: u32,    // a tick is two to its power of steps
    before: u32,   // the shift of bytes whose bit differs
    flag: u8,      // the bit of bytes of today
    flagged: u64,  // the step at which it changed
    threshold: u8, // ticks; what is used so far away or farther leaves
    turn: u64,     // rows
    window: u64,   // swept rows after which the threshold is looked at
    swept: u64,
    seen: [u32; 128], // swept rows by their ticks, of the last turn or so
    turn_swept: u64,  // since the width may change again
    silent: u64,      // rows swept since a next use was told
}

impl Horizon {
    const TICKS: u64 = 126;
    /// Used again, after more ticks than there are.
    const BEYOND: u8 = 126;
    const NEVER: u8 = 127;
    const FLAG: u8 = 0x80;
    /// Half a million steps: far too wide at first loses less than too narrow.
    const SHIFT_FIRST: u32 = 12;
    const SHIFT_MAX: u32 = 24;
    /// One in so many swept rows is to leave.
    const SWEPT_PER_LEAVING: u64 = 128;
    /// For so many steps a row may be held, which hides it from the hand.
    const HELD_STEPS_MAX: u64 = 128;

    fn new() -> Self {
        Self {
            now: 0,
            shift: Self::SHIFT_FIRST,
            before: Self::SHIFT_FIRST,
            flag: 0,
            flagged: 0,
            threshold: Self::NEVER,
            turn: 1,
            window: 1,
            swept: 0,
            seen: [0; 128],
            turn_swept: 0,
            silent: u64::MAX,
        }
    }

    fn set_capacity(&mut self, capacity_rows: usize) {
        self.turn = (capacity_rows as u64).max(1);
        self.window = (self.turn / 8).max(2 * Self::SWEPT_PER_LEAVING);
    }

    #[inline]
    fn is_told(&self) -> bool {
        self.silent <= self.turn
    }

    #[inline]
    fn code(&mut self, now: u64, steps: u32) -> u8 {
        self.now = now;
        self.silent = 0;
        let next = (now + u64::from(steps)) >> self.shift;
        let at = if steps == u32::MAX {
            Self::NEVER
        } else if next - (now >> self.shift) >= Self::TICKS {
            Self::BEYOND
        } else {
            (next % Self::TICKS) as u8
        };
        at | self.flag
    }

    /// Ticks of the present width until a row's next use.
    #[inline]
    fn ticks(&self, code: u8) -> u8 {
        let at = code & !Self::FLAG;
        if at >= Self::BEYOND {
            return at;
        }
        let shift = if code & Self::FLAG == self.flag { self.shift } else { self.before };
        let ticks = (Self::TICKS + u64::from(at) - (self.now >> shift) % Self::TICKS) % Self::TICKS;
        let ticks = if shift < self.shift {
            ticks >> (self.shift - shift)
        } else {
            ticks << (shift - self.shift)
        };
        ticks.min(u64::from(Self::BEYOND)) as u8
    }

    #[inline]
    fn nearness(&self, code: u8) -> u8 {
        Self::NEVER - self.ticks(code)
    }

    #[inline]
    fn sweep(&mut self, code: u8) -> Sweep {
        let ticks = self.ticks(code);
        let leaves = ticks >= self.threshold;
        self.silent += 1;
        self.swept += 1;
        self.seen[usize::from(ticks)] += 1;
        let kept = if code & Self::FLAG == self.flag {
            code
        } else if ticks >= Self::BEYOND {
            ticks | self.flag
        } else {
            (((self.now >> self.shift) + u64::from(ticks)) % Self::TICKS) as u8 | self.flag
        };
        if self.swept >= self.window {
            self.regulate();
        }
        if leaves { Sweep::Evict } else { Sweep::Keep(kept) }
    }

    fn regulate(&mut self) {
        let all: u64 = self.seen.iter().map(|&rows| u64::from(rows)).sum();
        let mut leaving = 0;
        self.threshold = (0..=Self::NEVER)
            .rev()
            .find(|&ticks| {
                leaving += u64::from(self.seen[usize::from(ticks)]);
                leaving * Self::SWEPT_PER_LEAVING >= all
            })
            .unwrap_or(0);
        let beyond = u64::from(self.seen[usize::from(Self::BEYOND)]);
        self.seen.iter_mut().for_each(|rows| *rows -= rows.div_ceil(8));
        self.turn_swept += self.swept;
        if self.now < self.flagged + Self::HELD_STEPS_MAX {
            self.turn_swept = 0;
        }
        // each byte must have been brought to one width before there is another
        if self.turn_swept > self.turn {
            if self.threshold >= Self::BEYOND && 64 * beyond > all && self.shift < Self::SHIFT_MAX {
                self.widen(self.shift + 1);
            } else if self.threshold < 40 {
                // to 40 to 80 ticks, at once
                let finer = (80 / u32::from(self.threshold.max(1))).ilog2();
                if self.shift > 0 {
                    self.widen(self.shift - finer.min(self.shift));
                }
            }
        }
        self.swept = 0;
    }

    /// Changes the width of a tick.
    fn widen(&mut self, shift: u32) {
        let (wider, finer) = (shift.saturating_sub(self.shift), self.shift.saturating_sub(shift));
        let ticks_now = |ticks: u8| match ticks {
            Self::BEYOND | Self::NEVER => ticks,
            ticks => ((u32::from(ticks) << finer) >> wider).min(u32::from(Self::BEYOND)) as u8,
        };
        let old = core::mem::replace(&mut self.seen, [0; 128]);
        for (ticks, rows) in (0..).zip(old) {
            self.seen[usize::from(ticks_now(ticks))] += rows;
        }
        self.threshold = ticks_now(self.threshold);
        (self.before, self.shift) = (self.shift, shift);
        self.flag ^= Self::FLAG;
        self.flagged = self.now;
        self.turn_swept = 0;
    }
}

/// Digests of rows that left, in buckets of eight of 16 bits, the newest lowest. A digest that is
/// not of the row that is looked for is found once in eight thousand.
#[derive(Debug)]
struct Ghosts {
    buckets: Vec<u128>,
}

impl Ghosts {
    const WAYS: usize = 8;
    /// Three ghosts for four rows, until so many.
    const SMALL_GHOSTS: usize = 8192;
    /// A larger section has one ghost for so many rows: a quarter of a byte for each.
    const ROWS_PER_GHOST: usize = 8;

    fn new() -> Self {
        Self { buckets: Vec::new() }
    }

    /// Starts anew if the size is no longer right; a section that grows has evicted nothing yet.
    fn set_capacity(&mut self, capacity_rows: usize) {
        if capacity_rows == 0 {
            self.buckets = Vec::new();
            return;
        }
        let small = (capacity_rows * 3 / 4).min(Self::SMALL_GHOSTS);
        let ghosts = (capacity_rows / Self::ROWS_PER_GHOST).max(small);
        let (buckets, have) = (ghosts.div_ceil(Self::WAYS), self.buckets.len());
        if buckets > have + have / 8 || buckets < have / 2 {
            self.buckets = vec![0; buckets];
        }
    }

    fn put(&mut self, key_hash: u64) {
        let (place, digest) = self.place(key_hash);
        if let Some(bucket) = self.buckets.get_mut(place) {
            *bucket = *bucket << 16 | digest;
        }
    }

    /// Whether the row's ghost is there; it is no longer.
    fn take(&mut self, key_hash: u64) -> bool {
        let (place, digest) = self.place(key_hash);
        let Some(bucket) = self.buckets.get_mut(place) else { return false };
        let Some(way) = (0..Self::WAYS).find(|way| *bucket >> (16 * way) & 0xffff == digest) else {
            return false;
        };
        let newer = (1 << (16 * way)) - 1;
        *bucket = *bucket & newer | (*bucket >> 16) & !newer;
        true
    }

    /// Which bucket, and a digest that is not 0. A section's rows may agree in the hash's high
    /// bits.
    fn place(&self, key_hash: u64) -> (usize, u128) {
        let mixed = (key_hash ^ key_hash >> 31).wrapping_mul(0xd6e8_feb8_6659_fd93);
        let place = (u128::from(mixed) * self.buckets.len() as u128) >> 64;
        (place as usize, u128::from((mixed >> 8) % 65_535 + 1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rows in slots under a hand that takes one row at a time.
    struct Slots {
        policy: Policy,
        rows: Vec<(u64, u8)>, // key and byte
        hand: usize,
    }

    impl Slots {
        fn full(capacity: usize, step: u64, steps: impl Fn(u64) -> Option<u32>) -> Self {
            let mut policy = Policy::new(capacity);
            let rows = (0..capacity as u64)
                .map(|key| match steps(key) {
                    Some(steps) => (key, policy.foreseen(step, steps)),
                    None => (key, policy.first_touch()),
                })
                .collect();
            Self { policy, rows, hand: 0 }
        }

        /// Takes the slot of the row that leaves; `None` if a turn finds none.
        fn evict(&mut self) -> Option<u64> {
            for _ in 0..2 * self.rows.len() {
                let slot = self.hand;
                self.hand = (slot + 1) % self.rows.len();
                let (key, code) = self.rows[slot];
                match self.policy.sweep(code) {
                    Sweep::Keep(code) => self.rows[slot].1 = code,
                    Sweep::Evict => {
                        self.policy.left(table::mix(key), code);
                        self.rows[slot] = (u64::MAX, self.policy.first_touch());
                        return Some(key);
                    }
                }
            }
            None
        }
    }

    #[test]
    fn the_unused_leave_first_and_in_the_order_of_the_slots() {
        let mut slots = Slots::full(100, 0, |_| None);
        for key in 0..50 {
            let code = slots.rows[key].1;
            slots.rows[key].1 = slots.policy.hit(table::mix(key as u64), code);
        }
        let left: Vec<u64> = (0..50).filter_map(|_| slots.evict()).collect();
        assert_eq!(left, (50..100).collect::<Vec<_>>());
    }

    #[test]
    fn a_row_that_comes_back_soon_is_kept_longer_than_a_new_one() {
        let mut slots = Slots::full(1000, 0, |_| None);
        let key = slots.evict().unwrap();
        let returned = slots.policy.insert(table::mix(key), None);
        assert_eq!(returned, RETURNED);
        assert_eq!(slots.policy.insert(table::mix(key), None), FRESH, "its ghost is gone");
        assert_eq!(slots.policy.insert(table::mix(77_777), None), FRESH);
    }

    #[test]
    fn a_level_outlives_the_row() {
        let mut policy = Policy::new(1000);
        let mut code = policy.first_touch();
        for _ in 0..1000 {
            code = policy.hit(1, code);
        }
        let history = policy.history(code);
        assert_eq!(history, LEVEL_MAX);
        let often = policy.insert(1, Some(history));
        let once = policy.insert(2, Some(policy.history(FRESH)));
        assert!(policy.worth(often) > policy.worth(once), "{often} against {once}");
    }

    #[test]
    fn a_level_counts_twice_as_many_uses_each_time() {
        let mut policy = Policy::new(1);
        let mut uses = [0_u32; LEVEL_MAX as usize];
        for _ in 0..2000 {
            let mut level = 0;
            while level < LEVEL_MAX {
                uses[usize::from(level)] += 1;
                level = policy.raised(level);
            }
        }
        for (level, &uses) in uses.iter().enumerate() {
            let (mean, expected) = (f64::from(uses) / 2000.0, f64::from(1 << level));
            assert!((mean / expected - 1.0).abs() < 0.15, "level {level}: {mean} uses");
        }
    }

    #[test]
    fn ghosts_are_found_among_as_many_others_as_they_are_for_and_hardly_else() {
        let mut ghosts = Ghosts::new();
        ghosts.set_capacity(8000); // 6000 ghosts
        let key = |i: u64| table::mix(i) >> 6; // the high bits agree, as in a section
        (0..10_000).for_each(|i| ghosts.put(key(i)));
        let of_others = (20_000..40_000).filter(|&i| ghosts.take(key(i))).count();
        assert!(of_others < 20, "{of_others} of 20 thousand that never were there");
        let young = (8000..10_000).filter(|&i| ghosts.take(key(i))).count();
        let old = (0..2000).filter(|&i| ghosts.take(key(i))).count();
        assert!(young > 1900 && old < 700, "{young} young, {old} old of 2000 each");
    }

    #[test]
    fn ghosts_take_a_quarter_of_a_byte_for_each_row_of_many() {
        assert!(Policy::new(1 << 20).bytes() <= 1 << 18);
        assert!(Policy::new(10_000).bytes() <= 2 * 8192);
        assert_eq!(Policy::new(0).bytes(), 0);
        assert!(size_of::<Policy>() < 1024);
    }

    #[test]
    fn aging_settles_where_one_in_sixteen_leaves() {
        let mut slots = Slots::full(4096, 0, |_| None);
        let mut left = 0;
        let mut swept = 0_u64;
        let mut place = slots.hand;
        for i in 0..200_000_u64 {
            slots.evict().unwrap();
            let slot = (slots.hand + 4095) % 4096;
            // a quarter of those that come are used again at once
            if table::mix(i).is_multiple_of(4) {
                slots.rows[slot].1 = slots.policy.hit(i, FRESH);
            }
            if i > 100_000 {
                left += 1;
                swept += ((slots.hand + 4096 - place) % 4096) as u64;
            }
            place = slots.hand;
        }
        let per_leaving = swept as f64 / f64::from(left);
        assert!((10.0..24.0).contains(&per_leaving), "{per_leaving}");
    }

    #[test]
    fn what_is_never_used_again_leaves_first_then_the_farthest() {
        // of 1000 rows the first hundred are never used again, the rest in 1 to 900 steps
        let steps =
            |key: u64| if key < 100 { u32::MAX } else { (table::mix(key) % 900) as u32 + 1 };
        let mut slots = Slots::full(1000, 50, |key| Some(steps(key)));
        for _ in 0..100 {
            assert!(slots.evict().unwrap() < 100);
        }
        let code = |policy: &mut Policy, steps| policy.foreseen(50, steps);
        let worths: Vec<u8> = [u32::MAX, 900_000, 500_000, 100_000, 1]
            .map(|steps| code(&mut slots.policy, steps))
            .map(|code| slots.policy.worth(code))
            .to_vec();
        assert!(worths.is_sorted() && worths[0] < worths[4], "{worths:?}");
    }

    #[test]
    fn bytes_of_two_widths_mean_the_same_time() {
        let mut horizon = Horizon::new();
        horizon.set_capacity(1000);
        for shift in [0, 3, 9] {
            horizon.shift = 6;
            horizon.flag = 0;
            let code = horizon.code(10_000, 640); // ten ticks of 64
            assert_eq!(horizon.ticks(code), 10);
            horizon.widen(shift);
            let ticks = u64::from(horizon.ticks(code));
            let expected = (640 >> shift).min(126);
            assert!(ticks.abs_diff(expected) <= 1, "{ticks} ticks at {shift}");
            let Sweep::Keep(kept) = horizon.sweep(code) else { panic!("nothing is to leave yet") };
            assert_eq!(u64::from(horizon.ticks(kept)), ticks, "the byte was brought over");
        }
    }

    #[test]
    fn without_next_uses_for_a_turn_lives_count_again() {
        let mut slots = Slots::full(100, 5, |_| Some(3));
        assert!(slots.policy.horizon.is_told());
        for _ in 0..101 {
            let _ = slots.policy.sweep(7);
        }
        assert!(!slots.policy.horizon.is_told());
        assert_eq!(slots.policy.sweep(FRESH), Sweep::Evict);
    }
}
