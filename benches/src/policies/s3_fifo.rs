//! S3-FIFO (Yang et al., SOSP 2023), algorithm 1 of the paper: a small queue of a tenth, a main
//! queue, and a ghost queue of as many keys as the main one. Only FIFO order, and two bits a key.

use std::collections::VecDeque;

use super::Policy;

const COUNT_MAX: u8 = 3;

#[derive(Clone, Copy, PartialEq)]
enum Place {
    Nowhere,
    Small,
    Main,
}

/// Evicts from the small queue what was not used again there.
pub(crate) struct S3Fifo {
    small_max: usize,
    main_max: usize,
    small: VecDeque<u32>, // the front is the oldest
    main: VecDeque<u32>,
    ghost: VecDeque<(u32, u32)>, // key and when it became a ghost
    places: Vec<Place>,          // [keys]
    counts: Vec<u8>,             // [keys]: uses since it came in, up to 3
    ghosts: Vec<u32>,            // [keys]: when it became a ghost; 0 is none
    now: u32,
}

impl S3Fifo {
    /// Room for `capacity` keys, at least two.
    pub(crate) fn new(capacity: usize) -> Self {
        let capacity = capacity.max(2);
        let small_max = (capacity / 10).max(1);
        Self {
            small_max,
            main_max: capacity - small_max,
            small: VecDeque::new(),
            main: VecDeque::new(),
            ghost: VecDeque::new(),
            places: Vec::new(),
            counts: Vec::new(),
            ghosts: Vec::new(),
            now: 0,
        }
    }

    fn evict(&mut self) {
        if self.small.len() >= self.small_max {
            self.evict_small();
        } else {
            self.evict_main();
        }
    }

    fn evict_small(&mut self) {
        while let Some(key) = self.small.pop_front() {
            if self.counts[key as usize] > 1 {
                self.enter_main(key);
                if self.main.len() > self.main_max {
                    self.evict_main();
                    return;
                }
            } else {
                self.places[key as usize] = Place::Nowhere;
                self.now += 1;
                self.ghosts[key as usize] = self.now;
                self.ghost.push_back((key, self.now));
                if self.ghost.len() > self.main_max {
                    self.forget_ghost();
                }
                return;
            }
        }
        self.evict_main();
    }

    fn forget_ghost(&mut self) {
        if let Some((key, since)) = self.ghost.pop_front()
            && self.ghosts[key as usize] == since
        {
            self.ghosts[key as usize] = 0;
        }
    }

    fn evict_main(&mut self) {
        while let Some(key) = self.main.pop_front() {
            if self.counts[key as usize] > 0 {
                self.counts[key as usize] -= 1;
                self.main.push_back(key);
            } else {
                self.places[key as usize] = Place::Nowhere;
                return;
            }
        }
    }

    fn enter_main(&mut self, key: u32) {
        self.places[key as usize] = Place::Main;
        self.counts[key as usize] = 0;
        self.main.push_back(key);
    }
}

impl Policy for S3Fifo {
    fn access(&mut self, key: u32) -> bool {
        let at = key as usize;
        if at >= self.places.len() {
            self.places.resize(at + 1, Place::Nowhere);
            self.counts.resize(at + 1, 0);
            self.ghosts.resize(at + 1, 0);
        }
        if self.places[at] != Place::Nowhere {
            self.counts[at] = (self.counts[at] + 1).min(COUNT_MAX);
            return true;
        }
        while self.small.len() + self.main.len() >= self.small_max + self.main_max {
            self.evict();
        }
        if self.ghosts[at] != 0 {
            self.ghosts[at] = 0;
            self.enter_main(key);
        } else {
            self.places[at] = Place::Small;
            self.counts[at] = 0;
            self.small.push_back(key);
        }
        false
    }
}
