//! A row as it lies on SSD: embedding and optimizer state as little-endian floats, a byte of its
//! past for the policy, and for tables whose rows expire four bytes that say when it was last
//! staged. Rows of the first format end behind the state. It reads no SSD.

use table::{Key, RowLayout, TableId};

use crate::store::Table;
use crate::{Error, Result};

/// A row that was read.
pub(crate) struct StoredRow<'a> {
    pub(crate) embedding: &'a [u8],
    pub(crate) state: &'a [u8],
    pub(crate) history: Option<u8>,
    pub(crate) stamp: Option<u32>,
}

/// Appends a row.
pub(crate) fn encode(
    embedding: &[f32],
    state: &[f32],
    history: u8,
    stamp: Option<u32>,
    bytes: &mut Vec<u8>,
) {
    bytes.extend_from_slice(bytemuck::cast_slice(embedding));
    bytes.extend_from_slice(bytemuck::cast_slice(state));
    bytes.push(history);
    if let Some(stamp) = stamp {
        bytes.extend_from_slice(&stamp.to_le_bytes());
    }
}

impl<'a> StoredRow<'a> {
    /// Refuses bytes that can't be a row of this table.
    pub(crate) fn decode(table: &Table, key: Key, bytes: &'a [u8]) -> Result<Self> {
        decode_row(table.id, table.layout, table.stamped(), key, bytes)
    }

    /// Copies the floats to where they belong.
    pub(crate) fn copy_to(&self, embedding: &mut [f32], state: &mut [f32]) {
        bytemuck::cast_slice_mut::<f32, u8>(embedding).copy_from_slice(self.embedding);
        bytemuck::cast_slice_mut::<f32, u8>(state).copy_from_slice(self.state);
    }
}

/// Refuses bytes that can't be a row of this layout.
pub(crate) fn decode_row(
    table: TableId,
    layout: RowLayout,
    stamped: bool,
    key: Key,
    bytes: &[u8],
) -> Result<StoredRow<'_>> {
    let floats_bytes = layout.bytes();
    let (found, expected) = (bytes.len(), floats_bytes + 1 + 4 * usize::from(stamped));
    if found != expected && found != floats_bytes {
        return Err(Error::Corrupt { table, key, found, expected });
    }
    let (floats, tail) = bytes.split_at(floats_bytes);
    let (embedding, state) = floats.split_at(layout.dim * size_of::<f32>());
    let stamp = tail.get(1..).and_then(|stamp| stamp.first_chunk::<4>());
    let stamp = stamp.map(|stamp| u32::from_le_bytes(*stamp));
    Ok(StoredRow { embedding, state, history: tail.first().copied(), stamp })
}
