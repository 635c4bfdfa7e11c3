//! Why a coordinator does not take a worker in, and what it keeps of that for a user to find.

use crate::{ids::WorkerId, time::Timestamp};
use serde::{Deserialize, Serialize};

/// Why a worker is refused. Its trainers go on meanwhile, and it asks again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "reason", rename_all = "snake_case")]
pub enum Refusal {
    /// Another daemon with its id, over another state folder, is there.
    Duplicate {
        /// The other one's machine.
        holder: String,
    },
    /// A daemon over the same state folder, or a copy of it, registered that began later.
    OldIncarnation {
        /// That one's machine.
        holder: String,
    },
    /// They have no version of the protocol in common.
    Protocol {
        /// The versions that the worker speaks, lowest and highest; absent from one that says none.
        theirs: Option<(u32, u32)>,
        /// Those of the coordinator.
        ours: (u32, u32),
    },
}

impl Refusal {
    /// One paragraph for both sides: what, where, what to do.
    pub fn explain(&self, worker: &WorkerId, host: &str) -> String {
        match self {
            Self::Duplicate { holder } => format!(
                "worker `{worker}` on {host} is refused: a living worker on {holder} has that id and another state folder. Give each \
                 worker an id of its own (--id, or `id` in its --config file); if the other one is gone for good, this one is \
                 taken in as soon as its lease has lapsed"
            ),
            Self::OldIncarnation { holder } => format!(
                "worker `{worker}` on {host} is refused: a daemon of the same state folder that began later has registered from \
                 {holder}. End this one; if its machine or folder is a copy, give the copy an id and an empty state folder of its \
                 own (--id, --state)"
            ),
            Self::Protocol { theirs, ours } => {
                let versions = |(low, high): &(u32, u32)| {
                    if low == high { format!("version {low}") } else { format!("versions {low} to {high}") }
                };
                let said = theirs.as_ref().map_or_else(|| "no version that it names".to_owned(), versions);
                let older = theirs.is_none_or(|(_, high)| high < ours.0);
                let whom = if older { "llm2clip-worker there" } else { "the coordinator" };
                format!(
                    "worker `{worker}` on {host} is refused: it speaks {said} of the protocol, the coordinator {}. Update {whom}; \
                     trainers go on meanwhile",
                    versions(ours)
                )
            }
        }
    }
}

/// A refusal that a coordinator keeps.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refused {
    /// What the worker called itself.
    pub worker: WorkerId,
    /// Its machine.
    pub host: String,
    /// Why.
    pub refusal: Refusal,
    /// The same in words.
    pub message: String,
    /// How often it asked.
    pub count: u64,
    /// The first time.
    pub since: Timestamp,
    /// The last time.
    pub seen: Timestamp,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_reason_says_what_to_do() {
        let check = |refusal: Refusal, expected: &str| {
            let said = refusal.explain(&"w1".parse().unwrap(), "box");
            assert!(said.starts_with("worker `w1` on box is refused: ") && said.contains(expected), "{said}");
        };
        check(Refusal::Duplicate { holder: "other".into() }, "living worker on other has that id");
        check(Refusal::OldIncarnation { holder: "other".into() }, "an id and an empty state folder of its own");
        let protocol = |theirs| Refusal::Protocol { theirs, ours: (3, 4) };
        check(
            protocol(Some((2, 2))),
            "version 2 of the protocol, the coordinator versions 3 to 4. Update llm2clip-worker",
        );
        check(protocol(Some((5, 6))), "Update the coordinator");
        check(protocol(None), "no version that it names of the protocol");
    }
}
