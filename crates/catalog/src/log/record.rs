//! One log entry as bytes.
//!
//! ```text
//! 0        4            8       16               24                 32
//! | length | head check | index | durable before | payload checksum | payload | to 8 bytes |
//! ```
//!
//! All numbers are little endian. The head has a check of its own, so that recovery can look for
//! records behind a damaged one without trusting a length. Both checks are seeded with the first
//! index of the segment: bytes that belong into another file never pass.
//!
//! `durable before` is what recovery needs to tell a torn tail from damage: every entry below it
//! had been fsynced before this record was written. The records of one flight (written, not yet
//! fsynced) can reach the disk in any order, so a good record behind a bad one proves nothing by
//! itself; if it says that the bad one was durable, the bad one has been acknowledged.

use std::io;

use openraft::entry::RaftEntry;
use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::error::LogError;
use crate::raft::Entry;

/// Largest payload in bytes. A batch of buys has some hundred kilobytes, a frame between two
/// replicas 16 MiB; room for more is for imports of items.
pub(super) const MAX_RECORD_BYTES: usize = 64 * 1024 * 1024;
/// Bytes before the payload.
pub(super) const HEAD_BYTES: usize = 32;
/// Records start at multiples of this.
pub(super) const ALIGN_BYTES: usize = 8;
/// The version of the payload that this build writes: its first byte.
pub(super) const PAYLOAD_VERSION: u8 = 1;

/// An entry, encoded.
pub(super) struct Encoded {
    pub(super) index: u64,
    /// Version byte and postcard.
    pub(super) payload: Vec<u8>,
}

impl Encoded {
    /// Encodes `entry`.
    ///
    /// # Errors
    /// [`LogError::TooLarge`].
    pub(super) fn new(entry: &Entry) -> Result<Encoded, LogError> {
        let index = entry.index();
        // The only failure of encoding into memory is a type that postcard does not support;
        // every test would meet it.
        let payload =
            postcard::to_extend(entry, vec![PAYLOAD_VERSION]).expect("log entries can be encoded");
        if payload.len() > MAX_RECORD_BYTES {
            return Err(LogError::TooLarge { index, bytes: payload.len() });
        }
        Ok(Encoded { index, payload })
    }

    /// Bytes that the record takes in a segment.
    pub(super) fn stored_bytes(&self) -> u64 {
        stored_bytes(self.payload.len() as u32)
    }

    /// Appends the record to `buffer`, for the segment whose first index is `segment`.
    pub(super) fn write_to(&self, buffer: &mut Vec<u8>, segment: u64, durable_before: u64) {
        let head = Head {
            length: self.payload.len() as u32,
            index: self.index,
            durable_before,
            checksum: xxh3_64_with_seed(&self.payload, segment),
        };
        buffer.extend_from_slice(&head.to_bytes(segment));
        buffer.extend_from_slice(&self.payload);
        buffer.resize(buffer.len().next_multiple_of(ALIGN_BYTES), 0);
    }
}

/// Bytes that a record with `length` bytes of payload takes in a segment.
pub(super) fn stored_bytes(length: u32) -> u64 {
    (HEAD_BYTES as u64 + u64::from(length)).next_multiple_of(ALIGN_BYTES as u64)
}

/// What stands before the payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Head {
    pub(super) length: u32,
    pub(super) index: u64,
    pub(super) durable_before: u64,
    checksum: u64,
}

impl Head {
    fn to_bytes(self, segment: u64) -> [u8; HEAD_BYTES] {
        let mut bytes = [0; HEAD_BYTES];
        bytes[0..4].copy_from_slice(&self.length.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.index.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.durable_before.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.checksum.to_le_bytes());
        let check = head_check(&bytes, segment);
        bytes[4..8].copy_from_slice(&check.to_le_bytes());
        bytes
    }

    /// Reads a head from the front of `bytes`; `None` if there is none, or a damaged one.
    fn parse(bytes: &[u8], segment: u64) -> Option<Head> {
        let mut bytes: [u8; HEAD_BYTES] = *bytes.first_chunk()?;
        let check = u32_at(&bytes, 4);
        bytes[4..8].fill(0);
        let length = u32_at(&bytes, 0);
        // Zeros are the end of the log, never a record: a payload has at least its version.
        if length == 0 || length as usize > MAX_RECORD_BYTES || check != head_check(&bytes, segment)
        {
            return None;
        }
        Some(Head {
            length,
            index: u64_at(&bytes, 8),
            durable_before: u64_at(&bytes, 16),
            checksum: u64_at(&bytes, 24),
        })
    }
}

fn head_check(bytes: &[u8; HEAD_BYTES], segment: u64) -> u32 {
    xxh3_64_with_seed(bytes, segment) as u32
}

/// Reads the record at the front of `bytes`; `None` if it is damaged, cut off, or not one.
pub(super) fn parse(bytes: &[u8], segment: u64) -> Option<(Head, &[u8])> {
    let head = Head::parse(bytes, segment)?;
    let payload = bytes.get(HEAD_BYTES..HEAD_BYTES + head.length as usize)?;
    (xxh3_64_with_seed(payload, segment) == head.checksum).then_some((head, payload))
}

/// Decodes a payload whose checksum was right.
///
/// # Errors
/// [`io::ErrorKind::Unsupported`] for a newer version, [`io::ErrorKind::InvalidData`] for what
/// only a mistake in the program can have written.
pub(super) fn decode(payload: &[u8]) -> io::Result<Entry> {
    match payload.split_first() {
        Some((&PAYLOAD_VERSION, entry)) => {
            postcard::from_bytes(entry).map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))
        }
        _ => Err(io::Error::new(
            io::ErrorKind::Unsupported,
            format!(
                "a log entry of format {:?}; this build reads {PAYLOAD_VERSION}",
                payload.first()
            ),
        )),
    }
}

/// The number at `offset`, which the caller knows to be in range.
pub(super) fn u32_at(bytes: &[u8], offset: usize) -> u32 {
    let mut number = [0; 4];
    number.copy_from_slice(&bytes[offset..offset + 4]);
    u32::from_le_bytes(number)
}

/// The number at `offset`, which the caller knows to be in range.
pub(super) fn u64_at(bytes: &[u8], offset: usize) -> u64 {
    let mut number = [0; 8];
    number.copy_from_slice(&bytes[offset..offset + 8]);
    u64::from_le_bytes(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> Vec<u8> {
        let mut bytes = Vec::new();
        Encoded { index: 7, payload: vec![PAYLOAD_VERSION, 2, 3] }.write_to(&mut bytes, 5, 6);
        bytes
    }

    #[test]
    fn a_record_comes_back() {
        let bytes = record();
        assert_eq!(bytes.len() as u64, stored_bytes(3));
        let (head, payload) = parse(&bytes, 5).unwrap();
        assert_eq!((head.length, head.index, head.durable_before), (3, 7, 6));
        assert_eq!(payload, [PAYLOAD_VERSION, 2, 3]);
    }

    #[test]
    fn no_flipped_bit_passes() {
        for bit in 0..(HEAD_BYTES + 3) * 8 {
            let mut bytes = record();
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(parse(&bytes, 5), None, "bit {bit}");
        }
    }

    #[test]
    fn a_record_belongs_to_its_segment_and_is_whole() {
        let bytes = record();
        assert_eq!(parse(&bytes, 4), None);
        for length in 0..HEAD_BYTES + 3 {
            assert_eq!(parse(&bytes[..length], 5), None, "{length} bytes");
        }
        assert_eq!(parse(&[0; 64], 5), None);
    }
}
