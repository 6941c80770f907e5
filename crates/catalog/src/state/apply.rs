//! Judging requests: the rules of the store.
//!
//! A [`Group`] is the work of one transaction. Items that are touched stay in memory until
//! [`Group::finish`], so that a thousand sales of one item are one UPDATE. Orders, with their keys,
//! and other keys go straight into the transaction, where later requests of the same group find
//! them.
//!
//! Everything here is a function of the entries and the state: no clock, no random numbers. Bad
//! values are refused by the routes; what slipped through must still not be an error here, for
//! an entry that cannot be applied stops every replica at once, and again after each restart.

use std::{
    collections::{BTreeMap, BTreeSet, btree_map},
    sync::Arc,
};

use openraft::EntryPayload;
use pygmy_protocol::{
    IdempotencyKey,
    command::{Command, Outcome, Request},
    invalidation::{CacheKey, MAX_HOLDERS},
    item::{Item, ItemNumber, MAX_NUMBER},
    order::{Order, OrderNumber},
    planted,
    time::rfc3339,
};
use rusqlite::Connection;

use super::{
    Changed,
    error::nonsense,
    hash::fingerprint,
    imports::{count_topic, hiding, import_of},
    keys::KeyIndex,
    meta::{Holders, LastLines, Meta, hash_of_holder},
    requests_log,
    rows::{ItemRow, KeyRow, Made, OrderRow, TableRow},
};
use crate::raft::{Batch, Entry, LogId, Outcomes, StoredMembership};

/// Most keys that an entry lists as changed; beyond, it says [`CacheKey::All`].
const CHANGED_KEYS_MAX: usize = 1000;

/// Most items that are told with what they became. Where more change at a time, none of them is
/// asked for often.
const CHANGED_ITEMS_MAX: usize = 100;

/// What an entry did.
#[derive(Debug)]
pub(super) struct Applied {
    pub(super) log_id: LogId,
    pub(super) changed: Changed,
    /// All holders, if they are others than before.
    pub(super) holders: Option<Arc<Holders>>,
    pub(super) outcomes: Outcomes,
}

/// Entries that are applied in one transaction.
pub(super) struct Group<'a> {
    pub(super) db: &'a Connection,
    pub(super) meta: Meta,
    keys: &'a mut KeyIndex,
    orders_before: u64,
    memory: Memory,
    /// Items in memory that the database has otherwise.
    changed: BTreeSet<ItemNumber>,
    wants_items: bool,
}

/// What is kept in memory from one group to the next.
#[derive(Default)]
pub(super) struct Memory {
    /// Items that were touched. Only such as can be seen: a hidden one may be dropped.
    items: BTreeMap<ItemNumber, Touched>,
    /// For the text log.
    pub(super) lines: String,
}

/// Most items in memory when a group begins: some 5 MB.
const ITEMS_KEPT: usize = 16_384;

/// An item in memory.
struct Touched {
    row: ItemRow,
    /// The hash of the row as the database has it.
    stored_hash: u128,
}

