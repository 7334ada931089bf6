//! Who calls, as the handler of a call knows it: under which name, what it may see, and
//! where to say that it was refused.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use http::HeaderMap;
use http::header::USER_AGENT;

use super::denials::{Denial, Denials, Why, tame};
use super::limits::key;
use super::{Access, CredentialKind, Identified, Principal};
use crate::error::{Error, Reason, Result, Violation};

/// Who calls. In the extensions of every request that reaches a service, as
/// `Arc<Caller>`.
pub struct Caller {
    principal: Option<Arc<Principal>>,
    expires_at_us: Option<i64>,
    access: Access,
    method: &'static str,
    from: From,
    denials: Denials,
}

/// From where.
#[derive(Debug, Clone)]
pub(super) struct From {
    pub(super) peer: Option<IpAddr>,
    pub(super) user_agent: String,
}

impl From {
    pub(super) fn new(peer: Option<IpAddr>, headers: &HeaderMap) -> Self {
        let user_agent = headers.get(USER_AGENT).map_or(String::new(), |agent| {
            // What is not ASCII is of nobody's interest.
            tame(agent.to_str().unwrap_or_default())
        });
        Self { peer, user_agent }
    }
}

impl fmt::Debug for Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Caller").field("principal", &self.principal).field("access", &self.access).finish()
    }
}

impl Caller {
    pub(super) fn new(
        identified: Option<Identified>,
        access: Access,
        method: &'static str,
        from: From,
        denials: Denials,
    ) -> Self {
        let expires_at_us = identified.as_ref().and_then(|identified| identified.expires_at_us);
        let principal = identified.map(|identified| identified.principal);
        Self { principal, expires_at_us, access, method, from, denials }
    }

    /// Who has made a request. Fails where the server's layer was not asked, which
    /// alone makes callers: nobody is let through for want of a check.
    pub fn of<T>(request: &tonic::Request<T>) -> Result<Arc<Self>> {
        let caller = request.extensions().get::<Arc<Self>>().cloned();
        caller.ok_or_else(|| Error::internal(anyhow::anyhow!("a request without a caller: the layer was left out")))
    }

    /// The name that records are made under; empty where nobody is authenticated.
    pub fn subject(&self) -> &str {
        self.principal.as_ref().map_or("", |principal| &principal.subject)
    }

    /// How it has shown who it is, if it has.
    pub fn kind(&self) -> Option<CredentialKind> {
        self.principal.as_ref().map(|principal| principal.kind)
    }

    /// From which address it calls, if that is known.
    pub fn peer(&self) -> Option<IpAddr> {
        self.from.peer
    }

    /// Who is counted together with it.
    pub fn key(&self) -> String {
        key(self.principal.as_ref().map(|principal| principal.subject.as_str()), self.from.peer)
    }

    /// From when on its credential does not hold.
    pub(super) fn expires_at_us(&self) -> Option<i64> {
        self.expires_at_us
    }

    /// What it may see.
    pub fn access(&self) -> &Access {
        &self.access
    }

