//! Who administers the sample platform.

use activity_proto::audit::v1::ActorKind;

/// An administrator, or a program that acts as one.
pub(super) struct Admin {
    pub(super) id: &'static str,
    pub(super) kind: ActorKind,
    pub(super) name: &'static str,
    pub(super) ip: &'static str,
    pub(super) agent: &'static str,
}

const FIREFOX: &str = "Mozilla/5.0 (X11; Linux x86_64; rv:145.0) Gecko/20100101 Firefox/145.0";
const SAFARI: &str = "Mozilla/5.0 (Macintosh; Intel Mac OS X 15_1) AppleWebKit/605.1.15 Version/18.1 Safari/605.1.15";

/// Runs the platform; enables the expensive model.
pub(super) const DANA: Admin = Admin {
    id: "adm_01",
    kind: ActorKind::User,
    name: "dana.whitfield@example.com",
    ip: "198.51.100.23",
    agent: FIREFOX,
};
/// Watches the spend; takes the change back.
pub(super) const OMAR: Admin =
    Admin { id: "adm_02", kind: ActorKind::User, name: "omar.haddad@example.com", ip: "203.0.113.77", agent: SAFARI };
/// Looks after sign-in and keys.
pub(super) const INGRID: Admin = Admin {
    id: "adm_03",
    kind: ActorKind::User,
    name: "ingrid.solberg@example.com",
    ip: "2001:db8:40::19",
    agent: FIREFOX,
};
/// Looks after tools and announcements.
pub(super) const LUCA: Admin =
    Admin { id: "adm_04", kind: ActorKind::User, name: "luca.ferri@example.com", ip: "198.51.100.140", agent: SAFARI };
/// No administrator at all: what he tries is denied.
pub(super) const BELA: Admin = Admin {
    id: "usr_0117",
    kind: ActorKind::User,
    name: "bela.tanaka@example.com",
    ip: "192.0.2.201",
    agent: "curl/8.14.1",
};
/// Applies what the infrastructure's repository says.
pub(super) const TERRAFORM: Admin = Admin {
    id: "svc_terraform",
    kind: ActorKind::ServiceAccount,
    name: "terraform",
    ip: "10.20.0.8",
    agent: "Terraform/1.13.4 terraform-provider-platform/2.6.0",
};
/// The platform itself.
pub(super) const PLATFORM: Admin = Admin { id: "system", kind: ActorKind::System, name: "platform", ip: "", agent: "" };
