//! The protocol and its two ends' common words: `trait Session`, its error, the messages, and the
//! client over TCP and unix sockets.
//!
//! It does not hold rows, schedule work or listen; `server` does.

pub mod client;
mod endpoint;
mod error;
mod grpc_status;
pub mod packed;
pub mod proto;
mod session;
mod words;

pub use endpoint::Endpoint;
pub use error::{Code, Error, Result};
pub use grpc_status::{from_grpc_status, to_grpc_status};
pub use session::{Pulled, Session};
pub use words::{pack_statuses, unpack_statuses};
