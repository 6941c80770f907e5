//! Where the state machine stands: the one row of the table `meta`.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use openraft::Membership;
use rusqlite::{Connection, params};
use serde::{Deserialize, Serialize};

use super::{
    error::nonsense,
    hash::Canonical,
    rows::{folded, sql, whole, wide},
};
use crate::raft::{LogId, Member, SnapshotMeta, StoredMembership};

/// What is true of the state as a whole at one log index.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Meta {
    /// The last applied entry.
    pub(super) applied: Option<LogId>,
    /// The last applied membership.
    pub(super) membership: StoredMembership,
    /// See [`super::hash`].
    pub(super) state_hash: u128,
    /// Orders made, and the number of the last.
    pub(super) orders: u64,
    /// Items there are, with those that are staged.
    pub(super) items: u64,
    /// Keys remembered.
    pub(super) keys: u64,
    /// The front-end processes that may be given leases on their caches, with their names.
    pub(super) holders: Arc<Holders>,
    /// What the text log must end with. No part of the replicated state.
    pub(super) lines: LastLines,
}

/// Front-end processes by their nonces.
pub(crate) type Holders = BTreeMap<u128, String>;

/// The part of one in the state hash.
pub(super) fn hash_of_holder(nonce: u128, name: &str) -> u128 {
    Canonical::new("holder").wide(nonce).text(name).hash()
}

/// The last entry that has lines in the text log.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct LastLines {
    /// Its log index; 0 before the first.
    pub(super) index: u64,
    /// How many lines it has.
    pub(super) count: u64,
}

impl Meta {
    /// Index of the last applied entry; 0 if there is none.
    pub(super) fn index(&self) -> u64 {
        self.applied.map_or(0, |log_id| log_id.index)
    }

    pub(super) fn snapshot_meta(&self) -> SnapshotMeta {
        SnapshotMeta { last_log_id: self.applied, last_membership: self.membership.clone() }
    }

    /// Reads the row.
    pub(super) fn load(db: &Connection) -> rusqlite::Result<Meta> {
        let mut statement = db.prepare_cached(
            "SELECT applied_term, applied_index, membership, state_hash, orders, items, keys, \
             lines_index, lines_count, holders, checksum FROM meta",
        )?;
        statement.query_row((), |row| {
            let applied = match row.get::<_, Option<i64>>(0)? {
                Some(_) => Some(log_id((whole(row, 0)?, whole(row, 1)?))),
                None => None,
            };
            let membership: SavedMembership =
                postcard::from_bytes(row.get_ref(2)?.as_blob()?).map_err(nonsense)?;
            let checksum: Option<i64> = row.get(10)?;
            let meta = Meta {
                applied,
                membership: membership.try_into().map_err(nonsense)?,
                state_hash: wide(row, 3)?,
                orders: whole(row, 4)?,
                items: whole(row, 5)?,
                keys: whole(row, 6)?,
                lines: LastLines { index: whole(row, 7)?, count: whole(row, 8)? },
                holders: match row.get_ref(9)?.as_blob()? {
                    [] => Arc::default(),
                    holders => Arc::new(postcard::from_bytes(holders).map_err(nonsense)?),
                },
            };
            if checksum.is_some_and(|checksum| checksum != meta.checksum()) {
                return Err(nonsense("the row of the table meta fails its check"));
            }
            Ok(meta)
        })
    }

    /// Of what applying goes on from.
    fn checksum(&self) -> i64 {
        let (term, index) = self.applied.map_or((0, 0), saved);
        let mut row = Canonical::new("meta").number(term).number(index).wide(self.state_hash);
        row = row.number(self.orders).number(self.items).number(self.keys);
        for (nonce, name) in &*self.holders {
            row = row.wide(*nonce).text(name);
        }
        for (id, member) in self.membership.nodes() {
            row = row.number(*id).text(&member.name).text(&member.url);
        }
        for id in self.membership.voter_ids() {
            row = row.number(id);
        }
        folded(row.hash())
    }

    /// Writes the row, which exists since the schema was created.
    pub(super) fn store(&self, db: &Connection) -> rusqlite::Result<()> {
        let membership =
            postcard::to_stdvec(&SavedMembership::from(&self.membership)).map_err(nonsense)?;
        let mut statement = db.prepare_cached(
            "UPDATE meta SET applied_term = ?, applied_index = ?, membership = ?, state_hash = ?, \
             orders = ?, items = ?, keys = ?, lines_index = ?, lines_count = ?, holders = ?, \
             checksum = ?",
        )?;
        let holders = match self.holders.is_empty() {
            true => Vec::new(),
            false => postcard::to_stdvec(&*self.holders).map_err(nonsense)?,
        };
        statement.execute(params![
            self.applied.map(|log_id| sql(log_id.leader_id.term)),
            self.applied.map(|log_id| sql(log_id.index)),
            membership,
            self.state_hash.to_le_bytes(),
            sql(self.orders),
            sql(self.items),
            sql(self.keys),
            sql(self.lines.index),
            sql(self.lines.count),
            holders,
            self.checksum(),
        ])?;
        Ok(())
    }
}

/// A log id as it is stored: term and index. openraft's own layouts may change between versions.
pub(super) type SavedLogId = (u64, u64);

pub(super) fn log_id((term, index): SavedLogId) -> LogId {
    LogId::new(term.into(), index)
}

pub(super) fn saved(log_id: LogId) -> SavedLogId {
    (log_id.leader_id.term, log_id.index)
}

/// A membership as it is stored.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct SavedMembership {
    log_id: Option<SavedLogId>,
    configs: Vec<BTreeSet<u64>>,
    nodes: BTreeMap<u64, Member>,
}

impl From<&StoredMembership> for SavedMembership {
    fn from(stored: &StoredMembership) -> SavedMembership {
        let membership = stored.membership();
        SavedMembership {
            log_id: stored.log_id().map(saved),
            configs: membership.get_joint_config().clone(),
            nodes: membership.nodes().map(|(id, member)| (*id, member.clone())).collect(),
        }
    }
}

impl TryFrom<SavedMembership> for StoredMembership {
    type Error = openraft::errors::MembershipError<u64>;

    fn try_from(saved: SavedMembership) -> Result<StoredMembership, Self::Error> {
        let membership = match saved.configs.is_empty() && saved.nodes.is_empty() {
            // Before the cluster was made; `new` takes no such thing.
            true => Membership::default(),
            false => Membership::new(saved.configs, saved.nodes)?,
        };
        Ok(StoredMembership::new(saved.log_id.map(log_id), membership))
    }
}
