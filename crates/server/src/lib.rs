//! The parameter server: sessions over the tiers of this process, served over gRPC or handed out
//! embedded.
//!
//! [`open_embedded`] gives a [`wire::Session`] without a socket; [`Server`] serves the same engine
//! over TCP and unix sockets; [`run`] is the whole of the `embedding-ps` program.
//!
//! It does not hold rows (`tiers` does) and does not define the protocol (`wire` does).

mod args;
mod config;
mod conversation;
mod elsewhere;
mod embedded;
mod engine;
mod error;
mod grpc;
mod http;
mod listen;
pub mod metrics;
mod run;
mod serve;
mod session;

pub use args::{Args, Safety};
pub use config::{
    Config, ConfigToml, LimitsToml, Listen, Rate, Size, Span, Switch, TableRam, TableToml,
};
pub use embedded::{Embedded, EmbeddedConfig, open_embedded};
pub use engine::{Engine, EngineConfig, SsdConfig};
pub use error::{Error, Result};
pub use run::run;
pub use serve::{Addresses, Server};
pub use session::EngineSession;
pub use tiers::{Durability, TableShare};
