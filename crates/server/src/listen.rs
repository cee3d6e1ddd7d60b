//! Binds the addresses that workers connect to. It accepts nothing; `serve` does.

use std::io::ErrorKind;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use tokio::net::{TcpListener, UnixListener};

use crate::config::Listen;
use crate::{Error, Result};

/// A bound address.
pub(crate) enum Bound {
    Tcp(TcpListener),
    Unix(UnixListener, SocketFile),
}

/// The file of a unix socket; it goes when the server does.
pub(crate) struct SocketFile(PathBuf);

impl Bound {
    /// Binds an address. It needs a runtime around it.
    pub(crate) async fn new(listen: &Listen) -> Result<Self> {
        match listen {
            Listen::Tcp(address) => match TcpListener::bind(address).await {
                Ok(listener) => Ok(Bound::Tcp(listener)),
                Err(error) => Err(refused(listen, error.to_string())),
            },
            Listen::Unix(path) => {
                clear_stale(listen, path)?;
                let listener =
                    UnixListener::bind(path).map_err(|error| refused(listen, error.to_string()))?;
                Ok(Bound::Unix(listener, SocketFile(path.clone())))
            }
        }
    }

    /// The address as a worker's `--ps` takes it, with the port that was really bound.
    pub(crate) fn endpoint(&self) -> String {
        match self {
            Bound::Tcp(listener) => match listener.local_addr() {
                Ok(address) => format!("http://{address}"),
                Err(error) => format!("http://unknown ({error})"),
            },
            Bound::Unix(_, file) => format!("unix:{}", file.0.display()),
        }
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_file(&self.0) {
            tracing::warn!(path = %self.0.display(), %error, "socket file not removed");
        }
    }
}

/// Removes the socket of a process that is gone. One that answers, and a file that is no socket,
/// stay.
fn clear_stale(listen: &Listen, path: &Path) -> Result<()> {
    let kind = match std::fs::symlink_metadata(path) {
        Ok(metadata) => metadata.file_type(),
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(refused(listen, error.to_string())),
    };
    if !kind.is_socket() {
        return Err(refused(listen, "the file exists and is not a socket".to_owned()));
    }
    match std::os::unix::net::UnixStream::connect(path) {
        Ok(_) => Err(refused(listen, "another process listens there".to_owned())),
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => {
            tracing::info!(path = %path.display(), "stale socket file removed");
            std::fs::remove_file(path).map_err(|error| refused(listen, error.to_string()))
        }
        Err(error) => Err(refused(listen, error.to_string())),
    }
}

fn refused(listen: &Listen, reason: String) -> Error {
    Error::Listen { address: listen.to_string(), reason }
}
