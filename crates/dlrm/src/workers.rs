//! The threads that compute. They only decide who does an item, never what an item is: the caller
//! cuts the work into items that do not depend on the number of threads.

use std::sync::{Mutex, PoisonError};

use rayon::{ThreadPool, ThreadPoolBuilder};

use crate::{Error, Result};

/// The most threads of a model.
const THREADS_MAX: usize = 1024;

/// A fixed number of threads; one is the caller's own.
pub(crate) struct Workers {
    others: Option<ThreadPool>,
}

impl Workers {
    pub(crate) fn new(threads: usize) -> Result<Self> {
        if !(1..=THREADS_MAX).contains(&threads) {
            let expected = format!("1 to {THREADS_MAX}");
            return Err(Error::Field { field: "threads", found: threads.to_string(), expected });
        }
        let others = match threads - 1 {
            0 => None,
            others => {
                let named = ThreadPoolBuilder::new().num_threads(others);
                Some(named.thread_name(|i| format!("dlrm-{}", i + 1)).build()?)
            }
        };
        Ok(Self { others })
    }

    /// Calls `each` once with every item and its place. Threads take items in their order, each the
    /// next when it is done with one, so that none waits beside work that another set aside. The
    /// iterator makes items while others wait for theirs: it must be quick about it.
    pub(crate) fn for_each<I>(&self, items: I, each: impl Fn(usize, I::Item) + Sync)
    where
        I: Iterator + Send,
    {
        // one item needs no help; how many there are, not every iterator knows
        let helping = items.size_hint().1.map_or(usize::MAX, |most| most.saturating_sub(1));
        match &self.others {
            Some(others) if helping > 0 => {
                let helping = others.current_num_threads().min(helping);
                let queue = Mutex::new(items.enumerate());
                let next = || queue.lock().unwrap_or_else(PoisonError::into_inner).next();
                let work = || {
                    while let Some((i, item)) = next() {
                        each(i, item);
                    }
                };
                others.in_place_scope(|scope| {
                    (0..helping).for_each(|_| scope.spawn(|_| work()));
                    work();
                });
            }
            _ => items.enumerate().for_each(|(i, item)| each(i, item)),
        }
    }
}
