//! The threads that compute. They only decide who does an item, never what an item is: the caller
//! cuts the work into items that do not depend on the number of threads. Handing work to them
//! allocates nothing.
//!
//! The unsafe code here is one line: helpers live as long as the model and so take no borrow, but
//! are lent one for as long as a call lasts.
#![allow(unsafe_code)]

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Barrier, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, Builder, JoinHandle};

use crate::{Error, Result};

/// The most threads of a model.
const THREADS_MAX: usize = 1024;

/// How often a thread that waits looks, and lets others have its core, before it sleeps: what comes
/// next in a step comes soon, and a sleep with its wake-up takes as long as some dozen looks.
const LOOKS: u32 = 64;

/// A fixed number of threads; one is the caller's own, the others its helpers.
pub(crate) struct Workers {
    helpers: Vec<JoinHandle<()>>,
    call: Arc<Call>,
}

/// Where helpers wait for a call and the caller waits for them.
#[derive(Default)]
struct Call {
    state: Mutex<State>, // held for moments
    /// Changes of the state that somebody may wait for, so far; grows under the lock.
    changes: AtomicU64,
    /// Helpers are wanted, or the model is gone.
    wanted: Condvar,
    /// No helper is at work any more.
    left: Condvar,
}

#[derive(Default)]
struct State {
    /// What the call at hand has helpers do; none between calls.
    work: Option<&'static Work>,
    /// Helpers that may still come to it.
    wanted: usize,
    /// Helpers that are at it.
    at_work: usize,
    /// The first panic of a helper at it.
    panic: Option<Box<dyn Any + Send>>,
    /// Whether the model is gone.
    over: bool,
}

type Work = dyn Fn() + Sync;

impl Workers {
    pub(crate) fn new(threads: usize) -> Result<Self> {
        if !(1..=THREADS_MAX).contains(&threads) {
            let expected = format!("1 to {THREADS_MAX}");
            return Err(Error::Field { field: "threads", found: threads.to_string(), expected });
        }
        let mut workers = Self { helpers: Vec::new(), call: Arc::default() };
        for i in 1..threads {
            let call = Arc::clone(&workers.call);
            let helper = Builder::new().name(format!("dlrm-{i}")).spawn(move || call.help());
            workers.helpers.push(helper.map_err(Error::Threads)?);
        }
        // so that no step meets a thread that has yet to begin
        let all_are_here = Barrier::new(threads);
        workers.call(threads - 1, &|| {
            all_are_here.wait();
        });
        Ok(workers)
    }

    /// Calls `each` once with every item and its place. Threads take items in their order, each the
    /// next when it is done with one, so that none waits beside work that another set aside. The
    /// iterator makes items while others wait for theirs: it must be quick about it.
    ///
    /// A panic of `each` is the caller's when all threads have let go of `items`.
    pub(crate) fn for_each<I>(&mut self, items: I, each: impl Fn(usize, I::Item) + Sync)
    where
        I: Iterator + Send,
    {
        // one item needs no helper; how many there are, not every iterator knows
        let helping = items.size_hint().1.map_or(usize::MAX, |most| most.saturating_sub(1));
        let queue = Mutex::new(items.enumerate());
        let next = || lock(&queue).next();
        self.call(helping.min(self.helpers.len()), &|| {
            while let Some((i, item)) = next() {
                each(i, item);
            }
        });
    }

    /// Does `work` on this thread, and on up to so many helpers that come before it is done here.
    fn call(&mut self, helping: usize, work: &(dyn Fn() + Sync)) {
        if helping == 0 {
            return work();
        }
        // SAFETY: a helper has the reference only while it is at work. `under_way` takes it back
        // and waits until no helper is at work, before this function returns and before a panic
        // leaves it: nobody has it when the borrow that it was made of ends.
        let lent = unsafe { std::mem::transmute::<&(dyn Fn() + Sync), &'static Work>(work) };
        let under_way = UnderWay::begin(&self.call, lent, helping);
        work();
        if let Some(panic) = under_way.end() {
            resume_unwind(panic);
        }
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        self.call.change(|state| state.over = true);
        self.call.wanted.notify_all();
        for helper in self.helpers.drain(..) {
            let _ = helper.join(); // a helper catches what panics
        }
    }
}

/// A call that helpers may come to, until this is dropped.
struct UnderWay<'a> {
    call: &'a Call,
}

