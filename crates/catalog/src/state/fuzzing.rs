use std::{path::Path, sync::Arc};

use pygmy_protocol::env::{FakeDisk, Files};
use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::{
    error::StateError,
    snapshot::{HEAD_BYTES, MAGIC, VERSION},
    store::SnapshotFile,
};

/// Reads `bytes` as a snapshot: as they are, and as the content of chunks whose checksums are
/// right. It is a state, or it is corrupt or newer.
pub fn snapshot(bytes: &[u8]) {
    let Some((kind, bytes)) = bytes.split_first() else { return };
    let bytes = if kind & 1 == 0 { bytes.to_vec() } else { framed(bytes) };
    let disk: Arc<dyn Files> = Arc::new(FakeDisk::default());
    let path = Path::new("/snapshot");
    let file = disk.create(path).expect("the disk has room");
    file.write_all_at(&bytes, 0).expect("the disk has room");
    match SnapshotFile::existing(path, file).verify() {
        Ok(_) | Err(StateError::Corrupt { .. } | StateError::Newer { .. }) => {}
        Err(other) => panic!("it says {other}"),
    }
}

/// A snapshot of chunks of at most 1,000 bytes, whose checksums are right, that hold `bytes`.
fn framed(bytes: &[u8]) -> Vec<u8> {
    let mut snapshot = MAGIC.to_vec();
    snapshot.extend_from_slice(&VERSION.to_le_bytes());
    debug_assert_eq!(snapshot.len() as u64, HEAD_BYTES);
    for (number, chunk) in bytes.chunks(1_000).enumerate() {
        snapshot.extend_from_slice(&(chunk.len() as u32).to_le_bytes());
        snapshot.extend_from_slice(&xxh3_64_with_seed(chunk, number as u64).to_le_bytes());
        snapshot.extend_from_slice(chunk);
    }
    snapshot
}
