//! What a byte more would be worth to each row length: the misses a stage that it would save, from
//! the rows that left lately and are asked for again. It reads what the policy of each section
//! knows; it moves no memory and lets no row leave.
//!
//! A ghost stands for a row that is not here. Of each the uses a stage are counted: returns, over
//! the stages that ghosts were there. A slot more would have had such a row in it. Where next uses
//! are told, a row that leaves is missed in so many steps as it is used in: one miss is what a slot
//! is worth for so long.

use crate::policy::Foregone;

/// Returns from which on what was counted before is halved: by then its error is a twelfth.
const RETURNS_MAX: f64 = 64.0;
/// Stages for which it stands at least, and at most. A pause counts as short as the first.
const STAGES_MIN: u64 = 32;
const STAGES_MAX: u64 = 512;
/// Rows that are thought to have come back of a row length that wants memory, before it is known
/// how many do: without memory it would never be known.
const RETURNS_FIRST: f64 = 4.0;
/// A row length whose rows don't leave counts as if one in so many had left: what was known of it
/// is forgotten while none of them comes back.
const ROWS_PER_GHOST_MAX: u64 = 64;

/// What is known of one section.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sign {
    pub(crate) rows: u64,
    pub(crate) foregone: Foregone,
}

/// What is known of one row length.
#[derive(Debug, Default)]
struct Gain {
    row_bytes: f64,
    returns: f64,
    ghost_stages: f64,
    returned: u64,     // when it was last looked at
    told: Option<f64>, // misses a stage that a row's room would save
    halved: u64,       // at which stage
}

/// What is known of all row lengths.
#[derive(Debug, Default)]
pub(crate) struct Gains {
    of_class: Vec<Gain>,
    seen: u64, // the stage at which it was last looked at
}

impl Gain {
    fn look(&mut self, signs: &[Sign], stages: u64, now: u64) {
        let (mut rows_all, mut returned, mut ghosts) = (0, 0, 0);
        let (mut rows_told, mut misses_told) = (0, 0.0);
        for &Sign { rows, foregone } in signs {
            rows_all += rows;
            match foregone {
                Foregone::Returns { rows, ghosts: there } => {
                    returned += rows;
                    ghosts += there;
                }
                Foregone::Told(steps) => {
                    rows_told += rows;
                    misses_told += steps.map_or(0.0, |steps| rows as f64 / steps as f64);
                }
            }
        }
        self.told = (rows_told > 0).then(|| misses_told / rows_told as f64);
        let back = returned.saturating_sub(self.returned);
        self.returned = returned;
        self.returns += back as f64;
        // those that came back were there too
        let ghosts = (ghosts + back).max(rows_all.div_ceil(ROWS_PER_GHOST_MAX));
        self.ghost_stages += (stages * ghosts) as f64;
        let since = now - self.halved;
        if self.returns >= RETURNS_MAX && since >= STAGES_MIN || since >= STAGES_MAX {
            self.returns /= 2.0;
            self.ghost_stages /= 2.0;
            self.halved = now;
        }
    }

    /// Misses a stage that a byte saves, as far as is known.
    fn per_byte(&self) -> f64 {
        match self.told {
            Some(told) => told / self.row_bytes,
            None if self.returns > 0.0 => self.returns / self.byte_stages(),
            None => 0.0,
        }
    }

    /// The same, thought to be `usual` where little is known: as if some had come back at that
    /// rate.
    fn per_byte_hoped(&self, usual: f64) -> f64 {
        if self.told.is_some() {
            return self.per_byte();
        }
        let first = if usual > 0.0 { RETURNS_FIRST / usual } else { 0.0 };
        (self.returns + RETURNS_FIRST) / (self.byte_stages() + first)
    }

    /// Bytes of the rows that ghosts stood for, times stages.
    fn byte_stages(&self) -> f64 {
        self.ghost_stages * self.row_bytes
    }
}

impl Gains {
    /// Whether stages went by since it was last looked.
    pub(crate) fn is_due(&self, now: u64) -> bool {
        now > self.seen
    }

    /// Notes what is known at stage `now` of the sections of each class, and what a row of it
    /// takes.
    pub(crate) fn look(&mut self, classes: impl Iterator<Item = (u64, Vec<Sign>)>, now: u64) {
        let stages = (now - self.seen).min(STAGES_MIN);
        for (number, (row_bytes, signs)) in classes.enumerate() {
            if number == self.of_class.len() {
                self.of_class.push(Gain { row_bytes: row_bytes as f64, ..Gain::default() });
            }
            self.of_class[number].look(&signs, stages, now);
        }
        self.seen = now;
    }