impl<'a> Group<'a> {
    /// Begins where `meta` stands, in the transaction that is open on `db`.
    /// `memory` is that of the group before, or empty: nobody else changes what it has of the
    /// database. With `wants_items` it says what items became, besides that they changed.
    pub(super) fn new(
        db: &'a Connection,
        meta: Meta,
        keys: &'a mut KeyIndex,
        mut memory: Memory,
        wants_items: bool,
    ) -> Group<'a> {
        memory.lines.clear();
        if memory.items.len() > ITEMS_KEPT {
            memory.items.clear();
        }
        let (orders_before, changed) = (meta.orders, BTreeSet::new());
        Group { db, meta, keys, orders_before, memory, changed, wants_items }
    }

    /// Applies one entry.
    pub(super) fn entry(&mut self, entry: &Entry) -> rusqlite::Result<Applied> {
        let log_id = entry.log_id;
        self.meta.applied = Some(log_id);
        let holders_before = Arc::clone(&self.meta.holders);
        let mut changed = BTreeSet::new();
        let outcomes = match &entry.payload {
            EntryPayload::Blank => Outcomes::default(),
            EntryPayload::Normal(batch) => self.batch(log_id.index, batch, &mut changed)?,
            EntryPayload::Membership(membership) => {
                self.meta.membership = StoredMembership::new(Some(log_id), membership.clone());
                Outcomes::default()
            }
        };
        let changed = match changed.len() > CHANGED_KEYS_MAX {
            true => vec![CacheKey::All].into(),
            false => Changed {
                items: self.as_they_are_now(&changed),
                keys: changed.into_iter().collect(),
            },
        };
        let is_other = !Arc::ptr_eq(&holders_before, &self.meta.holders);
        let holders = is_other.then(|| Arc::clone(&self.meta.holders));
        Ok(Applied { log_id, changed, holders, outcomes })
    }

    /// Writes what is still in memory. Gives where the state stands now, and what the next group
    /// begins with; both hold once the transaction is committed.
    pub(super) fn finish(mut self) -> rusqlite::Result<(Meta, Memory)> {
        for number in &self.changed {
            let Some(touched) = self.memory.items.get_mut(number) else { continue };
            debug_assert!(
                touched.row.adds_up() || planted!(StockCheckedBefore),
                "the stock does not add up: {:?}",
                touched.row
            );
            touched.row.update(self.db)?;
            let hash = touched.row.hash();
            let others = self.meta.state_hash.wrapping_sub(touched.stored_hash);
            self.meta.state_hash = others.wrapping_add(hash);
            touched.stored_hash = hash;
        }
        self.meta.store(self.db)?;
        self.keys.write(self.db, self.meta.orders - self.orders_before)?;
        Ok((self.meta, self.memory))
    }

    fn batch(
        &mut self,
        index: u64,
        batch: &Batch,
        changed: &mut BTreeSet<CacheKey>,
    ) -> rusqlite::Result<Outcomes> {
        let mut outcomes = Vec::with_capacity(batch.requests.len());
        let time = rfc3339(batch.time_ms);
        let mut count = 0;
        for request in &batch.requests {
            let outcome = self.request(batch.time_ms, request, changed)?;
            count += u64::from(requests_log::line(
                &mut self.memory.lines,
                index,
                &time,
                request,
                &outcome,
            ));
            outcomes.push(outcome);
        }
        if count > 0 {
            self.meta.lines = LastLines { index, count };
        }
        Ok(Outcomes(outcomes))
    }

    /// The key comes first: a replay is answered from what the first request made, whatever has
    /// become of the item since. A refusal leaves nothing behind, so that a retry is judged
    /// afresh.
    fn request(
        &mut self,
        time_ms: u64,
        request: &Request,
        changed: &mut BTreeSet<CacheKey>,
    ) -> rusqlite::Result<Outcome> {
        match &request.command {
            Command::JoinHolder { nonce, name } => return Ok(self.join_holder(*nonce, name)),
            Command::RemoveHolder { nonce, term } => return Ok(self.remove_holder(*nonce, *term)),
            _ => {}
        }
        let fingerprint = fingerprint(&request.command);
        if let Some(row) = self.keys.find(self.db, &request.key)? {
            return match row.fingerprint == fingerprint {
                true => Ok(Outcome::Ordered { order: row.order, replayed: true }),
                false => Ok(Outcome::KeyReused),
            };
        }
        if let Some(row) = self.keys.find_other(self.db, &request.key)? {
            return match row.fingerprint == fingerprint {
                true => replay(&row.made),
                false => Ok(Outcome::KeyReused),
            };
        }
        let outcome = self.command(time_ms, request, fingerprint, changed)?;
        let made = match &outcome {
            // The order has its key with it.
            Outcome::Ordered { order, .. } => {
                changed.insert(CacheKey::Item(order.item_number));
                return Ok(outcome);
            }
            Outcome::Updated { item, .. } => {
                changed.insert(CacheKey::Item(item.item_number));
                remember(Outcome::Updated { item: item.clone(), replayed: true })?
            }
            Outcome::Added { items, .. } => {
                remember(Outcome::Added { items: *items, replayed: true })?
            }
            Outcome::Imported { items, .. } => {
                remember(Outcome::Imported { items: *items, replayed: true })?
            }
            Outcome::UnknownItem { .. }
            | Outcome::OutOfStock
            | Outcome::CostChanged { .. }
            | Outcome::KeyReused
            | Outcome::ItemExists { .. }
            | Outcome::ImportRefused(_)
            | Outcome::Holder { .. } => return Ok(outcome),
        };
        self.insert(&KeyRow { key: request.key.clone(), fingerprint, made })?;
        self.keys.add_other(&request.key);
        self.meta.keys += 1;
        Ok(outcome)
    }

    fn command(
        &mut self,
        time_ms: u64,
        request: &Request,
        fingerprint: u128,
        changed: &mut BTreeSet<CacheKey>,
    ) -> rusqlite::Result<Outcome> {
        match &request.command {
            Command::Buy { item, quantity, expected_cost } => {
                let key = (&request.key, fingerprint);
                self.buy(time_ms, key, *item, *quantity, *expected_cost)
            }
            Command::ReduceStock { item } => {
                self.update(*item, |row| match row.item.stock.checked_sub(1) {
                    Some(stock) => set_stock(row, stock),
                    None => Ok(false),
                })
            }
            Command::SetStock { item, stock } => {
                self.update(*item, |row| set_stock(row, (*stock).min(MAX_NUMBER)))
            }
            Command::SetCost { item, cost } => self.update(*item, |row| {
                row.item.cost = (*cost).min(MAX_NUMBER);
                Ok(true)
            }),
            Command::AddItems { items } => self.add_items(items, changed),
            Command::StageItems { import, items } => self.stage(time_ms, import, items),
            Command::PublishImport { import, items } => self.publish(import, *items, changed),
            Command::DiscardImport { import } => self.discard(time_ms, import),
            // Judged before there was a fingerprint.
            Command::JoinHolder { .. } | Command::RemoveHolder { .. } => {
                Ok(Outcome::Holder { registered: false })
            }
        }
    }

    fn buy(
        &mut self,
        time_ms: u64,
        (key, fingerprint): (&IdempotencyKey, u128),
        number: ItemNumber,
        quantity: u64,
        expected_cost: Option<u64>,
    ) -> rusqlite::Result<Outcome> {
        let order_number = OrderNumber(self.meta.orders + 1);
        let Some(Touched { row, .. }) = self.touch(number)? else {
            return Ok(Outcome::UnknownItem { item: number });
        };
        if expected_cost.is_some_and(|cost| cost != row.item.cost) {
            return Ok(Outcome::CostChanged { cost: row.item.cost });
        }
        let left = row.item.stock.checked_sub(quantity);
        let Some(stock) = left.or(planted!(StockCheckedBefore).then_some(0)) else {
            return Ok(Outcome::OutOfStock);
        };
        row.item.stock = stock;
        row.sold =
            row.sold.checked_add(quantity).ok_or_else(|| nonsense("too many copies sold"))?;
        let order = Order {
            order_number,
            item_number: number,
            title: row.item.title.clone(),
            quantity,
            cost: row.item.cost,
            stock,
        };
        self.changed.insert(number);
        let key = match planted!(KeyNotStored) {
            true => OrderRow::no_key(order_number)?,
            false => key.clone(),
        };
        let row = OrderRow { order, time_ms, key, fingerprint };
        self.insert(&row)?;
        self.keys.add(&row.key, order_number);
        self.meta.orders += 1;
        self.meta.keys += 1;
        Ok(Outcome::Ordered { order: row.order, replayed: false })
    }

    /// Changes an item; `change` says whether there were copies enough.
    fn update(
        &mut self,
        number: ItemNumber,
        change: impl FnOnce(&mut ItemRow) -> rusqlite::Result<bool>,
    ) -> rusqlite::Result<Outcome> {
        let Some(touched) = self.touch(number)? else {
            return Ok(Outcome::UnknownItem { item: number });
        };
        if !change(&mut touched.row)? {
            return Ok(Outcome::OutOfStock);
        }
        let item = touched.row.item.clone();
        self.changed.insert(number);
        Ok(Outcome::Updated { item, replayed: false })
    }

    fn add_items(
        &mut self,
        items: &[Item],
        changed: &mut BTreeSet<CacheKey>,
    ) -> rusqlite::Result<Outcome> {
        for item in items {
            let import = import_of(self.db, item.item_number)?.unwrap_or(0);
            if let Some(import) = hiding(self.db, import)? {
                let item = item.item_number;
                return Ok(Outcome::ItemExists { item, import: Some(import.id) });
            }
        }
        let mut added = 0;
        for item in items {
            if import_of(self.db, item.item_number)?.is_some() {
                continue;
            }
            self.insert(&ItemRow::new(item.clone(), 0))?;
            count_topic(self.db, 0, &item.topic, 1)?;
            changed.insert(CacheKey::Item(item.item_number));
            changed.insert(CacheKey::Topic(item.topic.clone()));
            changed.insert(CacheKey::Topics);
            added += 1;
        }
        self.meta.items += added;
        Ok(Outcome::Added { items: added, replayed: false })
    }

    /// The items among `changed`, unless nobody wants them or they are too many.
    fn as_they_are_now(&self, changed: &BTreeSet<CacheKey>) -> Vec<Item> {
        if !self.wants_items || changed.len() > CHANGED_ITEMS_MAX {
            return Vec::new();
        }
        let touched = changed.iter().filter_map(|key| match key {
            CacheKey::Item(number) => self.memory.items.get(number),
            _ => None,
        });
        touched.map(|touched| touched.row.item.clone()).collect()
    }

    fn join_holder(&mut self, nonce: u128, name: &str) -> Outcome {
        if !self.meta.holders.contains_key(&nonce) {
            if self.meta.holders.len() >= MAX_HOLDERS {
                return Outcome::Holder { registered: false };
            }
            Arc::make_mut(&mut self.meta.holders).insert(nonce, name.to_owned());
            self.rehash(0, hash_of_holder(nonce, name));
        }
        Outcome::Holder { registered: true }
    }

    fn remove_holder(&mut self, nonce: u128, term: u64) -> Outcome {
        let in_term = self.meta.applied.is_some_and(|id| id.committed_leader_id().term == term);
        if in_term && self.meta.holders.contains_key(&nonce) {
            let name = Arc::make_mut(&mut self.meta.holders).remove(&nonce).unwrap_or_default();
            self.rehash(hash_of_holder(nonce, &name), 0);
        }
        Outcome::Holder { registered: self.meta.holders.contains_key(&nonce) }
    }

    /// The item in memory, if it can be seen; read on first use.
    fn touch(&mut self, number: ItemNumber) -> rusqlite::Result<Option<&mut Touched>> {
        match self.memory.items.entry(number) {
            btree_map::Entry::Occupied(entry) => Ok(Some(entry.into_mut())),
            btree_map::Entry::Vacant(entry) => match ItemRow::find_number(self.db, number)? {
                Some(row) if hiding(self.db, row.import)?.is_none() => {
                    let stored_hash = row.hash();
                    Ok(Some(entry.insert(Touched { row, stored_hash })))
                }
                _ => Ok(None),
            },
        }
    }

    pub(super) fn insert(&mut self, row: &impl TableRow) -> rusqlite::Result<()> {
        row.insert(self.db)?;
        self.rehash(0, row.hash());
        Ok(())
    }

    /// Takes a row's hash out of the state hash and another into it; 0 for no row.
    pub(super) fn rehash(&mut self, before: u128, after: u128) {
        self.meta.state_hash = self.meta.state_hash.wrapping_sub(before).wrapping_add(after);
    }
}

