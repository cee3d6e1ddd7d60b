//! A connection for single calls: what the server is, its tables, its status. A thread of its own
//! runs the network; callers wait. It knows nothing of steps.

use std::future::Future;
use std::sync::mpsc::sync_channel;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use table::{Limits, StoreStatus, TableId, TableSpec};
use tokio::runtime::{Builder, Handle};
use tokio::sync::oneshot;
use tonic::transport::Channel;

use super::transport;
use crate::grpc_status::from_grpc_status;
use crate::proto::parameter_server_client::ParameterServerClient;
use crate::proto::{self, decoded_bytes_max};
use crate::{Code, Endpoint, Error, Result};

/// An open connection to one server. Its methods wait; they must not be called on a thread that
/// runs asynchronous tasks.
pub struct Connection {
    client: ParameterServerClient<Channel>,
    network: Network,
    address: String,
    version: String,
    limits: Limits,
}

impl Connection {
    /// Connects, and asks the server what it is and allows.
    pub fn open(endpoint: &Endpoint, timeout: Duration) -> Result<Self> {
        transport::check(endpoint)?;
        let network = Network::start()?;
        let address = endpoint.to_string();
        let endpoint = endpoint.clone();
        let (channel, server) = network.wait(async move {
            let channel = transport::open(&endpoint, timeout).await?;
            let mut client = ParameterServerClient::new(channel.clone());
            let asked = client.get_server(proto::GetServerRequest {});
            let Ok(answer) = tokio::time::timeout(timeout, asked).await else {
                return Err(transport::no_answer(&endpoint, timeout));
            };
            let answer = answer.map_err(|status| from_grpc_status(&endpoint.to_string(), &status));
            Ok((channel, answer?.into_inner()))
        })??;
        let limits: Limits = server
            .limits
            .ok_or_else(|| Error::new(Code::Internal, format!("{address} tells no limits")))?
            .into();
        let bytes_max = decoded_bytes_max(limits.message_bytes_max);
        let client = ParameterServerClient::new(channel)
            .max_decoding_message_size(bytes_max)
            .max_encoding_message_size(bytes_max);
        Ok(Self { client, network, address, version: server.version, limits })
    }

    /// The server's address, as the user wrote it.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// The server's version.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// What the server allows a session.
    pub fn limits(&self) -> Limits {
        self.limits
    }

    /// Every table, in the order of their numbers.
    pub fn tables(&self) -> Result<Vec<(TableId, TableSpec)>> {
        let mut client = self.client.clone();
        let answer =
            self.call(async move { client.list_tables(proto::ListTablesRequest {}).await })?;
        answer.tables.into_iter().map(TryInto::try_into).collect()
    }

    /// Makes a table, or finds the one of that name with the same specification.
    pub fn create_table(&self, spec: &TableSpec) -> Result<TableId> {
        spec.validate()?;
        let mut client = self.client.clone();
        let request = proto::CreateTableRequest { spec: Some(spec.into()) };
        let answer = self.call(async move { client.create_table(request).await })?;
        Ok(TableId(answer.table))
    }

    /// Rows, bytes and counters of every table and tier.
    pub fn status(&self) -> Result<StoreStatus> {
        let mut client = self.client.clone();
        let answer =
            self.call(async move { client.get_status(proto::GetStatusRequest {}).await })?;
        let lacks = || Error::new(Code::Internal, format!("{} tells no status", self.address));
        answer.status.ok_or_else(lacks)?.try_into()
    }

    /// A client of the same channel, for the stream of a session.
    pub(super) fn client(&self) -> ParameterServerClient<Channel> {
        self.client.clone()
    }

    pub(super) fn network(&self) -> &Network {
        &self.network
    }

    /// Waits for a single call and maps its status.
    fn call<T: Send + 'static>(
        &self,
        call: impl Future<Output = std::result::Result<tonic::Response<T>, tonic::Status>>
        + Send
        + 'static,
    ) -> Result<T> {
        let answer = self.network.wait(call)?;
        answer
            .map(tonic::Response::into_inner)
            .map_err(|status| from_grpc_status(&self.address, &status))
    }
}

/// The thread that runs a connection's network. Dropping it ends every task on it.
pub(super) struct Network {
    handle: Handle,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Network {
    fn start() -> Result<Self> {
        let fault =
            |error| Error::new(Code::Internal, format!("can't start the network thread: {error}"));
        let runtime = Builder::new_current_thread().enable_all().build().map_err(fault)?;
        let handle = runtime.handle().clone();
        let (stop, stopped) = oneshot::channel();
        let run = move || {
            let _ = runtime.block_on(stopped);
        };
        let thread =
            thread::Builder::new().name("ps-client".to_owned()).spawn(run).map_err(fault)?;
        Ok(Self { handle, stop: Some(stop), thread: Some(thread) })
    }

    /// Runs `task` on the network thread.
    pub(super) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.handle.spawn(task);
    }

    /// Runs `task` on the network thread and waits for what it gives.
    pub(super) fn wait<T: Send + 'static>(
        &self,
        task: impl Future<Output = T> + Send + 'static,
    ) -> Result<T> {
        let (give, taken) = sync_channel(1);
        self.handle.spawn(async move {
            let _ = give.send(task.await); // capacity 1: never waits
        });
        taken.recv().map_err(|_| Error::new(Code::Internal, "the network thread is gone"))
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
