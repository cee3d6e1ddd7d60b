//! Where a worker's buffers lie on a device, in words that the worker and its session both know: a
//! session on the same device writes rows there and takes gradients from there, without a copy to
//! the host. It touches no device, and what an address or a handle leads to whoever gives it
//! vouches for.
//!
//! How a step goes: the worker asks for a pull into a slot; the session has a stream of its own
//! wait for the slot's `worker_done`, write the rows, and record `session_done`, for which the
//! worker's stream waits. The worker computes, leaves the gradients in the slot, records
//! `worker_done` and asks for a push; the session's stream waits for that, updates the rows, and
//! records `session_done` once more. Nobody's host waits. An event is waited for as it was recorded
//! last when the wait was ordered, so that both sides order their work before they say so.

use std::fmt;

/// The name of a device: the driver's UUID, the same in every process of a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct DeviceId(pub [u8; 16]);

/// A worker's slots on a device, through which it exchanges rows with its session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DevicePlaces {
    /// The device that they lie on.
    pub device: DeviceId,
    /// The slots, called by their numbers from 0.
    pub slots: DeviceSlots,
}

/// The slots, by words that mean something where they are used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DeviceSlots {
    /// Of a worker in the session's own process.
    Here(Vec<DeviceSlot>),
    /// Of a worker in another process of the machine.
    Shared(Vec<SharedSlot>),
}

/// A place for the rows of one step and for their gradients.
///
/// The worker vouches that the addresses lead to so many floats of the device's memory, and the
/// events stand, until it shares other places or its session is dropped; and that, once it asked
/// for a pull, it reads the rows behind `session_done` alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeviceSlot {
    /// The device's address of the rows: [keys of the step, dim], in the order of the staged keys.
    /// It is a multiple of 16.
    pub rows: u64,
    /// The address of the rows' gradients, shaped as the rows. Slots may share it: a push takes
    /// them before the next pull writes rows.
    pub gradients: u64,
    /// How many floats each of the two holds.
    pub floats: u64,
    /// An event (`CUevent`) that the worker records. As it was recorded last, it comes after all
    /// that the worker did with the slot's rows before it asked for a pull, and after the gradients
    /// are whole before it asked for a push.
    pub worker_done: u64,
    /// An event (`CUevent`) that the session records: after the rows of a pull are written, and
    /// after a push has read the gradients.
    pub session_done: u64,
}

/// A [`DeviceSlot`] as another process finds it: what it names stays until the worker has shared
/// other places, or none, and was answered.
///
/// The two events are looked for by hosts, never waited for by streams of the other process before
/// they have happened: who is killed takes with it what it had recorded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SharedSlot {
    /// The rows' floats.
    pub rows: SharedBytes,
    /// Their gradients', as many.
    pub gradients: SharedBytes,
    /// An event (`CUipcEventHandle`) that the worker records.
    pub worker_done: DeviceHandle,
    /// An event that the session records.
    pub session_done: DeviceHandle,
}

/// A part of a worker's memory on a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SharedBytes {
    /// The whole (`CUipcMemHandle`).
    pub memory: DeviceHandle,
    /// Where in it the part begins, a multiple of 16.
    pub offset: u64,
    /// How long the part is.
    pub bytes: u64,
}

/// The driver's name of a thing that other processes may open.
pub type DeviceHandle = [u8; 64];

impl DeviceSlots {
    /// More than that nobody shares.
    pub const MAX: usize = 16;

    /// How many there are.
    pub fn len(&self) -> usize {
        match self {
            Self::Here(slots) => slots.len(),
            Self::Shared(slots) => slots.len(),
        }
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl fmt::Display for DeviceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hex = |f: &mut fmt::Formatter<'_>, bytes: &[u8]| {
            bytes.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
        };
        f.write_str("GPU")?;
        for part in [0..4, 4..6, 6..8, 8..10, 10..16] {
            f.write_str("-")?;
            hex(f, &self.0[part])?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_is_called_as_the_drivers_tools_call_it() {
        let bytes = [0xa1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 0xff];
        assert_eq!(DeviceId(bytes).to_string(), "GPU-a1020304-0506-0708-090a-0b0c0d0e0fff");
    }
}
