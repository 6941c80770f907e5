//! Replicas agree: what one holds at an index, all hold at that index.

use std::collections::BTreeMap;

use super::Violation;

/// What a replica said of itself at some time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Observation {
    pub(crate) replica: u64,
    /// Counts the starts of the replica. A restart may fall back to what was on disk.
    pub(crate) incarnation: u64,
    pub(crate) applied_index: u64,
    pub(crate) state_hash: u128,
}

/// Takes observations as they come, so that a run ends at the first disagreement.
#[derive(Debug, Default)]
pub(crate) struct Replicas {
    /// Of each index, the observation that came first.
    first: BTreeMap<u64, Observation>,
    /// How far each incarnation of each replica was seen.
    applied: BTreeMap<(u64, u64), u64>,
}

impl Replicas {
    /// Checks `new` against all that came before.
    ///
    /// # Errors
    /// [`Violation::ReplicasDiffer`], [`Violation::ReplicaWentBack`].
    pub(crate) fn observe(&mut self, new: Observation) -> Result<(), Violation> {
        let applied = self.applied.entry((new.replica, new.incarnation)).or_default();
        if new.applied_index < *applied {
            return Err(Violation::ReplicaWentBack { new, before: *applied });
        }
        *applied = new.applied_index;
        let first = *self.first.entry(new.applied_index).or_insert(new);
        match first.state_hash == new.state_hash {
            true => Ok(()),
            false => Err(Violation::ReplicasDiffer { first, new }),
        }
    }

    /// How many indexes were seen: a check that saw none proves nothing.
    pub(crate) fn indexes(&self) -> usize {
        self.first.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(seen: &[(u64, u64, u64, u128)]) -> Result<(), Violation> {
        let mut replicas = Replicas::default();
        seen.iter().try_for_each(|&(replica, incarnation, applied_index, state_hash)| {
            replicas.observe(Observation { replica, incarnation, applied_index, state_hash })
        })
    }

    #[test]
    fn replicas_that_agree_pass() {
        // Replica 2 skips an index, restarts, and falls back.
        let seen = [(1, 1, 4, 40), (2, 1, 4, 40), (1, 1, 5, 50), (2, 1, 6, 60), (2, 2, 5, 50)];
        assert_eq!(all(&seen), Ok(()));
        assert_eq!(all(&[(1, 1, 4, 40), (1, 1, 4, 40)]), Ok(()));
    }

    #[test]
    fn divergence_is_found() {
        let differ = |seen: &[_]| matches!(all(seen), Err(Violation::ReplicasDiffer { .. }));
        assert!(differ(&[(1, 1, 4, 40), (2, 1, 4, 41)]), "two replicas");
        assert!(differ(&[(1, 1, 4, 40), (1, 1, 5, 50), (1, 2, 4, 41)]), "after a restart");
        assert!(differ(&[(1, 1, 4, 40), (1, 1, 4, 41)]), "in place");
    }

    #[test]
    fn an_incarnation_does_not_go_back() {
        let found = all(&[(1, 1, 4, 40), (2, 1, 3, 30), (1, 1, 3, 30)]);
        assert!(matches!(found, Err(Violation::ReplicaWentBack { before: 4, .. })), "{found:?}");
    }
}
