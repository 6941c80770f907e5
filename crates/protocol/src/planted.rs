//! Bugs that can be planted, to show that whoever checks the promises would find them.
//!
//! One at a time, for the whole process. The place of each asks [`planted!`](crate::planted!),
//! which is `false` at compile time without the feature `planted-bugs`: a production build holds
//! neither this module nor any of the wrong branches. The promises are those that the
//! architecture numbers: 1 nothing acknowledged is lost, 2 nothing is sold twice, 3 every request
//! counts once, 4 reads are linearizable, 5 replicas agree, 6 no quorum, no lie.

use std::sync::atomic::{AtomicU8, Ordering};

/// Stands for no bug.
const NONE: u8 = u8::MAX;

static PLANTED: AtomicU8 = AtomicU8::new(NONE);

macro_rules! bugs {
    ($($bug:ident, $name:literal, breaks $promise:literal: $summary:literal;)*) => {
        /// A bug that can be planted.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
        #[repr(u8)]
        pub enum Bug {
            $(#[doc = $summary] $bug,)*
        }

        /// All of them.
        pub const ALL: &[Bug] = &[$(Bug::$bug),*];

        impl Bug {
            /// Its name, as in `ack-before-fsync`.
            pub fn name(self) -> &'static str {
                match self { $(Bug::$bug => $name,)* }
            }

            /// What is wrong, in one line.
            pub fn summary(self) -> &'static str {
                match self { $(Bug::$bug => $summary,)* }
            }

            /// The number of the promise that it breaks first.
            pub fn promise(self) -> u8 {
                match self { $(Bug::$bug => $promise,)* }
            }
        }
    };
}

bugs! {
    AckBeforeFsync, "ack-before-fsync", breaks 1:
        "The log reports entries as durable that it has written and not synced.";
    AnswerBeforeCommit, "answer-before-commit", breaks 1:
        "A leader whose majority is slow answers a buy that only its own log holds.";
    VoteNotPersisted, "vote-not-persisted", breaks 1:
        "A vote is kept in memory only.";
    TailRepairCutsCommitted, "tail-repair-cuts-committed", breaks 1:
        "Cutting a torn tail off the log takes one good record with it.";
    DamageTakenForTornTail, "damage-taken-for-torn-tail", breaks 1:
        "Whatever is damaged in the newest segment of the log is cut off like a torn tail.";
    FullFollowerAcknowledges, "full-follower-acknowledges", breaks 1:
        "A follower without room acknowledges entries that it does not take.";
    LostDiskKeepsIdentity, "lost-disk-keeps-identity", breaks 1:
        "A replica whose disk was lost votes on under its old id.";
    StockCheckedBefore, "stock-checked-before", breaks 2:
        "The stock is checked when a buy arrives, and not when it is applied.";
    KeyNotStored, "key-not-stored", breaks 3:
        "An order is stored without its Idempotency-Key.";
    RefusalAfterUnknown, "refusal-after-unknown", breaks 3:
        "A refusal is passed on although an earlier attempt may still be done.";
    StaleReadFromDeposedLeader, "stale-read-from-deposed-leader", breaks 4:
        "A leader answers reads without asking a majority whether it still leads.";
    ReleaseBeforeAcknowledged, "release-before-acknowledged", breaks 4:
        "A write is answered before the front ends have dropped what it changed.";
    ReplaySkipsGate, "replay-skips-gate", breaks 4:
        "A replayed answer does not wait for the release of its order.";
    NewLeaderNoOwnEntry, "new-leader-no-own-entry", breaks 4:
        "A new leader opens sessions at once, and sends them nothing of what its predecessors did.";
    ReadBeforeOwnEntry, "read-before-own-entry", breaks 4:
        "A new leader takes what it has applied for fresh before an entry of its own is applied.";
    FillWithoutFloor, "fill-without-floor", breaks 4:
        "The cache takes an answer that was read before the last invalidation of its key.";
    NewLeaderDoesNotWait, "new-leader-does-not-wait", breaks 4:
        "A new leader waits for no lease of the front ends that its predecessor knew.";
    GrantNotRecorded, "grant-not-recorded", breaks 4:
        "A lease is granted, and the leader does not wait for its holder.";
    LeaseFromAnswer, "lease-from-answer", breaks 4:
        "The front end counts its lease from the answer and not from its request.";
    LeaseOfLeader, "lease-of-leader", breaks 4:
        "A leader waits for every front end as long as its own configuration says.";
    RenewalWithoutRound, "renewal-without-round", breaks 4:
        "A leader renews leases without asking a majority whether it still leads.";
    HitWithoutLease, "hit-without-lease", breaks 4:
        "The cache answers while a session is open, without a look at its lease.";
    ValueBeforeRelease, "value-before-release", breaks 4:
        "The cache serves what an item has become before that is released.";
    FollowerAnswersBeforeRelease, "follower-answers-before-release", breaks 4:
        "A follower answers a read as soon as it has applied what it shows.";
    InterruptedChangeStays, "interrupted-change-stays", breaks 6:
        "Nobody ends a change of the membership that its leader did not live to end.";
    ApplyTwice, "apply-twice", breaks 5:
        "The applied index lags behind the state, so a restart applies entries again.";
    SnapshotWithoutKeys, "snapshot-without-keys", breaks 5:
        "A snapshot leaves the Idempotency-Keys out.";
}

impl Bug {
    /// The bug of that name.
    pub fn named(name: &str) -> Option<Bug> {
        ALL.iter().copied().find(|bug| bug.name() == name)
    }
}

/// Plants `bug` in this process, in the place of the one before; `None` plants none.
pub fn plant(bug: Option<Bug>) {
    PLANTED.store(bug.map_or(NONE, |bug| bug as u8), Ordering::SeqCst);
}

/// Whether `bug` is planted.
pub fn is(bug: Bug) -> bool {
    PLANTED.load(Ordering::SeqCst) == bug as u8
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn one_bug_at_a_time_is_planted() {
        let planted = || ALL.iter().copied().filter(|bug| is(*bug)).collect::<Vec<_>>();
        assert_eq!(planted(), []);
        for bug in ALL {
            plant(Some(*bug));
            assert_eq!(planted(), [*bug]);
        }
        plant(Some(Bug::KeyNotStored));
        assert!(crate::planted!(KeyNotStored) && !crate::planted!(ApplyTwice));
        plant(None);
        assert_eq!(planted(), []);
    }

    #[test]
    fn names_are_unique_and_find_their_bug() {
        let names: BTreeSet<_> = ALL.iter().map(|bug| bug.name()).collect();
        assert_eq!(names.len(), ALL.len());
        assert!(ALL.iter().all(|bug| Bug::named(bug.name()) == Some(*bug)));
        assert_eq!(Bug::named("none"), None);
        assert!(ALL.iter().all(|bug| (1..=6).contains(&bug.promise())));
    }
}
