//! The format of a snapshot file.
//!
//! Eight bytes of magic and a version (4 bytes, little endian), then chunks: length (4 bytes),
//! xxh3_64 of the payload with the chunk's number as the seed (8 bytes), payload. The payloads in
//! a row are postcard [`Record`]s, whole ones in each chunk: where the state stands, the holders of
//! leases, the imports,
//! the items, the orders with their keys, the other keys, and at the end how many there are and the
//! state hash. Nothing follows.
//!
//! What it holds are the rows of the replicated state and not SQLite's pages, so that a snapshot
//! fits any version of the tables that has these rows. Topics are counted anew from the items.

use std::sync::Arc;

use pygmy_protocol::planted;
use rusqlite::Connection;
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::{
    StateError,
    error::nonsense,
    imports::ImportRow,
    meta::{Holders, LastLines, Meta, SavedLogId, SavedMembership, hash_of_holder, log_id, saved},
    rows::{ImportNumber, ItemRow, KeyRow, OrderRow, TableRow, each},
    store::SnapshotFile,
};

pub(super) const MAGIC: &[u8; 8] = b"PYGMYSNP";
/// Version of everything in here, including the layout of the rows.
///
/// Version 2 added the last three records; a file of version 1 reads the same. There, all keys come
/// after all orders. Version 3 added the holders.
pub(crate) const VERSION: u32 = 3;
pub(super) const HEAD_BYTES: u64 = 12;
const CHUNK_HEAD_BYTES: u64 = 12;
/// Largest chunk that is read: a damaged length must not ask for all memory.
pub(super) const CHUNK_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Largest record: title, topic, key and outcome have at most 2 KiB, a membership some more.
const RECORD_BYTES_MAX: usize = 256 * 1024;

#[derive(Serialize, Deserialize)]
pub(super) enum Record {
    Start {
        applied: Option<SavedLogId>,
        membership: SavedMembership,
    },
    Item(ItemRow),
    /// An order whose key has a record of its own. Version 1 only.
    Order(OrderRow),
    Key(KeyRow),
    End {
        items: u64,
        orders: u64,
        keys: u64,
        state_hash: u128,
    },
    ImportedItem(ImportNumber, ItemRow),
    Import(ImportRow),
    /// An order, after the fingerprint of its key.
    KeyedOrder(u128, OrderRow),
    Holders(Holders),
}

/// Writes the state that the read transaction on `db` sees into the empty `file`.
pub(super) fn write(
    file: &SnapshotFile,
    db: &Connection,
    meta: &Meta,
    chunk_bytes: usize,
) -> Result<(), StateError> {
    let chunk_bytes = chunk_bytes.min(CHUNK_BYTES_MAX - RECORD_BYTES_MAX);
    let mut head = MAGIC.to_vec();
    head.extend_from_slice(&VERSION.to_le_bytes());
    file.write_all_at(&head, 0)?;
    let mut sink = Sink { file, chunk: Vec::new(), chunk_bytes, number: 0, offset: HEAD_BYTES };
    sink.put(&Record::Start {
        applied: meta.applied.map(saved),
        membership: SavedMembership::from(&meta.membership),
    })?;
    sink.put(&Record::Holders(Holders::clone(&meta.holders)))?;
    each::<ImportRow, StateError>(db, |row| sink.put(&Record::Import(row)))?;
    each::<ItemRow, StateError>(db, |row| match row.import {
        0 => sink.put(&Record::Item(row)),
        import => sink.put(&Record::ImportedItem(import, row)),
    })?;
    let Meta { items, orders, mut keys, mut state_hash, .. } = *meta;
    each::<OrderRow, StateError>(db, |mut row| {
        if planted!(SnapshotWithoutKeys) {
            state_hash = state_hash.wrapping_sub(row.hash());
            row.key = OrderRow::no_key(row.order.order_number)?;
            state_hash = state_hash.wrapping_add(row.hash());
        }
        sink.put(&Record::KeyedOrder(row.fingerprint, row))
    })?;
    each::<KeyRow, StateError>(db, |row| {
        if planted!(SnapshotWithoutKeys) {
            (keys, state_hash) = (keys - 1, state_hash.wrapping_sub(row.hash()));
            return Ok(());
        }
        sink.put(&Record::Key(row))
    })?;
    sink.put(&Record::End { items, orders, keys, state_hash })?;
    sink.flush()
}

