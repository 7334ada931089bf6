//! The contract: messages, clients and servers generated from `activity/**/*.proto`.
//!
//! The `.proto` files carry the reference documentation in their comments; the
//! code under `src/gen` is generated from them and checked in, so that a build
//! needs no `protoc`. `tests/generated.rs` fails when the two differ, and
//! rewrites the code when run with `UPDATE_GENERATED=1`.

/// Time ranges, producers and error reasons.
pub mod common {
    /// `activity.common.v1`.
    #[allow(missing_docs, clippy::all, clippy::unwrap_used, unreachable_pub, rustdoc::all)]
    pub mod v1 {
        include!("gen/activity.common.v1.rs");
    }
}

/// The audit log.
pub mod audit {
    /// `activity.audit.v1`.
    #[allow(missing_docs, clippy::all, clippy::unwrap_used, unreachable_pub, rustdoc::all)]
    pub mod v1 {
        include!("gen/activity.audit.v1.rs");
    }
}

/// Usage analytics.
pub mod usage {
    /// `activity.usage.v1`.
    #[allow(missing_docs, clippy::all, clippy::unwrap_used, unreachable_pub, rustdoc::all)]
    pub mod v1 {
        include!("gen/activity.usage.v1.rs");
    }
}

/// The encoded `FileDescriptorSet` of all files, for reflection.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!("gen/descriptor_set.bin");