/// Sets the stock as an adjustment by the difference that it makes.
fn set_stock(row: &mut ItemRow, stock: u64) -> rusqlite::Result<bool> {
    let adjusted = row.adjusted.checked_add_unsigned(stock);
    let adjusted = adjusted.and_then(|adjusted| adjusted.checked_sub_unsigned(row.item.stock));
    row.adjusted = adjusted.ok_or_else(|| nonsense("the stock was adjusted beyond all numbers"))?;
    row.item.stock = stock;
    Ok(true)
}

fn replay(made: &Made) -> rusqlite::Result<Outcome> {
    match made {
        Made::Outcome(outcome) => postcard::from_bytes(outcome).map_err(nonsense),
        Made::Order(number) => Err(nonsense(format!("order {number} is without its key"))),
    }
}

/// Keeps the outcome for replays. Part of the state hash: variants and fields of [`Outcome`] may
/// only be added at the end, and its numbers never change their meaning.
fn remember(replay: Outcome) -> rusqlite::Result<Made> {
    Ok(Made::Outcome(postcard::to_stdvec(&replay).map_err(nonsense)?))
}

#[cfg(test)]
mod tests {
    use pygmy_protocol::item::MAX_TEXT_BYTES;

    use super::{
        super::testing::{Heard, Replica, buy, item, number, request, set_stock},
        *,
    };

