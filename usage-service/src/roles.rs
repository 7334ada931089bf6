//! Who may call what.

use service_core::auth::Role::{BillingAdmin, Member, SuperAdmin, Writer};
use service_core::auth::{RoleRow, RoleTable};

/// Every RPC of the service. Instances narrow each of them: nobody reads or writes usage of another instance. Prices
/// are those of the providers, and a member's costs could not be understood without them: they are no secret within the
/// platform.
pub const ROLES: RoleTable = RoleTable::new(&[
    RoleRow::new("/activity.usage.v1.UsageIngestService/RecordUsage", &[Writer]),
    RoleRow::new("/activity.usage.v1.UsageIngestService/StreamUsage", &[Writer]),
    RoleRow::new("/activity.usage.v1.UsageQueryService/GetSummary", &[SuperAdmin, BillingAdmin]).own(&[Member]),
    RoleRow::new("/activity.usage.v1.UsageQueryService/ListBreakdown", &[SuperAdmin, BillingAdmin]).own(&[Member]),
    RoleRow::new("/activity.usage.v1.UsageQueryService/GetTimeSeries", &[SuperAdmin, BillingAdmin]).own(&[Member]),
    RoleRow::new("/activity.usage.v1.UsageQueryService/ListRequests", &[SuperAdmin, BillingAdmin]).own(&[Member]),
    RoleRow::new("/activity.usage.v1.UsageQueryService/ListFacets", &[SuperAdmin, BillingAdmin]).own(&[Member]),
    RoleRow::new("/activity.usage.v1.UsageQueryService/GetCoverage", &[SuperAdmin, BillingAdmin]),
    RoleRow::new("/activity.usage.v1.UsageQueryService/ExportUsage", &[SuperAdmin, BillingAdmin]).own(&[Member]),
    RoleRow::new("/activity.usage.v1.PricingService/ListPrices", &[SuperAdmin, BillingAdmin, Member]),
    RoleRow::new("/activity.usage.v1.PricingService/EstimateCost", &[SuperAdmin, BillingAdmin, Member]),
]);
