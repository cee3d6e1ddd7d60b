//! The locks, atomics, channels and threads that the store is made of: parking_lot's, crossbeam's
//! and std's. With the feature `shuttle` they are twins whose every step a scheduler orders, so
//! that `interleavings` can try orders that the system seldom shows.
//!
//! Counts (`tally`), the bits and stamps in the arena's mapping and the map of loads stay as they
//! are either way: none of them waits, and a scheduler that stopped at each would see little more.

#[cfg(feature = "shuttle")]
mod scheduled;

#[cfg(feature = "shuttle")]
pub(crate) use scheduled::{
    Condvar, Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard, atomic, channel, thread,
};

#[cfg(not(feature = "shuttle"))]
pub(crate) use crossbeam::channel;
#[cfg(not(feature = "shuttle"))]
pub(crate) use parking_lot::{
    Condvar, Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard,
};
#[cfg(not(feature = "shuttle"))]
pub(crate) use std::{sync::atomic, thread};
