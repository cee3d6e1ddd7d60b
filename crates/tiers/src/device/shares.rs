//! Which part of the device's memory each class has: by what is staged of it, smoothed over the
//! last stages, so that every class holds the rows of as many steps. It moves no row, and does not
//! say when the memory may be divided anew.

/// A stage counts for so many parts of what is remembered.
const REMEMBERED: u64 = 16;
/// A class has so many parts of an equal share, whatever is staged of it.
const LEAST_PARTS: u64 = 16;
/// The memory is divided anew where so many parts of it would change hands.
const MOVED_PARTS: u64 = 8;

/// What is staged of each class, and the shares that followed when it was last asked for them.
#[derive(Debug, Default)]
pub(super) struct Shares {
    staged_bytes: Vec<u64>, // [classes], of a stage times up to REMEMBERED
    stages: u64,            // since the shares were told
    told: Vec<u64>,         // [classes at that time], bytes
}

impl Shares {
    /// A stage of so many bytes of each class.
    pub(super) fn note(&mut self, staged_bytes: &[u64]) {
        self.staged_bytes.resize(staged_bytes.len(), 0);
        for (remembered, now) in self.staged_bytes.iter_mut().zip(staged_bytes) {
            *remembered = *remembered - *remembered / REMEMBERED + now;
        }
        self.stages += 1;
    }

    /// The shares of a budget, in bytes, where those that were told are no good any more: classes
    /// came since, or enough stages were of other classes.
    pub(super) fn anew(&mut self, budget_bytes: u64) -> Option<&[u64]> {
        let wanted = shares(budget_bytes, &self.staged_bytes);
        let is_new = self.told.len() != wanted.len();
        let gained = |(&told, &wanted): (&u64, &u64)| wanted.saturating_sub(told);
        let moved: u64 = self.told.iter().zip(&wanted).map(gained).sum();
        if !is_new && (self.stages < REMEMBERED || moved < budget_bytes / MOVED_PARTS) {
            return None;
        }
        self.stages = 0;
        self.told = wanted;
        Some(&self.told)
    }
}

/// A least share for each, and the rest in proportion to what is staged; equal ones where nothing
/// is. Together they are at most the budget.
fn shares(budget_bytes: u64, staged_bytes: &[u64]) -> Vec<u64> {
    let Some(equal) = budget_bytes.checked_div(staged_bytes.len() as u64) else {
        return Vec::new();
    };
    let all: u128 = staged_bytes.iter().map(|&bytes| u128::from(bytes)).sum();
    let least = equal / LEAST_PARTS;
    let rest = u128::from(budget_bytes - least * staged_bytes.len() as u64);
    let share = |&bytes: &u64| match all {
        0 => equal,
        _ => least + (rest * u128::from(bytes) / all) as u64,
    };
    staged_bytes.iter().map(share).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const BUDGET: u64 = 1 << 20;

    #[test]
    fn shares_follow_what_is_staged_and_leave_everybody_some() {
        assert!(shares(BUDGET, &[]).is_empty());
        assert_eq!(shares(BUDGET, &[7]), [BUDGET]);
        assert_eq!(shares(BUDGET, &[0, 0]), [BUDGET / 2; 2]);
        let three = shares(BUDGET, &[900, 90, 0]);
        assert_eq!(three[2], BUDGET / 3 / 16);
        assert!(three[0] > 8 * three[1] && three[0] < 10 * three[1], "{three:?}");
        for staged in [[u64::MAX, u64::MAX, 1], [1, 2, 3], [0, 0, 5]] {
            let sum: u64 = shares(BUDGET, &staged).iter().sum();
            assert!(sum <= BUDGET && sum > BUDGET - 4, "{staged:?}: {sum}");
        }
    }

    #[test]
    fn memory_changes_hands_for_new_classes_and_for_much_and_not_at_once() {
        let mut shares = Shares::default();
        assert!(shares.anew(BUDGET).is_none(), "no class");
        shares.note(&[1000]);
        assert_eq!(shares.anew(BUDGET), Some(&[BUDGET][..]));
        shares.note(&[1000, 1000]);
        assert!(shares.anew(BUDGET).is_some(), "a class that is new");
        shares.note(&[0, 5000]);
        assert!(shares.anew(BUDGET).is_none(), "one stage says little");
        (0..20).for_each(|_| shares.note(&[0, 1000]));
        let told = shares.anew(BUDGET).expect("much is staged of another class").to_vec();
        assert!(told[1] > 8 * told[0], "{told:?}");
        (0..200).for_each(|_| shares.note(&[0, 1000]));
        assert!(shares.anew(BUDGET).is_none(), "less than an eighth would change hands");
        (0..200).for_each(|_| shares.note(&[1000, 0]));
        let told = shares.anew(BUDGET).expect("all is staged of the first").to_vec();
        assert!(told[0] > 20 * told[1], "{told:?}");
    }
}
