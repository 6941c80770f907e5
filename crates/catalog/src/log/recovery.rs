//! What happens when the log is opened.
//!
//! A crash leaves: files that were about to be made or removed, a truncation half done, a torn
//! tail of the newest segment. All that is finished or cleared away here. Whatever else is wrong
//! may have been acknowledged and is [`LogError::Corrupt`].
//!
//! How a torn tail is told from damage. A record that fails its check in the newest segment has
//! been acknowledged if a later record says so (see [`record`](super::record)), or if the hard
//! state does, which is saved with each vote, purge, truncation, new segment and start. What
//! remains is damage to the very last records since then with nothing behind them to tell: it
//! looks like a torn tail, and is cut.
//!
//! What was read need not be on the disk: the process may have died between write and fsync, or
//! because of a failed fsync, after which the kernel shows pages as clean that it never wrote. Raft
//! takes what it is given here for durable, so everything that is not proven to be is written
//! again and fsynced.

use std::{collections::VecDeque, io, path::Path, sync::Arc};

use pygmy_protocol::{
    env::{Env, Files},
    planted,
};

use super::{
    LogConfig,
    error::{Context, LogError},
    hard_state::{self, HardState, HardStateFile},
    segment::{self, Scan, Segment},
    table::{Indexed, Shared, Table},
    writer::Writer,
};

/// Opens the log in `dir`, or makes a new one if there is none.
pub(super) fn open(
    env: &Env,
    dir: &Path,
    config: LogConfig,
) -> Result<(Arc<Shared>, Writer), LogError> {
    let files = &*env.files;
    files.create_dir_all(dir).context("create", dir)?;
    let state_path = dir.join(hard_state::NAME);
    for leftover in [segment::SPARE_NAME, hard_state::NEW_NAME] {
        remove_if_there(files, &dir.join(leftover))?;
    }
    if !files.exists(&state_path).context("look for", &state_path)? {
        create(files, dir, config)?;
    }
    // What is done below relies on these two: first they must be what a power loss leaves.
    let mut hard_state = HardStateFile::open(files, dir)?;
    files.sync_dir(dir).context("sync", dir)?;

    let segments = surviving_segments(files, dir, hard_state.saved())?;
    let mut indexed = read_sealed(&segments)?;
    // There is one at least, or the line above has failed.
    let newest = segments.into_iter().next_back().expect("a log has a segment");
    let scan = read_newest(&newest, hard_state.saved())?;
    mend_newest(&newest, &scan, &mut hard_state).context("mend", &newest.path)?;
    indexed.push_back(Indexed { segment: newest.clone(), places: scan.places });

    let state = hard_state.saved();
    let table = Table::recovered(state.vote, state.purged, indexed);
    let (first, next) = (table.first, table.next);
    let shared = Arc::new(Shared::new(table, config.cache_bytes));
    if first < next {
        let last = shared.log_id(next - 1).context("read the last entry of", &newest.path)?;
        shared.table().last = Some(last);
    }
    let mut writer =
        Writer::new(env, dir, config, Arc::clone(&shared), hard_state, (newest, scan.end))?;
    if scan.next < next {
        // A purge went past the last entry and did not live to start again behind it.
        writer.restart_at(next)?;
    }
    Ok((shared, writer))
}

fn remove_if_there(files: &dyn Files, path: &Path) -> Result<(), LogError> {
    if files.exists(path).context("look for", path)? {
        files.remove(path).context("remove", path)?;
    }
    Ok(())
}

/// Makes an empty log. The hard state comes last: once it is there, the log is.
fn create(files: &dyn Files, dir: &Path, config: LogConfig) -> Result<(), LogError> {
    for first in list_segments(files, dir)? {
        let (segment, _) = Segment::open(files, dir, first)?;
        let scan = Scan::read(&segment, u64::MAX)?;
        if first > 0 || !scan.places.is_empty() || scan.has_debris() {
            return Err(LogError::corrupt(
                dir,
                0,
                "there are log entries, and the file with the vote is missing",
            ));
        }
    }
    // The directory may be new itself. What is above it is up to whoever made the data directory.
    let parent = dir.parent().filter(|parent| !parent.as_os_str().is_empty());
    let parent = parent.unwrap_or(Path::new("."));
    files.sync_dir(parent).context("sync", parent)?;
    let spare =
        segment::reserve(files, dir, config.segment_bytes).context("reserve a segment in", dir)?;
    Segment::create(files, dir, spare, 0, true)?;
    HardStateFile::create(files, dir, HardState::default())?;
    files.sync_dir(dir).context("sync", dir)
}

/// First indexes of the segments there are, in order.
fn list_segments(files: &dyn Files, dir: &Path) -> Result<VecDeque<u64>, LogError> {
    let names = files.list(dir).context("list", dir)?;
    // Names sort like their numbers.
    Ok(names.iter().filter_map(|name| segment::parse_name(name)).collect())
}

