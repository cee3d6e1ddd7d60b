//! [`GrpcSession`]: a session over one stream. Requests go out in the order of the calls through a
//! bounded queue; a caller waits only for what it asked. It keeps no rows.

use std::sync::Arc;
use std::time::{Duration, Instant};

use table::{
    DeviceId, DevicePlaces, KeyBatch, Limits, RowStatus, Step, StoreStatus, TableId, TableSpec,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use super::connection::Connection;
use super::exchange::Exchange;
use crate::grpc_status::from_grpc_status;
use crate::proto::request::Request as Asked;
use crate::proto::response::Result as Outcome;
use crate::words::{device_of, stage_of, unpack_statuses};
use crate::{Code, Endpoint, Error, Pulled, Result, Session, packed, proto};

/// Messages that wait to be sent. A push is as large as a step's rows, so few.
const REQUESTS_QUEUED_MAX: usize = 8;

/// How long a dropped session waits for the server to take in what was queued.
const FAREWELL: Duration = Duration::from_secs(5);

/// A [`Session`] over a connection. Its methods wait; they must not be called on a thread that runs
/// asynchronous tasks.
pub struct GrpcSession {
    requests: Option<mpsc::Sender<proto::Request>>, // `None` once dropping
    exchange: Arc<Exchange>,
    connection: Connection,
    device: Option<DeviceId>, // the server's
}

impl GrpcSession {
    /// Connects and opens a session. `client` names the caller in the server's log.
    pub fn open(endpoint: &Endpoint, timeout: Duration, client: &str) -> Result<Self> {
        let connection = Connection::open(endpoint, timeout)?;
        let (requests, queued) = mpsc::channel(REQUESTS_QUEUED_MAX);
        let exchange = Arc::new(Exchange::new());
        let address = connection.address().to_owned();
        let mut stub = connection.client();
        let shared = Arc::clone(&exchange);
        connection.network().spawn(async move {
            let end = match stub.session(ReceiverStream::new(queued)).await {
                Ok(responses) => receive(responses.into_inner(), &shared, &address).await,
                Err(status) => from_grpc_status(&address, &status),
            };
            shared.lose(end);
        });
        let mut session = Self { requests: Some(requests), exchange, connection, device: None };
        let outcome = session.ask(Asked::Open(proto::Open { client: client.to_owned() }))?;
        let Outcome::Opened(opened) = outcome else { return Err(unexpected("Opened", &outcome)) };
        if !opened.device.is_empty() {
            session.device = Some(device_of(&opened.device)?);
        }
        Ok(session)
    }

    /// The connection, for single calls.
    pub fn connection(&self) -> &Connection {
        &self.connection
    }

    /// Sends a request and waits for its answer.
    fn ask(&self, asked: Asked) -> Result<Outcome> {
        let id = self.send(asked, || self.exchange.begin())?;
        self.exchange.wait(id)
    }

    /// Checks a request's size, takes note of it by `begin`, and queues it.
    fn send(&self, asked: Asked, begin: impl FnOnce() -> Result<u64>) -> Result<u64> {
        let mut request = proto::Request { request_id: u64::MAX, request: Some(asked) };
        let bytes = proto::request_bytes(&request); // with the longest id, so an upper bound
        self.check_bytes("request", bytes)?;
        request.request_id = begin()?;
        let id = request.request_id;
        let requests = self.requests.as_ref().ok_or_else(|| self.gone())?;
        if requests.blocking_send(request).is_err() {
            self.exchange.lose(self.gone());
        }
        Ok(id)
    }

    fn check_bytes(&self, what: &str, bytes: u64) -> Result<()> {
        let bytes_max = self.connection.limits().message_bytes_max;
        if bytes <= bytes_max {
            return Ok(());
        }
        let message =
            format!("the {what} takes {bytes} bytes, the server's message limit is {bytes_max}");
        Err(Error::new(Code::TooLarge, message))
    }

    /// Refuses a request whose response, of `rows` floats and `statuses`, would be over the limit.
    fn check_rows(&self, rows: &[f32], statuses: usize) -> Result<()> {
        let bytes = size_of_val(rows) as u64 + statuses as u64 + proto::RESPONSE_FIELDS_BYTES;
        self.check_bytes("response", bytes)
    }

    fn check_keys(&self, keys: &KeyBatch) -> Result<()> {
        let keys_max = self.connection.limits().batch_keys_max;
        if keys.len() <= keys_max as usize {
            return Ok(());
        }
        let message = format!("the request names {} keys, the limit is {keys_max}", keys.len());
        Err(Error::new(Code::TooLarge, message))
    }

    /// Pulls a step's rows, with as many statuses as the caller takes.
    fn ask_rows(
        &self,
        step: Step,
        rows: &mut [f32],
        statuses: Option<usize>,
    ) -> Result<proto::Rows> {
        self.check_rows(rows, statuses.unwrap_or(0))?;
        let asked = Asked::Pull(proto::Pull { step: step.0, statuses: statuses.is_some() });
        let id = self.send(asked, || self.exchange.begin_pull(step))?;
        let outcome = self.exchange.wait_pull(id, step)?;
        let Outcome::Rows(answer) = outcome else { return Err(unexpected("Rows", &outcome)) };
        unpack_rows(&answer.rows, rows)?;
        Ok(answer)
    }

    fn gone(&self) -> Error {
        gone(self.connection.address())
    }
}

impl Session for GrpcSession {
    fn limits(&self) -> Limits {
        self.connection.limits()
    }

    fn tables(&self) -> Result<Vec<(TableId, TableSpec)>> {
        self.connection.tables()
    }

    fn create_table(&self, spec: &TableSpec) -> Result<TableId> {
        self.connection.create_table(spec)
    }

    fn stage(&self, step: Step, keys: &KeyBatch) -> Result<()> {
        self.check_keys(keys)?;
        let asked = Asked::Stage(stage_of(step, keys));
        let limits = self.connection.limits();
        self.send(asked, || self.exchange.begin_stage(step, &limits)).map(|_| ())
    }

    fn pull(&self, step: Step, rows: &mut [f32]) -> Result<Pulled> {
        let answer = self.ask_rows(step, rows, None)?;
        Ok(Pulled { stalled: Duration::from_nanos(answer.stalled_ns) })
    }

    fn pull_with_statuses(
        &self,
        step: Step,
        rows: &mut [f32],
        statuses: &mut [RowStatus],
    ) -> Result<Pulled> {
        let answer = self.ask_rows(step, rows, Some(statuses.len()))?;
        take_statuses(&answer.statuses, statuses)?;
        Ok(Pulled { stalled: Duration::from_nanos(answer.stalled_ns) })
    }

    fn push(&self, step: Step, gradients: &[f32], learning_rate: f32) -> Result<()> {
        // before the copy: the gradients of a step are most of its bytes
        self.check_bytes("request", size_of_val(gradients) as u64)?;
        let gradients = packed::pack_floats(gradients);
        let asked = Asked::Push(proto::Push { step: step.0, learning_rate, gradients });
        self.send(asked, || self.exchange.begin_push(step)).map(|_| ())
    }

    fn release(&self, step: Step) -> Result<()> {
        let Some(request_id) = self.exchange.begin_release(step)? else { return Ok(()) };
        let asked = Asked::Release(proto::Release { step: step.0 });
        self.send(asked, || Ok(request_id)).map(|_| ())
    }

    fn settle(&self) -> Result<()> {
        self.exchange.settle()
    }

    fn lookup(&self, keys: &KeyBatch, rows: &mut [f32], statuses: &mut [RowStatus]) -> Result<()> {
        self.check_keys(keys)?;
        self.check_rows(rows, statuses.len())?;
        if statuses.len() != keys.len() {
            let message = format!("{} statuses for {} keys", statuses.len(), keys.len());
            return Err(Error::new(Code::InvalidArgument, message));
        }
        let outcome = self.ask(Asked::Lookup(proto::Lookup { keys: Some(keys.into()) }))?;
        let Outcome::LookedUp(answer) = outcome else {
            return Err(unexpected("LookedUp", &outcome));
        };
        unpack_rows(&answer.rows, rows)?;
        take_statuses(&answer.statuses, statuses)
    }

    fn assign(&self, keys: &KeyBatch, rows: &[f32]) -> Result<()> {
        self.check_keys(keys)?;
        self.check_bytes("request", size_of_val(rows) as u64)?;
        let rows = packed::pack_floats(rows);
        let outcome = self.ask(Asked::Assign(proto::Assign { keys: Some(keys.into()), rows }))?;
        let Outcome::Done(_) = outcome else { return Err(unexpected("Done", &outcome)) };
        Ok(())
    }

    fn status(&self) -> Result<StoreStatus> {
        self.connection.status()
    }

    fn device(&self) -> Option<DeviceId> {
        self.device
    }

    fn is_elsewhere(&self) -> bool {
        true
    }

    fn share_device(&self, places: &DevicePlaces) -> Result<()> {
        let outcome = self.ask(Asked::ShareDevice(places.try_into()?))?;
        let Outcome::Done(_) = outcome else { return Err(unexpected("Done", &outcome)) };
        Ok(())
    }

    fn pull_on_device(&self, step: Step, slot: u32) -> Result<Pulled> {
        let asked = Asked::PullOnDevice(proto::PullOnDevice { step: step.0, slot });
        let id = self.send(asked, || self.exchange.begin_pull(step))?;
        let outcome = self.exchange.wait_pull(id, step)?;
        let Outcome::PulledOnDevice(answer) = outcome else {
            return Err(unexpected("PulledOnDevice", &outcome));
        };
        Ok(Pulled { stalled: Duration::from_nanos(answer.stalled_ns) })
    }

    fn push_on_device(&self, step: Step, slot: u32, learning_rate: f32) -> Result<()> {
        let push = proto::PushOnDevice { step: step.0, slot, learning_rate };
        // a rate that is no number is refused before the server looks at the step
        let begin = || match learning_rate.is_finite() {
            true => self.exchange.begin_push_on_device(step),
            false => self.exchange.begin_push(step),
        };
        self.send(Asked::PushOnDevice(push), begin).map(|_| ())
    }
}

impl Drop for GrpcSession {
    /// Ends the stream and gives the server a moment to take in what was queued.
    fn drop(&mut self) {
        drop(self.requests.take());
        self.exchange.wait_lost(Instant::now() + FAREWELL);
    }
}

/// Takes responses in until the stream ends, and says how it ended.
async fn receive(
    mut responses: Streaming<proto::Response>,
    exchange: &Exchange,
    address: &str,
) -> Error {
    loop {
        match responses.message().await {
            Ok(Some(response)) => {
                if let Err(error) = exchange.receive(response) {
                    return error;
                }
            }
            Ok(None) => return gone(address),
            Err(status) => return from_grpc_status(address, &status),
        }
    }
}

fn unpack_rows(packed: &[u8], rows: &mut [f32]) -> Result<()> {
    let floats = packed::count_floats("rows", packed)?;
    if floats != rows.len() {
        let message = format!("the buffer takes {} floats, the rows have {floats}", rows.len());
        return Err(Error::new(Code::InvalidArgument, message));
    }
    packed::unpack_floats(packed, rows);
    Ok(())
}

/// A server that is older than statuses at a pull sends none; that is told, not guessed at.
fn take_statuses(packed: &[u8], statuses: &mut [RowStatus]) -> Result<()> {
    let told = unpack_statuses(packed)?;
    if told.len() != statuses.len() {
        let message = format!("{} statuses came, the buffer takes {}", told.len(), statuses.len());
        return Err(Error::new(Code::InvalidArgument, message));
    }
    statuses.copy_from_slice(&told);
    Ok(())
}

fn gone(address: &str) -> Error {
    Error::new(Code::Unavailable, format!("the server at {address} ended the session"))
}

fn unexpected(expected: &str, found: &Outcome) -> Error {
    let found = match found {
        Outcome::Opened(_) => "Opened",
        Outcome::Rows(_) => "Rows",
        Outcome::LookedUp(_) => "LookedUp",
        Outcome::Done(_) => "Done",
        Outcome::PulledOnDevice(_) => "PulledOnDevice",
    };
    Error::new(Code::Internal, format!("the server answered {found}, expected {expected}"))
}
