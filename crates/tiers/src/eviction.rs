//! Which rows leave when room is wanted: a clock over the blocks of all row lengths, with a second
//! chance for rows referenced since its hand passed. Within a block of the wanted length single
//! rows leave; a block of another length leaves whole, or stays. Held rows stay. It writes nothing
//! down;
//! `write_back` does, before the rows go.

use std::sync::Arc;

use crate::arena::{Arena, Blocks, Held, Slot};
use crate::staging::Room;
use crate::store::Inner;
use crate::tally::add;
use crate::{Error, Result};

/// Rows that leave at once, at most: bounds what is held beside the budget (24 bytes a row).
const LEAVING_ROWS_MAX: usize = 8192;

/// The hand of the clock.
#[derive(Debug, Default)]
pub(crate) struct Clock {
    block: u32,
    place: u32,
}

/// What one sweep found.
struct Leaving {
    rows: Held,
    blocks: Vec<u32>, // of another row length: whole, perhaps without a row
}

impl Inner {
    /// Sees to it that the class has `wanted` vacant slots; false if the rest of the budget is
    /// held.
    pub(crate) fn make_room(&self, room: &mut Room, class: usize, wanted: usize) -> Result<bool> {
        let no_memory = |source| Error::Io { context: "take memory for rows".to_owned(), source };
        loop {
            let vacant = room.blocks.vacant_slots(class);
            if vacant >= wanted {
                return Ok(true);
            }
            if room.blocks.grow(class, &self.index).map_err(no_memory)? {
                continue;
            }
            let most = (wanted - vacant).min(LEAVING_ROWS_MAX);
            let leaving = sweep(&self.arena, &room.blocks, &mut room.clock, class, most);
            if leaving.rows.rows().is_empty() && leaving.blocks.is_empty() {
                return Ok(false);
            }
            self.evict(room, leaving)?;
        }
    }

    /// Lets every row go that nobody holds, and gives all empty blocks back.
    pub(crate) fn evict_all(&self, room: &mut Room) -> Result<()> {
        for block in 0..room.blocks.len() as u32 {
            if room.blocks.block(block).is_some() {
                let mut rows = Held::none(&self.arena);
                for slot in room.blocks.slots_of(block) {
                    rows.hold_idle(slot);
                }
                self.evict(room, Leaving { rows, blocks: vec![block] })?;
            }
        }
        Ok(())
    }

    /// Writes the dirty ones down, then forgets all. Clean rows cost no write.
    fn evict(&self, room: &mut Room, leaving: Leaving) -> Result<()> {
        let Leaving { mut rows, blocks } = leaving;
        let tables = self.tables_now();
        self.write_dirty(&mut rows, &tables)?;
        {
            let mut index = self.index.write();
            for row in rows.rows() {
                index.remove(crate::index::hash(row.owner, row.key), row.slot);
            }
        }
        for row in rows.rows() {
            let tally = &tables[row.owner as usize].tally;
            add(&tally.evictions, 1);
            tally.rows_host.fetch_sub(1, std::sync::atomic::Ordering::Relaxed);
        }
        rows.vacate(&mut room.blocks);
        for block in blocks {
            if room.blocks.is_empty(block) {
                let released = room.blocks.release(block, &self.index);
                released.map_err(|source| Error::Io {
                    context: "give memory of rows back".to_owned(),
                    source,
                })?;
            }
        }
        Ok(())
    }
}

/// Moves the hand until `wanted` slots are found or it has gone round twice: the first round takes
/// the second chances, so that the second finds whatever nobody holds.
fn sweep(
    arena: &Arc<Arena>,
    blocks: &Blocks,
    clock: &mut Clock,
    class: usize,
    wanted: usize,
) -> Leaving {
    let mut leaving = Leaving { rows: Held::none(arena), blocks: Vec::new() };
    let mut found = 0;
    for _ in 0..2 * blocks.len() + 1 {
        match blocks.block(clock.block) {
            Some((owner, touched)) if owner == class => {
                while clock.place < touched {
                    let slot = Slot::new(clock.block, clock.place);
                    clock.place += 1;
                    found += usize::from(take_chance(arena, slot, &mut leaving.rows));
                    if found == wanted {
                        return leaving;
                    }
                }
            }
            Some(_) if !leaving.blocks.contains(&clock.block) => {
                if take_block(arena, blocks, clock.block, &mut leaving.rows) {
                    leaving.blocks.push(clock.block);
                    found += 1; // a whole block: `make_room` looks anew how far it got
                }
            }
            Some(_) | None => {}
        }
        *clock = Clock { block: (clock.block + 1) % blocks.len() as u32, place: 0 };
        if found >= wanted || leaving.rows.rows().len() >= LEAVING_ROWS_MAX {
            break;
        }
    }
    leaving
}

/// Takes hold of an idle row that was not referenced since the hand last passed.
fn take_chance(arena: &Arena, slot: Slot, rows: &mut Held) -> bool {
    let state = arena.state(slot);
    if !state.is_occupied() || state.is_held() {
        return false;
    }
    if state.is_referenced() {
        arena.clear_referenced(slot);
        return false;
    }
    rows.hold_idle(slot)
}

/// Takes hold of all rows of a block if all of them are idle and none was referenced.
fn take_block(arena: &Arena, blocks: &Blocks, block: u32, rows: &mut Held) -> bool {
    let (mut idle, mut referenced) = (true, false);
    for slot in blocks.slots_of(block) {
        let state = arena.state(slot);
        idle &= !state.is_held();
        if state.is_referenced() {
            referenced = true;
            arena.clear_referenced(slot);
        }
    }
    if !idle || referenced {
        return false;
    }
    for slot in blocks.slots_of(block).filter(|&slot| arena.state(slot).is_occupied()) {
        rows.hold_idle(slot);
    }
    true
}
