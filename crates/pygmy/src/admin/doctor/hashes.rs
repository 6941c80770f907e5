//! The state of the replicas at one index of the log.
//!
//! A store that sells applies entries all the time, and each replica at its own moment. So all are
//! asked again and again, until each has named an index that another one has named, too.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use pygmy_protocol::{Env, http::Secret, registration::CatalogStatus};

use super::super::{
    ask::{answered, for_json},
    status::STATUS_TIMEOUT,
};
use crate::config::Part;

/// How long replicas may go on to miss each other's indexes.
const PATIENCE: Duration = Duration::from_secs(10);
/// Between two questions.
const ASK_AGAIN: Duration = Duration::from_millis(10);

/// What replicas have told: their state hashes, by index and name.
#[derive(Debug, Default)]
pub(super) struct Hashes(BTreeMap<u64, BTreeMap<String, String>>);

impl Hashes {
    /// Asks `replicas`, which answer, until all can be compared.
    pub(super) async fn compare(env: &Env, secret: &Secret, replicas: Vec<Part>) -> Hashes {
        let mut hashes = Hashes::default();
        let names: BTreeSet<_> = replicas.iter().map(|part| part.name.clone()).collect();
        if names.len() < 2 {
            return hashes;
        }
        let asking = async {
            while hashes.compared() != names {
                let replicas = replicas.clone();
                let answers = for_json(env, secret, replicas, "/status", STATUS_TIMEOUT).await;
                answered(&answers).for_each(|status| hashes.add(status));
                env.sleep(ASK_AGAIN).await;
            }
        };
        // Whoever is still not compared by then is found.
        let _ = env.timeout(PATIENCE, asking).await;
        hashes
    }

    fn add(&mut self, status: &CatalogStatus) {
        let at_index = self.0.entry(status.applied_index).or_default();
        at_index.insert(status.name.clone(), status.state_hash.clone());
    }

    fn shared(&self) -> impl DoubleEndedIterator<Item = (u64, &BTreeMap<String, String>)> {
        let shared = self.0.iter().filter(|(_, told)| told.len() > 1);
        shared.map(|(index, told)| (*index, told))
    }

    /// Those that have named an index that another one has named.
    pub(super) fn compared(&self) -> BTreeSet<String> {
        self.shared().flat_map(|(_, told)| told.keys().cloned()).collect()
    }

    /// The last index that was named by several.
    pub(super) fn last_shared(&self) -> Option<u64> {
        self.shared().next_back().map(|(index, _)| index)
    }

    /// Those with another state than most, each with an index where it has that; all of them, where
    /// there is no most.
    pub(super) fn strangers(&self) -> BTreeMap<&str, u64> {
        let mut strangers = BTreeMap::new();
        for (index, told) in self.shared() {
            let has = |hash: &String| told.values().filter(|other| *other == hash).count();
            let odd = told.iter().filter(|(_, hash)| 2 * has(hash) <= told.len());
            strangers.extend(odd.map(|(name, _)| (name.as_str(), index)));
        }
        strangers
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hashes(told: &[(&str, u64, &str)]) -> Hashes {
        let mut hashes = Hashes::default();
        for (name, index, hash) in told {
            let at_index = hashes.0.entry(*index).or_default();
            at_index.insert((*name).to_owned(), (*hash).to_owned());
        }
        hashes
    }

    #[test]
    fn only_what_belongs_to_one_index_is_compared() {
        let moving = hashes(&[("a", 1, "x"), ("b", 2, "y"), ("a", 2, "y"), ("c", 3, "z")]);
        assert_eq!(moving.compared(), ["a", "b"].map(str::to_owned).into());
        assert_eq!(moving.last_shared(), Some(2));
        assert!(moving.strangers().is_empty());
    }

    #[test]
    fn the_one_that_differs_is_named_and_both_of_two() {
        let one = hashes(&[("a", 7, "x"), ("b", 7, "x"), ("c", 7, "y")]);
        assert_eq!(one.strangers(), [("c", 7)].into());
        let both = hashes(&[("a", 7, "x"), ("b", 7, "y")]);
        assert_eq!(both.strangers(), [("a", 7), ("b", 7)].into());
    }
}
