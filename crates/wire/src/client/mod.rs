//! The client's end: [`Connection`] for single calls (tables, status) and [`GrpcSession`], a
//! [`crate::Session`] over one stream. Both are synchronous; a thread of their own runs the
//! network.
//!
//! It does not retry and does not reconnect: a session that is lost is lost with what it staged.

mod connection;
mod exchange;
mod session;
mod transport;

pub use connection::Connection;
pub use session::GrpcSession;

/// How long opening a connection may take, unless told otherwise.
pub const CONNECT_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(5);