impl<'a> UnderWay<'a> {
    fn begin(call: &'a Call, work: &'static Work, helping: usize) -> Self {
        call.change(|state| (state.work, state.wanted) = (Some(work), helping));
        (0..helping).for_each(|_| call.wanted.notify_one());
        Self { call }
    }

    /// Waits for the helpers, and tells the first panic among theirs.
    fn end(&self) -> Option<Box<dyn Any + Send>> {
        let mut state = lock(&self.call.state);
        (state.work, state.wanted) = (None, 0); // who has not come by now has nothing left to do
        while state.at_work > 0 {
            state = self.call.wait(state, &self.call.left);
        }
        state.panic.take()
    }
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        drop(self.end()); // whose panic it was does not matter where the caller panics itself
    }
}

impl Call {
    /// What a helper does as long as the model is there.
    fn help(&self) {
        let mut state = lock(&self.state);
        while !state.over {
            let work = match state.work {
                Some(work) if state.wanted > 0 => work,
                _ => {
                    state = self.wait(state, &self.wanted);
                    continue;
                }
            };
            state.wanted -= 1;
            state.at_work += 1;
            drop(state);
            let outcome = catch_unwind(AssertUnwindSafe(work));
            state = lock(&self.state);
            state.at_work -= 1;
            if let Err(panic) = outcome {
                state.panic.get_or_insert(panic);
            }
            if state.at_work == 0 {
                self.changes.fetch_add(1, Ordering::Release);
                self.left.notify_one();
            }
        }
    }

    /// Changes what somebody may wait for; whoever sleeps is still to be woken.
    fn change(&self, by: impl FnOnce(&mut State)) {
        let mut state = lock(&self.state);
        by(&mut state);
        self.changes.fetch_add(1, Ordering::Release);
    }

    /// Waits until the state has changed; it may wake for nothing.
    fn wait<'a>(&'a self, state: MutexGuard<'a, State>, change: &Condvar) -> MutexGuard<'a, State> {
        let seen = self.changes.load(Ordering::Acquire);
        drop(state);
        for _ in 0..LOOKS {
            if self.changes.load(Ordering::Acquire) != seen {
                return lock(&self.state);
            }
            thread::yield_now();
        }
        let state = lock(&self.state);
        if self.changes.load(Ordering::Acquire) != seen {
            return state;
        }
        change.wait(state).unwrap_or_else(PoisonError::into_inner)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::*;

    #[test]
    fn every_item_is_done_once_on_any_number_of_threads() {
        for threads in [1, 2, 3, 8] {
            let mut workers = Workers::new(threads).unwrap();
            for count in (0..40).chain([5000]) {
                let mut items: Vec<usize> = (0..count).collect();
                workers.for_each(items.iter_mut(), |i, item| {
                    assert_eq!(*item, i);
                    *item += 1;
                });
                assert!(items.into_iter().eq(1..=count), "{count} items, {threads} threads");
            }
        }
    }

    #[test]
    fn all_threads_are_at_work_at_once() {
        const THREADS: usize = 4;
        let mut workers = Workers::new(THREADS).unwrap();
        let all_are_here = Barrier::new(THREADS);
        for _ in 0..200 {
            workers.for_each(0..THREADS, |_, _| {
                all_are_here.wait();
            });
        }
    }

    #[test]
    fn a_panic_is_the_callers_whoever_panicked_and_the_next_call_works() {
        let mut workers = Workers::new(2).unwrap();
        let caller = thread::current().id();
        for who_panics in ["the caller", "a helper", "both"].repeat(20) {
            let (both_are_here, done) = (Barrier::new(2), AtomicUsize::new(0));
            let outcome = catch_unwind(AssertUnwindSafe(|| {
                workers.for_each(0..2, |_, _| {
                    both_are_here.wait();
                    let here = thread::current().id() == caller;
                    match who_panics {
                        "the caller" if !here => {}
                        "a helper" if here => {}
                        _ => panic!("as asked"),
                    }
                    done.fetch_add(1, Ordering::Relaxed);
                });
            }));
            let panic = outcome.expect_err(who_panics);
            assert_eq!(panic.downcast_ref(), Some(&"as asked"), "{who_panics}");
            assert_eq!(done.into_inner(), usize::from(who_panics != "both"), "{who_panics}");
            let sum = AtomicUsize::new(0);
            workers.for_each(0..100, |_, item| {
                sum.fetch_add(item, Ordering::Relaxed);
            });
            assert_eq!(sum.into_inner(), 4950);
        }
    }
}