    /// Refuses instances that it names in a field and may not see, whether there are
    /// such or not.
    pub fn may_see<'a>(&self, field: &str, instances: impl IntoIterator<Item = &'a str>) -> Result<()> {
        match instances.into_iter().find(|instance| !self.access.has_instance(instance)) {
            None => Ok(()),
            Some(instance) => {
                let message = format!("{field} names {:?}, which is not among the caller's instances", tame(instance));
                self.denied(Why::Instance, &message, Some(instance), None);
                Err(Error::PermissionDenied(message))
            }
        }
    }

    /// Refuses users that it names in a field and whose usage it may not see, whether
    /// there are such or not.
    pub fn may_see_users<'a>(&self, field: &str, users: impl IntoIterator<Item = &'a str>) -> Result<()> {
        match users.into_iter().find(|user| !self.access.has_user(user)) {
            None => Ok(()),
            Some(user) => {
                let message = format!("{field} names {:?}, and the caller sees its own usage only", tame(user));
                self.denied(Why::User, &message, None, Some(user));
                Err(Error::PermissionDenied(message))
            }
        }
    }

    /// Refuses an event of an instance that it may not write to: that event alone.
    pub fn may_write(&self, field: &str, instance: &str) -> Result<(), Violation> {
        if self.access.has_instance(instance) {
            return Ok(());
        }
        let message = format!("{field} is {:?}, which is not among the writer's instances", tame(instance));
        self.denied(Why::Instance, &message, Some(instance), None);
        Err(Violation::new(Reason::PermissionDenied, field, message))
    }

    /// Refuses something that its role may not ask for of an RPC that it may call.
    pub fn refuse(&self, message: String) -> Error {
        self.denied(Why::Role, &message, None, None);
        Error::PermissionDenied(message)
    }

    /// Says that something was asked for by its id which is there, and which the caller
    /// may not know of. It hears what it would hear if there were nothing.
    pub fn was_hidden(&self, instance: Option<&str>, user: Option<&str>) {
        self.denied(Why::Hidden, "asked for by its id, answered as if it were not there", instance, user);
    }

    fn denied(&self, why: Why, message: &str, instance: Option<&str>, user: Option<&str>) {
        let denial = Denial::new(why, self.principal.as_deref(), self.method, &self.from, message.to_owned());
        self.denials.record(Denial { instance: instance.map(tame), user: user.map(tame), ..denial });
    }
}

#[cfg(test)]
mod tests {
    use tonic::Code;

    use super::*;
    use crate::config::DenialsConfig;
    use crate::telemetry::Metrics;

    #[test]
    fn a_request_that_nobody_looked_at_has_no_caller() {
        let error = Caller::of(&tonic::Request::new(())).expect_err("closed");
        assert_eq!(tonic::Status::from(error).code(), Code::Internal);
    }

    #[tokio::test]
    async fn what_is_not_the_callers_is_refused_by_name_and_told() {
        let (denials, mut queue) = Denials::queue(&DenialsConfig::default(), &Metrics::new("test"));
        let from = From { peer: Some("192.0.2.1".parse().unwrap()), user_agent: "curl".to_owned() };
        let access = Access::unrestricted().to_instances(["prod"]).to_user("ada");
        let caller = Caller::new(None, access, "/a/B", from, denials);
        caller.may_see("filter.instance_ids", ["prod", "prod"]).unwrap();
        caller.may_see_users("filter.user_ids", ["ada"]).unwrap();
        caller.may_write("instance_id", "prod").unwrap();

        let error = caller.may_see("filter.instance_ids", ["prod", "x"]).unwrap_err();
        assert_eq!(error.to_string(), r#"filter.instance_ids names "x", which is not among the caller's instances"#);
        assert_eq!(error.reason(), Reason::PermissionDenied);
        let error = caller.may_see_users("filter.user_ids", ["eve"]).unwrap_err();
        assert_eq!(error.to_string(), r#"filter.user_ids names "eve", and the caller sees its own usage only"#);
        let violation = caller.may_write("instance_id", "y").unwrap_err();
        assert_eq!((violation.reason, violation.field.as_str()), (Reason::PermissionDenied, "instance_id"));
        assert_eq!(caller.refuse("not by user".to_owned()).reason(), Reason::PermissionDenied);
        caller.was_hidden(Some("z"), None);

        queue.close();
        let mut told = Vec::new();
        while let Some(crate::auth::Record::Denial(denial)) = queue.next().await {
            assert_eq!((denial.method, denial.user_agent.as_str()), ("/a/B", "curl"));
            told.push((denial.why, denial.instance, denial.user));
        }
        let name = |name: &str| Some(name.to_owned());
        assert_eq!(
            told,
            [
                (Why::Instance, name("x"), None),
                (Why::User, None, name("eve")),
                (Why::Instance, name("y"), None),
                (Why::Role, None, None),
                (Why::Hidden, name("z"), None),
            ]
        );
    }
}
