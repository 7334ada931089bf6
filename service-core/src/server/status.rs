//! The statuses that tonic itself makes, set right.
//!
//! Ours carry details ([`crate::error`]), tonic's don't: that is how they are
//! told apart. tonic's mislead a client that decides by code whether to try
//! again, and some repeat what the client sent.

use http::HeaderMap;
use tonic::{Code, Status};

use crate::error::{self, Reason};

/// Name of the header that carries `google.rpc` details.
const DETAILS: &str = "grpc-status-details-bin";

/// The status in headers or trailers, set right in place. Returns its code; no
/// status at all means that a body follows.
pub(super) fn settle(headers: &mut HeaderMap) -> Option<Code> {
    let status = Status::from_header_map(headers)?;
    if status.code() == Code::Ok || headers.contains_key(DETAILS) {
        return Some(status.code());
    }
    let Some((reason, text)) = corrected(status.code(), status.message()) else {
        return Some(status.code());
    };
    if reason == Reason::Internal {
        tracing::error!(status = status.message(), "the server could not answer");
    }
    Some(put(headers, &error::status(reason, text)))
}

/// Replaces the status in headers or trailers.
pub(super) fn put(headers: &mut HeaderMap, status: &Status) -> Code {
    for name in ["grpc-status", "grpc-message", DETAILS] {
        headers.remove(name);
    }
    match status.add_header(headers) {
        Ok(()) => status.code(),
        Err(status) => status.code(),
    }
}

/// The router's answer to a path that nobody serves has no text: mostly it is a call
/// that went to the other server.
pub(super) fn name_services(headers: &mut HeaderMap, text: &str) {
    let is_silent = Status::from_header_map(headers).is_some_and(|status| status.message().is_empty());
    if is_silent {
        put(headers, &Status::unimplemented(text));
    }
}

/// The table: what tonic says, and what is meant.
fn corrected(code: Code, message: &str) -> Option<(Reason, &'static str)> {
    const TOO_LARGE: &str = "the message is larger than this method takes";
    const MALFORMED: &str = "the message could not be decoded";
    const DEFECT: &str = "internal error; the server's log has the cause";
    const TOO_LATE: &str = "the call took longer than it may";
    match code {
        Code::OutOfRange if message.starts_with("Error, decoded message length") => Some((Reason::TooLarge, TOO_LARGE)),
        Code::ResourceExhausted if message.starts_with("Error decompressing") => Some((Reason::TooLarge, TOO_LARGE)),
        Code::OutOfRange | Code::ResourceExhausted if message.starts_with("Error, encoded") => {
            Some((Reason::Internal, DEFECT))
        }
        Code::Internal if message.starts_with("Error encoding") => Some((Reason::Internal, DEFECT)),
        // Everything else that tonic calls internal comes from reading a request.
        Code::Internal => Some((Reason::MalformedMessage, MALFORMED)),
        Code::Cancelled if message.starts_with("Timeout expired") => Some((Reason::DeadlineExceeded, TOO_LATE)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Error;
    use tonic_types::StatusExt as _;

    fn settled(status: &Status) -> Status {
        let mut headers = HeaderMap::new();
        status.add_header(&mut headers).expect("valid");
        let code = settle(&mut headers).expect("a status");
        let after = Status::from_header_map(&headers).expect("a status");
        assert_eq!(after.code(), code);
        after
    }

    #[test]
    fn statuses_made_by_tonic_are_set_right() {
        let table = [
            (
                Code::OutOfRange,
                "Error, decoded message length too large: found 9 bytes, the limit is: 8 bytes",
                Code::ResourceExhausted,
                "TOO_LARGE",
            ),
            (
                Code::ResourceExhausted,
                "Error decompressing: size limit, of 8 bytes, exceeded",
                Code::ResourceExhausted,
                "TOO_LARGE",
            ),
            (
                Code::Internal,
                "failed to decode Protobuf message: Event.id: invalid string value",
                Code::InvalidArgument,
                "MALFORMED_MESSAGE",
            ),
            (
                Code::Internal,
                "Error decompressing: bad data, while sending request",
                Code::InvalidArgument,
                "MALFORMED_MESSAGE",
            ),
            (Code::Internal, "Missing request message.", Code::InvalidArgument, "MALFORMED_MESSAGE"),
            (Code::OutOfRange, "Error, encoded message length too large: found 9 bytes", Code::Internal, "INTERNAL"),
            (Code::Cancelled, "Timeout expired", Code::DeadlineExceeded, "DEADLINE_EXCEEDED"),
        ];
        for (code, message, expected, reason) in table {
            let status = settled(&Status::new(code, message));
            assert_eq!(status.code(), expected, "{message}");
            let info = status.get_details_error_info().expect("ErrorInfo");
            assert_eq!(info.reason, reason, "{message}");
            assert!(status.get_details_retry_info().is_none(), "{message}");
            assert!(!status.message().contains("Event.id"));
        }
    }

    #[test]
    fn other_statuses_stay_as_they_are() {
        let ours = Status::from(Error::internal(anyhow::anyhow!("x")));
        assert_eq!(settled(&ours).message(), ours.message());
        for status in [Status::unimplemented("x"), Status::not_found("x"), Status::ok("")] {
            assert_eq!(settled(&status).code(), status.code());
        }
        assert_eq!(settle(&mut HeaderMap::new()), None);
    }
}
