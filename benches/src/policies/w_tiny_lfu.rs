//! W-TinyLFU (Einziger, Friedman and Manes, 2017): a window in LRU order before a main part in
//! segmented LRU order, and a count-min sketch that decides which of two victims stays. The window
//! is 1 % of the capacity, or climbs to where hits are most (Einziger et al., Middleware 2018).

use super::list::{Links, List};
use super::{Policy, hash};

const WINDOW_SHARE: f64 = 0.01;
const PROTECTED_SHARE: f64 = 0.80;
const SAMPLE_PER_KEY: u64 = 10;
const ROWS: usize = 4;
const COUNT_MAX: u8 = 15;

#[derive(Clone, Copy, PartialEq)]
enum Place {
    Nowhere,
    Window,
    Probation,
    Protected,
}

/// Admits to the main part what was used more often than what would leave it.
pub(crate) struct WTinyLfu {
    capacity: usize,
    window_max: usize,
    protected_max: usize,
    links: Links,
    places: Vec<Place>, // [keys]
    window: List,
    probation: List,
    protected: List,
    sketch: Sketch,
    climber: Option<Climber>,
}

impl WTinyLfu {
    /// Room for `capacity` keys, at least two, 1 % of them in the window.
    pub(crate) fn new(capacity: usize) -> Self {
        let capacity = capacity.max(2);
        let window_max = ((capacity as f64 * WINDOW_SHARE) as usize).max(1);
        Self {
            capacity,
            window_max,
            protected_max: ((capacity - window_max) as f64 * PROTECTED_SHARE) as usize,
            links: Links::default(),
            places: Vec::new(),
            window: List::EMPTY,
            probation: List::EMPTY,
            protected: List::EMPTY,
            sketch: Sketch::new(capacity),
            climber: None,
        }
    }

    /// The same with a window that adapts.
    pub(crate) fn climbing(capacity: usize) -> Self {
        let mut policy = Self::new(capacity);
        policy.climber = Some(Climber::new(policy.capacity));
        policy
    }

    fn hit(&mut self, key: u32) {
        match self.places[key as usize] {
            Place::Nowhere => {}
            Place::Window => {
                self.links.remove(&mut self.window, key);
                self.links.push_front(&mut self.window, key);
            }
            Place::Probation => {
                self.links.remove(&mut self.probation, key);
                self.links.push_front(&mut self.protected, key);
                self.places[key as usize] = Place::Protected;
                self.demote();
            }
            Place::Protected => {
                self.links.remove(&mut self.protected, key);
                self.links.push_front(&mut self.protected, key);
            }
        }
    }

    fn demote(&mut self) {
        while self.protected.len() > self.protected_max {
            let Some(key) = self.links.pop_back(&mut self.protected) else { return };
            self.links.push_front(&mut self.probation, key);
            self.places[key as usize] = Place::Probation;
        }
    }

    /// Moves what the window has too much to the main part, and lets the sketch choose who leaves.
    fn shrink_window(&mut self) {
        while self.window.len() > self.window_max {
            let Some(candidate) = self.links.pop_back(&mut self.window) else { return };
            let victim = self.probation.back();
            self.links.push_front(&mut self.probation, candidate);
            self.places[candidate as usize] = Place::Probation;
            if self.cached() <= self.capacity {
                continue;
            }
            let stays =
                victim.is_some_and(|old| self.sketch.count(candidate) > self.sketch.count(old));
            let loser = if stays { victim.unwrap_or(candidate) } else { candidate };
            self.links.remove(&mut self.probation, loser);
            self.places[loser as usize] = Place::Nowhere;
        }
    }

    fn cached(&self) -> usize {
        self.window.len() + self.probation.len() + self.protected.len()
    }

    fn climb(&mut self, hit: bool) {
        let Some(climber) = &mut self.climber else { return };
        let Some(change) = climber.sample(hit) else { return };
        let window = (self.window_max as f64 + change).clamp(1.0, self.capacity as f64 * 0.99);
        self.window_max = (window as usize).max(1);
        self.protected_max = ((self.capacity - self.window_max) as f64 * PROTECTED_SHARE) as usize;
        self.demote();
        // a larger window takes the victims of the main part back
        while self.window.len() < self.window_max {
            let Some(key) = self.links.pop_back(&mut self.probation) else { break };
            self.links.push_front(&mut self.window, key);
            self.places[key as usize] = Place::Window;
        }
        self.shrink_window();
    }
}

impl Policy for WTinyLfu {
    fn access(&mut self, key: u32) -> bool {
        if key as usize >= self.places.len() {
            self.places.resize(key as usize + 1, Place::Nowhere);
        }
        self.sketch.add(key);
        let hit = self.places[key as usize] != Place::Nowhere;
        if hit {
            self.hit(key);
        } else {
            self.links.push_front(&mut self.window, key);
            self.places[key as usize] = Place::Window;
            self.shrink_window();
        }
        self.climb(hit);
        hit
    }
}

/// Four rows of counters of four bits (kept in bytes here), halved after ten uses a cached key.
struct Sketch {
    counters: Vec<u8>, // [ROWS, width]
    width: u64,
    added: u64,
    added_max: u64,
}

impl Sketch {
    fn new(capacity: usize) -> Self {
        let width = (4 * capacity as u64).next_power_of_two().max(64);
        Self {
            counters: vec![0; ROWS * width as usize],
            width,
            added: 0,
            added_max: SAMPLE_PER_KEY * capacity as u64,
        }
    }

    fn places(&self, key: u32) -> [usize; ROWS] {
        let word = hash(key);
        let step = (word >> 32) | 1;
        std::array::from_fn(|row| {
            let place = word.wrapping_add((row as u64).wrapping_mul(step.rotate_left(17))) >> 7;
            row * self.width as usize + (place & (self.width - 1)) as usize
        })
    }

    fn count(&self, key: u32) -> u8 {
        self.places(key).iter().map(|&place| self.counters[place]).min().unwrap_or(0)
    }

    fn add(&mut self, key: u32) {
        let mut grew = false;
        for place in self.places(key) {
            if self.counters[place] < COUNT_MAX {
                self.counters[place] += 1;
                grew = true;
            }
        }
        self.added += u64::from(grew);
        if self.added == self.added_max {
            self.counters.iter_mut().for_each(|count| *count /= 2);
            self.added /= 2;
        }
    }
}

/// Hill climbing over the window's size by the hit rate of ten uses a cached key.
struct Climber {
    sample_max: u64,
    first_step: f64,
    step: f64,
    seen: u64,
    hits: u64,
    last_rate: f64,
}

impl Climber {
    fn new(capacity: usize) -> Self {
        let first_step = -0.0625 * capacity as f64;
        Self {
            sample_max: SAMPLE_PER_KEY * capacity as u64,
            first_step,
            step: first_step,
            seen: 0,
            hits: 0,
            last_rate: 0.0,
        }
    }

    /// By how much to change the window, when a sample is complete.
    fn sample(&mut self, hit: bool) -> Option<f64> {
        self.seen += 1;
        self.hits += u64::from(hit);
        if self.seen < self.sample_max {
            return None;
        }
        let rate = self.hits as f64 / self.seen as f64;
        let change = rate - self.last_rate;
        let amount = if change >= 0.0 { self.step } else { -self.step };
        self.step = if change.abs() >= 0.05 {
            self.first_step.abs().copysign(amount)
        } else {
            0.98 * amount
        };
        (self.seen, self.hits, self.last_rate) = (0, 0, rate);
        Some(amount)
    }
}
