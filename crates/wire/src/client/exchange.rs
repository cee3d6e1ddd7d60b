//! The bookkeeping of a stream: which requests are on their way, which steps are staged, which
//! errors wait to be told. It sends nothing; `session` does.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use parking_lot::{Condvar, Mutex};
use table::{Limits, Step};

use crate::proto::response::Result as Outcome;
use crate::{Code, Error, Result, proto};

/// What both threads of a session share: the callers', and the network's which brings responses.
pub(super) struct Exchange {
    state: Mutex<State>, // held for bookkeeping alone, never while sending or waiting
    changed: Condvar,
}

/// What a request's response is for.
#[derive(Debug, Clone, Copy)]
pub(super) enum Purpose {
    Stage(Step),
    Push(Step),
    PushOnDevice(Step),
    Release(Step),
    /// The caller waits for it.
    Answer,
}

#[derive(Default)]
struct State {
    next_id: u64,
    under_way: HashMap<u64, Purpose>,
    answers: HashMap<u64, proto::Response>, // of those who wait
    staged: BTreeSet<Step>,
    last_staged: Option<Step>,
    refused_stages: BTreeMap<Step, Error>,
    unsettled: usize,        // pushes and releases under way
    deferred: Option<Error>, // the first error among them
    lost: Option<Error>,
}

impl Exchange {
    pub(super) fn new() -> Self {
        Self { state: Mutex::default(), changed: Condvar::new() }
    }

    /// Takes note of a stage, or refuses it as the server would.
    pub(super) fn begin_stage(&self, step: Step, limits: &Limits) -> Result<u64> {
        let mut state = self.state.lock();
        state.check()?;
        if let Some(last) = state.last_staged
            && step <= last
        {
            let message = format!("{step} is staged after {last}; steps ascend");
            return Err(Error::new(Code::InvalidArgument, message));
        }
        if state.staged.len() >= limits.staged_steps_max as usize {
            let message = format!(
                "{step}: {} steps are staged and neither pushed nor released, the limit",
                limits.staged_steps_max
            );
            return Err(Error::new(Code::SlowDown, message));
        }
        state.staged.insert(step);
        state.last_staged = Some(step);
        Ok(state.begin(Purpose::Stage(step)))
    }

    /// Takes note of a pull, after telling what an earlier request met.
    pub(super) fn begin_pull(&self, step: Step) -> Result<u64> {
        let mut state = self.state.lock();
        state.check()?;
        state.tell_deferred()?;
        state.check_staged(step)?;
        Ok(state.begin(Purpose::Answer))
    }

    /// Takes note of a push, after telling what an earlier request met.
    pub(super) fn begin_push(&self, step: Step) -> Result<u64> {
        self.begin_push_as(Purpose::Push(step), step)
    }

    /// The same of a push whose gradients are on a device.
    pub(super) fn begin_push_on_device(&self, step: Step) -> Result<u64> {
        self.begin_push_as(Purpose::PushOnDevice(step), step)
    }

    fn begin_push_as(&self, purpose: Purpose, step: Step) -> Result<u64> {
        let mut state = self.state.lock();
        state.check()?;
        state.tell_deferred()?;
        state.check_staged(step)?;
        state.staged.remove(&step);
        Ok(state.begin(purpose))
    }

    /// Takes note of a release. `None`: the server never had the step, so there is nothing to send.
    pub(super) fn begin_release(&self, step: Step) -> Result<Option<u64>> {
        let mut state = self.state.lock();
        state.check()?;
        if state.refused_stages.remove(&step).is_some() {
            state.staged.remove(&step);
            return Ok(None);
        }
        if !state.staged.remove(&step) {
            return Err(not_staged(step));
        }
        Ok(Some(state.begin(Purpose::Release(step))))
    }

    /// Takes note of a request whose answer the caller waits for.
    pub(super) fn begin(&self) -> Result<u64> {
        let mut state = self.state.lock();
        state.check()?;
        Ok(state.begin(Purpose::Answer))
    }

    /// Waits for the answer to a request. What an earlier push met is told first.
    pub(super) fn wait(&self, id: u64) -> Result<Outcome> {
        let mut state = self.state.lock();
        loop {
            if let Some(response) = state.answers.remove(&id) {
                return match (response.status, response.result) {
                    (Some(status), _) => Err(status.into()),
                    (None, Some(result)) => Ok(result),
                    (None, None) => Err(Error::new(Code::Internal, "a response without a result")),
                };
            }
            state.check()?;
            self.changed.wait(&mut state);
        }
    }

