//! The protocol and its two ends' common words: `trait Session`, its error, the messages.
//!
//! It does not hold rows, schedule work or listen; `server` does.

mod error;
mod session;

pub use error::{Code, Error, Result};
pub use session::{Pulled, Session};
