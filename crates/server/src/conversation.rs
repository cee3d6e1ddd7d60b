//! Answers the requests of one stream, one after the other, on a thread of its own. It checks what
//! comes and turns messages into calls of an [`EngineSession`]; it holds no rows and knows no
//! socket.

use std::time::Duration;

use table::{DevicePlaces, KeyBatch, RowStatus, Step};
use tokio::sync::mpsc;
use tonic::Status;
use wire::proto::request::Request as Asked;
use wire::proto::response::Result as Outcome;
use wire::{Code, Error, Result, Session, packed, proto};

use crate::elsewhere;
use crate::metrics::{Metrics, Operation};
use crate::session::EngineSession;

/// A session with the memory that its requests reuse.
pub(crate) struct Conversation {
    session: EngineSession,
    metrics: Metrics,
    message_bytes_max: u64,
    scratch: Vec<f32>, // unpacked gradients or rows: a message's bytes are not aligned
}

impl Conversation {
    pub(crate) fn new(session: EngineSession, metrics: Metrics) -> Self {
        let message_bytes_max = session.limits().message_bytes_max;
        Self { session, metrics, message_bytes_max, scratch: Vec::new() }
    }

    /// Answers until the requests end. What came is carried out even if nobody takes the answers
    /// any more: a worker's pushes count from when they arrive.
    pub(crate) fn run(
        mut self,
        mut requests: mpsc::Receiver<proto::Request>,
        responses: &mpsc::Sender<std::result::Result<proto::Response, Status>>,
    ) {
        while let Some(request) = requests.blocking_recv() {
            // a worker that was killed may have left more requests than wait here
            let gone = || requests.is_closed() || responses.is_closed();
            let response = self.answer(request, &gone);
            let _ = responses.blocking_send(Ok(response));
        }
    }

    /// Answers a request; `gone` tells whether nobody sends any more.
    fn answer(&mut self, request: proto::Request, gone: &dyn Fn() -> bool) -> proto::Response {
        let request_id = request.request_id;
        let outcome = self
            .check_bytes("request", proto::request_bytes(&request))
            .and_then(|()| request.request.ok_or_else(unknown_request))
            .and_then(|asked| self.carry_out(asked, gone));
        respond(request_id, outcome)
    }

    fn carry_out(&mut self, asked: Asked, gone: &dyn Fn() -> bool) -> Result<Outcome> {
        let operation = match asked {
            Asked::Open(_) => {
                return Err(Error::new(Code::InvalidArgument, "the session is open already"));
            }
            Asked::Stage(_) => Operation::Stage,
            Asked::Pull(_) | Asked::PullOnDevice(_) => Operation::Pull,
            Asked::Push(_) | Asked::PushOnDevice(_) => Operation::Push,
            Asked::Release(_) => Operation::Release,
            Asked::Lookup(_) => Operation::Lookup,
            Asked::Assign(_) => Operation::Assign,
            Asked::ShareDevice(_) => Operation::ShareDevice,
        };
        let timer = self.metrics.start(operation);
        let outcome = match asked {
            Asked::Open(_) => Err(unknown_request()),
            Asked::Stage(stage) => self.stage(stage),
            Asked::Pull(pull) => self.pull(pull),
            Asked::Push(push) => self.push(&push),
            Asked::Release(release) => self.session.release(Step(release.step)).map(done),
            Asked::Lookup(lookup) => self.lookup(lookup),
            Asked::Assign(assign) => self.assign(assign),
            Asked::ShareDevice(share) => self.share_device(share),
            Asked::PullOnDevice(pull) => self.pull_on_device(pull, gone),
            Asked::PushOnDevice(push) => self.push_on_device(push, gone),
        };
        timer.finish(&self.metrics, outcome.as_ref().err());
        outcome
    }

    fn stage(&mut self, stage: proto::Stage) -> Result<Outcome> {
        let (step, keys) = stage.try_into()?;
        self.session.stage(step, &keys).map(done)
    }