    /// [`Self::wait`] for a pull: its rows are worth nothing if a push before it was refused, and a
    /// step that the server doesn't have was refused when it was staged.
    pub(super) fn wait_pull(&self, id: u64, step: Step) -> Result<Outcome> {
        let outcome = self.wait(id);
        let mut state = self.state.lock();
        state.tell_deferred()?;
        match outcome {
            Err(error) => Err(state.refused_stages.get(&step).cloned().unwrap_or(error)),
            sound => sound,
        }
    }

    /// Waits until every push and release is answered.
    pub(super) fn settle(&self) -> Result<()> {
        let mut state = self.state.lock();
        while state.unsettled > 0 {
            state.check()?;
            self.changed.wait(&mut state);
        }
        state.tell_deferred()?;
        state.check()
    }

    /// Takes a response in.
    pub(super) fn receive(&self, response: proto::Response) -> Result<()> {
        let mut state = self.state.lock();
        let id = response.request_id;
        let Some(purpose) = state.under_way.remove(&id) else {
            let message = format!("a response to request {id}, which is not under way");
            return Err(Error::new(Code::Internal, message));
        };
        let error = response.status.clone().map(Error::from);
        match (purpose, error) {
            (Purpose::Answer, _) => drop(state.answers.insert(id, response)),
            (Purpose::Stage(step), Some(error)) => drop(state.refused_stages.insert(step, error)),
            (Purpose::Stage(_), None) => {}
            (Purpose::Push(step), error) => state.settle_push(step, error),
            (Purpose::PushOnDevice(step), error) => state.settle_push_on_device(step, error),
            (Purpose::Release(step), error) => state.settle_release(step, error),
        }
        drop(state);
        self.changed.notify_all();
        Ok(())
    }

    /// Takes note that the stream is over; everyone who waits is told.
    pub(super) fn lose(&self, error: Error) {
        self.state.lock().lost.get_or_insert(error);
        self.changed.notify_all();
    }

    /// Waits until the stream is over, at most until `deadline`.
    pub(super) fn wait_lost(&self, deadline: std::time::Instant) {
        let mut state = self.state.lock();
        while state.lost.is_none() && !self.changed.wait_until(&mut state, deadline).timed_out() {}
    }
}

impl State {
    fn begin(&mut self, purpose: Purpose) -> u64 {
        let id = self.next_id;
        self.next_id += 1;
        self.under_way.insert(id, purpose);
        self.unsettled += match purpose {
            Purpose::Push(_) | Purpose::PushOnDevice(_) | Purpose::Release(_) => 1,
            Purpose::Stage(_) | Purpose::Answer => 0,
        };
        id
    }

    fn check(&self) -> Result<()> {
        self.lost.clone().map_or(Ok(()), Err)
    }

    fn check_staged(&self, step: Step) -> Result<()> {
        match self.refused_stages.get(&step) {
            Some(error) => Err(error.clone()),
            None if self.staged.contains(&step) => Ok(()),
            None => Err(not_staged(step)),
        }
    }

    fn tell_deferred(&mut self) -> Result<()> {
        self.deferred.take().map_or(Ok(()), Err)
    }

    fn settle_push(&mut self, step: Step, error: Option<Error>) {
        self.unsettled -= 1;
        if let Some(error) = error {
            // a step whose stage was refused is unknown to the server: the reason comes first
            let error = self.refused_stages.get(&step).cloned().unwrap_or(error);
            self.staged.insert(step);
            self.deferred.get_or_insert(error);
        }
    }

    /// The device looks at the gradients when the server has let the step go: after those that are
    /// not finite it is over, whereas whatever else was refused left it as it was.
    fn settle_push_on_device(&mut self, step: Step, error: Option<Error>) {
        let is_over = error.as_ref().is_some_and(|error| error.code() == Code::NotFinite);
        self.settle_push(step, error);
        if is_over {
            self.staged.remove(&step);
        }
    }

    fn settle_release(&mut self, step: Step, error: Option<Error>) {
        self.unsettled -= 1;
        let refused = self.refused_stages.remove(&step).is_some();
        if let Some(error) = error
            && !refused
        {
            self.deferred.get_or_insert(error);
        }
    }
}

