//! A disk in memory that forgets what was not synced.
//!
//! A file has two contents: what the process sees, and what is on the platter, with the writes in
//! between them. A name is on the platter only once its directory was synced. After
//! [`FakeDisk::power_loss`] only the platter is left, plus whatever part of the unsynced changes
//! the seed chose: of each write every sector by itself, some torn at any byte, and of the changes
//! of names any subset. After [`FakeDisk::process_death`] everything that was seen is still seen,
//! and no more durable than before.
//!
//! [`FakeDisk::die_after`] lets the process die between any two calls: from then on every call
//! fails, until one of the two above. Handles of an earlier life fail for ever.

use std::{
    collections::{BTreeMap, BTreeSet},
    io, mem,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use super::{File, Files, LockGuard};

/// What a disk writes as a whole, if it is not torn.
const SECTOR_BYTES: usize = 512;

/// The disk. Clones are the same disk.
#[derive(Clone, Default)]
pub struct FakeDisk(Arc<Mutex<Disk>>);

#[derive(Default)]
struct Disk {
    /// Index in here is what a name stands for, and what a handle holds.
    inodes: Vec<Inode>,
    names: BTreeMap<PathBuf, usize>,
    durable_names: BTreeMap<PathBuf, usize>,
    unsynced_names: Vec<NameChange>,
    /// Counts crashes.
    life: u64,
    /// Calls until the process dies.
    calls_left: Option<u64>,
    syncs_fail: bool,
    room_bytes: Option<u64>,
    /// Held locks.
    locks: BTreeSet<PathBuf>,
}

#[derive(Default)]
struct Inode {
    seen: Vec<u8>,
    durable: Vec<u8>,
    unsynced: Vec<Change>,
}

/// An unsynced change of a file.
enum Change {
    Write { offset: usize, bytes: Vec<u8> },
    Len(usize),
}

/// An unsynced change of names in one directory; its parts are atomic.
struct NameChange {
    dir: PathBuf,
    parts: Vec<(PathBuf, Option<usize>)>,
}

/// Numbers from a seed (splitmix64).
struct Dice(u64);

impl Dice {
    fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.roll() % bound as u64) as usize
    }

    fn percent(&mut self, chance: u64) -> bool {
        self.roll() % 100 < chance
    }
}

impl FakeDisk {
    /// The machine loses power and comes back.
    pub fn power_loss(&self, seed: u64) {
        let mut disk = self.lock();
        let mut dice = Dice(seed);
        // From nothing lost to everything lost: both ends are worth their own share.
        let kept_percent = [0, 100, 10, 50, 90][dice.below(5)];
        // Chance alone seldom tears what was written last, which is what a log must expect.
        let tears_last = dice.percent(30);
        for change in mem::take(&mut disk.unsynced_names) {
            if dice.percent(kept_percent) {
                change.apply(&mut disk.durable_names);
            }
        }
        disk.names = disk.durable_names.clone();
        for inode in &mut disk.inodes {
            if tears_last {
                inode.tear_last(&mut dice);
            } else {
                inode.lose_power(&mut dice, kept_percent);
            }
        }
        disk.new_life();
    }

    /// The process dies and the machine goes on.
    pub fn process_death(&self) {
        self.lock().new_life();
    }

    /// Lets the process die after `calls` more calls.
    pub fn die_after(&self, calls: u64) {
        self.lock().calls_left = Some(calls);
    }

    /// Takes [`die_after`](FakeDisk::die_after) back, if the process lives.
    pub fn spare(&self) {
        let mut disk = self.lock();
        disk.calls_left = disk.calls_left.filter(|left| *left == 0);
    }

    /// Whether the process is dead.
    pub fn is_dead(&self) -> bool {
        self.lock().calls_left == Some(0)
    }

    /// Lets every sync of a file fail in this life, as Linux does: what it should have made durable
    /// is still seen, and a later sync does not write it.
    pub fn fail_syncs(&self) {
        self.lock().syncs_fail = true;
    }

    /// Bytes that all files have together.
    pub fn used_bytes(&self) -> u64 {
        self.lock().used_bytes()
    }

    /// Limits the bytes that all files have together.
    pub fn set_room(&self, bytes: u64) {
        self.lock().room_bytes = Some(bytes);
    }

    /// Changes what a file holds, on the platter, too: damage, or somebody's hand.
    pub fn damage(&self, path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
        let mut disk = self.lock();
        let inode = disk.names[path];
        let inode = &mut disk.inodes[inode];
        change(&mut inode.seen);
        inode.unsynced.clear();
        inode.durable = inode.seen.clone();
    }

