//! What the log does while nothing goes wrong, and when the disk is full or broken.

use std::io::ErrorKind;

use super::*;

#[test]
fn reopening_gives_everything_back() {
    let disk = FakeDisk::default();
    let mut log = Log::open(&disk).unwrap();
    let vote = Vote::new_committed(3, 1);
    log.append(&entries(0..40)).unwrap();
    log.vote(vote).unwrap();
    let state = log.state();
    assert_eq!(state, State { vote: Some(vote), purged: None, entries: entries(0..40) });
    assert_eq!(log.reopen(&disk).unwrap().state(), state);
}

#[test]
fn entries_are_readable_before_they_are_durable() {
    let disk = FakeDisk::default();
    let mut log = Log::open(&disk).unwrap();
    let mut flushed = log.submit(&entries(0..9)).unwrap();
    assert_eq!(log.state().entries, entries(0..9));
    assert!(flushed.try_recv().is_err(), "nothing was written yet");
    log.worker.step();
    flushed.try_recv().unwrap().unwrap();
}

#[test]
fn appends_that_wait_share_one_fsync() {
    let disk = FakeDisk::default();
    let mut log = Log::open_with(&disk, LogConfig::default()).unwrap();
    let before = log.store.figures().fsync.count();
    let flushed: Vec<Flushed> =
        (0..50).map(|index| log.submit(&entries([index])).unwrap()).collect();
    log.worker.step();
    assert_eq!(log.store.figures().fsync.count(), before + 1);
    for mut flushed in flushed {
        flushed.try_recv().unwrap().unwrap();
    }
}

#[test]
fn a_read_for_replication_is_bounded_and_never_empty() {
    let disk = FakeDisk::default();
    let mut log = Log::open_with(&disk, LogConfig::default()).unwrap();
    let large: Vec<Entry> = (0..6).map(|index| entry(1, index, index, 400_000)).collect();
    let huge = entry(1, 6, 6, 3_000_000);
    log.append(&large).unwrap();
    log.append(std::slice::from_ref(&huge)).unwrap();
    // From memory, then from the disk.
    for mut log in [log, Log::open_with(&disk, LogConfig::default()).unwrap()] {
        let mut read =
            |start| Log::drive(&log.worker, log.store.limited_get_log_entries(start, 7)).unwrap();
        assert!(read(0) == large[..2]);
        assert!(read(5) == large[5..]);
        assert!(read(6) == [huge.clone()]);
    }
}

#[test]
fn a_hole_is_refused_and_harms_nothing() {
    let disk = FakeDisk::default();
    let mut log = Log::open(&disk).unwrap();
    log.append(&entries(0..3)).unwrap();
    for bad in [vec![4], vec![2], vec![3, 5]] {
        assert_eq!(log.append(&entries(bad)).unwrap_err().kind(), ErrorKind::InvalidInput);
    }
    log.append(&entries(3..5)).unwrap();
    assert_eq!(log.reopen(&disk).unwrap().state().entries, entries(0..5));
}

#[test]
fn what_was_taken_back_stays_away() {
    for from in 0..30 {
        let disk = FakeDisk::default();
        let mut log = Log::open(&disk).unwrap();
        log.append(&entries(0..30)).unwrap();
        log.truncate_from(from).unwrap();
        assert_eq!(log.state().entries, entries(0..from));
        // Of the same size as what was there, so that old records would follow it seamlessly.
        let replaced = entry(2, from, 1000, 64);
        log.append(std::slice::from_ref(&replaced)).unwrap();
        let mut expected = entries(0..from);
        expected.push(replaced);
        let mut log = log.reopen(&disk).unwrap();
        assert_eq!(log.state().entries, expected, "from {from}");
        log.append(&[entry(2, from + 1, 1001, 64)]).unwrap();
    }
}

#[test]
fn a_purge_frees_whole_segments_and_is_remembered() {
    for upto in 0..30 {
        let disk = FakeDisk::default();
        let mut log = Log::open(&disk).unwrap();
        log.append(&entries(0..30)).unwrap();
        let all = names(&disk).len();
        log.purge(id(1, upto)).unwrap();
        log.purge(id(1, upto / 2)).unwrap();
        assert!(names(&disk).len() < all || upto < 4, "{:?}", names(&disk));
        let state = State { vote: None, purged: Some(id(1, upto)), entries: entries(upto + 1..30) };
        assert_eq!(log.state(), state);
        let mut log = log.reopen(&disk).unwrap();
        assert_eq!(log.state(), state);
        log.append(&entries(30..33)).unwrap();
        assert_eq!(log.reopen(&disk).unwrap().state().entries, entries(upto + 1..33));
    }
}

