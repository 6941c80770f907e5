//! What opening does with torn tails, damage and missing files.

use super::*;

/// A log in one segment with `count` entries, each appended and fsynced by itself.
fn one_segment(count: u64) -> FakeDisk {
    let disk = FakeDisk::default();
    let config = LogConfig { segment_bytes: 16 * 1024, ..CONFIG };
    let mut log = Log::open_with(&disk, config).unwrap();
    for index in 0..count {
        log.append(&entries([index])).unwrap();
    }
    drop(log);
    disk.process_death();
    disk
}

/// Where the records of [`one_segment`] start, and where the last one ends.
fn offsets(count: usize) -> Vec<usize> {
    let mut bytes = Vec::new();
    let record = super::super::record::Encoded::new(&entries([0])[0]).unwrap();
    record.write_to(&mut bytes, 0, 0);
    (0..=count).map(|n| segment::HEAD_BYTES as usize + n * bytes.len()).collect()
}

#[test]
fn a_tail_torn_anywhere_is_cut() {
    let offsets = offsets(5);
    for cut in offsets[4]..offsets[5] {
        let disk = one_segment(5);
        disk.damage(&segment_path(0), |bytes| bytes[cut..].fill(0));
        let mut log = Log::open(&disk).unwrap();
        let state = log.state();
        // The last bytes are padding, which a record can lose.
        let whole = state.entries.len() == 5;
        assert!(!whole || cut + 8 > offsets[5], "cut at {cut}");
        let last = entry(2, state.next_index(), 77, 64);
        log.append(std::slice::from_ref(&last)).unwrap();
        let mut log = log.reopen(&disk).unwrap();
        let mut expected = entries(0..state.next_index());
        expected.push(last);
        assert_eq!(log.state().entries, expected, "cut at {cut}");
    }
}

#[test]
fn a_file_that_is_shorter_than_it_was_made_is_damage() {
    let whole = one_segment(5).contents(&segment_path(0)).len();
    for len in (0..whole).step_by(509).chain([whole - 1024]) {
        let disk = one_segment(5);
        disk.damage(&segment_path(0), |bytes| bytes.truncate(len));
        assert_eq!(corrupt_path(Log::open(&disk)), segment_path(0), "{len} of {whole} bytes");
    }
}

#[test]
fn garbage_behind_the_last_record_is_wiped() {
    let disk = one_segment(5);
    let end = offsets(5)[5];
    // A record that was written in the same flight as the missing one before it.
    let mut stray = Vec::new();
    super::super::record::Encoded::new(&entries([6])[0]).unwrap().write_to(&mut stray, 0, 5);
    disk.damage(&segment_path(0), |bytes| {
        bytes[end + 400..][..stray.len()].copy_from_slice(&stray)
    });
    let mut log = Log::open(&disk).unwrap();
    assert_eq!(log.state().entries, entries(0..5));
    assert!(disk.contents(&segment_path(0))[end..].iter().all(|byte| *byte == 0));
}

#[test]
fn a_flipped_bit_before_the_last_record_is_damage() {
    let offsets = offsets(5);
    // Every byte of the records before the last but their padding, of which the last 8 may be.
    for at in (offsets[0]..offsets[4])
        .filter(|at| !offsets.iter().any(|end| (*at..*at + 8).contains(end)))
    {
        let disk = one_segment(5);
        disk.damage(&segment_path(0), |bytes| bytes[at] ^= 4);
        assert_eq!(corrupt_path(Log::open(&disk)), segment_path(0), "byte {at}");
    }
}

#[test]
fn the_hard_state_vouches_for_the_last_record() {
    let disk = one_segment(5);
    // Opening saves how much is durable.
    drop(Log::open(&disk).unwrap());
    disk.process_death();
    disk.damage(&segment_path(0), |bytes| bytes[offsets(5)[4] + 40] ^= 1);
    assert_eq!(corrupt_path(Log::open(&disk)), segment_path(0));
}

#[test]
fn damage_in_a_sealed_segment_or_a_head_is_told() {
    let disk = FakeDisk::default();
    Log::open(&disk).unwrap().append(&entries(0..30)).unwrap();
    disk.process_death();
    let segments: Vec<String> =
        names(&disk).into_iter().filter(|name| name.ends_with(".log")).collect();
    assert!(segments.len() > 3);
    for name in &segments {
        let path = dir().join(name);
        let whole = disk.contents(&path);
        // Of the newest segment, damage in the records looks like a torn tail.
        let newest = segments.last() == Some(name);
        for at in if newest { vec![3, 20] } else { vec![3, 20, 50] } {
            disk.damage(&path, |bytes| bytes[at] ^= 1);
            assert_eq!(corrupt_path(Log::open(&disk)), path);
            disk.process_death();
            disk.damage(&path, |bytes| bytes.clone_from(&whole));
        }
    }
    Log::open(&disk).unwrap();
}

