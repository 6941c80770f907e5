//! The small file `state`: what Raft may never forget besides its entries, and what recovery
//! needs to know about the segments.
//!
//! Four blocks, each with the same layout and a checksum. A save writes one pair of them, the
//! pairs taking turns, in one write and one fdatasync. A write that a crash tears leaves the other
//! pair, which is the state before; a bit that flips later leaves the second block of the pair.

use std::{io, path::Path, sync::Arc};

use pygmy_protocol::env::{File, Files};
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64;

use super::{
    error::{Context, LogError},
    record::{u32_at, u64_at},
};
use crate::raft::{LogId, Vote};

/// The name of the file.
pub(super) const NAME: &str = "state";
/// Its name until it is complete for the first time.
pub(super) const NEW_NAME: &str = "state.new";

const MAGIC: [u8; 8] = *b"PYGMYHST";
const VERSION: u32 = 1;
/// A page: no write of one block touches the sectors of another.
const BLOCK_BYTES: usize = 4096;
const PAIR_BYTES: usize = 2 * BLOCK_BYTES;
const FILE_BYTES: usize = 2 * PAIR_BYTES;
/// Magic, version, length, sequence number, checksum.
const HEAD_BYTES: usize = 32;

/// What the file holds.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct HardState {
    /// Raft's vote.
    pub(super) vote: Option<Vote>,
    /// Entries up to this one are gone, and are in a snapshot or in the state machine.
    pub(super) purged: Option<LogId>,
    /// A truncation is under way: entries from this index on are void. Recovery finishes it.
    pub(super) truncating_from: Option<u64>,
    /// Every entry below this index was fsynced when the state was saved.
    pub(super) durable_before: u64,
    /// First index of the newest segment there must be.
    pub(super) newest_segment: u64,
}

impl HardState {
    /// The first index that is not purged.
    pub(super) fn first_kept(&self) -> u64 {
        self.purged.map_or(0, |id| id.index + 1)
    }
}

/// The open file and what it holds.
pub(super) struct HardStateFile {
    file: Arc<dyn File>,
    sequence: u64,
    saved: HardState,
}

impl HardStateFile {
    /// Makes the file of a new log. Its name is durable once the caller has synced `dir`.
    pub(super) fn create(
        files: &dyn Files,
        dir: &Path,
        state: HardState,
    ) -> Result<HardStateFile, LogError> {
        let path = dir.join(NEW_NAME);
        let file = files.create(&path).context("create", &path)?;
        file.allocate(FILE_BYTES as u64).context("reserve room for", &path)?;
        let mut created = HardStateFile { file, sequence: 0, saved: HardState::default() };
        created.save(state).context("write", &path)?;
        files.rename(&path, &dir.join(NAME)).context("rename", &path)?;
        Ok(created)
    }

    /// Reads the newest intact state, and saves it again: the last process may not have lived to
    /// sync it, or a copy may be damaged.
    pub(super) fn open(files: &dyn Files, dir: &Path) -> Result<HardStateFile, LogError> {
        let path = dir.join(NAME);
        let file = files.open(&path).context("open", &path)?;
        // It was reserved in full before it got its name. What is missing may be the newest vote.
        let len = file.len().context("measure", &path)?;
        if len != FILE_BYTES as u64 {
            let what = format!("the file has {len} bytes, not {FILE_BYTES}");
            return Err(LogError::corrupt(&path, len, what));
        }
        let mut bytes = vec![0; FILE_BYTES];
        file.read_exact_at(&mut bytes, 0).context("read", &path)?;
        let mut newest: Option<(u64, HardState)> = None;
        for block in bytes.chunks_exact(BLOCK_BYTES) {
            let Some((sequence, state)) = parse(block, &path)? else { continue };
            if newest.as_ref().is_none_or(|(newest, _)| *newest < sequence) {
                newest = Some((sequence, state));
            }
        }
        let Some((sequence, saved)) = newest else {
            return Err(LogError::corrupt(&path, 0, "no copy of the vote is intact"));
        };
        let opened = HardStateFile { file, sequence, saved };
        // In its old place: the other pair must stay intact for as long as this one may be torn.
        opened.write(sequence, &opened.saved).context("write", &path)?;
        Ok(opened)
    }

    /// The state as it was last saved.
    pub(super) fn saved(&self) -> &HardState {
        &self.saved
    }

    /// Replaces the state; durable when this returns.
    pub(super) fn save(&mut self, state: HardState) -> io::Result<()> {
        self.write(self.sequence + 1, &state)?;
        self.sequence += 1;
        self.saved = state;
        Ok(())
    }

    fn write(&self, sequence: u64, state: &HardState) -> io::Result<()> {
        let block = encode(sequence, state);
        let pair = sequence % 2 * PAIR_BYTES as u64;
        self.file.write_all_at(&[block, block].concat(), pair)?;
        self.file.sync_data()
    }
}

fn encode(sequence: u64, state: &HardState) -> [u8; BLOCK_BYTES] {
    let mut block = [0; BLOCK_BYTES];
    // Two log ids and a few numbers: a hundred bytes, of some four thousand.
    let used = postcard::to_slice(state, &mut block[HEAD_BYTES..])
        .expect("the state fits its block")
        .len();
    block[..8].copy_from_slice(&MAGIC);
    block[8..12].copy_from_slice(&VERSION.to_le_bytes());
    block[12..16].copy_from_slice(&(used as u32).to_le_bytes());
    block[16..24].copy_from_slice(&sequence.to_le_bytes());
    let check = xxh3_64(&block);
    block[24..32].copy_from_slice(&check.to_le_bytes());
    block
}

/// `None` for a block that is torn, damaged or was never written.
fn parse(block: &[u8], path: &Path) -> Result<Option<(u64, HardState)>, LogError> {
    let mut unchecked = block.to_vec();
    unchecked[24..32].fill(0);
    if block[..8] != MAGIC || xxh3_64(&unchecked) != u64_at(block, 24) {
        return Ok(None);
    }
    let version = u32_at(block, 8);
    if version > VERSION {
        return Err(LogError::Newer { path: path.to_owned(), found: version, supported: VERSION });
    }
    let used = u32_at(block, 12) as usize;
    let state =
        block.get(HEAD_BYTES..HEAD_BYTES + used).and_then(|bytes| postcard::from_bytes(bytes).ok());
    Ok(state.map(|state| (u64_at(block, 16), state)))
}