fn not_staged(step: Step) -> Error {
    Error::new(Code::NotFound, format!("{step} is not staged"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits { staged_steps_max: 2, ..Limits::DEFAULT };

    fn answer(exchange: &Exchange, request_id: u64, error: Option<Error>) {
        let status = error.as_ref().map(proto::Status::from);
        let result = error.is_none().then_some(Outcome::Done(proto::Done {}));
        exchange.receive(proto::Response { request_id, status, result }).unwrap();
    }

    fn fault(code: Code) -> Error {
        Error::new(code, "why")
    }

    #[test]
    fn steps_ascend_and_are_counted_until_pushed_or_released() {
        let exchange = Exchange::new();
        exchange.begin_stage(Step(3), &LIMITS).unwrap();
        let error = exchange.begin_stage(Step(3), &LIMITS).unwrap_err();
        assert_eq!(error.message(), "step 3 is staged after step 3; steps ascend");
        exchange.begin_stage(Step(4), &LIMITS).unwrap();
        assert_eq!(exchange.begin_stage(Step(5), &LIMITS).unwrap_err().code(), Code::SlowDown);
        exchange.begin_push(Step(3)).unwrap();
        exchange.begin_stage(Step(5), &LIMITS).unwrap();
        exchange.begin_release(Step(4)).unwrap();
        exchange.begin_stage(Step(6), &LIMITS).unwrap();
        assert_eq!(exchange.begin_pull(Step(3)).unwrap_err().code(), Code::NotFound);
    }

    #[test]
    fn a_refused_push_is_told_once_and_leaves_its_step_staged() {
        let exchange = Exchange::new();
        exchange.begin_stage(Step(0), &LIMITS).unwrap();
        exchange.begin_stage(Step(1), &LIMITS).unwrap();
        let push = exchange.begin_push(Step(0)).unwrap();
        let pull = exchange.begin_pull(Step(1)).unwrap();
        answer(&exchange, push, Some(fault(Code::NotFinite)));
        answer(&exchange, pull, None);
        let error = exchange.wait_pull(pull, Step(1)).unwrap_err();
        assert_eq!(error.code(), Code::NotFinite, "the pull that follows tells it");
        let push = exchange.begin_push(Step(0)).unwrap();
        answer(&exchange, push, None);
        exchange.settle().unwrap();
    }

    #[test]
    fn a_push_on_a_device_is_over_after_gradients_that_are_not_finite_alone() {
        for (code, is_over) in [(Code::NotFinite, true), (Code::Unavailable, false)] {
            let exchange = Exchange::new();
            exchange.begin_stage(Step(0), &LIMITS).unwrap();
            exchange.begin_stage(Step(1), &LIMITS).unwrap();
            let push = exchange.begin_push_on_device(Step(0)).unwrap();
            answer(&exchange, push, Some(fault(code)));
            assert_eq!(exchange.settle().unwrap_err().code(), code);
            assert_eq!(exchange.begin_stage(Step(2), &LIMITS).is_ok(), is_over, "{code:?}");
            assert_eq!(exchange.begin_push_on_device(Step(0)).is_err(), is_over, "{code:?}");
        }
    }

    #[test]
    fn a_refused_stage_is_told_by_its_pull_until_released() {
        let exchange = Exchange::new();
        let stage = exchange.begin_stage(Step(0), &LIMITS).unwrap();
        let pull = exchange.begin_pull(Step(0)).unwrap();
        answer(&exchange, stage, Some(fault(Code::TooLarge)));
        answer(&exchange, pull, Some(fault(Code::NotFound)));
        for told in [
            exchange.wait_pull(pull, Step(0)).map(|_| ()),
            exchange.begin_pull(Step(0)).map(|_| ()),
            exchange.begin_push(Step(0)).map(|_| ()),
        ] {
            assert_eq!(told.unwrap_err().code(), Code::TooLarge);
        }
        assert_eq!(exchange.begin_release(Step(0)), Ok(None));
        assert_eq!(exchange.begin_release(Step(0)).unwrap_err().code(), Code::NotFound);
        exchange.settle().unwrap();
    }

    #[test]
    fn a_push_sent_before_its_stage_was_refused_tells_the_reason() {
        let exchange = Exchange::new();
        let stage = exchange.begin_stage(Step(0), &LIMITS).unwrap();
        let push = exchange.begin_push(Step(0)).unwrap();
        answer(&exchange, stage, Some(fault(Code::TooLarge)));
        answer(&exchange, push, Some(fault(Code::NotFound)));
        assert_eq!(exchange.settle().unwrap_err().code(), Code::TooLarge);
    }

    #[test]
    fn a_lost_stream_tells_everyone_who_waits_and_everyone_after() {
        let exchange = Exchange::new();
        exchange.begin_stage(Step(0), &LIMITS).unwrap();
        let pull = exchange.begin_pull(Step(0)).unwrap();
        std::thread::scope(|scope| {
            let waiter = scope.spawn(|| exchange.wait_pull(pull, Step(0)));
            exchange.lose(fault(Code::Unavailable));
            assert_eq!(waiter.join().unwrap().unwrap_err().code(), Code::Unavailable);
        });
        assert_eq!(exchange.begin().unwrap_err().code(), Code::Unavailable);
        assert_eq!(exchange.settle().unwrap_err().code(), Code::Unavailable);
    }

    #[test]
    fn a_response_to_no_request_is_a_fault_of_the_server() {
        let response = proto::Response { request_id: 7, ..Default::default() };
        assert_eq!(Exchange::new().receive(response).unwrap_err().code(), Code::Internal);
    }
}
