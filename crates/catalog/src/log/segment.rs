//! Segments: the files that hold the records.
//!
//! A segment is named after its first index. It is reserved in full when it is made, and starts
//! with a head; behind the last record there are zeros. It gets its name only when it is complete,
//! so a segment with a bad head, or shorter than its head says, is damage, never a crash.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use pygmy_protocol::env::{File, Files};
use xxhash_rust::xxh3::xxh3_64;

use super::{
    error::{Context, LogError},
    record::{self, ALIGN_BYTES, PAYLOAD_VERSION, u32_at, u64_at},
};

/// Bytes before the first record: magic, version, flags and size, first index, checksum.
pub(super) const HEAD_BYTES: u64 = 32;
/// The file that becomes the next segment.
pub(super) const SPARE_NAME: &str = "spare";

const MAGIC: [u8; 8] = *b"PYGMYLOG";
/// Version of the segments.
pub(crate) const VERSION: u32 = 1;
/// Flag: all segments before this one are void.
const STARTS_LOG: u32 = 1;
/// Above the flags: the size that was reserved, in whole units of so many bytes.
const SIZE_SHIFT: u32 = 8;
const SIZE_UNIT: u64 = 1024;
/// Zeros written at once when a tail is wiped.
const WIPE_BYTES: usize = 1024 * 1024;

/// Where a record is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    /// Of its head, from the start of the file.
    pub(super) offset: u32,
    /// Of its payload.
    pub(super) length: u32,
}

impl Place {
    /// Where the next record starts.
    pub(super) fn end(self) -> u64 {
        u64::from(self.offset) + record::stored_bytes(self.length)
    }
}

/// An open segment.
#[derive(Clone)]
pub(super) struct Segment {
    pub(super) first: u64,
    pub(super) path: PathBuf,
    pub(super) file: Arc<dyn File>,
}

/// Where the log ends in a segment with records at `places`.
pub(super) fn records_end(places: &[Place]) -> u64 {
    places.last().map_or(HEAD_BYTES, |place| place.end())
}

/// Makes the file of a segment to come, with its room reserved.
pub(super) fn reserve(files: &dyn Files, dir: &Path, bytes: u64) -> io::Result<Arc<dyn File>> {
    let path = dir.join(SPARE_NAME);
    let spare = files.create(&path)?;
    match spare.allocate(bytes) {
        Ok(()) => Ok(spare),
        Err(e) => {
            // What was reserved of it would be missing elsewhere; that the disk is full is worth
            // more than whether this worked.
            let _ = files.remove(&path);
            Err(e)
        }
    }
}

/// The file name of the segment that starts with entry `first`.
pub(super) fn name(first: u64) -> String {
    format!("{first:020}.log")
}

/// The first index, if `name` is that of a segment.
pub(super) fn parse_name(name: &str) -> Option<u64> {
    let digits = name.strip_suffix(".log")?;
    if digits.len() != 20 || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    digits.parse().ok()
}

impl Segment {
    /// Turns the reserved file `spare` into the segment that starts with entry `first`, durably.
    /// `starts_log` makes all segments before it void.
    pub(super) fn create(
        files: &dyn Files,
        dir: &Path,
        spare: Arc<dyn File>,
        first: u64,
        starts_log: bool,
    ) -> Result<Segment, LogError> {
        let (from, path) = (dir.join(SPARE_NAME), dir.join(name(first)));
        let mut head = [0; HEAD_BYTES as usize];
        head[..8].copy_from_slice(&MAGIC);
        head[8..12].copy_from_slice(&VERSION.to_le_bytes());
        let size = spare.len().context("measure", &from)? / SIZE_UNIT;
        // Places in a segment are 32 bits, so its size in units fits 24.
        let flags = (size as u32) << SIZE_SHIFT | if starts_log { STARTS_LOG } else { 0 };
        head[12..16].copy_from_slice(&flags.to_le_bytes());
        head[16..24].copy_from_slice(&first.to_le_bytes());
        let check = xxh3_64(&head[..24]);
        head[24..32].copy_from_slice(&check.to_le_bytes());
        spare.write_all_at(&head, 0).context("write", &from)?;
        spare.sync_data().context("sync", &from)?;
        files.rename(&from, &path).context("rename", &from)?;
        files.sync_dir(dir).context("sync", dir)?;
        Ok(Segment { first, path, file: spare })
    }