struct Sink<'a> {
    file: &'a SnapshotFile,
    chunk: Vec<u8>,
    chunk_bytes: usize,
    number: u64,
    offset: u64,
}

impl Sink<'_> {
    fn put(&mut self, record: &Record) -> Result<(), StateError> {
        let chunk = std::mem::take(&mut self.chunk);
        self.chunk = postcard::to_extend(record, chunk).map_err(nonsense)?;
        if self.chunk.len() >= self.chunk_bytes { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> Result<(), StateError> {
        if self.chunk.is_empty() {
            return Ok(());
        }
        let mut head = (self.chunk.len() as u32).to_le_bytes().to_vec();
        head.extend_from_slice(&xxh3_64_with_seed(&self.chunk, self.number).to_le_bytes());
        self.file.write_all_at(&head, self.offset)?;
        self.file.write_all_at(&self.chunk, self.offset + CHUNK_HEAD_BYTES)?;
        self.offset += CHUNK_HEAD_BYTES + self.chunk.len() as u64;
        self.number += 1;
        self.chunk.clear();
        Ok(())
    }
}

/// Reads all of `file`, gives every row to `visit`, and checks the rows against the counts and
/// the hash at the end. Gives where the state stands. What `visit` was given before an error must
/// be thrown away.
pub(super) fn scan(
    file: &SnapshotFile,
    mut visit: impl FnMut(&Record) -> Result<(), StateError>,
) -> Result<Meta, StateError> {
    let mut source = Source::open(file)?;
    let mut meta = match source.next()? {
        Record::Start { applied, membership } => Meta {
            applied: applied.map(log_id),
            membership: membership
                .try_into()
                .map_err(|_| file.corrupt("the membership makes no sense"))?,
            ..Meta::default()
        },
        _ => return Err(file.corrupt("it does not begin with where it stands")),
    };
    loop {
        let record = source.next()?;
        let mut nothing = 0;
        meta.keys += u64::from(matches!(record, Record::KeyedOrder(..)));
        let (counter, hash) = match &record {
            Record::Item(row) => (&mut meta.items, row.hash()),
            Record::ImportedItem(import, row) => {
                (&mut meta.items, ItemRow { import: *import, ..row.clone() }.hash())
            }
            Record::Import(row) => (&mut nothing, row.hash()),
            Record::Order(row) => (&mut meta.orders, row.hash_without_key()),
            Record::KeyedOrder(fingerprint, row) => {
                (&mut meta.orders, OrderRow { fingerprint: *fingerprint, ..row.clone() }.hash())
            }
            Record::Key(row) => (&mut meta.keys, row.hash()),
            Record::Holders(holders) => {
                meta.holders = Arc::new(holders.clone());
                let hashes = holders.iter().map(|(nonce, name)| hash_of_holder(*nonce, name));
                (&mut nothing, hashes.fold(0, u128::wrapping_add))
            }
            Record::Start { .. } => return Err(file.corrupt("it begins twice")),
            Record::End { items, orders, keys, state_hash } => {
                let wanted = (*items, *orders, *keys, *state_hash);
                if (meta.items, meta.orders, meta.keys, meta.state_hash) != wanted {
                    return Err(file.corrupt("the rows are not those that its end speaks of"));
                }
                source.finish()?;
                // The text log starts anew with a note at this index.
                meta.lines = LastLines { index: meta.index(), count: 0 };
                return Ok(meta);
            }
        };
        *counter += 1;
        meta.state_hash = meta.state_hash.wrapping_add(hash);
        visit(&record)?;
    }
}

struct Source<'a> {
    file: &'a SnapshotFile,
    len: u64,
    chunk: Vec<u8>,
    /// Where in the chunk the next record begins.
    position: usize,
    number: u64,
    offset: u64,
}

