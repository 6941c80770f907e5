use pygmy_protocol::{command::Command, item::PageRequest};

use super::{
    super::testing::{Heard, Replica, buy, item, number, set_stock},
    *,
};

fn id(text: &str) -> ImportId {
    text.parse().unwrap()
}

fn stage(import: &str, items: Vec<Item>) -> Command {
    Command::StageItems { import: id(import), items }
}

fn publish(import: &str, items: u64) -> Command {
    Command::PublishImport { import: id(import), items }
}

fn discard(import: &str) -> Command {
    Command::DiscardImport { import: id(import) }
}

fn done(items: u64) -> Outcome {
    Outcome::Imported { items, replayed: false }
}

fn refused(refusal: ImportRefusal) -> Outcome {
    Outcome::ImportRefused(refusal)
}

/// All pages of a topic, one item on each.
fn topic(replica: &Replica, topic: &str) -> Vec<u64> {
    let (mut numbers, mut after) = (Vec::new(), 0);
    loop {
        let page = PageRequest { limit: 1, after };
        let page = replica.reader().page(topic, page).unwrap().value;
        numbers.extend(page.items.iter().map(|item| item.item_number.get()));
        match page.next {
            Some(cursor) => after = PageRequest::parse(None, Some(&cursor)).unwrap().after,
            None => return numbers,
        }
    }
}

fn topics(replica: &Replica) -> Vec<(String, u64)> {
    let topics = replica.reader().topics().unwrap().value.topics;
    topics.into_iter().map(|topic| (topic.topic, topic.items)).collect()
}

fn all(replica: &Replica) -> Vec<u64> {
    let page = PageRequest { limit: 1000, after: 0 };
    let page = replica.reader().all_items(page).unwrap().value;
    page.items.iter().map(|item| item.item_number.get()).collect()
}

#[test]
fn nobody_sees_an_import_before_all_of_it_is_published() {
    let mut replica = Replica::stocked();
    assert_eq!(replica.one("k1", stage("i", vec![item(9, "a", 3), item(3, "c", 3)])), done(2));
    assert_eq!(replica.one("k2", stage("i", vec![item(4, "a", 3)])), done(3));
    let unknown = Outcome::UnknownItem { item: number(9) };
    assert_eq!(replica.one("k3", buy(9, 1)), unknown);
    assert_eq!(replica.one("k4", set_stock(9, 1)), unknown);
    assert_eq!(replica.reader().item(number(9)).unwrap().value, None);
    assert_eq!((topic(&replica, "a"), topic(&replica, "c")), (vec![1], vec![]));
    assert_eq!(topics(&replica), [("a".into(), 1), ("b".into(), 1)]);
    assert_eq!(all(&replica), [1, 2]);
    let [import] = &replica.reader().imports().unwrap().value.imports[..] else { panic!() };
    assert_eq!((&import.id, import.items, import.discarding), (&id("i"), 3, false));
    replica.reader().verify().unwrap();

    replica.hook.take();
    let incomplete = refused(ImportRefusal::Incomplete { items: 3 });
    assert_eq!(replica.one("k5", publish("i", 4)), incomplete);
    assert_eq!(replica.one("k5", publish("i", 3)), done(3));
    let changed = vec![CacheKey::Topic("a".into()), CacheKey::Topic("c".into()), CacheKey::Topics];
    assert_eq!(replica.hook.take(), [Heard::Applied(6, vec![]), Heard::Applied(7, changed)]);
    assert_eq!(replica.reader().item(number(9)).unwrap().value, Some(item(9, "a", 3)));
    assert_eq!((topic(&replica, "a"), topic(&replica, "c")), (vec![1, 4, 9], vec![3]));
    assert_eq!(topics(&replica), [("a".into(), 3), ("b".into(), 1), ("c".into(), 1)]);
    assert_eq!(all(&replica), [1, 2, 3, 4, 9]);
    assert!(replica.reader().imports().unwrap().value.imports.is_empty());
    assert!(matches!(replica.one("k6", buy(9, 1)), Outcome::Ordered { .. }));
    replica.reader().verify().unwrap();
}

