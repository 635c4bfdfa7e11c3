//! How a coordinator that stands by names the one that leads, and whom to ask next.

use std::fmt;
use tonic::{Status, metadata::MetadataValue};

/// One leadership: the revision of the store that made the leader one. A later leader has a higher term.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Term(pub u64);

impl fmt::Display for Term {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// The sender led once and does not any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "the coordinator leads in term {told}, and term {newest} was seen already: it is deposed (if the store was set up anew, \
     restart this worker)"
)]
pub struct Deposed {
    /// The sender's.
    pub told: Term,
    /// The newest that was seen.
    pub newest: Term,
}

/// The newest term that was seen. Absent means that no leader was chosen: a coordinator without others beside it has no term.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Terms(Option<Term>);

impl Terms {
    /// Takes note of a sender's term.
    ///
    /// # Errors
    /// When it is lower than the newest: what comes with it must not be obeyed.
    pub fn admit(&mut self, told: Option<Term>) -> Result<(), Deposed> {
        match (told, self.0) {
            (Some(told), Some(newest)) if told < newest => Err(Deposed { told, newest }),
            (Some(told), _) => {
                self.0 = Some(told);
                Ok(())
            }
            (None, _) => Ok(()),
        }
    }

    /// The newest.
    pub fn newest(self) -> Option<Term> {
        self.0
    }
}

/// The metadata of a standby's answer: the leader's URL, or [`NOBODY`].
const LEADER: &str = "llm2clip-leader";
/// There is no leader yet.
const NOBODY: &str = "nobody";

/// What a standby answers to every call.
pub fn standby(leader: Option<&str>) -> Status {
    let message = match leader {
        Some(url) => format!("this coordinator stands by, {url} leads"),
        None => "this coordinator stands by, and no leader is known yet".to_owned(),
    };
    let mut status = Status::unavailable(message);
    let named = leader.and_then(|url| MetadataValue::try_from(url).ok());
    status.metadata_mut().insert(LEADER, named.unwrap_or_else(|| MetadataValue::from_static(NOBODY)));
    status
}

/// What a failed call says about the leader.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Named {
    /// It is there.
    At(String),
    /// Whoever was asked stands by and knows none.
    Nobody,
    /// It was no answer of a standby.
    Unsaid,
}

/// Reads what a failed call says about the leader.
pub fn named(status: &Status) -> Named {
    match status.metadata().get(LEADER).and_then(|value| value.to_str().ok()) {
        None => Named::Unsaid,
        Some(NOBODY) => Named::Nobody,
        Some(url) => Named::At(url.to_owned()),
    }
}

/// Whom to ask: the coordinators that the user gave, in turn, and whomever one of them names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Search {
    addresses: Vec<String>,
    at: usize,
    /// The leader that a standby named.
    hint: Option<String>,
    /// How often a name was followed without an answer of substance.
    followed: u32,
}

/// How often names are followed without a pause: two that name each other do not keep us busy.
const FOLLOW: u32 = 3;

impl Search {
    /// Reads a list: URLs, with commas between them.
    ///
    /// # Errors
    /// When there is none.
    pub fn parse(list: &str) -> Result<Self, String> {
        let addresses: Vec<String> =
            list.split(',').map(str::trim).filter(|url| !url.is_empty()).map(str::to_owned).collect();
        if addresses.is_empty() {
            return Err(format!(
                "`{list}` names no coordinator: it looks like http://10.0.0.1:7070,http://10.0.0.2:7070"
            ));
        }
        Ok(Self { addresses, at: 0, hint: None, followed: 0 })
    }

    /// Whom to ask now.
    pub fn current(&self) -> &str {
        self.hint.as_deref().unwrap_or(&self.addresses[self.at % self.addresses.len()])
    }

    /// The coordinators that the user gave.
    pub fn addresses(&self) -> &[String] {
        &self.addresses
    }

    /// Whether there are several to choose from.
    pub fn has_choice(&self) -> bool {
        self.addresses.len() > 1 || self.hint.is_some()
    }

    /// The one that was asked leads.
    pub fn found(&mut self) {
        self.followed = 0;
    }

    /// The one that was asked does not lead, or does not answer. True when the next may be asked at once.
    pub fn failed(&mut self, named: Named) -> bool {
        match named {
            Named::At(url) if self.current() != url => {
                self.hint = Some(url);
                self.followed += 1;
                self.followed <= FOLLOW
            }
            Named::At(_) | Named::Nobody | Named::Unsaid => {
                if self.hint.take().is_none() {
                    self.at = (self.at + 1) % self.addresses.len();
                }
                // A round is over when it is the first one's turn again.
                self.at != 0
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_standby_names_the_leader_or_nobody() {
        assert_eq!(named(&standby(Some("http://b:1"))), Named::At("http://b:1".into()));
        assert_eq!(named(&standby(None)), Named::Nobody);
        assert_eq!(named(&Status::unavailable("gone")), Named::Unsaid);
    }

    #[test]
    fn a_lower_term_is_refused_whatever_came_between() {
        let mut terms = Terms::default();
        assert_eq!(terms.admit(Some(Term(4))), Ok(()));
        assert_eq!(terms.admit(Some(Term(9))), Ok(()));
        assert_eq!(terms.admit(None), Ok(()));
        assert_eq!(terms.admit(Some(Term(4))), Err(Deposed { told: Term(4), newest: Term(9) }));
        assert_eq!((terms.admit(Some(Term(9))), terms.newest()), (Ok(()), Some(Term(9))));
    }

    #[test]
    fn a_search_follows_names_and_goes_round() {
        let mut search = Search::parse("http://a:1, http://b:1,").unwrap();
        assert_eq!(search.current(), "http://a:1");
        assert!(search.failed(Named::Unsaid));
        assert_eq!(search.current(), "http://b:1");
        assert!(search.failed(Named::At("http://c:1".into())));
        assert_eq!(search.current(), "http://c:1");
        assert!(search.failed(Named::Unsaid), "back to the one that named it");
        assert_eq!(search.current(), "http://b:1");
        assert!(!search.failed(Named::Nobody), "the round is over: wait");
        assert_eq!(search.current(), "http://a:1");
        assert!(Search::parse(" ,").unwrap_err().contains("names no coordinator"));
    }

    #[test]
    fn two_that_name_each_other_are_asked_slowly() {
        let mut search = Search::parse("http://a:1").unwrap();
        let other = |search: &Search| if search.current() == "http://a:1" { "http://b:1" } else { "http://a:1" };
        let at_once: Vec<bool> = (0..5)
            .map(|_| {
                let name = Named::At(other(&search).into());
                search.failed(name)
            })
            .collect();
        assert_eq!(at_once, [true, true, true, false, false]);
        search.found();
        let name = Named::At(other(&search).into());
        assert!(search.failed(name));
    }
}
