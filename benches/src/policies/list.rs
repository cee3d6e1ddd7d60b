//! Doubly linked lists of keys, any number of them over one pair of arrays. A key is in one list at
//! most; which one, the caller knows.

const NONE: u32 = u32::MAX;

/// The links of all keys.
#[derive(Default)]
pub(super) struct Links {
    before: Vec<u32>, // [keys]: towards the front
    after: Vec<u32>,  // [keys]: towards the back
}

/// The ends of a list: the newest key is at the front.
#[derive(Clone, Copy)]
pub(super) struct List {
    front: u32,
    back: u32,
    len: usize,
}

impl List {
    pub(super) const EMPTY: Self = Self { front: NONE, back: NONE, len: 0 };

    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn back(&self) -> Option<u32> {
        (self.back != NONE).then_some(self.back)
    }
}

impl Links {
    pub(super) fn push_front(&mut self, list: &mut List, key: u32) {
        let place = key as usize;
        if place >= self.before.len() {
            self.before.resize(place + 1, NONE);
            self.after.resize(place + 1, NONE);
        }
        (self.before[place], self.after[place]) = (NONE, list.front);
        match list.front {
            NONE => list.back = key,
            front => self.before[front as usize] = key,
        }
        list.front = key;
        list.len += 1;
    }

    pub(super) fn remove(&mut self, list: &mut List, key: u32) {
        let (before, after) = (self.before[key as usize], self.after[key as usize]);
        match before {
            NONE => list.front = after,
            before => self.after[before as usize] = after,
        }
        match after {
            NONE => list.back = before,
            after => self.before[after as usize] = before,
        }
        list.len -= 1;
    }

    pub(super) fn pop_back(&mut self, list: &mut List) -> Option<u32> {
        let key = list.back()?;
        self.remove(list, key);
        Some(key)
    }
}