#[test]
fn a_part_counts_once_and_a_finished_import_takes_none() {
    let mut replica = Replica::new();
    let part = || stage("i", vec![item(1, "a", 1)]);
    assert_eq!(replica.one("part", part()), done(1));
    assert_eq!(replica.one("part", part()), Outcome::Imported { items: 1, replayed: true });
    assert_eq!(replica.one("p", publish("i", 1)), done(1));
    assert_eq!(replica.one("p", publish("i", 1)), Outcome::Imported { items: 1, replayed: true });
    let not_open = refused(ImportRefusal::NotOpen);
    for command in [stage("i", vec![item(2, "a", 1)]), publish("i", 1), discard("i")] {
        assert_eq!(replica.one("late", command), not_open);
    }
    // Nor one that was discarded before its first part arrived.
    assert_eq!(replica.one("d", discard("j")), done(0));
    assert_eq!(replica.one("late", stage("j", vec![item(2, "a", 1)])), not_open);
    assert_eq!(replica.one("late", publish("k", 0)), not_open);
    replica.reader().verify().unwrap();
}

#[test]
fn a_number_that_is_taken_stops_the_part_that_has_it() {
    let mut replica = Replica::stocked();
    assert_eq!(replica.one("k1", stage("i", vec![item(5, "a", 1)])), done(1));
    let exists =
        |n, import: Option<&str>| Outcome::ItemExists { item: number(n), import: import.map(id) };
    let before = replica.reader().status();
    for (command, outcome) in [
        (stage("i", vec![item(6, "a", 1), item(1, "a", 1)]), exists(1, None)),
        (stage("j", vec![item(6, "a", 1), item(5, "a", 1)]), exists(5, Some("i"))),
        (stage("j", vec![item(6, "a", 1), item(6, "b", 1)]), exists(6, None)),
        (Command::AddItems { items: vec![item(6, "a", 1), item(5, "a", 1)] }, exists(5, Some("i"))),
    ] {
        assert_eq!(replica.one("k2", command), outcome);
    }
    let after = replica.reader().status();
    assert_eq!((before.state_hash, before.items), (after.state_hash, after.items));
    replica.reader().verify().unwrap();
}

#[test]
fn a_discard_drops_some_at_a_time_and_frees_the_numbers() {
    let mut replica = Replica::stocked();
    let before = replica.reader().status();
    for part in 0..4 {
        let numbers = 10 + part * 400..10 + (part + 1) * 400;
        let topic = |n: u64| if n < 700 { "a" } else { "z" };
        let items = numbers.map(|n| item(n, topic(n), 1)).collect();
        assert_eq!(replica.one(&format!("k{part}"), stage("i", items)), done((part + 1) * 400));
    }
    assert_eq!(replica.one("d1", discard("i")), done(600));
    replica.reader().verify().unwrap();
    assert!(replica.reader().imports().unwrap().value.imports[0].discarding);
    assert_eq!(replica.one("p", publish("i", 600)), refused(ImportRefusal::NotOpen));
    // What is left holds its numbers.
    let again = || stage("j", vec![item(1600, "a", 1)]);
    assert!(matches!(replica.one("k9", again()), Outcome::ItemExists { .. }));
    assert_eq!(replica.one("d2", discard("i")), done(0));
    assert_eq!(replica.one("d3", discard("i")), done(0));
    assert_eq!(replica.reader().status().items, before.items);
    assert_eq!(all(&replica), [1, 2]);
    assert_eq!(replica.one("k9", again()), done(1));
    replica.reader().verify().unwrap();
}

#[test]
fn unfinished_imports_are_few() {
    let mut replica = Replica::new();
    for n in 0..MAX_UNFINISHED_IMPORTS as u64 {
        let part = stage(&format!("i{n}"), vec![item(n + 1, "a", 1)]);
        assert_eq!(replica.one(&format!("k{n}"), part), done(1));
    }
    let more = || stage("more", vec![item(99, "a", 1)]);
    assert_eq!(replica.one("more", more()), refused(ImportRefusal::TooMany));
    assert_eq!(replica.one("d", discard("i0")), done(0));
    assert_eq!(replica.one("more", more()), done(1));
}

#[test]
fn an_import_of_too_many_topics_is_not_published() {
    let mut replica = Replica::new();
    let items = (1..=MAX_IMPORT_TOPICS as u64 + 1).map(|n| item(n, &n.to_string(), 1));
    let items: Vec<_> = items.collect();
    for (n, part) in items.chunks(MAX_ITEMS).enumerate() {
        replica.one(&format!("k{n}"), stage("i", part.to_vec()));
    }
    let publish = publish("i", items.len() as u64);
    assert_eq!(replica.one("p", publish), refused(ImportRefusal::TooManyTopics));
}

