//! Room on the disk: a full one refuses writes before it breaks anything.
//!
//! The free bytes of the data directory are measured a few times a second. Below `min_free_bytes` a
//! leader refuses changes, with the reason, and gives the leadership to a replica that has room, if
//! one answers. Whatever it had taken before still fits into what is kept free, on all replicas: it
//! is fsynced, applied and answered, so that nothing is left half done that a read would wait for.
//! A follower stops only at half of that: it takes no more log entries with changes, as if they
//! were lost on the way, says that it is not ready, and falls behind instead of ending. Entries of
//! Raft itself are always taken: reads need them. With room again, everything goes on by itself.
//!
//! Caveat: whatever else fills the disk within one look, from `min_free_bytes` to nothing, ends the
//! replica with an error of the disk; it starts when there is room.

use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use openraft::EntryPayload;
use pygmy_protocol::{
    env::Env,
    http::{Fatal, Shutdown},
    metrics::Counter,
};

use crate::{
    members,
    peer::{Message, Reply},
    raft::Entry,
    replica::Shared,
};

/// Between two looks.
const LOOK_AGAIN: Duration = Duration::from_millis(200);
/// Enough room again is so much more than too little, in eighths: it does not change with each
/// look.
const EIGHTHS_MORE: u64 = 1;
/// Longest wait for another replica to say whether it has room.
const ASK_LIMIT: Duration = Duration::from_millis(500);
/// Between two tries to find one that has.
const ASK_AGAIN: Duration = Duration::from_secs(2);

/// What is known of the room on the disk.
pub(crate) struct Room {
    env: Env,
    dir: PathBuf,
    min_free_bytes: u64,
    free_bytes: AtomicU64,
    is_short: AtomicBool,
    is_full: AtomicBool,
    rejected: Counter,
}

impl Room {
    /// Looks for the first time.
    pub(crate) fn new(env: &Env, dir: PathBuf, min_free_bytes: u64, rejected: Counter) -> Room {
        let room = Room {
            env: env.clone(),
            dir,
            min_free_bytes,
            free_bytes: AtomicU64::new(0),
            is_short: AtomicBool::new(false),
            is_full: AtomicBool::new(false),
            rejected,
        };
        room.look();
        room
    }

    /// Free bytes, when they were last looked at.
    pub(crate) fn free_bytes(&self) -> u64 {
        self.free_bytes.load(Ordering::Relaxed)
    }

    /// Whether there is too little to propose anything.
    pub(crate) fn is_short(&self) -> bool {
        self.is_short.load(Ordering::Relaxed)
    }

    /// Whether there is too little even for what others propose.
    pub(crate) fn is_full(&self) -> bool {
        self.is_full.load(Ordering::Relaxed)
    }

    /// Refuses a change if there is too little room.
    ///
    /// # Errors
    /// The reason, for whoever wants the change.
    pub(crate) fn check(&self) -> Result<(), String> {
        if !self.is_short() {
            return Ok(());
        }
        self.rejected.inc();
        Err(format!(
            "the disk of the catalog's leader is nearly full: {} bytes are free, {} are needed \
             (min_free_bytes); make room and it goes on by itself",
            self.free_bytes(),
            self.min_free_bytes
        ))
    }

    /// Whether these log entries may be taken: nothing but changes only if there is room. With an
    /// entry of Raft's own come those before it, or it would not count.
    pub(crate) fn takes(&self, entries: &[Entry]) -> bool {
        let changes = |entry: &Entry| matches!(entry.payload, EntryPayload::Normal(_));
        !self.is_full() || entries.is_empty() || !entries.iter().all(changes)
    }

