//! `requests.txt`: what was asked for and what came of it, for people.
//!
//! One line per request that changed something or was refused (a replay does neither):
//! `41 2026-11-22T13:37:00.123Z buy item=7 quantity=1 key=k1 -> order 12`. The lines of a log
//! index are the same on every replica that has them. Lines that begin with `#` are notes about
//! this copy of the log; they carry the log index up to which they speak.
//!
//! It is a convenience, not the record: it is written after COMMIT and never fsynced, because an
//! fsync per batch would double the cost of a buy for something that can be looked up in the
//! orders. So a crash may take its last lines, or leave lines of entries that SQLite has lost and
//! that will be applied again. [`RequestsLog::open`] makes both good: it cuts the log back to what
//! SQLite has applied, and notes what is missing. For the same reason a full disk only costs
//! lines, which are noted once there is room again.

use std::{
    fmt::Write,
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use pygmy_protocol::{
    command::{Command, Outcome, Request},
    env::{File, Files},
};

use super::{StateConfig, StateError, meta::Meta};

/// Writes the line of a request, if it has one.
pub(super) fn line(
    lines: &mut String,
    index: u64,
    time: &str,
    request: &Request,
    outcome: &Outcome,
) -> bool {
    let result = match outcome {
        Outcome::Ordered { replayed: true, .. }
        | Outcome::Updated { replayed: true, .. }
        | Outcome::Added { replayed: true, .. }
        | Outcome::Imported { replayed: true, .. }
        // Nobody's update.
        | Outcome::Holder { .. } => return false,
        Outcome::Ordered { order, .. } => format!("order {}", order.order_number),
        Outcome::Updated { .. } => "ok".to_owned(),
        Outcome::Added { items, .. } => format!("added {items}"),
        Outcome::CostChanged { cost } => format!("cost_changed cost={cost}"),
        Outcome::Imported { items, .. } => format!("items {items}"),
        Outcome::UnknownItem { .. }
        | Outcome::OutOfStock
        | Outcome::KeyReused
        | Outcome::ItemExists { .. }
        | Outcome::ImportRefused(_) => {
            outcome.problem().map_or("", |problem| problem.code.as_str()).to_owned()
        }
    };
    let command = match &request.command {
        Command::Buy { item, quantity, expected_cost: None } => {
            format!("buy item={item} quantity={quantity}")
        }
        Command::Buy { item, quantity, expected_cost: Some(cost) } => {
            format!("buy item={item} quantity={quantity} expectedCost={cost}")
        }
        Command::ReduceStock { item } => format!("reduceStock item={item}"),
        Command::SetStock { item, stock } => format!("updateStock item={item} stock={stock}"),
        Command::SetCost { item, cost } => format!("updateCost item={item} cost={cost}"),
        Command::AddItems { items } => format!("addItems items={}", items.len()),
        Command::StageItems { import, items } => {
            format!("stageItems import={import} items={}", items.len())
        }
        Command::PublishImport { import, items } => {
            format!("publishImport import={import} items={items}")
        }
        Command::DiscardImport { import } => format!("discardImport import={import}"),
        Command::JoinHolder { .. } | Command::RemoveHolder { .. } => return false,
    };
    // Writing to a string cannot fail.
    let _ = writeln!(lines, "{index} {time} {command} key={} -> {result}", request.key);
    true
}

/// The text log of one replica.
pub(super) struct RequestsLog {
    files: Arc<dyn Files>,
    dir: PathBuf,
    file: Arc<dyn File>,
    len: u64,
    rotate_at_bytes: u64,
    rotated_max: usize,
    /// The last index whose lines could not be written and are not noted yet.
    lost: Option<u64>,
}

impl RequestsLog {
    /// Opens the log in `dir` and makes it agree with `meta`.
    pub(super) fn open(
        files: &Arc<dyn Files>,
        dir: &Path,
        config: &StateConfig,
        meta: &Meta,
    ) -> Result<RequestsLog, StateError> {
        let path = dir.join(name(0));
        loop {
            let file = match files.exists(&path).map_err(StateError::io("find", &path))? {
                true => files.open(&path),
                false => files.create(&path),
            };
            let file = file.map_err(StateError::io("open", &path))?;
            let text = read(&*file).map_err(StateError::io("read", &path))?;
            let tail = Tail::of(&text, meta);
            let older = dir.join(name(1));
            if tail.bytes == 0 && files.exists(&older).map_err(StateError::io("find", &older))? {
                // Nothing of it holds; the one before may have to be cut as well.
                step_back(&**files, dir).map_err(StateError::io("rename", &path))?;
                continue;
            }
            file.set_len(tail.bytes as u64).map_err(StateError::io("cut", &path))?;
            let mut log = RequestsLog {
                files: Arc::clone(files),
                dir: dir.to_owned(),
                file,
                len: tail.bytes as u64,
                rotate_at_bytes: config.requests_log_bytes,
                rotated_max: config.requests_log_files.max(1),
                lost: None,
            };
            if !tail.complete {
                log.note(
                    meta.index(),
                    "lines up to here are missing: the server stopped before it wrote them",
                );
            }
            return Ok(log);
        }
    }

    /// Appends the lines of a group whose last entry is `index`.
    pub(super) fn append(&mut self, lines: &str, index: u64) {
        if lines.is_empty() {
            return;
        }
        let lost = match self.lost {
            Some(lost) => {
                format!("# {lost}: lines up to here are missing: they could not be written\n")
            }
            None => String::new(),
        };
        match self.write(format!("{lost}{lines}").as_bytes()) {
            Ok(()) => self.lost = None,
            Err(e) => {
                if self.lost.is_none() {
                    tracing::warn!("cannot write {}: {e}; buys go on without it", name(0));
                }
                self.lost = Some(index);
                // What was half written goes; if not now, then with the next line over it.
                let _ = self.file.set_len(self.len);
            }
        }
    }

    /// Says in the log that a snapshot brought the state to `index`.
    pub(super) fn snapshot_installed(&mut self, index: u64) {
        self.note(
            index,
            "a snapshot was installed; what led to it is in the logs of other replicas",
        );
    }

    fn note(&mut self, index: u64, text: &str) {
        self.append(&format!("# {index}: {text}\n"), index);
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.len >= self.rotate_at_bytes {
            self.rotate()?;
        }
        self.file.write_all_at(bytes, self.len)?;
        self.len += bytes.len() as u64;
        Ok(())
    }

    fn rotate(&mut self) -> io::Result<()> {
        for n in (0..self.rotated_max).rev() {
            let from = self.dir.join(name(n));
            if self.files.exists(&from)? {
                self.files.rename(&from, &self.dir.join(name(n + 1)))?;
            }
        }
        self.file = self.files.create(&self.dir.join(name(0)))?;
        self.len = 0;
        Ok(())
    }
}

fn name(n: usize) -> String {
    match n {
        0 => "requests.txt".to_owned(),
        n => format!("requests.{n}.txt"),
    }
}

/// Whether a file of that name is one of the text log.
pub(super) fn is_one(name: &str) -> bool {
    name.starts_with("requests.") && name.ends_with("txt")
}

/// Drops the newest file and makes each older one a step newer.
fn step_back(files: &dyn Files, dir: &Path) -> io::Result<()> {
    files.remove(&dir.join(name(0)))?;
    for n in 1.. {
        let from = dir.join(name(n));
        if !files.exists(&from)? {
            break;
        }
        files.rename(&from, &dir.join(name(n - 1)))?;
    }
    Ok(())
}

fn read(file: &dyn File) -> io::Result<Vec<u8>> {
    let mut text = vec![0; file.len()? as usize];
    file.read_exact_at(&mut text, 0)?;
    Ok(text)
}

/// What of a text log holds.
#[derive(Debug, Default)]
struct Tail {
    /// Length of that part.
    bytes: usize,
    /// Whether nothing is missing at its end.
    complete: bool,
}

impl Tail {
    /// Looks for the last line that fits the state. A torn or foreign line ends what holds, and so
    /// does the line of an entry that is not applied. The lines of the last index hold only if
    /// they are known to be all.
    fn of(text: &[u8], meta: &Meta) -> Tail {
        let (mut bytes, mut index_start) = (0, 0);
        let (mut index, mut count, mut note) = (0, 0, false);
        for line in text.split_inclusive(|byte| *byte == b'\n') {
            let Some((line_index, line_note)) = parse(line) else { break };
            let limit = if line_note { meta.index() } else { meta.lines.index };
            if line_index > limit || line_index < index {
                break;
            }
            if line_index > index || line_note || note {
                (index_start, count) = (bytes, 0);
            }
            (index, note) = (line_index, line_note);
            count += u64::from(!note);
            bytes += line.len();
        }
        let complete = match note {
            true => index >= meta.lines.index,
            false => (index, count) == (meta.lines.index, meta.lines.count),
        };
        Tail { bytes: if complete || note { bytes } else { index_start }, complete }
    }
}

/// The index of a line, and whether it is a note.
fn parse(line: &[u8]) -> Option<(u64, bool)> {
    let line = std::str::from_utf8(line).ok()?.strip_suffix('\n')?;
    match line.strip_prefix("# ") {
        Some(note) => Some((note.split_once(':')?.0.parse().ok()?, true)),
        None => Some((line.split_once(' ')?.0.parse().ok()?, false)),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::{
        super::testing::{Replica, buy, inline_env, item, number, request, set_stock},
        *,
    };

    const NOTE: &str = "lines up to here are missing: the server stopped before it wrote them";

    #[test]
    fn lines_say_what_was_asked_and_what_came_of_it() {
        let mut replica = Replica::stocked();
        let at = Command::Buy { item: number(1), quantity: 1, expected_cost: Some(1) };
        replica.group(vec![
            vec![request("k1", buy(1, 2)), request("k1", buy(1, 2)), request("k1", buy(1, 1))],
            vec![],
            vec![request("k2", buy(2, 1)), request("k3", at), request("k4", buy(9, 1))],
        ]);
        replica.one("k5", set_stock(1, 100));
        replica.one("k6", Command::ReduceStock { item: number(1) });
        replica.one("k7", Command::SetCost { item: number(1), cost: 7 });
        let time = "2026-11-22T13:37:00.123Z";
        let expected = [
            format!("1 {time} addItems items=2 key=stock -> added 2"),
            format!("2 {time} buy item=1 quantity=2 key=k1 -> order 1"),
            format!("2 {time} buy item=1 quantity=1 key=k1 -> idempotency_key_reused"),
            format!("4 {time} buy item=2 quantity=1 key=k2 -> out_of_stock"),
            format!(
                "4 {time} buy item=1 quantity=1 expectedCost=1 key=k3 -> cost_changed cost=2000"
            ),
            format!("4 {time} buy item=9 quantity=1 key=k4 -> unknown_item"),
            format!("5 {time} updateStock item=1 stock=100 key=k5 -> ok"),
            format!("6 {time} reduceStock item=1 key=k6 -> ok"),
            format!("7 {time} updateCost item=1 cost=7 key=k7 -> ok"),
        ];
        assert_eq!(replica.text_log("requests.txt").lines().collect::<Vec<_>>(), expected);
    }

    #[test]
    fn a_restart_changes_nothing_in_a_whole_log() {
        let mut replica = Replica::stocked();
        replica.group(vec![vec![request("k1", buy(1, 1)), request("k2", buy(1, 1))], vec![]]);
        let before = replica.text_log("requests.txt");
        replica.reopen();
        assert_eq!(replica.text_log("requests.txt"), before);
    }

    #[test]
    fn lines_of_entries_that_sqlite_lost_are_cut() {
        let mut replica = Replica::stocked();
        replica.one("k1", buy(1, 1));
        let before = replica.text_log("requests.txt");
        replica.close();
        let path = replica.dir.path().join("requests.txt");
        fs::write(&path, format!("{before}3 2026-11-22T13:37:00.123Z buy\n# 9: note\n")).unwrap();
        replica.reopen();
        assert_eq!(replica.text_log("requests.txt"), before);
        replica.one("k2", buy(1, 1));
        assert!(replica.text_log("requests.txt").starts_with(&before));
    }

    #[test]
    fn lines_that_a_crash_took_are_noted() {
        let mut replica = Replica::stocked();
        let one = replica.text_log("requests.txt");
        replica.one("k1", buy(1, 1));
        let two = replica.text_log("requests.txt");
        replica.group(vec![vec![request("k2", buy(1, 1)), request("k3", buy(1, 1))]]);
        let all = replica.text_log("requests.txt");
        let path = replica.dir.path().join("requests.txt");
        // Torn at every byte of the last entry, and with the zeros that a file system may leave.
        for cut in two.len()..all.len() {
            // With a line of entry 3 it is clear that those of entry 2 are all there.
            let kept = if all[two.len()..cut].contains('\n') { &two } else { &one };
            for zeros in [0, 10] {
                let torn = [&all.as_bytes()[..cut], &vec![0; zeros]].concat();
                replica.close();
                fs::write(&path, torn).unwrap();
                replica.reopen();
                assert_eq!(replica.text_log("requests.txt"), format!("{kept}# 3: {NOTE}\n"));
            }
        }
        // A second restart has nothing to add.
        replica.reopen();
        assert_eq!(replica.text_log("requests.txt"), format!("{two}# 3: {NOTE}\n"));
    }

    #[test]
    fn the_log_is_rotated_and_cut_across_files() {
        let config = StateConfig {
            requests_log_bytes: 100,
            requests_log_files: 2,
            ..StateConfig::default()
        };
        let mut replica = Replica::with(config);
        replica.one("add", Command::AddItems { items: vec![item(1, "a", 100)] });
        for n in 2..=12 {
            replica.one(&format!("k{n}"), buy(1, 1));
        }
        let first = |name: &str| replica.text_log(name).split(' ').next().unwrap().to_owned();
        // Two lines a file: after the first the file is short of the limit, after the second over.
        assert_eq!(
            [first("requests.2.txt"), first("requests.1.txt"), first("requests.txt")],
            ["7", "9", "11"]
        );
        assert!(!replica.dir.path().join("requests.3.txt").exists());

        let kept = replica.text_log("requests.2.txt");
        replica.close();
        rewind(&replica, 8);
        replica.reopen();
        assert_eq!(replica.text_log("requests.txt"), kept);
        assert!(!replica.dir.path().join("requests.1.txt").exists());
    }

    /// A file on a full disk.
    struct Full;

    impl File for Full {
        fn read_at(&self, _: &mut [u8], _: u64) -> io::Result<usize> {
            Ok(0)
        }
        fn write_all_at(&self, _: &[u8], _: u64) -> io::Result<()> {
            Err(io::ErrorKind::StorageFull.into())
        }
        fn sync_data(&self) -> io::Result<()> {
            Ok(())
        }
        fn len(&self) -> io::Result<u64> {
            Ok(0)
        }
        fn set_len(&self, _: u64) -> io::Result<()> {
            Ok(())
        }
        fn allocate(&self, _: u64) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_full_disk_only_costs_lines() {
        let dir = tempfile::tempdir().unwrap();
        let files = inline_env().files;
        let open =
            || RequestsLog::open(&files, dir.path(), &StateConfig::default(), &Meta::default());
        let mut log = open().unwrap();
        log.append("1 first\n", 1);
        let disk = std::mem::replace(&mut log.file, Arc::new(Full));
        log.append("2 second\n", 2);
        log.append("3 third\n", 3);
        log.file = disk;
        log.append("4 fourth\n", 4);
        let expected =
            "1 first\n# 3: lines up to here are missing: they could not be written\n4 fourth\n";
        assert_eq!(fs::read_to_string(dir.path().join("requests.txt")).unwrap(), expected);
    }

    /// What a power loss may do to SQLite, as far as the text log is concerned.
    fn rewind(replica: &Replica, index: u64) {
        let db = rusqlite::Connection::open(replica.dir.path().join("catalog.db")).unwrap();
        let update = "UPDATE meta SET applied_index = ?1, lines_index = ?1, lines_count = 1, checksum = NULL";
        assert_eq!(db.execute(update, [index as i64]).unwrap(), 1);
    }
}