impl<'a> Source<'a> {
    fn open(file: &'a SnapshotFile) -> Result<Source<'a>, StateError> {
        let mut head = [0; HEAD_BYTES as usize];
        file.read_exact_at(&mut head, 0)?;
        let [magic @ .., a, b, c, d] = head;
        if &magic != MAGIC {
            return Err(file.corrupt("it is no snapshot"));
        }
        let found = u32::from_le_bytes([a, b, c, d]);
        if found > VERSION {
            let path = file.path().to_owned();
            return Err(StateError::Newer { path, found, known: VERSION });
        }
        let len = file.len()?;
        Ok(Source { file, len, chunk: Vec::new(), position: 0, number: 0, offset: HEAD_BYTES })
    }

    fn next(&mut self) -> Result<Record, StateError> {
        if self.position == self.chunk.len() {
            self.next_chunk()?;
        }
        let rest = &self.chunk[self.position..];
        match postcard::take_from_bytes(rest) {
            Ok((record, after)) => {
                self.position = self.chunk.len() - after.len();
                Ok(record)
            }
            Err(e) => Err(self.file.corrupt(format!("chunk {}: {e}", self.number))),
        }
    }

    fn next_chunk(&mut self) -> Result<(), StateError> {
        let mut head = [0; CHUNK_HEAD_BYTES as usize];
        self.file.read_exact_at(&mut head, self.offset)?;
        let [a, b, c, d, checksum @ ..] = head;
        let length = u32::from_le_bytes([a, b, c, d]) as usize;
        self.offset += CHUNK_HEAD_BYTES;
        if !(1..=CHUNK_BYTES_MAX).contains(&length) || length as u64 > self.len - self.offset {
            let detail = format!("chunk {} claims to have {length} bytes", self.number);
            return Err(self.file.corrupt(detail));
        }
        self.chunk.resize(length, 0);
        self.file.read_exact_at(&mut self.chunk, self.offset)?;
        if xxh3_64_with_seed(&self.chunk, self.number) != u64::from_le_bytes(checksum) {
            return Err(self.file.corrupt(format!("chunk {} has a wrong checksum", self.number)));
        }
        self.offset += length as u64;
        self.number += 1;
        self.position = 0;
        Ok(())
    }

    fn finish(&self) -> Result<(), StateError> {
        if self.position < self.chunk.len() || self.offset < self.len {
            return Err(self.file.corrupt("there is more after its end"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use pygmy_protocol::command::{Command, Outcome};

    use super::{
        super::{
            StateConfig,
            rows::Made,
            testing::{Replica, buy, item, replayed, set_stock},
        },
        *,
    };

    /// A replica with a bit of everything, whose snapshots have several chunks.
    fn replica() -> Replica {
        let config = StateConfig { snapshot_chunk_bytes: 64, ..StateConfig::default() };
        let mut replica = Replica::with(config);
        replica.one("add", Command::AddItems { items: vec![item(1, "a", 5), item(2, "b", 0)] });
        replica.one("buy", buy(1, 2));
        replica.one("set", set_stock(2, 7));
        replica
    }

    fn bytes(file: &SnapshotFile) -> Vec<u8> {
        let mut bytes = vec![0; file.len().unwrap() as usize];
        file.read_exact_at(&mut bytes, 0).unwrap();
        bytes
    }

    #[test]
    fn a_snapshot_holds_the_state_and_is_the_same_on_all_replicas() {
        let (one, two) = (replica(), replica());
        let (meta, file) = one.dump(&one.snapshots());
        let found = scan(&file, |_| Ok(())).unwrap();
        assert_eq!(found.snapshot_meta(), meta);
        assert_eq!(found.state_hash, one.reader().status().state_hash);
        assert_eq!((found.items, found.orders, found.keys), (2, 1, 3));
        assert_eq!(bytes(&file), bytes(&two.dump(&two.snapshots()).1));
    }

    #[test]
    fn no_damaged_byte_goes_unnoticed() {
        let replica = replica();
        let (_, file) = replica.dump(&replica.snapshots());
        let whole = bytes(&file);
        for offset in 0..whole.len() {
            file.write_all_at(&[whole[offset] ^ 0x10], offset as u64).unwrap();
            let error = file.verify().unwrap_err();
            let newer = (8..12).contains(&offset);
            let as_expected = match error {
                StateError::Corrupt { .. } => !newer,
                StateError::Newer { .. } => newer,
                _ => false,
            };
            assert!(as_expected, "byte {offset}");
            file.write_all_at(&whole[offset..=offset], offset as u64).unwrap();
        }
        file.verify().unwrap();
    }

    #[test]
    fn a_snapshot_of_another_length_is_damaged() {
        let replica = replica();
        let (_, file) = replica.dump(&replica.snapshots());
        let whole = bytes(&file);
        for length in 0..whole.len() {
            let cut = replica.snapshots().incoming().unwrap();
            cut.write_all_at(&whole[..length], 0).unwrap();
            assert!(matches!(cut.verify(), Err(StateError::Corrupt { .. })), "{length} bytes");
        }
        file.write_all_at(&[0], whole.len() as u64).unwrap();
        assert!(matches!(file.verify(), Err(StateError::Corrupt { .. })));
    }

    /// Writes what version 1 would have written: the keys of orders among the others, in their
    /// order and behind all orders.
    fn as_version_1(replica: &Replica, file: &SnapshotFile) {
        let (mut records, mut keys, mut end) = (Vec::new(), Vec::new(), None);
        let (_, dumped) = replica.dump(&replica.snapshots());
        let mut source = Source::open(&dumped).unwrap();
        while end.is_none() {
            match source.next().unwrap() {
                Record::KeyedOrder(fingerprint, row) => {
                    let made = Made::Order(row.order.order_number);
                    keys.push(KeyRow { key: row.key.clone(), fingerprint, made });
                    records.push(Record::Order(row));
                }
                Record::Key(row) => keys.push(row),
                record @ Record::End { .. } => end = Some(record),
                record => records.push(record),
            }
        }
        keys.sort_by_key(|row| row.key.to_string());
        let mut head = MAGIC.to_vec();
        head.extend_from_slice(&1_u32.to_le_bytes());
        file.write_all_at(&head, 0).unwrap();
        let mut sink = Sink { file, chunk: vec![], chunk_bytes: 64, number: 0, offset: HEAD_BYTES };
        for record in records.into_iter().chain(keys.into_iter().map(Record::Key)).chain(end) {
            sink.put(&record).unwrap();
        }
        sink.flush().unwrap();
    }

    #[test]
    fn one_of_version_1_can_be_installed() {
        let mut source = replica();
        let made = [5, 3, 9, 1].map(|n| source.one(&format!("k{n}"), buy(2, 1)));
        let mut other = Replica::new();
        other.config.key_index.run_orders = 2;
        other.reopen();
        let meta = source.reader().shared.meta().snapshot_meta();
        let file = other.snapshots().incoming().unwrap();
        as_version_1(&source, &file);
        other.writer().install(&meta, file).unwrap();
        other.reopen();
        other.reader().verify().unwrap();
        let hash = |replica: &Replica| replica.reader().status().state_hash;
        assert_eq!(hash(&other), hash(&source));
        for (outcome, n) in made.into_iter().zip([5, 3, 9, 1]) {
            assert_eq!(other.one(&format!("k{n}"), buy(2, 1)), replayed(outcome));
        }
        assert_eq!(other.one("set", buy(2, 1)), Outcome::KeyReused);
    }

    #[test]
    fn an_empty_state_has_a_snapshot() {
        let replica = Replica::new();
        let (meta, file) = replica.dump(&replica.snapshots());
        assert_eq!(file.verify().unwrap(), meta);
    }
}
