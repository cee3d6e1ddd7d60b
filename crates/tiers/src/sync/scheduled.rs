//! What `sync` names, made of shuttle's types. A lock is never poisoned, as parking_lot's are not,
//! and no wait ends at its deadline: a wake-up that is lost leaves all threads waiting, which the
//! scheduler reports.

use std::ops::{Deref, DerefMut};
use std::sync::{LockResult, PoisonError};
use std::time::Instant;

pub(crate) use shuttle::sync::{RwLockReadGuard, RwLockWriteGuard, atomic};
pub(crate) use shuttle::thread;

/// As parking_lot's.
#[derive(Debug, Default)]
pub(crate) struct Mutex<T>(shuttle::sync::Mutex<T>);

/// The right to what a [`Mutex`] holds.
pub(crate) struct MutexGuard<'a, T>(Option<shuttle::sync::MutexGuard<'a, T>>);

/// As parking_lot's.
#[derive(Debug, Default)]
pub(crate) struct RwLock<T>(shuttle::sync::RwLock<T>);

/// As parking_lot's, but that no wait ends by itself.
#[derive(Debug, Default)]
pub(crate) struct Condvar(shuttle::sync::Condvar);

/// Whether a wait ended by its deadline.
pub(crate) struct TimedOut;

impl<T> Mutex<T> {
    pub(crate) fn new(value: T) -> Self {
        Self(shuttle::sync::Mutex::new(value))
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
        MutexGuard(Some(sound(self.0.lock())))
    }
}

impl<T> Deref for MutexGuard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.0.as_deref().expect("a guard is away only while its owner waits")
    }
}

impl<T> DerefMut for MutexGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        self.0.as_deref_mut().expect("a guard is away only while its owner waits")
    }
}

impl<T> RwLock<T> {
    pub(crate) fn new(value: T) -> Self {
        Self(shuttle::sync::RwLock::new(value))
    }

    pub(crate) fn read(&self) -> RwLockReadGuard<'_, T> {
        sound(self.0.read())
    }

    pub(crate) fn write(&self) -> RwLockWriteGuard<'_, T> {
        sound(self.0.write())
    }
}

impl Condvar {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    pub(crate) fn wait<T>(&self, guard: &mut MutexGuard<'_, T>) {
        let held = guard.0.take().expect("a guard is away only while its owner waits");
        guard.0 = Some(sound(self.0.wait(held)));
    }

    pub(crate) fn wait_until<T>(&self, guard: &mut MutexGuard<'_, T>, _: Instant) -> TimedOut {
        self.wait(guard);
        TimedOut
    }

    pub(crate) fn notify_all(&self) {
        self.0.notify_all();
    }
}

impl TimedOut {
    #[allow(clippy::unused_self)] // as parking_lot's answer is asked
    pub(crate) fn timed_out(&self) -> bool {
        false
    }
}

fn sound<T>(locked: LockResult<T>) -> T {
    locked.unwrap_or_else(PoisonError::into_inner)
}

/// Queues with a limit, of many senders and many receivers: as crossbeam's.
pub(crate) mod channel {
    use std::sync::Arc;
    use std::sync::mpsc::{RecvError, SendError, TrySendError};

    use shuttle::sync::mpsc;

    use super::Mutex;

    pub(crate) struct Sender<T>(mpsc::SyncSender<T>);

    pub(crate) struct Receiver<T>(Arc<Mutex<mpsc::Receiver<T>>>);

    pub(crate) fn bounded<T>(most: usize) -> (Sender<T>, Receiver<T>) {
        let (sender, receiver) = mpsc::sync_channel(most);
        (Sender(sender), Receiver(Arc::new(Mutex::new(receiver))))
    }

    impl<T> Sender<T> {
        pub(crate) fn send(&self, item: T) -> Result<(), SendError<T>> {
            self.0.send(item)
        }

        pub(crate) fn try_send(&self, item: T) -> Result<(), TrySendError<T>> {
            self.0.try_send(item)
        }
    }

    impl<T> Receiver<T> {
        pub(crate) fn recv(&self) -> Result<T, RecvError> {
            self.0.lock().recv()
        }
    }

    impl<T> Clone for Receiver<T> {
        fn clone(&self) -> Self {
            Self(Arc::clone(&self.0))
        }
    }

    /// The items until all senders are gone.
    pub(crate) struct Items<T>(Receiver<T>);

    impl<T> Iterator for Items<T> {
        type Item = T;

        fn next(&mut self) -> Option<T> {
            self.0.recv().ok()
        }
    }

    impl<T> IntoIterator for Receiver<T> {
        type Item = T;
        type IntoIter = Items<T>;

        fn into_iter(self) -> Items<T> {
            Items(self)
        }
    }

    impl<T> IntoIterator for &Receiver<T> {
        type Item = T;
        type IntoIter = Items<T>;

        fn into_iter(self) -> Items<T> {
            Items(self.clone())
        }
    }
}
