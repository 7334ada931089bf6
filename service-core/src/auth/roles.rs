//! Which roles may call what: one table a server, complete or it does not start.

use prost::Message as _;
use prost_types::FileDescriptorSet;

use super::{Role, Roles};
use crate::config::ConfigError;

/// What a role gets of an RPC that it may call, within its instances.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sees {
    /// Everything.
    All,
    /// Its own usage.
    Own,
}

/// A row: an RPC, and who may call it.
#[derive(Debug, Clone, Copy)]
pub struct RoleRow {
    /// As `/package.Service/Method`.
    pub path: &'static str,
    /// Who sees everything of its instances, or writes to them.
    pub all: &'static [Role],
    /// Who sees its own usage.
    pub own: &'static [Role],
}

impl RoleRow {
    /// An RPC that these roles may call.
    pub const fn new(path: &'static str, all: &'static [Role]) -> Self {
        Self { path, all, own: &[] }
    }

    /// And these, who see nothing but their own usage.
    #[must_use]
    pub const fn own(self, own: &'static [Role]) -> Self {
        Self { own, ..self }
    }

    /// What somebody gets who has these roles; the one that sees more counts. `None`
    /// for whom it is closed.
    pub fn sees(&self, roles: Roles) -> Option<Sees> {
        let has = |allowed: &[Role]| allowed.iter().any(|role| roles.has(*role));
        if has(self.all) { Some(Sees::All) } else { has(self.own).then_some(Sees::Own) }
    }
}

/// Who may call what. An RPC that is not in it is refused.
#[derive(Debug, Clone, Copy)]
pub struct RoleTable(&'static [RoleRow]);

impl RoleTable {
    /// A table, mostly a `const`.
    pub const fn new(rows: &'static [RoleRow]) -> Self {
        Self(rows)
    }

    /// The rows, for documentation and tests.
    pub fn rows(&self) -> &'static [RoleRow] {
        self.0
    }

    /// The rows as a table in documentation has them.
    pub fn markdown(&self) -> Vec<String> {
        let names = |roles: &[Role]| roles.iter().map(|role| role.name()).collect::<Vec<_>>().join(", ");
        let row = |row: &RoleRow| {
            let rpc = row.path.rsplit('.').next().unwrap_or(row.path);
            format!("| `{rpc}` | {} | {} |", names(row.all), names(row.own)).replace("|  |", "| |")
        };
        self.0.iter().map(row).collect()
    }

    /// What somebody with these roles gets of an RPC; `None` if it may not be called.
    pub fn sees(&self, path: &str, roles: Roles) -> Option<Sees> {
        self.0.iter().find(|row| row.path == path)?.sees(roles)
    }

    /// Everything that is wrong with the table for these services, read off their
    /// descriptors: an RPC without a row, a row without an RPC or a role, two rows for
    /// one. Empty if nothing is.
    pub fn faults(&self, services: &[&str], descriptors: &[u8]) -> Vec<String> {
        let Ok(set) = FileDescriptorSet::decode(descriptors) else {
            return vec!["the descriptors cannot be decoded".to_owned()];
        };
        let mut served = Vec::new();
        for file in &set.file {
            for service in &file.service {
                let name = format!("{}.{}", file.package(), service.name());
                if services.contains(&name.as_str()) {
                    served.extend(service.method.iter().map(|method| format!("/{name}/{}", method.name())));
                }
            }
        }
        let rows_of = |path: &str| self.0.iter().filter(|row| row.path == path).count();
        let mut faults: Vec<String> = services
            .iter()
            .filter(|service| !served.iter().any(|path| path.starts_with(&format!("/{service}/"))))
            .map(|service| format!("{service} is not among the descriptors"))
            .collect();
        faults.extend(
            served
                .iter()
                .filter(|path| rows_of(path) != 1)
                .map(|path| format!("{path} has {} rows in the table of roles, allowed is one", rows_of(path))),
        );
        for row in self.0 {
            let path = row.path;
            if !served.iter().any(|served| served == path) {
                faults.push(format!("{path} of the table of roles is not served"));
            }
            if row.all.is_empty() && row.own.is_empty() {
                faults.push(format!("{path} of the table of roles has no role"));
            }
            if let Some(role) = row.own.iter().find(|role| row.all.contains(role)) {
                faults.push(format!("{path} of the table of roles gives {} both all and its own", role.name()));
            }
        }
        faults
    }

    /// Refuses to start with a table that does not fit.
    pub(crate) fn check(&self, services: &[&str]) -> Result<(), ConfigError> {
        let faults = self.faults(services, activity_proto::FILE_DESCRIPTOR_SET);
        if faults.is_empty() { Ok(()) } else { Err(ConfigError::Refused(faults.join("; "))) }
    }
}
