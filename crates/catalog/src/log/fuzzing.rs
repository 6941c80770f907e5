use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex, OnceLock, PoisonError},
};

use futures_util::FutureExt;
use openraft::{
    EntryPayload, RaftLogReader,
    storage::{IOFlushed, RaftLogStorage},
    type_config::TypeConfigExt,
};
use pygmy_protocol::{
    command::{Command, Request},
    env::{Env, FakeDisk, Files, Wake, Workers},
    item::{Item, ItemNumber},
};

use super::{
    LogConfig, LogError, LogStore,
    record::{Encoded, decode},
};
use crate::raft::{Batch, Entry, TypeConfig};

const DIR: &str = "/log";
const ENTRIES: u64 = 12;
const CONFIG: LogConfig = LogConfig { segment_bytes: 4096, cache_bytes: 300 };

/// Reads `bytes` as the payload of a log record. It is an entry, which is written and read again as
/// the same, or it is invalid.
pub fn log_record(bytes: &[u8]) {
    let Ok(entry) = decode(bytes) else { return };
    let once = encoded(&entry);
    assert_eq!(once, encoded(&decode(&once).expect("what was written can be read")));
}

/// Opens a log of twelve entries after `bytes` have damaged its files: a change for every four of
/// them. It is refused as damaged, or what it has are the first of the twelve, unchanged.
pub fn log_recovery(bytes: &[u8]) {
    let (files, entries) = sample();
    let mut files = files.clone();
    for change in bytes.chunks_exact(4) {
        let turn = usize::from(change[0]) % files.len();
        let content = &mut files[turn].1;
        let at = usize::from(u16::from_le_bytes([change[1], change[2]])) % (content.len() + 1);
        match (change[0] >= 0x80, content.get_mut(at)) {
            (false, Some(byte)) => *byte ^= change[3],
            _ => content.truncate(at),
        }
    }
    let disk = disk_with(&files);
    let opened = LogStore::open(&environment(&disk), Path::new(DIR), CONFIG);
    let mut store = match opened {
        Ok(store) => store,
        Err(error) => {
            let of_the_files = matches!(error, LogError::Corrupt { .. } | LogError::Newer { .. });
            assert!(of_the_files, "{error}");
            return;
        }
    };
    let read = store.try_get_log_entries(..).now_or_never().expect("it does not wait");
    let read = read.expect("what was opened can be read");
    let read: Vec<_> = read.iter().map(|entry| format!("{entry:?}")).collect();
    assert_eq!(read, entries[..read.len()], "what is left are the first entries");
}

type Contents = Vec<(PathBuf, Vec<u8>)>;

/// The files of a log that was closed in order, and its entries.
fn sample() -> &'static (Contents, Vec<String>) {
    static SAMPLE: OnceLock<(Contents, Vec<String>)> = OnceLock::new();
    SAMPLE.get_or_init(|| {
        let disk = FakeDisk::default();
        let entries: Vec<_> = (0..ENTRIES).map(entry).collect();
        let mut store =
            LogStore::open(&environment(&disk), Path::new(DIR), CONFIG).expect("the disk is empty");
        for entry in &entries {
            let (sender, flushed) = TypeConfig::oneshot();
            let append = store.append([entry.clone()], IOFlushed::signal(sender));
            append.now_or_never().expect("it does not wait").expect("the disk has room");
            let flushed = flushed.now_or_never().expect("the worker has done it");
            flushed.expect("the worker says so").expect("the disk has room");
        }
        let names = disk.list(Path::new(DIR)).expect("it was made");
        let content = |name: String| {
            let path = Path::new(DIR).join(name);
            let content = disk.contents(&path);
            (path, content)
        };
        let entries = entries.iter().map(|entry| format!("{entry:?}")).collect();
        (names.into_iter().map(content).collect(), entries)
    })
}

fn disk_with(files: &Contents) -> FakeDisk {
    let disk = FakeDisk::default();
    disk.create_dir_all(Path::new(DIR)).expect("the disk has room");
    for (path, content) in files {
        let file = disk.create(path).expect("the disk has room");
        file.write_all_at(content, 0).expect("the disk has room");
    }
    disk
}

fn environment(disk: &FakeDisk) -> Env {
    Env { files: Arc::new(disk.clone()), workers: Arc::new(Inline), ..Env::production() }
}

fn entry(index: u64) -> Entry {
    let item_number = ItemNumber::try_from(index + 1).expect("it is in range");
    let item =
        Item { item_number, title: "t".repeat(40), topic: "a".to_owned(), stock: 1, cost: 1 };
    let key = "k".parse().expect("it is a key");
    let request = Request { key, command: Command::AddItems { items: vec![item] } };
    let batch = Batch { time_ms: index, requests: vec![request] };
    let log_id = openraft::testing::log_id::<TypeConfig>(1, 0, index);
    Entry { log_id, payload: EntryPayload::Normal(batch) }
}

fn encoded(entry: &Entry) -> Vec<u8> {
    Encoded::new(entry).expect("it has the length that it had").payload
}

/// Work that is done at once.
struct Inline;

struct InlineWork(Mutex<Box<dyn FnMut() + Send>>);

impl Workers for Inline {
    fn start(&self, _name: &str, work: Box<dyn FnMut() + Send>) -> Box<dyn Wake> {
        Box::new(InlineWork(Mutex::new(work)))
    }
}

impl Wake for InlineWork {
    fn wake(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)();
    }
}