#[test]
fn a_search_leaps_over_hidden_imports_and_shows_later_ones_last() {
    let mut replica = Replica::new();
    let part = |n: u64| vec![item(n, "a", 1), item(n + 10, "a", 1)];
    for n in 1..=4 {
        // Higher numbers first, to tell the order of the imports from that of the numbers.
        replica.one(&format!("k{n}"), stage(&format!("i{n}"), part(5 - n)));
    }
    replica.one("add", Command::AddItems { items: part(5) });
    assert_eq!(topic(&replica, "a"), [5, 15]);
    replica.one("p2", publish("i2", 2));
    assert_eq!(topic(&replica, "a"), [5, 15, 3, 13]);
    replica.one("p4", publish("i4", 2));
    assert_eq!(topic(&replica, "a"), [5, 15, 3, 13, 1, 11]);
    replica.one("p1", publish("i1", 2));
    assert_eq!(topic(&replica, "a"), [5, 15, 4, 14, 3, 13, 1, 11]);
    // A cursor that no answer gave. What it leads to changes with the topic, and with nothing else:
    // caches rely on that.
    let behind = |replica: &Replica, after| {
        let page = replica.reader().page("a", PageRequest { limit: 9, after }).unwrap().value;
        page.items.iter().map(|item| item.item_number.get()).collect::<Vec<_>>()
    };
    let behind_nothing = behind(&replica, 6);
    assert_eq!(behind_nothing, [15, 4, 14, 3, 13, 1, 11]);
    assert_eq!(behind(&replica, 12), [15, 4, 14, 3, 13, 1, 11], "a hidden item");
    replica.one("other", Command::AddItems { items: vec![item(6, "b", 1)] });
    assert_eq!(behind(&replica, 6), behind_nothing, "an item of another topic");
    // All items, two at a time: what is hidden leaves holes.
    let page = PageRequest { limit: 2, after: 1 };
    let page = replica.reader().all_items(page).unwrap().value;
    assert_eq!((page.items.len(), page.next.as_deref()), (1, Some("a3")));
}

#[test]
fn a_snapshot_carries_what_is_staged() {
    let mut source = Replica::stocked();
    source.one("k1", stage("i", vec![item(7, "a", 1), item(8, "c", 1)]));
    source.one("k2", stage("j", vec![item(9, "a", 1)]));
    source.one("p", publish("j", 1));
    let mut replica = Replica::stocked();
    let (meta, file) = source.dump(&replica.snapshots());
    replica.writer().install(&meta, file).unwrap();
    for replica in [&replica, &source] {
        replica.reader().verify().unwrap();
        assert_eq!(topic(replica, "a"), [1, 9]);
        assert_eq!(topics(replica), [("a".into(), 2), ("b".into(), 1)]);
    }
    replica.reopen();
    for replica in [&mut replica, &mut source] {
        assert_eq!(replica.one("p2", publish("i", 2)), done(2));
        assert_eq!(topic(replica, "a"), [1, 7, 9]);
        replica.reader().verify().unwrap();
    }
    let (ours, theirs) = (replica.reader().status(), source.reader().status());
    assert_eq!(ours.state_hash, theirs.state_hash);
}

/// Runs `sql` on the database of a replica that is not running.
fn behind_its_back(replica: &mut Replica, sql: &str) {
    replica.close();
    let db = Connection::open(replica.dir.path().join("catalog.db")).unwrap();
    db.execute_batch(sql).unwrap();
    drop(db);
    replica.reopen();
}

#[test]
fn an_import_that_is_not_as_it_was_written_is_damage() {
    let mut replica = Replica::stocked();
    replica.one("k1", stage("i", vec![item(10, "a", 1)]));
    replica.one("p1", publish("i", 1));
    assert!(replica.reader().item(number(10)).unwrap().value.is_some());
    behind_its_back(&mut replica, "UPDATE imports SET state = 0");
    let error = replica.reader().item(number(10)).unwrap_err();
    assert!(error.to_string().contains("fails its check"), "{error}");
}

#[test]
fn imports_of_schema_version_4_go_on() {
    let mut replica = Replica::stocked();
    replica.one("k1", stage("i", vec![item(10, "a", 1)]));
    let before = replica.reader().status();
    let as_it_was = "ALTER TABLE imports DROP COLUMN checksum; UPDATE meta SET schema_version = 4";
    behind_its_back(&mut replica, as_it_was);
    assert_eq!(replica.reader().status(), before);
    replica.one("k2", stage("i", vec![item(11, "a", 1)]));
    replica.one("p1", publish("i", 2));
    replica.reader().verify().unwrap();
}