    fn stock(replica: &Replica, n: u64) -> u64 {
        replica.reader().item(number(n)).unwrap().value.unwrap().stock
    }

    fn order(outcome: Outcome) -> (Order, bool) {
        match outcome {
            Outcome::Ordered { order, replayed } => (order, replayed),
            other => panic!("no order: {other:?}"),
        }
    }

    #[test]
    fn a_buy_takes_copies_and_is_numbered_in_log_order() {
        let mut replica = Replica::stocked();
        let (first, replayed) = order(replica.one("k1", buy(1, 2)));
        assert!(!replayed);
        assert_eq!(
            (first.order_number.0, first.quantity, first.cost, first.stock),
            (1, 2, 2000, 3)
        );
        assert_eq!(first.title, "Book 1");
        let (second, _) = order(replica.one("k2", buy(1, 1)));
        assert_eq!((second.order_number.0, second.stock), (2, 2));
        assert_eq!(stock(&replica, 1), 2);
        let read = replica.reader().order(OrderNumber(1)).unwrap();
        assert_eq!((read.value, read.index), (Some(first), 3));
        assert_eq!(replica.reader().order(OrderNumber(3)).unwrap().value, None);
        replica.reader().verify().unwrap();
    }

    #[test]
    fn the_last_copy_is_sold_once() {
        let mut replica = Replica::stocked();
        order(replica.one("k1", buy(1, 5)));
        assert_eq!(replica.one("k2", buy(1, 1)), Outcome::OutOfStock);
        assert_eq!(stock(&replica, 1), 0);
    }

