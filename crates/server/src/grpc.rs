//! The gRPC service: single calls, and one stream a session. Nothing here blocks the network's
//! threads: single calls go to threads that may wait, a stream's requests to a thread of its own.

use std::sync::Arc;
use std::thread;

use table::TableSpec;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};
use wire::proto::parameter_server_server::{ParameterServer, ParameterServerServer};
use wire::proto::request::Request as Asked;
use wire::proto::response::Result as Outcome;
use wire::{Code, Error, proto, to_grpc_status};

use crate::conversation::{Conversation, respond};
use crate::engine::Engine;
use crate::metrics::Operation;
use crate::session::EngineSession;

/// Requests of a stream that wait for its thread; the network keeps the rest back.
const REQUESTS_QUEUED_MAX: usize = 4;
/// Responses that wait for the network.
const RESPONSES_QUEUED_MAX: usize = 4;

const VERSION: &str = env!("CARGO_PKG_VERSION");

type Responses = mpsc::Sender<Result<proto::Response, Status>>;

/// The service over one engine. Its streams end when `stopping` becomes true.
pub(crate) struct Service {
    engine: Arc<Engine>,
    stopping: watch::Receiver<bool>,
}

/// The service, with the limits of `engine` on its messages.
pub(crate) fn service(
    engine: &Arc<Engine>,
    stopping: watch::Receiver<bool>,
) -> ParameterServerServer<Service> {
    let bytes_max = proto::decoded_bytes_max(engine.limits().message_bytes_max);
    ParameterServerServer::new(Service { engine: Arc::clone(engine), stopping })
        .max_decoding_message_size(bytes_max)
        .max_encoding_message_size(bytes_max)
}

#[tonic::async_trait]
impl ParameterServer for Service {
    async fn get_server(
        &self,
        _: Request<proto::GetServerRequest>,
    ) -> Result<Response<proto::GetServerResponse>, Status> {
        let limits = Some(self.engine.limits().into());
        Ok(Response::new(proto::GetServerResponse { version: VERSION.to_owned(), limits }))
    }

    async fn create_table(
        &self,
        request: Request<proto::CreateTableRequest>,
    ) -> Result<Response<proto::CreateTableResponse>, Status> {
        let spec = request.into_inner().spec;
        self.call(Operation::CreateTable, move |engine| {
            let missing = || Error::new(Code::InvalidArgument, "no specification of a table");
            let table = engine.create_table(&TableSpec::try_from(spec.ok_or_else(missing)?)?)?;
            Ok(proto::CreateTableResponse { table: table.0 })
        })
        .await
    }

    async fn list_tables(
        &self,
        _: Request<proto::ListTablesRequest>,
    ) -> Result<Response<proto::ListTablesResponse>, Status> {
        self.call(Operation::ListTables, |engine| {
            let tables = engine.tables().iter().map(proto::Table::from).collect();
            Ok(proto::ListTablesResponse { tables })
        })
        .await
    }

    async fn get_status(
        &self,
        _: Request<proto::GetStatusRequest>,
    ) -> Result<Response<proto::GetStatusResponse>, Status> {
        self.call(Operation::GetStatus, |engine| {
            Ok(proto::GetStatusResponse { status: Some((&engine.status()).into()) })
        })
        .await
    }

    type SessionStream = ReceiverStream<Result<proto::Response, Status>>;

    async fn session(
        &self,
        request: Request<Streaming<proto::Request>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let (responses, answered) = mpsc::channel(RESPONSES_QUEUED_MAX);
        let (engine, mut stopping) = (Arc::clone(&self.engine), self.stopping.clone());
        tokio::spawn(async move {
            let mut incoming = request.into_inner();
            tokio::select! {
                () = converse(&engine, &mut incoming, &responses) => {}
                _ = stopping.wait_for(|stopping| *stopping) => {}
            }
        });
        Ok(Response::new(ReceiverStream::new(answered)))
    }
}

impl Service {
    /// Answers a single call on a thread that may wait: the store reads its files.
    async fn call<T: Send + 'static>(
        &self,
        operation: Operation,
        answer: impl FnOnce(&Engine) -> wire::Result<T> + Send + 'static,
    ) -> Result<Response<T>, Status> {
        let engine = Arc::clone(&self.engine);
        let answered = tokio::task::spawn_blocking(move || {
            let timer = engine.metrics().start(operation);
            let outcome = answer(&engine);
            timer.finish(engine.metrics(), outcome.as_ref().err());
            outcome
        });
        match answered.await {
            Ok(outcome) => outcome.map(Response::new).map_err(|error| to_grpc_status(&error)),
            Err(_) => Err(to_grpc_status(&Error::new(Code::Internal, "the call panicked"))),
        }
    }
}

/// Opens a session as soon as the stream asks for one, and hands its requests on until they end.
async fn converse(
    engine: &Arc<Engine>,
    incoming: &mut Streaming<proto::Request>,
    responses: &Responses,
) {
    let Some((session, client)) = open(engine, incoming, responses).await else { return };
    let number = session.number();
    let conversation = Conversation::new(session, engine.metrics().clone());
    let (requests, queue) = mpsc::channel(REQUESTS_QUEUED_MAX);
    let answers = responses.clone();
    let talk = move || {
        tracing::info!(session = number, client, "session opened");
        conversation.run(queue, &answers);
        tracing::info!(session = number, client, "session closed");
    };
    if let Err(error) = thread::Builder::new().name(format!("session-{number}")).spawn(talk) {
        let error = Error::new(Code::Internal, format!("can't start a thread: {error}"));
        let _ = responses.send(Err(to_grpc_status(&error))).await;
        return;
    }
    while let Some(request) = next(incoming, responses).await {
        if requests.send(request).await.is_err() {
            return;
        }
    }
}

/// Answers requests until one opens the session. A stream that has none costs no thread.
async fn open(
    engine: &Arc<Engine>,
    incoming: &mut Streaming<proto::Request>,
    responses: &Responses,
) -> Option<(EngineSession, String)> {
    while let Some(request) = next(incoming, responses).await {
        let outcome = match request.request {
            Some(Asked::Open(open)) => engine.open_session().map(|session| (session, open.client)),
            _ => Err(Error::new(Code::InvalidArgument, "the first request is to open")),
        };
        let opened = |_: &_| {
            let limits = Some(engine.limits().into());
            let device = engine.device_for_others();
            let device = device.map(|device| device.0.to_vec().into()).unwrap_or_default();
            Outcome::Opened(proto::Opened { version: VERSION.to_owned(), limits, device })
        };
        let response =
            respond(request.request_id, outcome.as_ref().map(opened).map_err(Clone::clone));
        responses.send(Ok(response)).await.ok()?;
        if let Ok(session) = outcome {
            return Some(session);
        }
    }
    None
}

/// The next request, or `None` at the stream's end. One that can't be read ends the stream.
async fn next(
    incoming: &mut Streaming<proto::Request>,
    responses: &Responses,
) -> Option<proto::Request> {
    match incoming.message().await {
        Ok(request) => request,
        Err(status) => {
            tracing::info!(code = ?status.code(), message = status.message(), "stream broke off");
            let _ = responses.try_send(Err(status)); // it is lost anyway
            None
        }
    }
}