#[test]
fn a_purge_past_the_end_starts_anew_behind_it() {
    let disk = FakeDisk::default();
    let mut log = Log::open(&disk).unwrap();
    log.append(&entries(0..30)).unwrap();
    log.purge(id(4, 100)).unwrap();
    assert_eq!(log.state(), State { vote: None, purged: Some(id(4, 100)), entries: Vec::new() });
    log.append(&entries(101..103)).unwrap();
    assert_eq!(log.reopen(&disk).unwrap().state().entries, entries(101..103));
    assert_eq!(names(&disk), [segment::name(101), "state".to_owned()]);
}

#[test]
fn an_entry_larger_than_a_segment_has_room() {
    let disk = FakeDisk::default();
    let mut log = Log::open(&disk).unwrap();
    let sizes = [5000, 64, 64, 3000, 64, 9000];
    let mixed: Vec<Entry> =
        (0..).zip(sizes).map(|(index, size)| entry(1, index, index, size)).collect();
    log.append(&mixed).unwrap();
    let mut log = log.reopen(&disk).unwrap();
    assert_eq!(log.state().entries, mixed);
    log.truncate_from(0).unwrap();
    log.append(&mixed).unwrap();
    assert_eq!(log.reopen(&disk).unwrap().state().entries, mixed);
}

#[test]
fn a_failed_fsync_is_final_and_told_to_all() {
    let disk = FakeDisk::default();
    let mut log = Log::open_with(&disk, LogConfig::default()).unwrap();
    log.append(&entries(0..3)).unwrap();
    disk.fail_syncs();
    let waiting: Vec<Flushed> =
        (3..6).map(|index| log.submit(&entries([index])).unwrap()).collect();
    assert!(log.vote(Vote::new(2, 1)).is_err());
    for mut flushed in waiting {
        assert!(flushed.try_recv().unwrap().is_err());
    }
    assert!(log.append(&entries([6])).is_err());
    assert!(log.purge(id(1, 1)).is_err());
    assert!(Log::drive(&log.worker, log.store.get_log_state()).is_err());

    // What the next process reads it must be able to rely on, although the kernel dropped it.
    let mut log = log.reopen(&disk).unwrap();
    let state = log.state();
    drop(log);
    disk.power_loss(0);
    assert_eq!(Log::open(&disk).unwrap().state(), state);
    assert_eq!(state.entries, entries(0..6));
}

#[test]
fn a_full_disk_is_told_as_such() {
    let disk = FakeDisk::default();
    let mut log = Log::open(&disk).unwrap();
    // The hard state and two segments and a half.
    disk.set_room(4 * 4096 + 5 * CONFIG.segment_bytes / 2);
    let refused =
        (0..100).find_map(|index| log.append(&entries([index])).err().map(|e| (index, e)));
    let (index, error) = refused.expect("the disk is full");
    assert_eq!(error.kind(), ErrorKind::StorageFull);
    assert_eq!(log.vote(Vote::new(2, 1)).unwrap_err().kind(), ErrorKind::StorageFull);

    // All that was acknowledged is there, also while the disk is still full.
    let mut log = log.reopen(&disk).unwrap();
    assert_eq!(log.state().entries, entries(0..index));
    log.purge(id(1, index - 1)).unwrap();
    log.append(&entries(index..index + 3)).unwrap();
}

#[test]
fn the_real_disk_and_a_thread_serve_as_well() {
    let dir = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let env = Env::production();
    let mut store = LogStore::open(&env, &dir.path().join("log"), CONFIG).unwrap();
    runtime.block_on(async {
        let (sender, flushed) = TypeConfig::oneshot();
        store.append(entries(0..40), IOFlushed::signal(sender)).await.unwrap();
        store.save_vote(&Vote::new(2, 1)).await.unwrap();
        flushed.await.unwrap().unwrap();
        store.truncate_after(Some(id(1, 30))).await.unwrap();
        store.purge(id(1, 20)).await.unwrap();
    });
    // The first log has no more work: opening beside it is safe here.
    let mut again = LogStore::open(&env, &dir.path().join("log"), CONFIG).unwrap();
    runtime.block_on(async {
        assert_eq!(again.try_get_log_entries(..).await.unwrap(), entries(21..31));
        assert_eq!(again.read_vote().await.unwrap(), Some(Vote::new(2, 1)));
    });
}
