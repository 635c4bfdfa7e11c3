//! The stored form of a leader: JSON with a version.

use super::decide::Leader;
use crate::store::Entry;
use proto::leader::Term;
use serde::{Deserialize, Serialize};

/// Where it is stored.
pub const KEY: &str = "/llm2clip/v1/leader";
/// The version that is written.
const VERSION: u32 = 1;

#[derive(Debug, Serialize, Deserialize)]
struct Record {
    version: u32,
    url: String,
}

/// The value of the key of who leads under this URL.
pub(super) fn encode(url: &str) -> Vec<u8> {
    let record = Record { version: VERSION, url: url.to_owned() };
    serde_json::to_vec(&record).expect("a record has string keys only")
}

/// Who holds the key. One whose record cannot be read leads all the same, under an address that nobody can use.
pub(super) fn leader(entry: &Entry) -> Leader {
    let term = Term(entry.revision.0);
    match serde_json::from_slice::<Record>(&entry.value) {
        Ok(record) => Leader { term, url: Some(record.url) },
        Err(error) => {
            tracing::warn!(%term, %error, "the leader's record cannot be read: is it of another version?");
            Leader { term, url: None }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Revision;

    #[test]
    fn a_leader_comes_back_as_it_was_and_an_unreadable_one_still_leads() {
        let entry = |value: &[u8]| Entry { key: KEY.into(), value: value.to_vec(), revision: Revision(7), lease: None };
        let read = leader(&entry(&encode("http://a:1")));
        assert_eq!(read, Leader { term: Term(7), url: Some("http://a:1".into()) });
        assert_eq!(leader(&entry(b"{}")), Leader { term: Term(7), url: None });
    }
}