    fn pull(&mut self, pull: proto::Pull) -> Result<Outcome> {
        let step = Step(pull.step);
        let ready = self.session.wait_staged(step)?;
        let statuses = if pull.statuses { ready.rows } else { 0 };
        self.check_rows(ready.floats, statuses)?;
        let mut rows = vec![0.0; ready.floats];
        let mut statuses = vec![RowStatus::Failed; statuses];
        if pull.statuses {
            self.session.pull_with_statuses(step, &mut rows, &mut statuses)?;
        } else {
            self.session.pull(step, &mut rows)?;
        }
        Ok(Outcome::Rows(proto::Rows {
            rows: packed::pack_owned_floats(rows),
            stalled_ns: nanoseconds(ready.stalled),
            statuses: wire::pack_statuses(&statuses),
        }))
    }

    fn push(&mut self, push: &proto::Push) -> Result<Outcome> {
        self.unpack("gradients", &push.gradients)?;
        self.session.push(Step(push.step), &self.scratch, push.learning_rate).map(done)
    }

    fn lookup(&mut self, lookup: proto::Lookup) -> Result<Outcome> {
        let keys = keys_of(lookup.keys)?;
        let floats = self.session.rows_floats(&keys)?;
        self.check_rows(floats, keys.len())?;
        let mut rows = vec![0.0; floats];
        let mut statuses = vec![RowStatus::Failed; keys.len()];
        self.session.lookup(&keys, &mut rows, &mut statuses)?;
        Ok(Outcome::LookedUp(proto::LookedUp {
            rows: packed::pack_owned_floats(rows),
            statuses: wire::pack_statuses(&statuses),
        }))
    }

    fn assign(&mut self, assign: proto::Assign) -> Result<Outcome> {
        let keys = keys_of(assign.keys)?;
        self.unpack("rows", &assign.rows)?;
        self.session.assign(&keys, &self.scratch).map(done)
    }

    fn share_device(&mut self, share: proto::ShareDevice) -> Result<Outcome> {
        let places = DevicePlaces::try_from(share)?;
        self.session.share_device(&places).map(done)
    }

    fn pull_on_device(
        &self,
        pull: proto::PullOnDevice,
        gone: &dyn Fn() -> bool,
    ) -> Result<Outcome> {
        let proto::PullOnDevice { step, slot } = pull;
        let pulled = elsewhere::pull(&self.session, Step(step), slot, gone)?;
        let stalled_ns = nanoseconds(pulled.stalled);
        Ok(Outcome::PulledOnDevice(proto::PulledOnDevice { stalled_ns }))
    }

    fn push_on_device(
        &self,
        push: proto::PushOnDevice,
        gone: &dyn Fn() -> bool,
    ) -> Result<Outcome> {
        let proto::PushOnDevice { step, slot, learning_rate } = push;
        elsewhere::push(&self.session, Step(step), slot, learning_rate, gone).map(done)
    }

    /// Unpacks floats into the scratch memory, aligned.
    fn unpack(&mut self, field: &str, bytes: &[u8]) -> Result<()> {
        self.scratch.resize(packed::count_floats(field, bytes)?, 0.0);
        packed::unpack_floats(bytes, &mut self.scratch);
        Ok(())
    }

    /// Refuses a response, of `floats` and `statuses`, that would be over the limit.
    fn check_rows(&self, floats: usize, statuses: usize) -> Result<()> {
        let bytes = (floats * size_of::<f32>() + statuses) as u64;
        self.check_bytes("response", bytes + proto::RESPONSE_FIELDS_BYTES)
    }

    fn check_bytes(&self, what: &str, bytes: u64) -> Result<()> {
        if bytes <= self.message_bytes_max {
            return Ok(());
        }
        let limit = self.message_bytes_max;
        let message =
            format!("the {what} takes {bytes} bytes, the server's message limit is {limit}");
        Err(Error::new(Code::TooLarge, message))
    }
}

/// The response to a request.
pub(crate) fn respond(request_id: u64, outcome: Result<Outcome>) -> proto::Response {
    match outcome {
        Ok(result) => proto::Response { request_id, status: None, result: Some(result) },
        Err(error) => proto::Response { request_id, status: Some((&error).into()), result: None },
    }
}

fn keys_of(keys: Option<proto::Keys>) -> Result<KeyBatch> {
    let missing = || Error::new(Code::InvalidArgument, "the request comes without its keys");
    keys.ok_or_else(missing)?.try_into()
}

fn unknown_request() -> Error {
    Error::new(Code::InvalidArgument, "the request is of a kind that this server does not know")
}

fn done(_: ()) -> Outcome {
    Outcome::Done(proto::Done {})
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