    #[test]
    fn a_buy_of_more_than_is_left_takes_nothing() {
        let mut replica = Replica::stocked();
        assert_eq!(replica.one("k1", buy(1, 6)), Outcome::OutOfStock);
        assert_eq!(stock(&replica, 1), 5);
        assert_eq!(replica.reader().status().orders, 0);
    }

    #[test]
    fn a_buy_at_another_price_is_refused() {
        let mut replica = Replica::stocked();
        let at = |cost| Command::Buy { item: number(1), quantity: 1, expected_cost: Some(cost) };
        assert_eq!(replica.one("k1", at(1999)), Outcome::CostChanged { cost: 2000 });
        order(replica.one("k1", at(2000)));
    }

    #[test]
    fn an_unknown_item_is_refused_by_every_command() {
        let mut replica = Replica::stocked();
        let unknown = Outcome::UnknownItem { item: number(9) };
        for command in [
            buy(9, 1),
            set_stock(9, 1),
            Command::ReduceStock { item: number(9) },
            Command::SetCost { item: number(9), cost: 1 },
        ] {
            assert_eq!(replica.one("k1", command), unknown);
        }
    }

    #[test]
    fn a_replay_gets_the_order_as_it_was() {
        let mut replica = Replica::stocked();
        let (made, _) = order(replica.one("k1", buy(1, 2)));
        replica.one("k2", buy(1, 3));
        replica.one("k3", Command::SetCost { item: number(1), cost: 1 });
        assert_eq!(order(replica.one("k1", buy(1, 2))), (made.clone(), true));
        assert_eq!(stock(&replica, 1), 0);
        replica.reopen();
        assert_eq!(order(replica.one("k1", buy(1, 2))), (made, true));
    }

