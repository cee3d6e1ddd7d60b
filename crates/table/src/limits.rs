//! What a server allows one session to ask for. It does not enforce; `server` and `tiers` do.

/// Limits of a session, told to the client when the session opens. Beyond one the request is
/// refused with a status; nothing is queued without bound.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Limits {
    /// Bytes of the largest message, request or response.
    pub message_bytes_max: u64,
    /// Steps that may be staged and not yet pushed or released.
    pub staged_steps_max: u32,
    /// Keys that one request may name.
    pub batch_keys_max: u32,
    /// Tables that a server holds.
    pub tables_max: u32,
    /// Sessions open at once.
    pub sessions_max: u32,
}

impl Limits {
    /// The limits of a server that was told nothing else.
    pub const DEFAULT: Limits = Limits {
        message_bytes_max: 256 << 20,
        staged_steps_max: 256,
        batch_keys_max: 1 << 22,
        tables_max: 4096,
        sessions_max: 64,
    };
}
