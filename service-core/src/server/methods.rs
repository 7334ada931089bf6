//! What is known of each method before it is called: read from the descriptors,
//! so that nobody keeps a second list.

use std::collections::HashMap;
use std::sync::LazyLock;

use prost::Message as _;
use prost_types::FileDescriptorSet;

/// Everything that is served, encoded; and the details of errors, so that clients such
/// as grpcurl can show them.
pub(super) const DESCRIPTORS: [&[u8]; 5] = [
    activity_proto::FILE_DESCRIPTOR_SET,
    tonic_types::pb::FILE_DESCRIPTOR_SET,
    tonic_health::pb::FILE_DESCRIPTOR_SET,
    tonic_reflection::pb::v1::FILE_DESCRIPTOR_SET,
    tonic_reflection::pb::v1alpha::FILE_DESCRIPTOR_SET,
];

/// What a call is to the limits of its caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Answered once.
    Call,
    /// A stream of events.
    IngestStream,
    /// A stream that ends by itself, of a method named `Export…`.
    Export,
    /// Any other stream.
    Tail,
}

impl Kind {
    fn of(streaming: bool, ingest: bool, name: &str) -> Self {
        match (streaming, ingest) {
            (false, _) => Self::Call,
            (true, true) => Self::IngestStream,
            (true, false) if name.starts_with("Export") => Self::Export,
            (true, false) => Self::Tail,
        }
    }
}

/// One RPC.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Method {
    /// `/package.Service/Method`: the path, and the label of metrics and spans.
    pub(crate) path: String,
    /// Whether either side streams.
    pub(crate) streaming: bool,
    /// Whether it brings events: of a service named `…IngestService`.
    pub(crate) ingest: bool,
    /// What is counted together of one caller.
    pub(crate) kind: Kind,
    /// Health and reflection: served while draining, outside the limits.
    pub(crate) infrastructure: bool,
}

/// Stands for every path that is not served, so that a client cannot make labels.
static UNKNOWN: LazyLock<Method> = LazyLock::new(|| Method {
    path: "unknown".to_owned(),
    streaming: false,
    ingest: false,
    kind: Kind::Call,
    infrastructure: false,
});

static METHODS: LazyLock<HashMap<String, Method>> = LazyLock::new(|| {
    let mut methods = HashMap::new();
    for descriptors in DESCRIPTORS {
        // Made by the same build as this code; a test decodes each.
        let set = FileDescriptorSet::decode(descriptors).unwrap_or_default();
        for file in &set.file {
            for service in &file.service {
                for method in &service.method {
                    let path = format!("/{}.{}/{}", file.package(), service.name(), method.name());
                    let streaming = method.client_streaming() || method.server_streaming();
                    let ingest = service.name().ends_with("IngestService");
                    let known = Method {
                        streaming,
                        ingest,
                        kind: Kind::of(streaming, ingest, method.name()),
                        infrastructure: file.package().starts_with("grpc."),
                        path: path.clone(),
                    };
                    methods.insert(path, known);
                }
            }
        }
    }
    methods
});

/// The method behind a request's path.
pub(crate) fn lookup(path: &str) -> &'static Method {
    METHODS.get(path).unwrap_or(&UNKNOWN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn methods_are_known_by_path() {
        for descriptors in DESCRIPTORS {
            let set = FileDescriptorSet::decode(descriptors).expect("valid");
            assert!(!set.file.is_empty());
        }
        let ingest = lookup("/activity.audit.v1.AuditIngestService/StreamEvents");
        assert!(ingest.streaming && ingest.ingest && !ingest.infrastructure);
        let list = lookup("/activity.audit.v1.AuditQueryService/ListEntries");
        assert!(!list.streaming && !list.ingest && !list.infrastructure);
        let watch = lookup("/grpc.health.v1.Health/Watch");
        assert!(watch.streaming && watch.infrastructure);
        let export = lookup("/activity.audit.v1.AuditQueryService/ExportEntries");
        assert_eq!(
            (ingest.kind, list.kind, watch.kind, export.kind),
            (Kind::IngestStream, Kind::Call, Kind::Tail, Kind::Export)
        );
        assert_eq!(lookup("/made.Up/Method").path, "unknown");
    }
}