    /// Opens a segment and checks its head. Gives whether it starts the log, too.
    pub(super) fn open(
        files: &dyn Files,
        dir: &Path,
        first: u64,
    ) -> Result<(Segment, bool), LogError> {
        let path = dir.join(name(first));
        let file = files.open(&path).context("open", &path)?;
        let mut head = [0; HEAD_BYTES as usize];
        let len = file.len().context("measure", &path)?;
        if len < HEAD_BYTES {
            return Err(LogError::corrupt(&path, 0, "the file is too short for a segment"));
        }
        file.read_exact_at(&mut head, 0).context("read", &path)?;
        if head[..8] != MAGIC
            || xxh3_64(&head[..24]) != u64_at(&head, 24)
            || u64_at(&head, 16) != first
        {
            return Err(LogError::corrupt(&path, 0, "the head of the segment fails its check"));
        }
        let version = u32_at(&head, 8);
        if version > VERSION {
            return Err(LogError::Newer { path, found: version, supported: VERSION });
        }
        let flags = u32_at(&head, 12);
        let reserved = u64::from(flags >> SIZE_SHIFT) * SIZE_UNIT;
        if len < reserved {
            let what = format!("{reserved} bytes were reserved, and the file has {len}");
            return Err(LogError::corrupt(&path, len, what));
        }
        Ok((Segment { first, path, file }, flags & STARTS_LOG != 0))
    }

    /// Writes zeros from `offset` to `end`. The caller syncs.
    pub(super) fn wipe(&self, offset: u64, end: u64) -> io::Result<()> {
        let zeros = vec![0; WIPE_BYTES.min(end.saturating_sub(offset) as usize)];
        let mut at = offset;
        while at < end {
            let n = zeros.len().min((end - at) as usize);
            self.file.write_all_at(&zeros[..n], at)?;
            at += n as u64;
        }
        Ok(())
    }
}

/// All bytes of one segment, and the intact records from its start on.
pub(super) struct Scan {
    pub(super) bytes: Vec<u8>,
    pub(super) places: Vec<Place>,
    /// Behind the last intact record.
    pub(super) end: u64,
    /// The index that the record at `end` would have.
    pub(super) next: u64,
    /// What the last intact record says was durable before it; the first index without records.
    pub(super) durable_before: u64,
}

impl Scan {
    /// Reads `segment`, up to the first record that is not intact or has index `limit`.
    pub(super) fn read(segment: &Segment, limit: u64) -> Result<Scan, LogError> {
        let len = segment.file.len().context("measure", &segment.path)?;
        let mut bytes = vec![0; len as usize];
        segment.file.read_exact_at(&mut bytes, 0).context("read", &segment.path)?;
        let first = segment.first;
        let mut scan =
            Scan { bytes, places: Vec::new(), end: HEAD_BYTES, next: first, durable_before: first };
        while scan.next < limit {
            let Some((head, payload)) = record::parse(scan.tail(), first) else { break };
            if head.index != scan.next {
                break;
            }
            if payload[0] > PAYLOAD_VERSION {
                let (found, supported) = (u32::from(payload[0]), u32::from(PAYLOAD_VERSION));
                return Err(LogError::Newer { path: segment.path.clone(), found, supported });
            }
            let place = Place { offset: scan.end as u32, length: head.length };
            scan.places.push(place);
            scan.end = place.end();
            scan.next += 1;
            scan.durable_before = head.durable_before;
        }
        Ok(scan)
    }

    fn tail(&self) -> &[u8] {
        self.bytes.get(self.end as usize..).unwrap_or_default()
    }

    /// Whether there is anything but zeros behind the last intact record.
    pub(super) fn has_debris(&self) -> bool {
        self.tail().iter().any(|byte| *byte != 0)
    }

    /// The offset of a record behind the end which proves that the record missing there had been
    /// fsynced.
    pub(super) fn witness(&self, segment: u64) -> Option<u64> {
        let tail = self.tail();
        (0..tail.len()).step_by(ALIGN_BYTES).find_map(|offset| {
            let (head, _) = record::parse(&tail[offset..], segment)?;
            (head.durable_before > self.next).then_some(self.end + offset as u64)
        })
    }
}