    /// A local file system answers this from memory.
    fn look(&self) {
        let free = match self.env.files.free_bytes(&self.dir) {
            Ok(free) => free,
            Err(error) => {
                tracing::warn!(%error, dir = %self.dir.display(), "cannot measure the room on the disk");
                return;
            }
        };
        self.free_bytes.store(free, Ordering::Relaxed);
        let (was_short, was_full) = (self.is_short(), self.is_full());
        let is_short = is_below(free, self.min_free_bytes, was_short);
        self.is_short.store(is_short, Ordering::Relaxed);
        self.is_full.store(is_below(free, self.min_free_bytes / 2, was_full), Ordering::Relaxed);
        let dir = self.dir.display();
        match (was_short, is_short) {
            (false, true) => {
                tracing::error!(%dir, free, "too little room: this replica takes no changes")
            }
            (true, false) => tracing::info!(%dir, free, "there is room again"),
            _ => {}
        }
    }
}

/// Whether `free` is too little; a little more is needed to be enough again.
fn is_below(free: u64, needed: u64, was_below: bool) -> bool {
    let more = if was_below { needed / 8 * EIGHTHS_MORE } else { 0 };
    free < needed.saturating_add(more)
}

/// Looks again and again; a leader without room looks for a replica that has some.
pub(crate) async fn watch_room(shared: Arc<Shared>, mut shutdown: Shutdown) -> Result<(), Fatal> {
    let mut asked_at = None;
    loop {
        tokio::select! {
            biased;
            () = shutdown.stopped() => return Ok(()),
            () = shared.env.sleep(LOOK_AGAIN) => shared.room.look(),
        }
        let now = shared.env.now();
        let is_due = asked_at.is_none_or(|at| now.saturating_since(at) >= ASK_AGAIN);
        if shared.room.is_short() && shared.is_leader() && is_due {
            asked_at = Some(now);
            give_way(&shared).await;
        }
    }
}

/// Whether a member says that it has too little room, or nothing.
pub(crate) async fn is_short_at(shared: &Shared, id: u64) -> bool {
    let mut members = members::statuses(shared).into_iter();
    let Some(member) = members.find(|member| member.id == id) else { return true };
    let link = shared.links.to(member.id, &member.url);
    let reply = link.call(Message::Room, ASK_LIMIT).await;
    !matches!(reply, Ok(Reply::Room { is_short: false }))
}

/// Hands the leadership to a voter that has room.
async fn give_way(shared: &Shared) {
    for member in members::statuses(shared) {
        if member.id == shared.id || !member.voter || !member.answers {
            continue;
        }
        if !is_short_at(shared, member.id).await {
            tracing::warn!(successor = member.name, "handing over the leadership: it has room");
            if let Err(error) = shared.raft.trigger().transfer_leader(member.id).await {
                tracing::warn!(%error, "the leadership cannot be handed over");
            }
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use openraft::Membership;
    use pygmy_protocol::env::FakeDisk;

    use super::*;
    use crate::raft::{Batch, log_id};

    #[test]
    fn too_little_room_refuses_changes_and_nothing_else_until_there_is_more() {
        // A leader, and below half of it everybody.
        let disk = FakeDisk::default();
        let env = Env { files: Arc::new(disk.clone()), ..Env::production() };
        disk.set_room(1000);
        let rejected = Counter::default();
        let room = Room::new(&env, PathBuf::from("data"), 1000, rejected.clone());
        let entry = |payload| Entry { log_id: log_id(1, 1), payload };
        let change = [entry(EntryPayload::Normal(Batch { time_ms: 0, requests: Vec::new() }))];
        let other =
            [entry(EntryPayload::Blank), entry(EntryPayload::Membership(Membership::default()))];
        assert!(room.check().is_ok() && room.takes(&change));
        disk.set_room(999);
        room.look();
        assert!(room.check().unwrap_err().contains("999 bytes are free"));
        assert_eq!(rejected.get(), 1);
        assert!(room.takes(&change), "what a leader had taken before is not refused");
        disk.set_room(499);
        room.look();
        assert!(!room.takes(&change) && room.takes(&other) && room.takes(&[]));
        let [change] = change;
        let [blank, _] = other;
        assert!(room.takes(&[change, blank]), "a new leader's own entry, and what is before it");
        disk.set_room(1100);
        room.look();
        assert!(room.is_short(), "not with each byte");
        disk.set_room(1125);
        room.look();
        assert!(room.check().is_ok() && !room.is_full());
    }
}