    #[test]
    fn a_replay_within_a_transaction_and_a_batch_is_one() {
        let mut replica = Replica::stocked();
        let same = || request("k1", buy(1, 2));
        let outcomes = replica.group(vec![vec![same(), same()], vec![same()]]);
        let replayed: Vec<bool> =
            outcomes.into_iter().flatten().map(|outcome| order(outcome).1).collect();
        assert_eq!(replayed, [false, true, true]);
        assert_eq!(stock(&replica, 1), 3);
    }

    #[test]
    fn a_replayed_update_gets_the_item_as_it_was() {
        let mut replica = Replica::stocked();
        let updated = |stock, replayed| {
            let item = Item { stock, ..item(1, "a", 0) };
            Outcome::Updated { item, replayed }
        };
        let reduce = || Command::ReduceStock { item: number(1) };
        assert_eq!(replica.one("k1", set_stock(1, 9)), updated(9, false));
        assert_eq!(replica.one("k2", reduce()), updated(8, false));
        assert_eq!(replica.one("k1", set_stock(1, 9)), updated(9, true));
        assert_eq!(replica.one("k2", reduce()), updated(8, true));
        assert_eq!(stock(&replica, 1), 8);
    }

    #[test]
    fn a_key_belongs_to_one_request() {
        let mut replica = Replica::stocked();
        order(replica.one("k1", buy(1, 1)));
        for other in [buy(1, 2), buy(2, 1), set_stock(1, 1), buy(9, 1)] {
            assert_eq!(replica.one("k1", other), Outcome::KeyReused);
        }
        assert_eq!(stock(&replica, 1), 4);
    }

    #[test]
    fn a_refusal_is_judged_afresh() {
        let mut replica = Replica::stocked();
        assert_eq!(replica.one("k1", buy(2, 1)), Outcome::OutOfStock);
        replica.one("k2", set_stock(2, 1));
        assert!(!order(replica.one("k1", buy(2, 1))).1);
    }

    #[test]
    fn updates_are_adjustments() {
        let mut replica = Replica::stocked();
        replica.one("k1", buy(1, 2));
        replica.one("k2", set_stock(1, 10));
        replica.one("k3", Command::ReduceStock { item: number(1) });
        replica.one("k4", set_stock(1, 1));
        replica.reader().verify().unwrap();
        assert_eq!(
            replica.one("k5", Command::ReduceStock { item: number(2) }),
            Outcome::OutOfStock
        );
        assert_eq!((stock(&replica, 1), stock(&replica, 2)), (1, 0));
    }

    #[test]
    fn stock_beyond_the_limit_stops_nobody() {
        let mut replica = Replica::stocked();
        replica.one("k1", set_stock(1, u64::MAX));
        replica.one("k2", Command::SetCost { item: number(1), cost: u64::MAX });
        replica.one("k3", Command::AddItems { items: vec![item(3, "c", u64::MAX)] });
        assert_eq!((stock(&replica, 1), stock(&replica, 3)), (MAX_NUMBER, MAX_NUMBER));
        replica.reader().verify().unwrap();
    }

