//! Where an etcd is, and how to speak to it.

use crate::store::StoreError;
use std::{fs, path::PathBuf, time::Duration};
use tonic::transport::{Certificate, ClientTlsConfig, Identity};

/// An address of a store, as a user gives it: `etcd://HOST:PORT,HOST:PORT/PREFIX`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EtcdAddress {
    /// As written.
    written: String,
    /// `HOST:PORT` of each member.
    members: Vec<String>,
    /// Before every key; empty, or from a slash to no slash.
    prefix: String,
    /// Name and password.
    user: Option<(String, String)>,
    /// Absent for plain text.
    tls: Option<EtcdTls>,
    /// How long a call may take, all tries together, and one try.
    deadlines: Deadlines,
}

/// PEM files for TLS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EtcdTls {
    /// Who signs the members' certificates.
    pub ca: PathBuf,
    /// Our certificate and its key, for an etcd that asks for one.
    pub identity: Option<(PathBuf, PathBuf)>,
}

/// How long to wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Deadlines {
    /// For a call, all its tries together.
    pub(super) call: Duration,
    /// For one member's answer.
    pub(super) attempt: Duration,
}

impl Default for Deadlines {
    /// A cluster chooses another leader in 1 to 2 s.
    fn default() -> Self {
        Self { call: Duration::from_secs(5), attempt: Duration::from_millis(1500) }
    }
}

impl EtcdAddress {
    /// Reads an address.
    ///
    /// # Errors
    /// When it is none.
    pub fn parse(text: &str) -> Result<Self, StoreError> {
        let fail = |problem: &str| StoreError::Address { address: text.to_owned(), problem: problem.to_owned() };
        let rest = text.strip_prefix("etcd://").ok_or_else(|| fail("it does not begin with etcd://"))?;
        let (members, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        let members: Vec<String> = members.split(',').map(|member| member.trim().to_owned()).collect();
        for member in &members {
            let port = member.rsplit_once(':').filter(|(host, _)| !host.is_empty());
            if port.is_none_or(|(_, port)| port.parse::<u16>().is_err()) {
                return Err(fail(&format!("`{member}` is not HOST:PORT")));
            }
        }
        let prefix = prefix.trim_matches('/');
        let prefix = if prefix.is_empty() { String::new() } else { format!("/{prefix}") };
        let deadlines = Deadlines::default();
        Ok(Self { written: text.to_owned(), members, prefix, user: None, tls: None, deadlines })
    }

    /// The same, for a user.
    #[must_use]
    pub fn with_user(self, name: String, password: String) -> Self {
        Self { user: Some((name, password)), ..self }
    }

    /// The same, over TLS.
    #[must_use]
    pub fn with_tls(self, tls: EtcdTls) -> Self {
        Self { tls: Some(tls), ..self }
    }

    /// The same, with the patience of a leader whose lease is so long: half of it for a call, a seventh or so for a member, and
    /// never less than a cluster takes to choose another leader. Between machines whose round trip is a second an answer takes three.
    #[must_use]
    pub fn with_patience(self, lease: Duration) -> Self {
        let Deadlines { call, attempt } = Deadlines::default();
        let deadlines = Deadlines { call: call.max(lease / 2), attempt: attempt.max(lease * 3 / 20) };
        Self { deadlines, ..self }
    }

    /// The same, with other patience.
    #[cfg(test)]
    pub(super) fn with_deadlines(self, call: Duration, attempt: Duration) -> Self {
        Self { deadlines: Deadlines { call, attempt }, ..self }
    }

    pub(super) fn prefix(&self) -> &str {
        &self.prefix
    }

    pub(super) fn user(&self) -> Option<&(String, String)> {
        self.user.as_ref()
    }

    pub(super) fn deadlines(&self) -> Deadlines {
        self.deadlines
    }

    /// The members' URLs.
    pub(super) fn urls(&self) -> Vec<String> {
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        self.members.iter().map(|member| format!("{scheme}://{member}")).collect()
    }

    /// Something of this address that cannot be used.
    pub(super) fn problem(&self, problem: impl ToString) -> StoreError {
        StoreError::Address { address: self.written.clone(), problem: problem.to_string() }
    }

    /// What TLS needs, read from its files.
    pub(super) fn tls(&self) -> Result<Option<ClientTlsConfig>, StoreError> {
        let Some(tls) = &self.tls else { return Ok(None) };
        let read = |path: &PathBuf| {
            fs::read(path).map_err(|error| self.problem(format_args!("{} cannot be read: {error}", path.display())))
        };
        let config = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(read(&tls.ca)?));
        Ok(Some(match &tls.identity {
            Some((certificate, key)) => config.identity(Identity::from_pem(read(certificate)?, read(key)?)),
            None => config,
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_names_members_and_a_prefix() {
        let check = |text: &str, urls: &[&str], prefix: &str| {
            let address = EtcdAddress::parse(text).unwrap();
            assert_eq!((address.urls(), address.prefix()), (urls.iter().map(ToString::to_string).collect(), prefix));
        };
        check("etcd://a:2379", &["http://a:2379"], "");
        check("etcd://a:2379,10.0.0.2:1/", &["http://a:2379", "http://10.0.0.2:1"], "");
        check("etcd://[::1]:2379/team/a/", &["http://[::1]:2379"], "/team/a");
        let tls = EtcdTls { ca: "/nowhere/ca.pem".into(), identity: None };
        let address = EtcdAddress::parse("etcd://a:2379/x").unwrap().with_tls(tls);
        assert_eq!(address.urls(), ["https://a:2379"]);
        let error = address.tls().unwrap_err().to_string();
        assert!(error.contains("etcd://a:2379/x") && error.contains("/nowhere/ca.pem"), "{error}");
    }

    #[test]
    fn a_long_lease_has_patience_with_far_members_and_a_short_one_still_with_an_election() {
        let check = |lease, call, attempt| {
            let address = EtcdAddress::parse("etcd://a:2379").unwrap().with_patience(Duration::from_secs(lease));
            let [call, attempt] = [call, attempt].map(Duration::from_millis);
            assert_eq!(address.deadlines(), Deadlines { call, attempt });
        };
        check(4, 5_000, 1_500);
        check(10, 5_000, 1_500);
        check(30, 15_000, 4_500);
    }

    #[test]
    fn what_is_no_address_is_told_why() {
        let check = |text: &str, expected: &str| {
            let error = EtcdAddress::parse(text).unwrap_err().to_string();
            assert!(error.contains(expected) && error.contains("etcd://10.0.0.1:2379"), "{error}");
        };
        check("http://a:2379", "does not begin with etcd://");
        check("etcd://", "`` is not HOST:PORT");
        check("etcd://a", "`a` is not HOST:PORT");
        check("etcd://a:1,b:x/p", "`b:x` is not HOST:PORT");
    }
}
