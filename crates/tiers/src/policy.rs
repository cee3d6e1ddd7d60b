//! Which rows to keep: one byte for each row, read and written by whoever holds the rows, and a few
//! numbers for a section. It holds no rows, finds none and does no I/O.
//!
//! **The byte** has two parts. *Life* says how long a row is worth keeping, in turns of the hand
//! that sweeps the slots: a row comes in with none and leaves on the hand's next turn unless it is
//! used by then. Its first use gives it some, each further use more, and each turn takes a little.
//! How much a turn takes is regulated so that one swept row in sixteen leaves. A turn is then as
//! long as it takes to replace a sixteenth of the rows; so long are rows on probation, and all else
//! is kept for those that proved themselves. *Level* is the logarithm of all uses that are known
//! of. How much a turn takes from rows of each level is learned: less where those that leave come
//! back sooner than others do.
//!
//! **Ghosts** are digests of rows that left not long ago, a quarter of a byte for each row cached
//! (more while there are few). A row that comes back while its ghost is there was taken too early:
//! it gets much life.
//!
//! **History** is a byte that is stored with a row on SSD and comes back with it: its level, so
//! that what is used often over a long time is known again however long it was away.
//!
//! **Next uses**, where they are known, take the byte over: it is then the step of the next use, to
//! a 14th of its distance, and the hand takes the rows whose next use is farthest. Where no row has
//! a next use told for a whole turn of the hand, the policy goes back to lives.
//!
//! **The done** are rows that were told to be used never again. Their names are noted in the
//! memory of the ghosts, which nobody looks for meanwhile, and they leave before the hand moves.
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
    regrets: Regrets,
    ghosts: Ghosts,
    done: Done,
    horizon: Horizon,
    dice: u64,
    returned: u64, // rows that came back while their ghosts were there
}

/// What the policy knows of the uses that a few rows more would turn into hits.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Foregone {
    /// Rows that came back while their ghosts were there, so far, and ghosts that are there now.
    Returns {
        /// Since the section began.
        rows: u64,
        /// Of rows that are not here.
        ghosts: u64,
    },
    /// Where next uses are told: in how many steps the rows that leave are used again, if ever.
    Told(Option<u64>),
}

impl Policy {
    /// The byte of a row that is used never again, as the last stage of it told. It says nothing
    /// while lives count.
    pub const NEVER: u8 = Horizon::CODE_NEVER;

    /// For a section of so many rows.
    pub fn new(capacity_rows: usize) -> Self {
        let mut policy = Self {
            aging: Aging::new(),
            regrets: Regrets::new(),
            ghosts: Ghosts::new(),
            done: Done::default(),
            horizon: Horizon::new(),
            dice: 0x9e37_79b9_7f4a_7c15,
            returned: 0,
        };
        policy.set_capacity(capacity_rows);
        policy
    }