    #[test]
    fn items_are_added_once() {
        let mut replica = Replica::stocked();
        let command = || Command::AddItems {
            items: vec![item(1, "other", 99), item(3, "a", 1), item(3, "c", 2), item(4, "c", 3)],
        };
        assert_eq!(replica.one("k1", command()), Outcome::Added { items: 2, replayed: false });
        assert_eq!(replica.one("k1", command()), Outcome::Added { items: 2, replayed: true });
        assert_eq!(replica.one("k2", command()), Outcome::Added { items: 0, replayed: false });
        assert_eq!((stock(&replica, 1), stock(&replica, 3), stock(&replica, 4)), (5, 1, 3));
        let topics = replica.reader().topics().unwrap().value.topics;
        let topics: Vec<_> = topics.iter().map(|t| (t.topic.as_str(), t.items)).collect();
        assert_eq!(topics, [("a", 2), ("b", 1), ("c", 1)]);
        assert_eq!(replica.reader().status().items, 4);
        replica.reader().verify().unwrap();
    }

    #[test]
    fn an_item_that_a_buy_of_the_same_group_missed_can_be_added() {
        let mut replica = Replica::new();
        let add = Command::AddItems { items: vec![item(1, "a", 1)] };
        let outcomes = replica.group(vec![
            vec![request("k1", buy(1, 1)), request("k2", add)],
            vec![request("k3", buy(1, 1))],
        ]);
        assert_eq!(outcomes[0][0], Outcome::UnknownItem { item: number(1) });
        assert_eq!(order(outcomes[1][0].clone()).0.stock, 0);
        replica.reader().verify().unwrap();
    }

    #[test]
    fn the_hook_hears_of_every_entry_what_it_changed() {
        let mut replica = Replica::stocked();
        let add = Command::AddItems { items: vec![item(3, "b", 1)] };
        replica.group(vec![
            vec![request("k1", buy(1, 1)), request("k2", buy(1, 1)), request("k3", buy(2, 1))],
            vec![],
            vec![request("k1", buy(1, 1)), request("k4", add)],
        ]);
        let key = |n| CacheKey::Item(number(n));
        let expected = [
            Heard::Applied(2, vec![key(1)]),
            Heard::Applied(3, vec![]),
            Heard::Applied(4, vec![key(3), CacheKey::Topic("b".into()), CacheKey::Topics]),
        ];
        assert_eq!(replica.hook.take(), expected);
    }

    #[test]
    fn a_large_import_changes_everything() {
        let mut replica = Replica::new();
        let import = (1..=CHANGED_KEYS_MAX as u64).map(|n| item(n, "a", 1)).collect();
        replica.one("k1", Command::AddItems { items: import });
        assert_eq!(replica.hook.take(), [Heard::Applied(1, vec![CacheKey::All])]);
    }

    #[test]
    fn pages_follow_one_another() {
        use pygmy_protocol::item::PageRequest;
        let mut replica = Replica::new();
        let topic = "t".repeat(MAX_TEXT_BYTES);
        let items = [5, 3, 9].map(|n| item(n, &topic, 1)).to_vec();
        replica.one("k1", Command::AddItems { items });
        let page = |limit, after| {
            let page = replica.reader().page(&topic, PageRequest { limit, after }).unwrap().value;
            let numbers: Vec<u64> = page.items.iter().map(|item| item.item_number.get()).collect();
            (numbers, page.next)
        };
        assert_eq!(page(2, 0), (vec![3, 5], Some("a5".into())));
        assert_eq!(page(2, 5), (vec![9], None));
        assert_eq!(page(3, 0), (vec![3, 5, 9], None));
        let unknown = replica.reader().page("T", PageRequest { limit: 1, after: 0 }).unwrap();
        assert_eq!((unknown.value.items, unknown.index), (vec![], 1));
    }
}
