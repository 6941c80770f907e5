//! Which replicas belong to the cluster, and how that is changed.
//!
//! A change is a wish, sent to the leader as the body of `POST /members` and repeated until the
//! answer says that it is done. Each time the leader does at most one step towards it. So nobody
//! has to remember a change that is half done: not the leader, which may be another one by then,
//! and not the cluster.

use serde::{Deserialize, Serialize};

use crate::{
    Code, Problem,
    registration::{MAX_NAME_BYTES, MAX_URL_BYTES},
};

/// The path of the route, at every catalog server. One that does not lead answers 503 and names
/// the leader, as for an invalidation stream.
pub const PATH: &str = "/members";

/// A replica that is to belong to the cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Candidate {
    /// The Raft id of its data directory.
    pub id: u64,
    /// Its name in the configuration.
    pub name: String,
    /// Its base URL.
    pub url: String,
}

impl Candidate {
    /// Checks the ranges: an id from 1 to 2^53 - 1, a name of 1 to 72 visible ASCII characters, a
    /// URL of at most 512 bytes that begins with `http://`.
    ///
    /// # Errors
    /// `bad_value`.
    pub fn check(&self) -> Result<(), Problem> {
        let Candidate { id, name, url } = self;
        check_name(name)?;
        let detail = if !(1..1 << 53).contains(id) {
            "id is a whole number from 1 to 2^53 - 1".to_owned()
        } else if url.len() > MAX_URL_BYTES || !url.starts_with("http://") {
            format!("url begins with http:// and has {MAX_URL_BYTES} bytes at most")
        } else {
            return Ok(());
        };
        Err(Problem::new(Code::BadValue, detail))
    }
}

/// What is to become of the membership.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub enum MemberChange {
    /// A replica with a new, empty directory takes the place of the one of its name. Refused if
    /// there is none of that name, or if that one still answers.
    Join(Candidate),
    /// A replica with a new name joins.
    Add(Candidate),
    /// The replica of this name leaves.
    Remove {
        /// Who.
        name: String,
    },
    /// One replica takes the place of another, in one step.
    Replace {
        /// The name of the one that leaves.
        old: String,
        /// The one that comes.
        new: Candidate,
    },
    /// The replica of this name leads.
    Lead {
        /// Who.
        name: String,
    },
    /// Nothing, but the others have everything, and are a majority without the replica of this
    /// name: its directory may be cleared.
    Spare {
        /// Who.
        name: String,
    },
}

fn check_name(name: &str) -> Result<(), Problem> {
    let visible = name.bytes().all(|b| b.is_ascii_graphic());
    if visible && (1..=MAX_NAME_BYTES).contains(&name.len()) {
        return Ok(());
    }
    let detail = format!("name has 1 to {MAX_NAME_BYTES} visible ASCII characters");
    Err(Problem::new(Code::BadValue, detail))
}

impl MemberChange {
    /// Checks the names, and who is to come.
    ///
    /// # Errors
    /// `bad_value`.
    pub fn check(&self) -> Result<(), Problem> {
        match self {
            MemberChange::Join(new) | MemberChange::Add(new) => new.check(),
            MemberChange::Replace { old, new } => check_name(old).and_then(|()| new.check()),
            MemberChange::Remove { name }
            | MemberChange::Lead { name }
            | MemberChange::Spare { name } => check_name(name),
        }
    }
}

/// How far a change has come.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberProgress {
    /// Whether the membership is as it was wished; otherwise ask again soon.
    pub done: bool,
    /// What has just been done or is waited for, for people.
    pub detail: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_comes_has_limits() {
        let good =
            Candidate { id: 1, name: "catalog-4".into(), url: "http://10.0.0.4:8080".into() };
        assert_eq!(good.check(), Ok(()));
        let bad = [
            Candidate { id: 0, ..good.clone() },
            Candidate { id: 1 << 53, ..good.clone() },
            Candidate { name: String::new(), ..good.clone() },
            Candidate { name: "a b".into(), ..good.clone() },
            Candidate { name: "a".repeat(MAX_NAME_BYTES + 1), ..good.clone() },
            Candidate { url: "https://10.0.0.4".into(), ..good.clone() },
            Candidate { url: format!("http://{}", "a".repeat(MAX_URL_BYTES)), ..good.clone() },
        ];
        for candidate in bad {
            let problem = MemberChange::Add(candidate.clone()).check().unwrap_err();
            assert_eq!(problem.code, Code::BadValue, "{candidate:?}");
        }
        let remove = |name: &str| MemberChange::Remove { name: name.into() }.check();
        assert!(remove("catalog-4").is_ok() && remove("").is_err());
    }
}
