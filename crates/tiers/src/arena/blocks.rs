//! Which blocks are taken, by which row length, and which of their slots are vacant; the accounts
//! of the budget. It does not choose what leaves; `eviction` does.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::RwLock;

use super::{Arena, BLOCK_BYTES, Geometry, Slot};
use crate::index::{self, Index};

const NONE: u32 = u32::MAX;

/// The allocator of slots. One thread at a time, under the store's stage lock.
pub(crate) struct Blocks {
    arena: Arc<Arena>,
    blocks: Vec<Block>,
    vacant: Vec<u32>, // blocks that no class has, the lowest last
    classes: Vec<Class>,
    slots_total: usize,
    budget_bytes: usize,
    used_bytes: Arc<AtomicU64>,
}

#[derive(Clone, Copy)]
struct Block {
    class: u32,
    used: u32,
    touched: u32, // slots from here on were never used
    free: u32,    // the first vacant slot below `touched`; the others are linked
}

/// All blocks of one row length.
struct Class {
    geometry: Geometry,
    open: Vec<u32>, // blocks with a vacant slot
    vacant_slots: usize,
}

impl Blocks {
    const BYTES_PER_BLOCK: usize =
        size_of::<Block>() + 2 * size_of::<u32>() + Arena::BYTES_PER_BLOCK;

    /// How many blocks a budget could hold if the index were at its smallest.
    pub(crate) fn of_budget(budget_bytes: usize) -> usize {
        (budget_bytes - index::bytes_for(1)) / (BLOCK_BYTES + Self::BYTES_PER_BLOCK)
    }

    pub(crate) fn new(arena: Arc<Arena>, budget_bytes: usize, used_bytes: Arc<AtomicU64>) -> Self {
        let blocks = arena.blocks();
        let block = Block { class: NONE, used: 0, touched: 0, free: NONE };
        let new = Self {
            arena,
            blocks: vec![block; blocks],
            vacant: (0..blocks as u32).rev().collect(),
            classes: Vec::new(),
            slots_total: 0,
            budget_bytes,
            used_bytes,
        };
        new.account(index::bytes_for(1));
        new
    }

    /// The class of rows of this length, made if it is new.
    pub(crate) fn class_of(&mut self, geometry: Geometry) -> usize {
        let known = self.classes.iter().position(|class| class.geometry == geometry);
        known.unwrap_or_else(|| {
            self.classes.push(Class { geometry, open: Vec::new(), vacant_slots: 0 });
            self.classes.len() - 1
        })
    }

    /// Bytes of the budget that this many rows of each class take when they are packed.
    pub(crate) fn bytes_for(&self, rows: &[(usize, usize)]) -> usize {
        let (mut blocks, mut slots) = (0, 0);
        for &(class, rows) in rows {
            let per_block = self.classes[class].geometry.slots;
            blocks += rows.div_ceil(per_block);
            slots += rows.div_ceil(per_block) * per_block;
        }
        self.fixed_bytes() + blocks * BLOCK_BYTES + index::bytes_for(slots)
    }

    pub(crate) fn vacant_slots(&self, class: usize) -> usize {
        self.classes[class].vacant_slots
    }

    /// The number of blocks, taken or not.
    pub(crate) fn len(&self) -> usize {
        self.blocks.len()
    }

    /// The class that has this block, and how many slots of it were ever used.
    pub(crate) fn block(&self, block: u32) -> Option<(usize, u32)> {
        let block = &self.blocks[block as usize];
        (block.class != NONE).then_some((block.class as usize, block.touched))
    }

