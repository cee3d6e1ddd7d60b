//! Opens the channel to a server, over TCP or a unix socket, and says plainly why it could not.

use std::error::Error as _;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use table::units::format_duration;
use tokio::net::UnixStream;
use tonic::transport::{self, Channel};

use crate::proto::{FRAME_BYTES_MAX, WINDOW_BYTES};
use crate::{Code, Endpoint, Error, Result};

/// A peer that answers nothing for this long, the probe's interval included, is gone.
const PROBE_INTERVAL: Duration = Duration::from_secs(10);
const PROBE_TIMEOUT: Duration = Duration::from_secs(20);

/// The one server that `endpoint` names, or why it can't be connected to.
pub(super) fn check(endpoint: &Endpoint) -> Result<()> {
    let bad = |why: &str| {
        Err(Error::new(Code::InvalidArgument, format!("can't connect to {endpoint}: {why}")))
    };
    match endpoint {
        Endpoint::Http(servers) if servers.len() > 1 => {
            bad("several servers are not supported yet")
        }
        Endpoint::Embedded(_) => bad("an embedded server is opened, not connected to"),
        Endpoint::Http(_) | Endpoint::Unix(_) => Ok(()),
    }
}

/// Opens a channel. `endpoint` has been through [`check`].
pub(super) async fn open(endpoint: &Endpoint, timeout: Duration) -> Result<Channel> {
    let opening = async {
        match endpoint {
            Endpoint::Unix(path) => open_unix(path.clone()).await,
            Endpoint::Http(_) | Endpoint::Embedded(_) => {
                configured(endpoint.to_string())?.connect().await
            }
        }
    };
    match tokio::time::timeout(timeout, opening).await {
        Ok(Ok(channel)) => Ok(channel),
        Ok(Err(error)) => Err(Error::new(Code::Unavailable, refusal(endpoint, &error))),
        Err(_) => Err(no_answer(endpoint, timeout)),
    }
}

pub(super) fn no_answer(endpoint: &Endpoint, timeout: Duration) -> Error {
    let message = format!("no answer from {endpoint} within {}", format_duration(timeout));
    Error::new(Code::Unavailable, message)
}

async fn open_unix(path: PathBuf) -> std::result::Result<Channel, transport::Error> {
    let connect = move |_| {
        let path = path.clone();
        async move { Ok::<_, io::Error>(TokioIo::new(UnixStream::connect(path).await?)) }
    };
    // the name only fills HTTP's authority; nothing resolves it
    configured("http://localhost".to_owned())?
        .connect_with_connector(tower::service_fn(connect))
        .await
}

fn configured(uri: String) -> std::result::Result<transport::Endpoint, transport::Error> {
    Ok(transport::Endpoint::from_shared(uri)?
        .tcp_nodelay(true)
        .initial_stream_window_size(WINDOW_BYTES)
        .initial_connection_window_size(WINDOW_BYTES)
        .max_frame_size(FRAME_BYTES_MAX)
        .http2_keep_alive_interval(PROBE_INTERVAL)
        .keep_alive_timeout(PROBE_TIMEOUT))
}

/// Why no channel came about, in words; the transport's own error only says "transport error".
fn refusal(endpoint: &Endpoint, error: &transport::Error) -> String {
    let mut reason = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        reason = error.to_string();
        let kind = error.downcast_ref::<io::Error>().map(io::Error::kind);
        if kind == Some(io::ErrorKind::ConnectionRefused) {
            return format!("nothing listens at {endpoint} (connection refused)");
        }
        if kind == Some(io::ErrorKind::NotFound) {
            return format!("nothing listens at {endpoint} (no such socket)");
        }
        cause = error.source();
    }
    format!("can't connect to {endpoint}: {reason}")
}