    /// All files, in the order of their paths.
    pub fn paths(&self) -> Vec<PathBuf> {
        self.lock().names.keys().cloned().collect()
    }

    /// Takes a file away, for good.
    pub fn lose(&self, path: &Path) {
        let mut disk = self.lock();
        disk.names.remove(path);
        disk.durable_names.remove(path);
    }

    /// What the process would read.
    pub fn contents(&self, path: &Path) -> Vec<u8> {
        let disk = self.lock();
        disk.inodes[disk.names[path]].seen.clone()
    }

    fn lock(&self) -> MutexGuard<'_, Disk> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Locks for a call of the process that lives.
    fn call(&self) -> io::Result<MutexGuard<'_, Disk>> {
        let mut disk = self.lock();
        disk.count_call()?;
        Ok(disk)
    }

    fn handle(&self, disk: &Disk, inode: usize) -> Arc<dyn File> {
        Arc::new(FakeFile { disk: self.clone(), inode, life: disk.life })
    }
}

impl Disk {
    fn new_life(&mut self) {
        self.life += 1;
        self.calls_left = None;
        self.syncs_fail = false;
        self.locks.clear();
    }

    fn count_call(&mut self) -> io::Result<()> {
        match &mut self.calls_left {
            None => Ok(()),
            Some(0) => Err(io::Error::other("the process is dead")),
            Some(left) => {
                *left -= 1;
                Ok(())
            }
        }
    }

    fn inode(&self, path: &Path) -> io::Result<usize> {
        self.names.get(path).copied().ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn change_names(&mut self, dir: &Path, parts: Vec<(PathBuf, Option<usize>)>) {
        let change = NameChange { dir: dir.to_owned(), parts };
        change.apply(&mut self.names);
        self.unsynced_names.push(change);
    }

    fn used_bytes(&self) -> u64 {
        self.names.values().map(|inode| self.inodes[*inode].seen.len() as u64).sum()
    }

    fn free_bytes(&self) -> u64 {
        self.room_bytes.unwrap_or(u64::MAX).saturating_sub(self.used_bytes())
    }

    /// Makes sure that `inode` can have `len` bytes.
    fn check_room(&self, inode: usize, len: usize) -> io::Result<()> {
        let more = len.saturating_sub(self.inodes[inode].seen.len()) as u64;
        if more > self.free_bytes() { Err(io::ErrorKind::StorageFull.into()) } else { Ok(()) }
    }
}

impl NameChange {
    fn apply(&self, names: &mut BTreeMap<PathBuf, usize>) {
        for (path, inode) in &self.parts {
            match inode {
                Some(inode) => names.insert(path.clone(), *inode),
                None => names.remove(path),
            };
        }
    }
}

impl Change {
    fn apply(&self, content: &mut Vec<u8>) {
        match self {
            Change::Len(len) => content.resize(*len, 0),
            Change::Write { offset, bytes } => {
                let end = offset + bytes.len();
                content.resize(content.len().max(end), 0);
                content[*offset..end].copy_from_slice(bytes);
            }
        }
    }

    /// The parts of this change that reach the platter or not, each by itself.
    fn sectors(self) -> Vec<Change> {
        let Change::Write { mut offset, bytes } = self else { return vec![self] };
        let mut rest = &bytes[..];
        let mut sectors = Vec::new();
        while !rest.is_empty() {
            let (sector, after) =
                rest.split_at(rest.len().min(SECTOR_BYTES - offset % SECTOR_BYTES));
            sectors.push(Change::Write { offset, bytes: sector.to_vec() });
            offset += sector.len();
            rest = after;
        }
        sectors
    }
}

impl Inode {
    fn change(&mut self, change: Change) {
        change.apply(&mut self.seen);
        self.unsynced.push(change);
    }

    /// All but the end of the last write is on the platter.
    fn tear_last(&mut self, dice: &mut Dice) {
        let mut unsynced = mem::take(&mut self.unsynced);
        if let Some(Change::Write { bytes, .. }) = unsynced.last_mut() {
            // Mostly near its beginning: the rest may be padding.
            let end = dice.below(bytes.len() + 1);
            bytes.truncate(dice.below(end + 1));
        }
        unsynced.iter().for_each(|change| change.apply(&mut self.durable));
        self.seen = self.durable.clone();
    }

