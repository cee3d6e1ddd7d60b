//! One function each way between this crate's error and gRPC's status. It serves unary calls alone:
//! an error of a stream's request travels inside the stream.

use tonic::Status;

use crate::{Code, Error};

/// The metadata entry that carries the exact [`Code`], since gRPC's codes are coarser.
const CODE_ENTRY: &str = "embedding-ps-code";

/// The status that tells `error` to a caller of a unary call.
pub fn to_grpc_status(error: &Error) -> Status {
    let code = match error.code() {
        Code::InvalidArgument | Code::NotFinite => tonic::Code::InvalidArgument,
        Code::NotFound => tonic::Code::NotFound,
        Code::AlreadyExists => tonic::Code::AlreadyExists,
        Code::TooLarge => tonic::Code::OutOfRange,
        Code::SlowDown => tonic::Code::ResourceExhausted,
        Code::Poisoned => tonic::Code::FailedPrecondition,
        Code::Corrupt => tonic::Code::DataLoss,
        Code::Unavailable => tonic::Code::Unavailable,
        Code::Internal => tonic::Code::Internal,
    };
    let mut status = Status::new(code, error.message());
    status.metadata_mut().insert(CODE_ENTRY, (error.code() as u8 as u32).into());
    status
}

/// The error that a status of the server at `address` stands for.
pub fn from_grpc_status(address: &str, status: &Status) -> Error {
    let number = status.metadata().get(CODE_ENTRY).and_then(|entry| entry.to_str().ok());
    if let Some(number) = number.and_then(|text| text.parse().ok()) {
        return Error::new(Code::from_number(number), status.message());
    }
    if status.code() == tonic::Code::OutOfRange {
        return Error::new(Code::TooLarge, status.message());
    }
    // everything else comes from the transport: the server's own errors carry their code
    let message = if status.code() == tonic::Code::Unimplemented {
        format!("the server at {address} does not speak embedding_ps.v1")
    } else {
        format!("connection to {address} failed: {}", reason(status))
    };
    Error::new(Code::Unavailable, message)
}

/// The innermost cause that a status knows.
fn reason(status: &Status) -> String {
    let mut cause = std::error::Error::source(status);
    let mut reason = status.message().to_owned();
    while let Some(error) = cause {
        reason = error.to_string();
        cause = error.source();
    }
    reason
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_survives_the_way_there_and_back() {
        for number in 1..=10 {
            let error = Error::new(Code::from_number(number), "what and where");
            assert_eq!(error.code() as u32, number);
            assert_eq!(from_grpc_status("x", &to_grpc_status(&error)), error);
        }
    }

    #[test]
    fn a_status_of_another_making_is_a_failed_connection() {
        let error = from_grpc_status("http://h:1", &Status::unknown("broken pipe"));
        assert_eq!(error.code(), Code::Unavailable);
        assert_eq!(error.message(), "connection to http://h:1 failed: broken pipe");
    }
}
