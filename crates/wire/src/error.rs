//! The one error of a session: a code that programs act on and a message that people read. It does
//! not map to gRPC statuses of other services; errors of a step travel inside the stream.

use std::fmt;

/// A [`std::result::Result`] with this crate's [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

/// What kind of thing went wrong. The numbers are the wire's and never change their meaning.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
#[repr(u8)]
pub enum Code {
    /// The request breaks a rule: shape, order of keys, order of steps, range of a field.
    InvalidArgument = 1,
    /// No such table, or no such staged step.
    NotFound = 2,
    /// A table of that name exists with another specification.
    AlreadyExists = 3,
    /// A gradient, row or learning rate is not finite.
    NotFinite = 4,
    /// The request is over a limit and never can be served as it is.
    TooLarge = 5,
    /// A queue or the pinned rows are full; the same request may pass later.
    SlowDown = 6,
    /// A durable write, or the GPU, failed: the store refuses work until it is opened again.
    Poisoned = 7,
    /// Stored bytes are not what they must be.
    Corrupt = 8,
    /// The server can't be reached, or went away.
    Unavailable = 9,
    /// A fault of the program itself.
    Internal = 10,
}

/// What went wrong, where, and what was expected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Error {
    code: Code,
    message: String,
}

impl Error {
    /// An error from its parts.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }

    /// What programs act on.
    pub fn code(&self) -> Code {
        self.code
    }

    /// What people read.
    pub fn message(&self) -> &str {
        &self.message
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Error {}

impl From<table::Error> for Error {
    fn from(error: table::Error) -> Self {
        Error::new(Code::InvalidArgument, error.to_string())
    }
}

impl Code {
    /// Whether the caller's input is at fault, rather than the world: such a process exits with 2.
    pub fn is_bad_input(self) -> bool {
        match self {
            Code::InvalidArgument
            | Code::NotFound
            | Code::AlreadyExists
            | Code::NotFinite
            | Code::TooLarge => true,
            Code::SlowDown
            | Code::Poisoned
            | Code::Corrupt
            | Code::Unavailable
            | Code::Internal => false,
        }
    }

    /// The code that a number of the wire stands for; an unknown one is a fault of the peer.
    pub fn from_number(number: u32) -> Code {
        use Code::{
            AlreadyExists, Corrupt, Internal, InvalidArgument, NotFinite, NotFound, Poisoned,
            SlowDown, TooLarge, Unavailable,
        };
        let known = [
            InvalidArgument,
            NotFound,
            AlreadyExists,
            NotFinite,
            TooLarge,
            SlowDown,
            Poisoned,
            Corrupt,
            Unavailable,
            Internal,
        ];
        known.into_iter().find(|code| *code as u32 == number).unwrap_or(Internal)
    }
}
