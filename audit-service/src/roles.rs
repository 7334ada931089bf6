//! Who may call what.

use service_core::auth::Role::{Auditor, SuperAdmin, Writer};
use service_core::auth::{RoleRow, RoleTable};

/// Every RPC of the service. Instances narrow each of them: nobody reads or writes a log of another instance.
pub const ROLES: RoleTable = RoleTable::new(&[
    RoleRow::new("/activity.audit.v1.AuditIngestService/RecordEvents", &[Writer]),
    RoleRow::new("/activity.audit.v1.AuditIngestService/StreamEvents", &[Writer]),
    RoleRow::new("/activity.audit.v1.AuditQueryService/ListEntries", &[SuperAdmin, Auditor]),
    RoleRow::new("/activity.audit.v1.AuditQueryService/GetEntry", &[SuperAdmin, Auditor]),
    RoleRow::new("/activity.audit.v1.AuditQueryService/ListFacets", &[SuperAdmin, Auditor]),
    RoleRow::new("/activity.audit.v1.AuditQueryService/TailEntries", &[SuperAdmin, Auditor]),
    RoleRow::new("/activity.audit.v1.AuditQueryService/ExportEntries", &[SuperAdmin, Auditor]),
    RoleRow::new("/activity.audit.v1.AuditTrustService/GetCheckpoint", &[SuperAdmin, Auditor]),
    RoleRow::new("/activity.audit.v1.AuditTrustService/ListKeys", &[SuperAdmin, Auditor]),
    RoleRow::new("/activity.audit.v1.AuditTrustService/GetInclusionProof", &[SuperAdmin, Auditor]),
    RoleRow::new("/activity.audit.v1.AuditTrustService/GetConsistencyProof", &[SuperAdmin, Auditor]),
    RoleRow::new("/activity.audit.v1.AuditTrustService/ReadTile", &[SuperAdmin, Auditor]),
    RoleRow::new("/activity.audit.v1.AuditGovernanceService/GetRetention", &[SuperAdmin, Auditor]),
    RoleRow::new("/activity.audit.v1.AuditGovernanceService/ListArchives", &[SuperAdmin, Auditor]),
    RoleRow::new("/activity.audit.v1.AuditGovernanceService/PlaceLegalHold", &[SuperAdmin, Auditor]),
    // Whoever verifies the log can have it kept, and not let go of.
    RoleRow::new("/activity.audit.v1.AuditGovernanceService/ReleaseLegalHold", &[SuperAdmin]),
    RoleRow::new("/activity.audit.v1.AuditGovernanceService/ListLegalHolds", &[SuperAdmin, Auditor]),
    RoleRow::new("/activity.audit.v1.AuditGovernanceService/GetCoverage", &[SuperAdmin, Auditor]),
]);
