//! What can keep a server from starting or stopping well, and the one function that turns a fault
//! of the tiers into a session's error.

use std::io;
use std::path::PathBuf;
use std::process::ExitCode;

use wire::Code;

/// A [`std::result::Result`] with this crate's [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

/// Why the server does not start, or did not stop well.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The configuration file can't be read.
    #[error("configuration {}: {source}", path.display())]
    ConfigFile {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The configuration file is not what it must be.
    #[error("configuration {}: {source}", path.display())]
    ConfigSyntax {
        /// The file.
        path: PathBuf,
        /// The line, the column, and what was expected there.
        source: Box<toml::de::Error>,
    },
    /// A setting, of the file or a flag, is outside its range.
    #[error("{setting} is {found}, expected {expected}")]
    Setting {
        /// Its name in the configuration file; the flag's has dashes.
        setting: &'static str,
        /// What was given.
        found: String,
        /// What would have been accepted.
        expected: String,
    },
    /// The store can't be opened or closed.
    #[error("data directory {}: {source}", dir.display())]
    Store {
        /// The directory.
        dir: PathBuf,
        /// What is wrong with it.
        source: Box<tiers::Error>,
    },
    /// An address can't be listened at.
    #[error("can't listen at {address}: {reason}")]
    Listen {
        /// The address.
        address: String,
        /// Why.
        reason: String,
    },
    /// A file the user asked for can't be written.
    #[error("can't write {}: {source}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A thread or the network's machinery can't be started.
    #[error("{context}: {source}")]
    System {
        /// What was being done.
        context: &'static str,
        /// What the system said.
        source: io::Error,
    },
}

impl Error {
    /// 2 where the user's input is at fault, 1 where the world is.
    pub fn exit_code(&self) -> ExitCode {
        ExitCode::from(if self.is_bad_input() { 2 } else { 1 })
    }

    /// Whether the user's input is at fault rather than the world.
    pub fn is_bad_input(&self) -> bool {
        match self {
            Error::ConfigFile { .. } | Error::ConfigSyntax { .. } | Error::Setting { .. } => true,
            Error::Store { source, .. } => is_unusable_dir(source),
            Error::Listen { .. } | Error::Write { .. } | Error::System { .. } => false,
        }
    }
}

/// Whether another directory or another budget would have done.
fn is_unusable_dir(error: &tiers::Error) -> bool {
    matches!(
        error,
        tiers::Error::Config { .. }
            | tiers::Error::NotAStore { .. }
            | tiers::Error::NewerFormat { .. }
            | tiers::Error::Locked { .. }
            | tiers::Error::Io { .. }
    )
}

/// The error that tells a session what the tiers met.
pub(crate) fn session_error(error: &tiers::Error) -> wire::Error {
    let code = match error {
        tiers::Error::Config { .. }
        | tiers::Error::Table(_)
        | tiers::Error::OtherDevice { .. }
        | tiers::Error::Slots(_)
        | tiers::Error::InvalidArgument { .. } => Code::InvalidArgument,
        tiers::Error::UnknownTable { .. } => Code::NotFound,
        tiers::Error::AlreadyExists { .. } => Code::AlreadyExists,
        tiers::Error::TooManyTables { .. }
        | tiers::Error::BatchTooLarge { .. }
        | tiers::Error::ShareTooSmall { .. } => Code::TooLarge,
        tiers::Error::NotFinite { .. } | tiers::Error::LearningRate { .. } => Code::NotFinite,
        tiers::Error::SlowDown { .. } => Code::SlowDown,
        tiers::Error::Poisoned { .. } => Code::Poisoned,
        tiers::Error::Closed => Code::Unavailable,
        tiers::Error::Corrupt { .. }
        | tiers::Error::CorruptMeta { .. }
        | tiers::Error::NewerFormat { .. } => Code::Corrupt,
        tiers::Error::Ssd { .. } if error.is_damage() => Code::Corrupt,
        // a read that failed: a write that fails poisons the store and says so itself
        tiers::Error::Ssd { .. } | tiers::Error::Io { .. } => Code::Internal,
        tiers::Error::NotAStore { .. }
        | tiers::Error::Locked { .. }
        | tiers::Error::NoDevice(_)
        | tiers::Error::NoDeviceCode(_)
        | tiers::Error::Device(_) => Code::Internal,
        _ => Code::Internal, // one that is newer than this table
    };
    wire::Error::new(code, error.to_string())
}