    /// Misses a stage that a byte saves a class that has it.
    pub(crate) fn of_donor(&self, class: u32) -> f64 {
        self.of_class[class as usize].per_byte()
    }

    /// Misses a stage that a byte would save a class that wants it: one of which little is known is
    /// hoped to be as good as all together.
    pub(crate) fn of_taker(&self, class: u32) -> f64 {
        let returns: f64 = self.of_class.iter().map(|gain| gain.returns).sum();
        let byte_stages: f64 = self.of_class.iter().map(Gain::byte_stages).sum();
        let usual = if returns > 0.0 { returns / byte_stages } else { 0.0 };
        self.of_class[class as usize].per_byte_hoped(usual)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROW_BYTES: [u64; 2] = [50, 1000];

    /// Looks at two row lengths a stage at a time, of each of which so many rows are there and so
    /// many ghosts, whose uses a stage are told.
    fn looked(stages: u64, of: impl Fn(u64) -> [(u64, u64, u64); 2]) -> Gains {
        let mut gains = Gains::default();
        let mut returned = [0; 2];
        for now in 1..=stages {
            let classes = of(now).into_iter().zip(&mut returned).zip(ROW_BYTES);
            let classes = classes.map(|(((rows, ghosts, uses), returned), row_bytes)| {
                *returned += uses;
                let foregone = Foregone::Returns { rows: *returned, ghosts };
                (row_bytes, vec![Sign { rows, foregone }])
            });
            gains.look(classes, now);
        }
        gains
    }

    #[test]
    fn a_byte_is_worth_the_uses_a_stage_of_a_ghost_over_the_bytes_of_its_row() {
        let gains = looked(1000, |_| [(10_000, 5000, 50), (100, 50, 5)]);
        for (class, expected) in [(0, 50.0 / 5050.0 / 50.0), (1, 5.0 / 55.0 / 1000.0)] {
            let found = gains.of_donor(class);
            assert!((found / expected - 1.0).abs() < 0.01, "{found}, not {expected}");
            let wanted = gains.of_taker(class);
            assert!((wanted / expected - 1.0).abs() < 0.1, "{wanted}, not {expected}");
        }
    }

    #[test]
    fn what_was_long_ago_is_forgotten() {
        let moved = |now| match now {
            ..=1000 => [(10_000, 5000, 50), (100, 50, 1)],
            _ => [(10_000, 5000, 5), (100, 50, 10)],
        };
        let gains = looked(1400, moved);
        let found = gains.of_donor(0);
        assert!(found < 1.3 * 0.001 / 50.0, "{found}");
        assert!(gains.of_donor(1) > 5.0 * found);
    }

    #[test]
    fn who_is_new_is_thought_as_good_as_all_and_who_is_idle_as_worth_nothing() {
        let new = |now| if now < 100 { (0, 0, 0) } else { (4, 3, 0) };
        let gains = looked(101, |now| [(10_000, 5000, 50), new(now)]);
        assert_eq!(gains.of_donor(1), 0.0);
        assert!(gains.of_taker(1) > 0.5 * gains.of_donor(0));
        let scanned = looked(1000, |_| [(10_000, 5000, 50), (100, 50, 0)]);
        assert!(scanned.of_taker(1) < 0.01 * scanned.of_donor(0));
        // what had many uses and has none any more, of rows that stay
        let idle = looked(600, |now| {
            [(10_000, 5000, 50), if now < 100 { (1000, 50, 5) } else { (1000, 0, 0) }]
        });
        let (idle, busy) = (idle.of_donor(1), idle.of_donor(0));
        assert!(idle < busy / 10.0, "{idle} against {busy}");
    }

    #[test]
    fn where_next_uses_are_told_a_byte_is_worth_a_miss_for_as_long_as_its_row_would_stay() {
        let mut gains = Gains::default();
        let told = |steps| vec![Sign { rows: 10, foregone: Foregone::Told(steps) }; 2];
        gains.look([(50, told(Some(400))), (1000, told(None))].into_iter(), 1);
        let found = gains.of_donor(0) * 400.0 * 50.0;
        assert!((found - 1.0).abs() < 1e-9, "{found}");
        assert_eq!(gains.of_taker(1), 0.0);
    }
}