    /// Every slot that may be occupied, in the order of their numbers.
    pub(crate) fn slots(&self) -> impl Iterator<Item = Slot> + '_ {
        (0..self.blocks.len() as u32).flat_map(|block| self.slots_of(block))
    }

    /// The slots of one block that may be occupied.
    pub(crate) fn slots_of(&self, block: u32) -> impl Iterator<Item = Slot> + use<> {
        let touched = self.blocks[block as usize].touched;
        (0..touched).map(move |place| Slot::new(block, place))
    }

    /// A vacant slot of the class, if it has one.
    pub(crate) fn take(&mut self, class: usize) -> Option<Slot> {
        let class = &mut self.classes[class];
        let number = *class.open.last()?;
        let block = &mut self.blocks[number as usize];
        let place = if block.free == NONE {
            block.touched += 1;
            block.touched - 1
        } else {
            let place = block.free;
            block.free = self.arena.link(Slot::new(number, place));
            place
        };
        block.used += 1;
        class.vacant_slots -= 1;
        if block.used as usize == class.geometry.slots {
            class.open.pop();
        }
        Some(Slot::new(number, place))
    }

    /// Takes a slot back.
    pub(crate) fn free(&mut self, slot: Slot) {
        let number = slot.block() as u32;
        let block = &mut self.blocks[slot.block()];
        let class = &mut self.classes[block.class as usize];
        if block.used as usize == class.geometry.slots {
            class.open.push(number);
        }
        self.arena.set_link(slot, block.free);
        block.free = slot.place() as u32;
        block.used -= 1;
        class.vacant_slots += 1;
    }

    /// Gives the class one more block if the budget has room for it and for its share of the index.
    /// The index grows with it, in place of the old one: rebuilt from the headers.
    pub(crate) fn grow(&mut self, class: usize, index: &RwLock<Index>) -> io::Result<bool> {
        let geometry = self.classes[class].geometry;
        let Some(&block) = self.vacant.last() else { return Ok(false) };
        let slots_after = self.slots_total + geometry.slots;
        let taken_after = self.fixed_bytes() + (self.taken() + 1) * BLOCK_BYTES;
        if taken_after + index::bytes_for(slots_after) > self.budget_bytes {
            return Ok(false);
        }
        let (capacity, bytes) = {
            let index = index.read();
            (index.rows_max(), index.bytes())
        };
        if capacity < slots_after || taken_after + bytes > self.budget_bytes {
            // a quarter more than is needed now, but no more than the rest of the budget can use
            let room = self.budget_bytes - taken_after - index::bytes_for(slots_after);
            let per_block = BLOCK_BYTES + geometry.slots * index::BYTES_PER_ROW as usize;
            let ahead = (room / per_block * geometry.slots).min(slots_after / 4);
            self.rebuild_index(slots_after + ahead, index)?;
        }
        self.vacant.pop();
        self.arena.carve(block, geometry);
        self.blocks[block as usize] =
            Block { class: class as u32, used: 0, touched: 0, free: NONE };
        self.classes[class].open.push(block);
        self.classes[class].vacant_slots += geometry.slots;
        self.slots_total = slots_after;
        self.account(index.read().bytes());
        Ok(true)
    }

    /// Takes a block that holds no row away from its class; its memory goes back to the system.
    pub(crate) fn release(&mut self, number: u32, index: &RwLock<Index>) -> io::Result<()> {
        let block = self.blocks[number as usize];
        assert!(block.class != NONE && block.used == 0, "block {number} is in use");
        self.arena.uncarve(number)?;
        let class = &mut self.classes[block.class as usize];
        class.open.retain(|&open| open != number);
        class.vacant_slots -= class.geometry.slots;
        self.slots_total -= class.geometry.slots;
        self.blocks[number as usize] = Block { class: NONE, used: 0, touched: 0, free: NONE };
        self.vacant.push(number);
        self.account(index.read().bytes());
        Ok(())
    }

    /// Whether a taken block holds no row.
    pub(crate) fn is_empty(&self, block: u32) -> bool {
        let block = &self.blocks[block as usize];
        block.class != NONE && block.used == 0
    }

    fn rebuild_index(&self, rows_max: usize, index: &RwLock<Index>) -> io::Result<()> {
        let mut index = index.write();
        index.reset(rows_max)?;
        for slot in self.slots().filter(|&slot| self.arena.state(slot).is_occupied()) {
            let (owner, key) = self.arena.identity(slot);
            index.insert(index::hash(owner, key), slot);
        }
        Ok(())
    }

    fn taken(&self) -> usize {
        self.blocks.len() - self.vacant.len()
    }

    fn fixed_bytes(&self) -> usize {
        self.blocks.len() * Self::BYTES_PER_BLOCK
    }

    fn account(&self, index_bytes: usize) {
        let used = self.fixed_bytes() + self.taken() * BLOCK_BYTES + index_bytes;
        assert!(used <= self.budget_bytes, "{used} bytes used of {}", self.budget_bytes);
        self.used_bytes.store(used as u64, Ordering::Relaxed);
    }
}
