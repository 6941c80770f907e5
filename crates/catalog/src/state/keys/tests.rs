use std::fs;

use pygmy_protocol::command::{Command, Outcome};

use super::{
    super::{
        StateConfig, StateError,
        testing::{Replica, buy, item, replayed, request},
    },
    *,
};

fn config(run_orders: u64) -> StateConfig {
    let key_index = KeyIndexConfig { run_orders, ..KeyIndexConfig::default() };
    StateConfig { key_index, ..StateConfig::default() }
}

/// A replica with copies enough.
fn replica(config: StateConfig) -> Replica {
    let mut replica = Replica::with(config);
    replica.one("add", Command::AddItems { items: vec![item(1, "a", 1_000_000)] });
    replica
}

/// Buys under the keys of `numbers`, one in a transaction; they give the order numbers expected.
fn buys(replica: &mut Replica, numbers: std::ops::RangeInclusive<u64>) -> Vec<Outcome> {
    let buy = |n| match replica.one(&format!("k{n}"), buy(1, 1)) {
        Outcome::Ordered { order, replayed: false } if order.order_number.0 == n => {
            Outcome::Ordered { order, replayed: false }
        }
        other => panic!("buy {n}: {other:?}"),
    };
    numbers.map(buy).collect()
}

/// Each buy again: all are replays.
fn assert_replayed(replica: &mut Replica, made: &[Outcome]) {
    for (outcome, n) in made.iter().zip(1..) {
        let key = format!("k{n}");
        assert_eq!(replica.one(&key, buy(1, 1)), replayed(outcome.clone()), "{key}");
        assert_eq!(replica.one(&key, buy(1, 2)), Outcome::KeyReused);
    }
}

/// Finished runs, and the rows there are.
fn written(replica: &Replica) -> (u64, u64) {
    let db = replica.reader().shared.pool.open().unwrap();
    let rows =
        "SELECT (SELECT indexed_orders / index_run_orders FROM meta), COUNT(*) FROM key_index";
    db.query_row(rows, (), |row| Ok((whole(row, 0)?, whole(row, 1)?))).unwrap()
}

#[test]
fn keys_are_found_in_all_runs_and_after_a_restart() {
    let mut replica = replica(config(4));
    let made = buys(&mut replica, 1..=4 * 70 + 2);
    assert_eq!(written(&replica).0, 70);
    for _ in 0..2 {
        assert_replayed(&mut replica, &made);
        replica.reader().verify().unwrap();
        replica.reopen();
    }
}

#[test]
fn runs_that_fill_up_within_one_transaction_are_written() {
    let mut replica = replica(config(4));
    let batch = |from: u64, to| (from..=to).map(|n| request(&format!("k{n}"), buy(1, 1))).collect();
    let made = replica.group(vec![batch(1, 30), batch(31, 41)]).concat();
    assert_eq!(written(&replica), (10, 40));
    assert_replayed(&mut replica, &made);
    replica.reader().verify().unwrap();
}

#[test]
fn a_transaction_writes_a_part_of_a_run() {
    let mut replica = replica(config(16));
    buys(&mut replica, 1..=15);
    assert_eq!(written(&replica), (0, 0));
    for (n, expected) in [(16, (0, 4)), (17, (0, 8)), (18, (0, 12)), (19, (1, 16)), (20, (1, 16))] {
        buys(&mut replica, n..=n);
        assert_eq!(written(&replica), expected);
        replica.reader().verify().unwrap();
    }
}

#[test]
fn a_crash_within_a_run_costs_nothing() {
    let mut replica = replica(config(16));
    let mut made = buys(&mut replica, 1..=15);
    for n in 16..=40 {
        made.extend(buys(&mut replica, n..=n));
        // Nothing is closed, and nothing checkpointed: what is on disk is what a crash leaves.
        let mut crashed = Replica::with(config(16));
        crashed.close();
        for name in ["catalog.db", "catalog.db-wal"] {
            fs::copy(replica.dir.path().join(name), crashed.dir.path().join(name)).unwrap();
        }
        crashed.reopen();
        assert_eq!(written(&crashed), (n / 16, n / 16 * 16));
        crashed.reader().verify().unwrap();
        assert_replayed(&mut crashed, &made);
        buys(&mut crashed, n + 1..=n + 20);
        crashed.reader().verify().unwrap();
    }
}