    fn lose_power(&mut self, dice: &mut Dice, kept_percent: u64) {
        let parts = mem::take(&mut self.unsynced).into_iter().flat_map(Change::sectors);
        for mut part in parts {
            if !dice.percent(kept_percent) {
                continue;
            }
            if let Change::Write { bytes, .. } = &mut part
                && kept_percent < 100
                && dice.percent(10)
            {
                bytes.truncate(dice.below(bytes.len()));
            }
            part.apply(&mut self.durable);
        }
        self.seen = self.durable.clone();
    }
}

fn dir_of(path: &Path) -> &Path {
    path.parent().unwrap_or(Path::new(""))
}

impl Files for FakeDisk {
    /// Directories are simply there.
    fn create_dir_all(&self, _dir: &Path) -> io::Result<()> {
        self.call().map(|_| ())
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let disk = self.call()?;
        let names = disk.names.keys().filter(|path| dir_of(path) == dir);
        Ok(names
            .filter_map(|path| Some(path.file_name()?.to_string_lossy().into_owned()))
            .collect())
    }

    fn exists(&self, path: &Path) -> io::Result<bool> {
        Ok(self.call()?.names.contains_key(path))
    }

    fn open(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        let disk = self.call()?;
        let inode = disk.inode(path)?;
        Ok(self.handle(&disk, inode))
    }

    fn create(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        let mut disk = self.call()?;
        let inode = match disk.inode(path) {
            Ok(inode) => {
                disk.inodes[inode].change(Change::Len(0));
                inode
            }
            Err(_) => {
                let inode = disk.inodes.len();
                disk.inodes.push(Inode::default());
                disk.change_names(dir_of(path), vec![(path.to_owned(), Some(inode))]);
                inode
            }
        };
        Ok(self.handle(&disk, inode))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut disk = self.call()?;
        let inode = disk.inode(from)?;
        disk.change_names(dir_of(to), vec![(from.to_owned(), None), (to.to_owned(), Some(inode))]);
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut disk = self.call()?;
        disk.inode(path)?;
        disk.change_names(dir_of(path), vec![(path.to_owned(), None)]);
        Ok(())
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        let mut disk = self.call()?;
        let disk = &mut *disk;
        for change in disk.unsynced_names.extract_if(.., |change| change.dir == dir) {
            change.apply(&mut disk.durable_names);
        }
        Ok(())
    }

    fn free_bytes(&self, _dir: &Path) -> io::Result<u64> {
        Ok(self.call()?.free_bytes())
    }

    fn lock(&self, path: &Path) -> io::Result<Box<dyn LockGuard>> {
        let mut disk = self.call()?;
        if !disk.locks.insert(path.to_owned()) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        Ok(Box::new(FakeLock { disk: self.clone(), path: path.to_owned(), life: disk.life }))
    }

    fn database_path(&self, path: &Path) -> PathBuf {
        path.to_owned()
    }
}

struct FakeLock {
    disk: FakeDisk,
    path: PathBuf,
    life: u64,
}

impl LockGuard for FakeLock {}

impl Drop for FakeLock {
    fn drop(&mut self) {
        let mut disk = self.disk.lock();
        if disk.life == self.life {
            disk.locks.remove(&self.path);
        }
    }
}

struct FakeFile {
    disk: FakeDisk,
    inode: usize,
    life: u64,
}

impl FakeFile {
    fn call(&self) -> io::Result<MutexGuard<'_, Disk>> {
        let mut disk = self.disk.lock();
        if disk.life != self.life {
            return Err(io::Error::other("a handle of a process that is dead"));
        }
        disk.count_call()?;
        Ok(disk)
    }
}

impl File for FakeFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let disk = self.call()?;
        let rest = disk.inodes[self.inode].seen.get(offset as usize..).unwrap_or_default();
        let n = rest.len().min(buffer.len());
        buffer[..n].copy_from_slice(&rest[..n]);
        Ok(n)
    }

    fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let mut disk = self.call()?;
        let offset = offset as usize;
        disk.check_room(self.inode, offset + bytes.len())?;
        disk.inodes[self.inode].change(Change::Write { offset, bytes: bytes.to_vec() });
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut disk = self.call()?;
        let syncs_fail = disk.syncs_fail;
        let inode = &mut disk.inodes[self.inode];
        let unsynced = mem::take(&mut inode.unsynced);
        if syncs_fail {
            return Err(io::Error::other("the disk is broken"));
        }
        unsynced.iter().for_each(|change| change.apply(&mut inode.durable));
        Ok(())
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.call()?.inodes[self.inode].seen.len() as u64)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.call()?.inodes[self.inode].change(Change::Len(len as usize));
        Ok(())
    }

    fn allocate(&self, len: u64) -> io::Result<()> {
        let mut disk = self.call()?;
        disk.check_room(self.inode, len as usize)?;
        // Only ever extends, like fallocate.
        let len = (len as usize).max(disk.inodes[self.inode].seen.len());
        disk.inodes[self.inode].change(Change::Len(len));
        Ok(())
    }
}