/// Clears away what a truncation or a purge has made void, and opens the rest.
fn surviving_segments(
    files: &dyn Files,
    dir: &Path,
    state: &HardState,
) -> Result<Vec<Segment>, LogError> {
    let remove = |first| {
        let path = dir.join(segment::name(first));
        files.remove(&path).context("remove", &path)
    };
    let mut firsts = list_segments(files, dir)?;
    if let Some(from) = state.truncating_from {
        while let Some(first) = firsts.pop_back_if(|first| *first > from) {
            remove(first)?;
        }
        files.sync_dir(dir).context("sync", dir)?;
    }
    if firsts.back().is_none_or(|newest| *newest < state.newest_segment) {
        return Err(missing(dir, state.newest_segment));
    }
    while firsts.get(1).is_some_and(|second| *second <= state.first_kept()) {
        firsts.pop_front().map_or(Ok(()), remove)?;
    }
    let mut opened = Vec::new();
    for first in firsts {
        opened.push(Segment::open(files, dir, first)?);
    }
    let start = opened.iter().rposition(|(_, starts_log)| *starts_log);
    for (void, _) in opened.drain(..start.unwrap_or(0)) {
        remove(void.first)?;
    }
    if start.is_none()
        && opened.first().is_some_and(|(oldest, _)| oldest.first > state.first_kept())
    {
        return Err(missing(dir, state.first_kept()));
    }
    Ok(opened.into_iter().map(|(segment, _)| segment).collect())
}

fn missing(dir: &Path, entry: u64) -> LogError {
    LogError::corrupt(dir, 0, format!("the segment with entry {entry} is missing"))
}

/// Reads all segments but the newest: each was fsynced in full before the next was made.
fn read_sealed(segments: &[Segment]) -> Result<VecDeque<Indexed>, LogError> {
    let mut sealed = VecDeque::new();
    for pair in segments.windows(2) {
        let (segment, end) = (&pair[0], pair[1].first);
        let scan = Scan::read(segment, end)?;
        if scan.next < end {
            let what = format!(
                "entry {} fails its check, or a segment after this one is missing",
                scan.next
            );
            return Err(LogError::corrupt(&segment.path, scan.end, what));
        }
        sealed.push_back(Indexed { segment: segment.clone(), places: scan.places });
    }
    Ok(sealed)
}

/// Reads the newest segment up to its end, to a torn tail, or to where a truncation cuts.
fn read_newest(newest: &Segment, state: &HardState) -> Result<Scan, LogError> {
    let mut scan = Scan::read(newest, state.truncating_from.unwrap_or(u64::MAX))?;
    let damaged = |proof: String| {
        let what = format!(
            "entry {} fails its check or is missing, and was durable according to {proof}",
            scan.next
        );
        LogError::corrupt(&newest.path, scan.end, what)
    };
    if planted!(DamageTakenForTornTail) {
        return Ok(scan);
    }
    if scan.next.max(state.first_kept()) < state.durable_before {
        return Err(damaged("the file with the vote".to_owned()));
    }
    // What a truncation has half wiped says nothing.
    if state.truncating_from.is_none()
        && let Some(offset) = scan.witness(newest.first)
    {
        return Err(damaged(format!("the record at byte {offset}")));
    }
    if planted!(TailRepairCutsCommitted)
        && scan.has_debris()
        && let Some(cut) = scan.places.pop()
    {
        (scan.end, scan.next) = (cut.offset.into(), scan.next - 1);
    }
    Ok(scan)
}

/// Makes what was read durable, and what was not read void.
fn mend_newest(newest: &Segment, scan: &Scan, hard_state: &mut HardStateFile) -> io::Result<()> {
    let mut state = hard_state.saved().clone();
    if state.truncating_from.is_some() || scan.has_debris() {
        // A torn tail is cut like a truncation, so that a crash in between does not lead to a
        // log that ends in one place and has debris in another.
        state.truncating_from = Some(scan.next);
        hard_state.save(state.clone())?;
        newest.wipe(scan.end, scan.bytes.len() as u64)?;
    }
    let proven = scan.durable_before.max(state.durable_before).saturating_sub(newest.first);
    if let Some(place) = scan.places.get(proven as usize) {
        let from = place.offset as usize;
        newest.file.write_all_at(&scan.bytes[from..scan.end as usize], from as u64)?;
    }
    newest.file.sync_data()?;
    state.truncating_from = None;
    state.durable_before = scan.next.max(state.first_kept());
    // A crash may have come between the making of this segment and the save that says so.
    state.newest_segment = newest.first;
    hard_state.save(state)
}