#[test]
fn keys_of_one_hash_are_told_apart() {
    let hashes: [fn(&IdempotencyKey) -> u64; 2] = [|_| 7, |key| key.as_str().len() as u64 % 2];
    for hash in hashes {
        let mut config = config(8);
        config.key_index.hash = hash;
        let mut replica = replica(config);
        let made = buys(&mut replica, 1..=30);
        assert_replayed(&mut replica, &made);
        replica.reopen();
        assert_replayed(&mut replica, &made);
        buys(&mut replica, 31..=60);
        replica.reader().verify().unwrap();
    }
}

#[test]
fn a_database_with_runs_of_another_length_gets_new_ones() {
    let mut replica = replica(config(4));
    let mut made = buys(&mut replica, 1..=33);
    for (run_orders, runs) in [(8, 4), (16, 2), (3, 11), (1000, 0)] {
        replica.config = config(run_orders);
        replica.reopen();
        assert_eq!(written(&replica), (runs, runs * run_orders));
        replica.reader().verify().unwrap();
        assert_replayed(&mut replica, &made);
    }
    made.extend(buys(&mut replica, 34..=40));
    assert_replayed(&mut replica, &made);
}

#[test]
fn an_installed_snapshot_has_its_index() {
    let mut source = replica(config(5));
    let made = buys(&mut source, 1..=33);
    let mut replica = Replica::with(config(7));
    replica.one("other", Command::AddItems { items: vec![item(2, "a", 1)] });
    let (meta, file) = source.dump(&replica.snapshots());
    replica.writer().install(&meta, file).unwrap();
    assert_eq!(written(&replica), (4, 28));
    replica.reader().verify().unwrap();
    replica.reopen();
    assert_replayed(&mut replica, &made);
    assert_eq!(replica.reader().status().state_hash, source.reader().status().state_hash);
}

#[test]
fn a_damaged_index_is_found() {
    for (change, complaint) in [
        ("DELETE FROM key_index WHERE order_number = 3", "run 0 of the index"),
        ("UPDATE key_index SET hash = hash + 1 WHERE order_number = 7", "run 1 of the index"),
        ("UPDATE key_index SET order_number = 1 WHERE order_number = 6", "run 1 of the index"),
        ("INSERT INTO key_index VALUES (1, 7, 1)", "run 1 of the index"),
        ("UPDATE meta SET indexed_orders = 12", "the index of keys speaks of more"),
    ] {
        let mut replica = replica(config(4));
        buys(&mut replica, 1..=10);
        replica.reader().verify().unwrap();
        let db = Connection::open(replica.dir.path().join("catalog.db")).unwrap();
        assert_eq!(db.execute(change, ()).unwrap(), 1);
        let error = replica.reader().verify().unwrap_err();
        let found =
            matches!(&error, StateError::Corrupt { detail, .. } if detail.starts_with(complaint));
        assert!(found, "{change}: {error}");
    }
}

#[test]
fn what_memory_has_lost_is_found() {
    let mut replica = replica(config(4));
    buys(&mut replica, 1..=10);
    let forget: [fn(&mut KeyIndex); 2] = [
        |index| index.recent.clear(),
        |index| index.filters = Filters::new(index.config.run_orders),
    ];
    for forget in forget {
        replica.reopen();
        replica.reader().verify().unwrap();
        forget(&mut replica.reader().shared.keys());
        let error = replica.reader().verify().unwrap_err().to_string();
        assert!(error.contains("is not to be found by its key"), "{error}");
    }
}

/// These values are in the databases of running stores: they may never change.
#[test]
fn hashes_last() {
    let known = |key: &str| hash(&key.parse().unwrap());
    assert_eq!(known("k1"), 4_672_449_168_568_294_242);
    assert_eq!(known("an-order"), 3_452_320_146_598_758_730);
}
