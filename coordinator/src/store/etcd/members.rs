//! The members of an etcd cluster: each call goes to the one that answered last, and on to the next when that one does not.

use super::address::{Deadlines, EtcdAddress};
use crate::store::StoreError;
use common::daemon::backoff::Backoff;
use proto::etcd::{AuthenticateRequest, auth_client::AuthClient};
use std::{
    future::Future,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};
use tokio::time::{Instant, sleep, timeout};
use tonic::{
    Code, Request, Response, Status,
    metadata::AsciiMetadataValue,
    transport::{Channel, Endpoint},
};

/// How often a connection with a call on it is tested, and how long the answer may take: a stopped member is left then.
const KEEP_ALIVE: Duration = Duration::from_secs(2);
/// Waits between two rounds over all members.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(50), Duration::from_millis(500));

/// All members.
pub(super) struct Members {
    list: Vec<(String, Channel)>,
    /// Whom to ask next, counted on over the list's end.
    current: AtomicUsize,
    user: Option<(String, String)>,
    token: Mutex<Option<AsciiMetadataValue>>,
    deadlines: Deadlines,
}

/// One member, for one try of a call.
#[derive(Debug, Clone)]
pub(super) struct Peer {
    /// The way there.
    pub(super) channel: Channel,
    /// Whether an earlier try may have been carried out.
    pub(super) again: bool,
    token: Option<AsciiMetadataValue>,
    at: usize,
}

impl Peer {
    /// A message as this member takes it: only if it knows a leader, and from our user.
    pub(super) fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        request.metadata_mut().insert("hasleader", AsciiMetadataValue::from_static("true"));
        if let Some(token) = &self.token {
            request.metadata_mut().insert("token", token.clone());
        }
        request
    }
}

/// What an error means for the call.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    /// Ask another member.
    Elsewhere,
    /// The token is no longer good.
    Authenticate,
    /// No member will.
    Refused,
}

fn verdict(status: &Status) -> Verdict {
    match status.code() {
        Code::Unauthenticated => Verdict::Authenticate,
        // So etcd says when users were changed meanwhile.
        Code::InvalidArgument if status.message().contains("revision of auth store is old") => Verdict::Authenticate,
        Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled | Code::Unknown | Code::Internal => {
            Verdict::Elsewhere
        }
        Code::ResourceExhausted if status.message().contains("too many requests") => Verdict::Elsewhere,
        _ => Verdict::Refused,
    }
}

impl Members {
    /// Nobody is connected yet. Call it within a tokio runtime.
    pub(super) fn new(address: &EtcdAddress) -> Result<Self, StoreError> {
        let tls = address.tls()?;
        let deadlines = address.deadlines();
        let member = |url: String| {
            let endpoint = Endpoint::from_shared(url.clone()).map_err(|error| address.problem(error))?;
            let endpoint = endpoint.connect_timeout(deadlines.attempt).tcp_nodelay(true);
            let endpoint = endpoint.http2_keep_alive_interval(KEEP_ALIVE).keep_alive_timeout(KEEP_ALIVE);
            let endpoint = match tls.clone() {
                Some(tls) => endpoint.tls_config(tls).map_err(|error| address.problem(deepest(&error)))?,
                None => endpoint,
            };
            Ok((url, endpoint.connect_lazy()))
        };
        Ok(Self {
            list: address.urls().into_iter().map(member).collect::<Result<_, StoreError>>()?,
            current: AtomicUsize::new(0),
            user: address.user().cloned(),
            token: Mutex::new(None),
            deadlines,
        })
    }