#[test]
fn a_missing_segment_is_damage_wherever_it_was() {
    let fresh = || {
        let disk = FakeDisk::default();
        Log::open(&disk).unwrap().append(&entries(0..30)).unwrap();
        disk.process_death();
        disk
    };
    let segments: Vec<String> =
        names(&fresh()).into_iter().filter(|name| name.ends_with(".log")).collect();
    for name in &segments {
        let disk = fresh();
        disk.lose(&dir().join(name));
        corrupt_path(Log::open(&disk));
    }
    let disk = fresh();
    for name in &segments {
        disk.lose(&dir().join(name));
    }
    assert_eq!(corrupt_path(Log::open(&disk)), dir());
}

#[test]
fn a_lost_vote_is_damage() {
    let disk = one_segment(1);
    disk.lose(&dir().join("state"));
    assert_eq!(corrupt_path(Log::open(&disk)), dir());

    let disk = one_segment(1);
    disk.damage(&dir().join("state"), |bytes| bytes.fill(0));
    assert_eq!(corrupt_path(Log::open(&disk)), dir().join("state"));

    // What is left may be an older one.
    for len in [0, 4096, 8192, 4 * 4096 - 1] {
        let disk = one_segment(1);
        disk.damage(&dir().join("state"), |bytes| bytes.truncate(len));
        assert_eq!(corrupt_path(Log::open(&disk)), dir().join("state"), "{len} bytes");
    }
}

#[test]
fn one_damaged_copy_of_the_vote_does_no_harm() {
    for bit in (0..4 * 4096 * 8).step_by(997) {
        let disk = FakeDisk::default();
        let mut log = Log::open(&disk).unwrap();
        for term in 1..4 {
            log.vote(Vote::new(term, 1)).unwrap();
        }
        drop(log);
        disk.process_death();
        disk.damage(&dir().join("state"), |bytes| bytes[bit / 8] ^= 1 << (bit % 8));
        assert_eq!(Log::open(&disk).unwrap().state().vote, Some(Vote::new(3, 1)), "bit {bit}");
    }
}

#[test]
fn a_torn_save_leaves_the_vote_before() {
    let disk = FakeDisk::default();
    let mut log = Log::open(&disk).unwrap();
    log.vote(Vote::new(1, 1)).unwrap();
    let before = disk.contents(&dir().join("state"));
    log.vote(Vote::new(2, 1)).unwrap();
    let after = disk.contents(&dir().join("state"));
    let start = (0..before.len()).find(|at| before[*at] != after[*at]).unwrap() / 8192 * 8192;
    for torn in (start..start + 8192).step_by(61) {
        let disk = FakeDisk::default();
        drop(Log::open(&disk).unwrap());
        disk.process_death();
        disk.damage(&segment_path(0), |bytes| bytes.resize(CONFIG.segment_bytes as usize, 0));
        disk.damage(&dir().join("state"), |bytes| {
            bytes.clone_from(&before);
            bytes[start..torn].copy_from_slice(&after[start..torn]);
        });
        let vote = Log::open(&disk).unwrap().state().vote;
        // One whole copy is a vote that was saved. Most of it are zeros that were there before.
        let copy = start..start + 4096;
        let whole = torn >= copy.end || before[torn..copy.end] == after[torn..copy.end];
        let expected = if whole { 2 } else { 1 };
        assert_eq!(vote, Some(Vote::new(expected, 1)), "torn at {torn}");
    }
}

#[test]
fn what_a_newer_build_wrote_is_refused_by_name() {
    let disk = one_segment(1);
    disk.damage(&segment_path(0), |bytes| {
        bytes[8] = 9;
        let check = xxhash_rust::xxh3::xxh3_64(&bytes[..24]);
        bytes[24..32].copy_from_slice(&check.to_le_bytes());
    });
    let Err(error) = Log::open(&disk) else { panic!("a newer format was read") };
    assert!(
        matches!(&error, LogError::Newer { path, found: 9, supported: 1 } if *path == segment_path(0))
    );
    assert!(error.to_string().contains("start the newer build"), "{error}");
}
