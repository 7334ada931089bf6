//! Which roles may call what: one table a server, complete or it does not start.

use prost::Message as _;
use prost_types::FileDescriptorSet;

use super::{Role, Roles};
use crate::config::ConfigError;

/// A row: the RPC as `/package.Service/Method`, and who may call it.
pub type RoleRow = (&'static str, &'static [Role]);

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

    /// Whether one of these roles may call the RPC.
    pub fn allows(&self, path: &str, roles: Roles) -> bool {
        self.0.iter().any(|(row, allowed)| *row == path && allowed.iter().any(|role| roles.has(*role)))
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
        let rows_of = |path: &str| self.0.iter().filter(|(row, _)| *row == path).count();
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
        for (path, roles) in self.0 {
            if !served.iter().any(|served| served == path) {
                faults.push(format!("{path} of the table of roles is not served"));
            }
            if roles.is_empty() {
                faults.push(format!("{path} of the table of roles has no role"));
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