    /// Has the first member that can do it answer a call.
    ///
    /// # Errors
    /// When the cluster refuses, or nobody answers in time: then the call may have been carried out or not.
    pub(super) async fn call<T, F>(&self, operation: &'static str, ask: impl Fn(Peer) -> F) -> Result<T, StoreError>
    where
        F: Future<Output = Result<Response<T>, Status>>,
    {
        let began = Instant::now();
        let mut backoff = Backoff::new(BACKOFF.0, BACKOFF.1);
        let (mut tries, mut last) = (0, "nothing".to_owned());
        loop {
            let left = self.deadlines.call.saturating_sub(began.elapsed());
            if left.is_zero() {
                let (endpoints, waited) = (self.endpoints(), self.deadlines.call);
                return Err(StoreError::Deadline { operation, endpoints, waited, last });
            }
            let at = self.current.load(Ordering::Relaxed);
            let (url, channel) = &self.list[at % self.list.len()];
            let once = async {
                let token = self.token(channel).await?;
                ask(Peer { channel: channel.clone(), again: tries > 0, token, at }).await
            };
            let status = match timeout(left.min(self.deadlines.attempt), once).await {
                Ok(Ok(response)) => return Ok(response.into_inner()),
                Ok(Err(status)) => status,
                Err(_) => Status::deadline_exceeded(format!("no answer within {:?}", left.min(self.deadlines.attempt))),
            };
            match verdict(&status) {
                Verdict::Authenticate if self.user.is_some() => {
                    *self.token.lock().unwrap_or_else(PoisonError::into_inner) = None;
                }
                Verdict::Elsewhere => self.leave(at),
                Verdict::Refused | Verdict::Authenticate => {
                    let (endpoint, message) = (url.clone(), status.message().to_owned());
                    return Err(StoreError::Etcd { operation, endpoint, message });
                }
            }
            last = format!("{url}: {}", said(&status));
            tries += 1;
            if tries % self.list.len() == 0 {
                let left = self.deadlines.call.saturating_sub(began.elapsed());
                sleep(backoff.next(0.5).min(left)).await;
            }
        }
    }

    /// The member that was asked does not answer: the next call goes to another, if none has gone there yet.
    pub(super) fn leave(&self, at: usize) {
        // Somebody else may have gone on already.
        let _ = self.current.compare_exchange(at, at.wrapping_add(1), Ordering::Relaxed, Ordering::Relaxed);
    }

    /// [`Self::leave`] for a stream that broke.
    pub(super) fn leave_peer(&self, peer: &Peer) {
        self.leave(peer.at);
    }

    pub(super) fn endpoints(&self) -> String {
        self.list.iter().map(|(url, _)| url.as_str()).collect::<Vec<_>>().join(", ")
    }

    /// Our user's token; a new one when there is none.
    async fn token(&self, channel: &Channel) -> Result<Option<AsciiMetadataValue>, Status> {
        let Some((name, password)) = &self.user else { return Ok(None) };
        let known = self.token.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if known.is_some() {
            return Ok(known);
        }
        let request = AuthenticateRequest { name: name.clone(), password: password.clone() };
        let reply = AuthClient::new(channel.clone()).authenticate(request).await?.into_inner();
        let token = reply.token.parse().map_err(|_| Status::failed_precondition("etcd gave a token that is none"))?;
        Ok(self.token.lock().unwrap_or_else(PoisonError::into_inner).insert(token).clone().into())
    }
}

/// What a status says, with what lies below it.
fn said(status: &Status) -> String {
    let below = std::error::Error::source(status).map(|error| format!(": {}", deepest(error))).unwrap_or_default();
    format!("{}{below}", status.message())
}

fn deepest(error: &dyn std::error::Error) -> String {
    let mut deepest = error;
    while let Some(source) = deepest.source() {
        deepest = source;
    }
    deepest.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_says_whether_another_member_may_do_it() {
        let check = |status: Status, expected: Verdict| assert_eq!(verdict(&status), expected, "{status}");
        check(Status::unavailable("etcdserver: no leader"), Verdict::Elsewhere);
        check(Status::unavailable("etcdserver: request timed out"), Verdict::Elsewhere);
        check(Status::unknown("transport error"), Verdict::Elsewhere);
        check(Status::resource_exhausted("etcdserver: too many requests"), Verdict::Elsewhere);
        check(Status::resource_exhausted("etcdserver: mvcc: database space exceeded"), Verdict::Refused);
        check(Status::unauthenticated("etcdserver: invalid auth token"), Verdict::Authenticate);
        check(Status::invalid_argument("etcdserver: revision of auth store is old"), Verdict::Authenticate);
        check(Status::permission_denied("etcdserver: permission denied"), Verdict::Refused);
        check(Status::not_found("etcdserver: requested lease not found"), Verdict::Refused);
    }
}