    /// The section has so many rows from now on.
    pub fn set_capacity(&mut self, capacity_rows: usize) {
        self.aging.set_capacity(capacity_rows);
        self.regrets.set_capacity(capacity_rows);
        if self.ghosts.set_capacity(capacity_rows) {
            self.done = Done::default();
        }
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
        let left = self.ghosts().and_then(|ghosts| ghosts.take(key_hash));
        if let Some(level) = left {
            self.regrets.came_back(level);
        }
        self.returned += u64::from(left.is_some());
        let code = if left.is_some() { RETURNED } else { FRESH };
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

    /// The byte of a row that is used at step `now`, and, where that is told, in so many steps
    /// again.
    #[inline(always)] // into the loop over probes, which waits for memory, not for calls
    pub(crate) fn used(&mut self, key_hash: u64, code: u8, next_use: Option<u32>, now: u64) -> u8 {
        match next_use {
            Some(next_use) => self.foreseen(now, next_use),
            None => self.hit(key_hash, code),
        }
    }

    /// The byte of a row after a use.
    #[inline]
    pub fn hit(&mut self, _key_hash: u64, code: u8) -> u8 {
        USED[usize::from(self.rises(code >> LEVEL_SHIFT))][usize::from(code)]
    }

    /// One more use: a level counts about two to its power of them.
    fn raised(&mut self, level: u8) -> u8 {
        (level + u8::from(self.rises(level))).min(LEVEL_MAX)
    }

    /// Whether a level rises with this use: one in two to its power does.
    #[inline(always)]
    fn rises(&mut self, level: u8) -> bool {
        self.dice =
            self.dice.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
        self.dice <= u64::MAX >> level
    }

    /// The hand passes a row that nobody holds.
    #[inline]
    pub fn sweep(&mut self, code: u8) -> Sweep {
        if self.horizon.is_told() {
            return self.horizon.sweep(code);
        }
        self.aging.sweep(code, self.regrets.cost(code >> LEVEL_SHIFT))
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
    pub fn left(&mut self, key_hash: u64, code: u8) {
        if let Some(ghosts) = self.ghosts() {
            let level = code >> LEVEL_SHIFT;
            ghosts.put(key_hash, level);
            self.regrets.left(level);
        }
    }

    /// What is missed for want of room.
    pub fn foregone(&self, now: u64) -> Foregone {
        if self.horizon.is_told() {
            Foregone::Told(self.horizon.steps_of_leaving(now))
        } else {
            Foregone::Returns { rows: self.returned, ghosts: self.ghosts.held }
        }
    }

    /// The ghosts, while lives count.
    fn ghosts(&mut self) -> Option<&mut Ghosts> {
        if self.horizon.is_told() {
            return None;
        }
        if self.done.has_memory {
            self.ghosts.clear();
            self.done = Done::default();
        }
        Some(&mut self.ghosts)
    }

    /// Notes that the row of a name has the byte [`Self::NEVER`] from now on.
    pub fn note_done(&mut self, name: u32) {
        self.done.put(bytemuck::cast_slice_mut(&mut self.ghosts.buckets), name);
    }

    /// The name that was noted the longest ago of those that are left, and it is no longer; none
    /// while lives count. What became of the row is for the caller to see: it may have left, or may
    /// be used again after all.
    pub fn take_done(&mut self) -> Option<u32> {
        if !self.horizon.is_told() {
            return None;
        }
        self.done.take(bytemuck::cast_slice(&self.ghosts.buckets))
    }

    /// The name that is taken after so many others.
    pub fn nth_done(&self, n: usize) -> Option<u32> {
        self.done.nth(bytemuck::cast_slice(&self.ghosts.buckets), n)
    }

    /// Notes a name again that was taken last.
    pub fn put_done_back(&mut self, name: u32) {
        self.done.put_back(bytemuck::cast_slice_mut(&mut self.ghosts.buckets), name);
    }

    /// The byte of a row that is used at step `now`, and `steps` later again; `u32::MAX` is never.
    #[inline]
    pub fn foreseen(&mut self, now: u64, steps: u32) -> u8 {
        self.horizon.code(now, steps)
    }
}

/// The upper bits of a byte are a row's level, the lower ones its life.
const LEVEL_SHIFT: u32 = 5;
const LEVEL_BITS: u32 = u8::BITS - LEVEL_SHIFT;
const LEVEL_MAX: u8 = (1 << LEVEL_BITS) - 1;
const LEVELS: usize = LEVEL_MAX as usize + 1;
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
const LIFE_OF_LEVEL: [u8; LEVELS] = [0, 1, 2, 4, 8, 16, 31, 31];
/// One in so many swept rows is to leave.
const SWEPT_PER_LEAVING: u64 = 16;

/// What a use makes of a row's byte, whose level stays or rises.
static USED: [[u8; 256]; 2] = {
    let mut used = [[0; 256]; 2];
    let mut code = 0;
    while code < 256 {
        used[0][code] = after_use(code as u8, false);
        used[1][code] = after_use(code as u8, true);
        code += 1;
    }
    used
};

const fn after_use(code: u8, rises: bool) -> u8 {
    let mut level = code >> LEVEL_SHIFT;
    if rises && level < LEVEL_MAX {
        level += 1;
    }
    let mut life = if life(code) == 0 { LIFE_USED } else { life(code) + LIFE_PER_USE };
    if life < LIFE_OF_LEVEL[level as usize] {
        life = LIFE_OF_LEVEL[level as usize];
    }
    level << LEVEL_SHIFT | if life < LIFE_MAX { life } else { LIFE_MAX }
}

const fn life(code: u8) -> u8 {
    code & LIFE_MAX
}

/// Takes from each row what a turn of the hand costs, and regulates that.
#[derive(Debug)]
struct Aging {
    window: u64,              // swept rows after which the rate is looked at
    rate: u32,                // taken from each swept row, in 1/256, but for what its level costs
    fractions: [u32; LEVELS], // what was not yet taken from rows of each, in 1/256
    swept: u64,
    leaving: u64,
}

impl Aging {
    const RATE_MIN: u32 = 1;
    const RATE_MAX: u32 = 16 << 8;

    fn new() -> Self {
        Self { window: 1, rate: 128, fractions: [0; LEVELS], swept: 0, leaving: 0 }
    }

    fn set_capacity(&mut self, capacity_rows: usize) {
        self.window = (capacity_rows as u64 / 8).max(2 * SWEPT_PER_LEAVING);
    }

    /// `level_cost`: what the row's level costs beside others, in 1/256.
    #[inline]
    fn sweep(&mut self, code: u8, level_cost: u32) -> Sweep {
        let fraction = &mut self.fractions[usize::from(code >> LEVEL_SHIFT)];
        *fraction += ((self.rate * level_cost) >> 8).max(1);
        let cost = *fraction >> 8;
        *fraction &= 0xff;
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

/// Learns from the ghosts what a turn of the hand is to cost rows of each level. Where all are kept
/// as long as they should be, a slot more would be worth the same whichever level had it: of the
/// rows that leave, the same share comes back while its ghost is there. A level of which more come
/// back gets cheaper, one of which fewer do gets dearer. So it is found out whether what is known
/// of a row's past still says anything.
#[derive(Debug)]
struct Regrets {
    window: u32, // rows that leave until costs are looked at
    leaving: u32,
    left: [f64; LEVELS],  // rows of each level, of the last windows
    back: [f64; LEVELS],  // the same, of those that came back
    costs: [f64; LEVELS], // beside others'
    taken: [u32; LEVELS], // the same in 1/256
}

impl Regrets {
    const WINDOW_MIN: usize = 64;
    /// Rows that came back as often as any: what few rows say is no reason yet.
    const PRIOR: f64 = 4.0;
    const COST_MAX: f64 = 4.0;

    fn new() -> Self {
        Self {
            window: 1,
            leaving: 0,
            left: [0.0; LEVELS],
            back: [0.0; LEVELS],
            costs: [1.0; LEVELS],
            taken: [256; LEVELS],
        }
    }

    fn set_capacity(&mut self, capacity_rows: usize) {
        self.window = (capacity_rows / 4).max(Self::WINDOW_MIN) as u32;
    }

    #[inline]
    fn cost(&self, level: u8) -> u32 {
        self.taken[usize::from(level)]
    }

    fn came_back(&mut self, level: u8) {
        self.back[usize::from(level)] += 1.0;
    }

    fn left(&mut self, level: u8) {
        self.left[usize::from(level)] += 1.0;
        self.leaving += 1;
        if self.leaving >= self.window {
            self.regulate();
        }
    }

    fn regulate(&mut self) {
        self.leaving = 0;
        let (left, back): (f64, f64) = (self.left.iter().sum(), self.back.iter().sum());
        let share = back / left; // a window's rows left just now
        for level in 0..LEVELS {
            let expected = self.left[level] * share;
            let ratio = (self.back[level] + Self::PRIOR) / (expected + Self::PRIOR);
            // the fourth root, which every machine rounds in the same way
            let cost = self.costs[level] / ratio.sqrt().sqrt();
            self.costs[level] = cost.clamp(1.0 / Self::COST_MAX, Self::COST_MAX);
            self.taken[level] = (self.costs[level] * 256.0) as u32;
            self.left[level] /= 2.0;
            self.back[level] /= 2.0;
        }
    }
}

/// Next uses on eight clocks of 31 ticks that go round. A tick is two to the power of the clock's
/// scale of steps, each clock's scale is one more than the last one's, and a next use is told by
/// the finest clock that reaches it, to a 14th of its distance or better. Seven are written. The
/// eighth is the one that was given up when they last moved to other scales, and a turn of the hand
/// brings its bytes to the others. They move so that the distance at which rows leave stays within
/// them.
#[derive(Debug)]
struct Horizon {
    now: u64,        // the latest step that was told
    finest: u32,     // the scale of the finest clock that is written
    before: u32,     // the same before it last changed
    changed: u64,    // the step at which it did
    threshold: u8,   // a remoteness; what is so remote or more leaves
    regulated: u64,  // the step at which it was last looked at
    turn: u64,       // rows
    window: u64,     // swept rows after which the threshold is looked at
    swept: u64,      // in this window
    turn_swept: u64, // since the scales may change again
    silent: u64,     // rows swept since a next use was told
    /// Swept rows by remoteness, of the last turn or so.
    seen: [u32; Horizon::NEVER as usize + 1],
}

impl Horizon {
    const TICKS: u64 = 31;
    /// What is so many ticks ahead is told by this clock; what seems farther is overdue.
    const AHEAD_MAX: u64 = 28;
    const CLOCK_SHIFT: u32 = 5;
    /// Beside the clock's ticks: used again, but beyond the coarsest clock; and never.
    const CODE_BEYOND: u8 = 0x1f;
    const CODE_NEVER: u8 = 0xff;
    /// Scales that are written, from the finest on.
    const WRITTEN: u32 = 7;
    /// Remotenesses: sixteen for each doubling of the distance.
    const PER_DOUBLING: u8 = 16;
    const BEYOND: u8 = 128;
    const NEVER: u8 = 129;
    /// From ticks of 16 steps to 28 of 1,024.
    const FINEST_FIRST: u32 = 4;
    const FINEST_MAX: u32 = 20;
    /// One in so many swept rows is to leave.
    const SWEPT_PER_LEAVING: u64 = 128;
    /// For so many steps a row may be held, which hides it from the hand.
    const HELD_STEPS_MAX: u64 = 128;

    fn new() -> Self {
        Self {
            now: 0,
            finest: Self::FINEST_FIRST,
            before: Self::FINEST_FIRST,
            changed: 0,
            threshold: Self::NEVER,
            regulated: 0,
            turn: 1,
            window: 1,
            swept: 0,
            turn_swept: 0,
            silent: u64::MAX,
            seen: [0; Self::NEVER as usize + 1],
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
        // no byte may be left of a clock that is given up before another one is
        if self.turn_swept > self.turn {
            self.follow();
        }
        if steps == u32::MAX { Self::CODE_NEVER } else { self.written(u64::from(steps)) }
    }

    /// The byte of a row that is used so many steps from now.
    #[inline]
    fn written(&self, steps: u64) -> u8 {
        let next = self.now + steps;
        // at 16 to 31 ticks of this scale, unless the finest is coarser
        let mut scale = self.finest.max((steps | 1).ilog2().saturating_sub(4));
        if (next >> scale) - (self.now >> scale) > Self::AHEAD_MAX {
            scale += 1;
        }
        if scale >= self.finest + Self::WRITTEN {
            return Self::CODE_BEYOND;
        }
        ((scale % 8) << Self::CLOCK_SHIFT) as u8 | ((next >> scale) % Self::TICKS) as u8
    }

    /// The scale of a byte's clock, and ticks until its next use.
    #[inline]
    fn told(&self, code: u8) -> (u32, u64) {
        let lowest = self.finest.min(self.before);
        let scale = lowest + (u32::from(code >> Self::CLOCK_SHIFT).wrapping_sub(lowest)) % 8;
        let at = u64::from(code) % (1 << Self::CLOCK_SHIFT);
        (scale, (Self::TICKS + at - (self.now >> scale) % Self::TICKS) % Self::TICKS)
    }

    /// How far away a row's next use is, and its byte from now on.
    #[inline]
    fn remoteness(&self, code: u8) -> (u8, u8) {
        if code == Self::CODE_NEVER {
            return (Self::NEVER, code);
        }
        if code & Self::CODE_BEYOND == Self::CODE_BEYOND {
            return (Self::BEYOND, Self::CODE_BEYOND);
        }
        let (scale, ticks) = self.told(code);
        // what was not used when it should have been gets a coarser clock each time, and leaves at
        // last
        let overdue = ticks > Self::AHEAD_MAX;
        let steps = if overdue { 32 << scale } else { ticks << scale };
        let stays = (self.finest..self.finest + Self::WRITTEN).contains(&scale) && !overdue;
        let code = if stays { code } else { self.written(steps) };
        if code == Self::CODE_BEYOND {
            return (Self::BEYOND, code);
        }
        let ticks = steps >> self.finest;
        let doublings = (ticks >> 4 | 1).ilog2();
        let remoteness =
            u64::from(doublings) * u64::from(Self::PER_DOUBLING) + (ticks >> doublings);
        (remoteness.min(u64::from(Self::BEYOND) - 1) as u8, code)
    }

    #[inline]
    fn nearness(&self, code: u8) -> u8 {
        Self::NEVER - self.remoteness(code).0
    }

    #[inline]
    fn sweep(&mut self, code: u8) -> Sweep {
        let (remoteness, kept) = self.remoteness(code);
        let leaves = remoteness >= self.threshold;
        self.silent += 1;
        self.swept += 1;
        self.seen[usize::from(remoteness)] += 1;
        if self.swept >= self.window {
            self.regulate();
        }
        if leaves { Sweep::Evict } else { Sweep::Keep(kept) }
    }

    /// In how many steps the rows that leave are used again; none if they never are. Where no hand
    /// has moved for longer, rows stay so long at least.
    fn steps_of_leaving(&self, now: u64) -> Option<u64> {
        if self.threshold == Self::NEVER {
            return None;
        }
        let remoteness = u64::from(self.threshold);
        let per_doubling = u64::from(Self::PER_DOUBLING);
        let doublings = (remoteness / per_doubling).saturating_sub(1);
        let ticks = (remoteness - doublings * per_doubling) << doublings;
        Some((ticks << self.finest).max(now.saturating_sub(self.regulated)).max(1))
    }

    fn regulate(&mut self) {
        self.regulated = self.now;
        let all: u64 = self.seen.iter().map(|&rows| u64::from(rows)).sum();
        let mut leaving = 0;
        self.threshold = (0..=Self::NEVER)
            .rev()
            .find(|&remoteness| {
                leaving += u64::from(self.seen[usize::from(remoteness)]);
                leaving * Self::SWEPT_PER_LEAVING >= all
            })
            .unwrap_or(0);
        self.seen.iter_mut().for_each(|rows| *rows -= rows.div_ceil(8));
        self.turn_swept += self.swept;
        self.swept = 0;
        if self.now < self.changed + Self::HELD_STEPS_MAX {
            self.turn_swept = 0;
        }
    }

    /// Moves the scales if the threshold is near the end of them. Not while the hand is on its way:
    /// what a byte is worth must not change between its two looks at a row.
    #[cold]
    fn follow(&mut self) {
        self.turn_swept = 0;
        let coarse = 6 * Self::PER_DOUBLING..=Self::BEYOND;
        if coarse.contains(&self.threshold) && self.finest < Self::FINEST_MAX {
            self.move_to(self.finest + 1);
        } else if self.threshold < Self::PER_DOUBLING && self.finest > 0 {
            self.move_to(self.finest - 1);
        }
    }

    /// Makes the ticks of the finest clock twice as wide, or half.
    fn move_to(&mut self, finest: u32) {
        let moved = |remoteness: u8| match remoteness {
            Self::BEYOND | Self::NEVER => remoteness,
            near if finest > self.finest && near < 2 * Self::PER_DOUBLING => near / 2,
            far if finest > self.finest => far - Self::PER_DOUBLING,
            near if near < Self::PER_DOUBLING => 2 * near,
            far => (far + Self::PER_DOUBLING).min(Self::BEYOND),
        };
        let old = core::mem::replace(&mut self.seen, [0; Self::NEVER as usize + 1]);
        for (remoteness, rows) in (0..).zip(old) {
            self.seen[usize::from(moved(remoteness))] += rows;
        }
        self.threshold = moved(self.threshold);
        (self.before, self.finest) = (self.finest, finest);
        self.changed = self.now;
    }
}

/// Digests of rows that left, with the level that each had, in buckets of eight of 16 bits, the
/// newest lowest. A digest that is not of the row that is looked for is found once in a thousand.
#[derive(Debug)]
struct Ghosts {
    buckets: Vec<u128>,
    held: u64, // digests that are there
}

impl Ghosts {
    const WAYS: usize = 8;
    const DIGESTS: u64 = (1 << (16 - LEVEL_BITS)) - 1;
    /// Three ghosts for four rows, until so many.
    const SMALL_GHOSTS: usize = 8192;
    /// A larger section has one ghost for so many rows: a quarter of a byte for each.
    const ROWS_PER_GHOST: usize = 8;

    fn new() -> Self {
        Self { buckets: Vec::new(), held: 0 }
    }

    fn clear(&mut self) {
        self.buckets.fill(0);
        self.held = 0;
    }

    /// Starts anew if the size is no longer right, which it tells; a section that grows has evicted
    /// nothing yet.
    fn set_capacity(&mut self, capacity_rows: usize) -> bool {
        if capacity_rows == 0 {
            *self = Self::new();
            return true;
        }
        let small = (capacity_rows * 3 / 4).min(Self::SMALL_GHOSTS);
        let ghosts = (capacity_rows / Self::ROWS_PER_GHOST).max(small);
        let (buckets, have) = (ghosts.div_ceil(Self::WAYS), self.buckets.len());
        let anew = buckets > have + have / 8 || buckets < have / 2;
        if anew {
            *self = Self { buckets: vec![0; buckets], held: 0 };
        }
        anew
    }

    fn put(&mut self, key_hash: u64, level: u8) {
        let (place, digest) = self.place(key_hash);
        if let Some(bucket) = self.buckets.get_mut(place) {
            self.held += u64::from(*bucket >> (16 * (Self::WAYS - 1)) == 0);
            *bucket = *bucket << 16 | digest << LEVEL_BITS | u128::from(level);
        }
    }

    /// The level of the row's ghost, if it is there; it is no longer.
    fn take(&mut self, key_hash: u64) -> Option<u8> {
        let (place, digest) = self.place(key_hash);
        let bucket = self.buckets.get_mut(place)?;
        let ghost = |way: usize| (*bucket >> (16 * way)) as u16;
        let is = |way: &usize| u128::from(ghost(*way) >> LEVEL_BITS) == digest;
        let way = (0..Self::WAYS).find(is)?;
        let level = ghost(way) as u8 & LEVEL_MAX;
        let newer = (1 << (16 * way)) - 1;
        *bucket = *bucket & newer | (*bucket >> 16) & !newer;
        self.held -= 1;
        Some(level)
    }

    /// Which bucket, and a digest that is not 0. A section's rows may agree in the hash's high
    /// bits.
    fn place(&self, key_hash: u64) -> (usize, u128) {
        let mixed = (key_hash ^ key_hash >> 31).wrapping_mul(0xd6e8_feb8_6659_fd93);
        let place = (u128::from(mixed) * self.buckets.len() as u128) >> 64;
        (place as usize, u128::from((mixed >> 8) % Self::DIGESTS + 1))
    }
}

/// Names of rows that are used never again, in the order in which they were told so, in memory
/// that the caller lends, always the same. What finds no room in it is for the hand to find.
#[derive(Debug, Default)]
struct Done {
    first: usize,
    names: usize,
    has_memory: bool, // which was somebody else's before
}

impl Done {
    fn put(&mut self, memory: &mut [u32], name: u32) {
        self.has_memory = true;
        if self.names < memory.len() {
            memory[(self.first + self.names) % memory.len()] = name;
            self.names += 1;
        }
    }

    fn nth(&self, memory: &[u32], n: usize) -> Option<u32> {
        (n < self.names).then(|| memory[(self.first + n) % memory.len()])
    }

    fn take(&mut self, memory: &[u32]) -> Option<u32> {
        let name = self.nth(memory, 0)?;
        self.first = (self.first + 1) % memory.len();
        self.names -= 1;
        Some(name)
    }

    fn put_back(&mut self, memory: &mut [u32], name: u32) {
        if self.names < memory.len() {
            self.first = (self.first + memory.len() - 1) % memory.len();
            memory[self.first] = name;
            self.names += 1;
        }
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
    fn what_is_foregone_is_told_by_ghosts_or_by_the_distance_at_which_rows_leave() {
        let mut slots = Slots::full(1000, 0, |_| None);
        let left: Vec<u64> = (0..300).filter_map(|_| slots.evict()).collect();
        let Foregone::Returns { rows: 0, ghosts } = slots.policy.foregone(0) else { panic!() };
        assert!((280..=300).contains(&ghosts), "{ghosts} ghosts of 300 rows");
        let back =
            left[..100].iter().filter(|&&key| slots.policy.insert(table::mix(key), None) != 0);
        let back = back.count() as u64;
        let expected = Foregone::Returns { rows: back, ghosts: ghosts - back };
        assert_eq!(slots.policy.foregone(0), expected);
        assert!(back > 80, "{back} of a hundred");

        let mut slots = Slots::full(1000, 50, |key| Some((table::mix(key) % 900) as u32 + 1));
        (0..3).for_each(|_| assert!(slots.evict().is_some()));
        let _ = slots.policy.foreseen(50, 1);
        let Foregone::Told(Some(steps)) = slots.policy.foregone(50) else { panic!() };
        assert!((600..=1000).contains(&steps), "{steps} steps, of 900 at most");
        assert_eq!(slots.policy.foregone(50_050), Foregone::Told(Some(50_000)), "none was told");
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

    /// Rows of levels 2 and 5 leave in turn; one in so many of each comes back at once.
    fn levels_leave_and_come_back(policy: &mut Policy, one_in: [u64; 2]) {
        for i in 0..20_000 {
            for (level, one_in) in [2, 5].into_iter().zip(one_in) {
                let key_hash = table::mix(8 * i + u64::from(level));
                policy.left(key_hash, level << LEVEL_SHIFT);
                if i.is_multiple_of(one_in) {
                    let _ = policy.insert(key_hash, Some(level));
                }
            }
        }
    }

    #[test]
    fn rows_of_a_level_that_comes_back_more_often_are_kept_longer() {
        for (one_in, dear, cheap) in [([50, 2], 2, 5), ([2, 50], 5, 2)] {
            let mut policy = Policy::new(1000);
            levels_leave_and_come_back(&mut policy, one_in);
            let mut turns = |level: u8| {
                let mut code = level << LEVEL_SHIFT | 16;
                (1..).find(|_| match policy.sweep(code) {
                    Sweep::Keep(kept) => {
                        code = kept;
                        false
                    }
                    Sweep::Evict => true,
                })
            };
            let (dear, cheap) = (turns(dear).unwrap(), turns(cheap).unwrap());
            assert!(cheap > 4 * dear, "one in {one_in:?}: {cheap} turns beside {dear}");
        }
    }

    #[test]
    fn levels_cost_the_same_where_as_many_of_each_come_back_or_none() {
        for one_in in [1, 7, u64::MAX] {
            let mut policy = Policy::new(1000);
            levels_leave_and_come_back(&mut policy, [one_in; 2]);
            let costs = policy.regrets.taken;
            assert!(
                costs.iter().all(|cost| (192..320).contains(cost)),
                "one in {one_in}: {costs:?}"
            );
        }
    }

    #[test]
    fn what_leaves_while_next_uses_are_told_says_nothing_of_levels() {
        let mut policy = Policy::new(1000);
        let _ = policy.foreseen(1, 9);
        levels_leave_and_come_back(&mut policy, [50, 2]);
        assert_eq!(policy.regrets.taken, [256; LEVELS]);
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
        let level = |i: u64| (i % 8) as u8;
        (0..10_000).for_each(|i| ghosts.put(key(i), level(i)));
        let of_others = (20_000..40_000).filter(|&i| ghosts.take(key(i)).is_some()).count();
        assert!(of_others < 40, "{of_others} of 20 thousand that never were there");
        let mut found = |i: &u64| ghosts.take(key(*i)) == Some(level(*i));
        let young = (8000..10_000).filter(&mut found).count();
        let old = (0..2000).filter(&mut found).count();
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
    fn a_next_use_is_told_to_a_fourteenth_until_it_comes() {
        let mut horizon = Horizon::new();
        for now in [0, 1, 999, 1 << 20, u64::from(u32::MAX) * 3] {
            let steps = (0..400).map(|i| 1.027_f64.powi(i) as u32); // to 40,000
            for steps in steps.take_while(|&steps| steps < 27 << 10) {
                let code = horizon.code(now, steps);
                for passed in [0, steps / 3, steps / 2, steps - 1] {
                    horizon.now = now + u64::from(passed);
                    let (scale, ticks) = horizon.told(code);
                    let left = u64::from(steps - passed);
                    let off = (ticks << scale).abs_diff(left);
                    let most = u64::from(steps / 14).max(1 << horizon.finest);
                    assert!(off <= most, "{steps} steps from {now}, {passed} passed: off by {off}");
                }
            }
        }
    }

    #[test]
    fn what_is_farther_is_never_less_remote() {
        for finest in [0, 4, Horizon::FINEST_MAX] {
            let mut horizon = Horizon::new();
            (horizon.finest, horizon.before) = (finest, finest);
            let mut last = 0;
            for doublings in 0..(32 * 8) {
                let steps = 2_f64.powf(f64::from(doublings) / 8.0) as u32;
                let code = horizon.code(1 << 40, steps);
                let (remoteness, kept) = horizon.remoteness(code);
                assert!(remoteness >= last, "{steps} steps: {remoteness} after {last}");
                assert_eq!(kept, code);
                last = remoteness;
            }
            let never = horizon.code(1 << 40, u32::MAX);
            assert!(horizon.remoteness(never).0 > last);
        }
    }

    #[test]
    fn bytes_mean_the_same_time_when_the_scales_have_moved() {
        for finest in [4, 6] {
            let mut horizon = Horizon::new();
            (horizon.finest, horizon.before) = (5, 5);
            for steps in [40, 640, 2000, 9000, 20_000, 50_000] {
                (horizon.finest, horizon.before) = (5, 5);
                let code = horizon.code(10_000, steps);
                horizon.move_to(finest);
                let time = |horizon: &Horizon, code| {
                    let (scale, ticks) = horizon.told(code);
                    ticks << scale
                };
                let before = time(&horizon, code);
                assert!(before.abs_diff(u64::from(steps)) <= u64::from(steps / 14).max(32));
                let (remoteness, kept) = horizon.remoteness(code);
                if remoteness == Horizon::BEYOND {
                    assert!(u64::from(steps) > 28 << (finest + 6), "{steps} are within reach");
                    continue;
                }
                let (scale, _) = horizon.told(kept);
                assert!((finest..finest + 7).contains(&scale), "the byte was brought over");
                let after = time(&horizon, kept);
                assert!(before.abs_diff(after) <= (before / 14).max(64), "{before}, now {after}");
            }
        }
    }

    #[test]
    fn a_row_that_is_not_used_when_it_should_be_becomes_remote() {
        let mut horizon = Horizon::new();
        let mut code = horizon.code(0, 100);
        let mut now = 0;
        while horizon.remoteness(code).0 < Horizon::BEYOND {
            now += 13;
            let _ = horizon.code(now, 5); // others are used
            code = horizon.remoteness(code).1;
            assert!(now < 1 << 20, "it is thought near for ever");
        }
        assert!(now > 100, "not before it is due");
    }

    #[test]
    fn the_hand_passes_no_more_rows_than_it_may() {
        // rows whose next uses are spread evenly over 3000 steps
        let mut slots = Slots::full(8192, 0, |key| Some((table::mix(key) % 3000) as u32 + 1));
        let (mut passed, mut left, mut place) = (0, 0, 0);
        for i in 0..150_000_u64 {
            slots.evict().unwrap();
            passed += (slots.hand + 8191 - place) % 8192 + 1;
            left += 1;
            place = slots.hand;
            let (slot, steps) = ((place + 8191) % 8192, (table::mix(!i) % 3000) as u32 + 1);
            slots.rows[slot] = (i, slots.policy.foreseen(i / 100, steps));
            // those that are due are used
            let due = (table::mix(i ^ 0xabc) % 8192) as usize;
            slots.rows[due].1 = slots.policy.foreseen(i / 100, steps / 2 + 1);
        }
        let passed_per_leaving = passed as f64 / f64::from(left);
        let most = Horizon::SWEPT_PER_LEAVING as f64;
        assert!((1.0..1.25 * most).contains(&passed_per_leaving), "{passed_per_leaving}");
    }

    #[test]
    fn names_of_the_done_come_in_their_order_and_as_many_as_the_memory_has() {
        let mut policy = Policy::new(1000);
        let room = 4 * policy.ghosts.buckets.len() as u32;
        let _ = policy.foreseen(1, u32::MAX); // next uses are told
        for round in 0..3 {
            (0..room + 5).for_each(|place| policy.note_done(round + place));
            assert_eq!(policy.nth_done(7), Some(round + 7));
            assert_eq!(policy.take_done(), Some(round));
            assert_eq!(policy.take_done(), Some(round + 1));
            policy.put_done_back(round + 1);
            let left: Vec<u32> = std::iter::from_fn(|| policy.take_done()).collect();
            assert_eq!(left, (round + 1..round + room).collect::<Vec<_>>());
        }
        let mut none = Policy::new(0);
        let _ = none.foreseen(1, u32::MAX);
        none.note_done(1);
        assert_eq!((none.take_done(), none.nth_done(0)), (None, None));
    }

    #[test]
    fn names_of_the_done_are_no_ghosts_when_lives_count_again() {
        let mut slots = Slots::full(100, 5, |_| Some(u32::MAX));
        (0..1000).for_each(|place| slots.policy.note_done(place));
        for _ in 0..101 {
            let _ = slots.policy.sweep(7);
        }
        assert_eq!(slots.policy.take_done(), None);
        let back =
            (0..1_000_000).filter(|&key| slots.policy.insert(table::mix(key), None) != FRESH);
        assert_eq!(back.count(), 0);
        slots.policy.left(table::mix(3), 0);
        assert_eq!(slots.policy.insert(table::mix(3), None), RETURNED);
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
