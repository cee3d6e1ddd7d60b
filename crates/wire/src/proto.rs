//! The messages as the compiler of `proto/` makes them. Nothing here is checked: a message becomes
//! a word of `table` through `words`, and bytes become rows through [`crate::packed`].

#![allow(missing_docs, unreachable_pub, clippy::all, clippy::wildcard_enum_match_arm)]

tonic::include_proto!("embedding_ps.v1");

/// The descriptors of `proto/`, encoded, for the reflection service.
pub const FILE_DESCRIPTOR_SET: &[u8] = tonic::include_file_descriptor_set!("embedding_ps.v1");

/// Bytes by which a message may be over its limit and still be read, so that the answer is a status
/// in the stream and not the stream's end.
pub const MESSAGE_SLACK_BYTES: u64 = 1 << 20;

/// More than the fields of a response take beside its packed rows and statuses.
pub const RESPONSE_FIELDS_BYTES: u64 = 64;

/// The largest message that either end decodes, for a limit of `message_bytes_max`.
pub fn decoded_bytes_max(message_bytes_max: u64) -> usize {
    usize::try_from(message_bytes_max.saturating_add(MESSAGE_SLACK_BYTES)).unwrap_or(usize::MAX)
}

/// The bytes that a request takes on the wire, for comparison with the limit.
pub fn request_bytes(request: &Request) -> u64 {
    prost::Message::encoded_len(request) as u64
}

/// The windows of HTTP/2: a whole message of rows is on its way at once.
pub const WINDOW_BYTES: u32 = 64 << 20;

/// The largest frame of HTTP/2.
pub const FRAME_BYTES_MAX: u32 = 1 << 20;
