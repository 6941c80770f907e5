//! Random commands against a model that fits on a page.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use pygmy_protocol::{
    command::{Command, ImportRefusal, Outcome, Request},
    import::{ImportId, MAX_UNFINISHED_IMPORTS},
    item::{Item, PageRequest},
    order::{Order, OrderNumber},
};

use super::{
    StateConfig,
    testing::{Replica, buy, item, number, replayed, request, set_stock},
};

/// The rules of the store, as plainly as they can be said.
#[derive(Default)]
struct Model {
    items: BTreeMap<u64, Item>,
    orders: u64,
    keys: BTreeMap<String, (Command, Outcome)>,
    /// What each import has staged; `None` once it is published or discarded.
    imports: BTreeMap<ImportId, Option<BTreeMap<u64, Item>>>,
    published: BTreeSet<ImportId>,
}

impl Model {
    fn request(&mut self, request: &Request) -> Outcome {
        let key = request.key.to_string();
        match self.keys.get(&key) {
            Some((command, outcome)) if *command == request.command => return outcome.clone(),
            Some(_) => return Outcome::KeyReused,
            None => {}
        }
        let outcome = self.command(&request.command);
        if outcome.problem().is_none() {
            self.keys.insert(key, (request.command.clone(), replayed(outcome.clone())));
        }
        outcome
    }

    fn command(&mut self, command: &Command) -> Outcome {
        if let Some(outcome) = self.import(command) {
            return outcome;
        }
        if let Command::AddItems { items } = command {
            let before = self.items.len();
            if let Some((item, import)) =
                items.iter().find_map(|item| Some((item.item_number, self.holder(item)?)))
            {
                return Outcome::ItemExists { item, import: Some(import) };
            }
            for item in items {
                self.items.entry(item.item_number.get()).or_insert_with(|| item.clone());
            }
            return Outcome::Added { items: (self.items.len() - before) as u64, replayed: false };
        }
        let asked = match command {
            Command::Buy { item, .. } | Command::ReduceStock { item } => *item,
            Command::SetStock { item, .. } | Command::SetCost { item, .. } => *item,
            _ => unreachable!("done above"),
        };
        let Some(item) = self.items.get_mut(&asked.get()) else {
            return Outcome::UnknownItem { item: asked };
        };
        match *command {
            Command::Buy { quantity, expected_cost, .. } => {
                if expected_cost.is_some_and(|cost| cost != item.cost) {
                    return Outcome::CostChanged { cost: item.cost };
                }
                if item.stock < quantity {
                    return Outcome::OutOfStock;
                }
                item.stock -= quantity;
                self.orders += 1;
                let order = Order {
                    order_number: OrderNumber(self.orders),
                    item_number: asked,
                    title: item.title.clone(),
                    quantity,
                    cost: item.cost,
                    stock: item.stock,
                };
                return Outcome::Ordered { order, replayed: false };
            }
            Command::ReduceStock { .. } if item.stock == 0 => return Outcome::OutOfStock,
            Command::ReduceStock { .. } => item.stock -= 1,
            Command::SetStock { stock, .. } => item.stock = stock,
            Command::SetCost { cost, .. } => item.cost = cost,
            _ => unreachable!("done above"),
        }
        Outcome::Updated { item: item.clone(), replayed: false }
    }
}

impl Model {
    /// The unfinished import that has an item of this number.
    fn holder(&self, item: &Item) -> Option<ImportId> {
        let number = item.item_number.get();
        let holds = |staged: &Option<BTreeMap<u64, Item>>| {
            staged.as_ref().is_some_and(|staged| staged.contains_key(&number))
        };
        Some(self.imports.iter().find(|(_, staged)| holds(staged))?.0.clone())
    }

    fn import(&mut self, command: &Command) -> Option<Outcome> {
        let refused = |refusal| Some(Outcome::ImportRefused(refusal));
        let done = |items: usize| Some(Outcome::Imported { items: items as u64, replayed: false });
        match command {
            Command::StageItems { import, items } => {
                let unfinished = self.imports.values().flatten().count();
                match self.imports.get(import) {
                    Some(None) => return refused(ImportRefusal::NotOpen),
                    None if unfinished == MAX_UNFINISHED_IMPORTS => {
                        return refused(ImportRefusal::TooMany);
                    }
                    _ => {}
                }
                let mut new = BTreeMap::new();
                for item in items {
                    let (number, import) = (item.item_number, self.holder(item));
                    let is_new = new.insert(number.get(), item.clone()).is_none();
                    if !is_new || import.is_some() || self.items.contains_key(&number.get()) {
                        return Some(Outcome::ItemExists { item: number, import });
                    }
                }
                let staged =
                    self.imports.entry(import.clone()).or_insert_with(|| Some(new.clone()));
                let staged = staged.as_mut().unwrap();
                staged.extend(new);
                done(staged.len())
            }
            Command::PublishImport { import, items } => match self.imports.get_mut(import) {
                None | Some(None) => refused(ImportRefusal::NotOpen),
                Some(Some(staged)) if staged.len() as u64 != *items => {
                    refused(ImportRefusal::Incomplete { items: staged.len() as u64 })
                }
                Some(open) => {
                    let staged = open.take().unwrap();
                    let published = done(staged.len());
                    self.published.insert(import.clone());
                    self.items.extend(staged);
                    published
                }
            },
            Command::DiscardImport { import } if self.published.contains(import) => {
                refused(ImportRefusal::NotOpen)
            }
            Command::DiscardImport { import } => {
                self.imports.insert(import.clone(), None);
                done(0)
            }
            _ => None,
        }
    }
}

fn commands() -> impl Strategy<Value = Command> {
    let n = 1..6_u64;
    prop_oneof![
        6 => (n.clone(), 1..4_u64).prop_map(|(n, quantity)| buy(n, quantity)),
        2 => (n.clone(), 0..3_u64).prop_map(|(n, cost)| {
            Command::Buy { item: number(n), quantity: 1, expected_cost: Some(cost) }
        }),
        2 => n.clone().prop_map(|n| Command::ReduceStock { item: number(n) }),
        2 => (n.clone(), 0..9_u64).prop_map(|(n, stock)| set_stock(n, stock)),
        1 => (n.clone(), 0..3_u64).prop_map(|(n, cost)| Command::SetCost { item: number(n), cost }),
        2 => items().prop_map(|items| Command::AddItems { items }),
        4 => (import(), items()).prop_map(|(import, items)| Command::StageItems { import, items }),
        2 => (import(), 0..4_u64).prop_map(|(import, items)| {
            Command::PublishImport { import, items }
        }),
        1 => import().prop_map(|import| Command::DiscardImport { import }),
    ]
}

fn items() -> impl Strategy<Value = Vec<Item>> {
    let topic = |n: u64| if n.is_multiple_of(2) { "even" } else { "odd" };
    prop::collection::vec((1..6_u64, 0..9_u64), 0..3).prop_map(move |items| {
        items.into_iter().map(|(n, stock)| item(n, topic(n), stock)).collect()
    })
}

/// More than may be unfinished at a time.
fn import() -> impl Strategy<Value = ImportId> {
    (0..=MAX_UNFINISHED_IMPORTS + 1).prop_map(|n| format!("import-{n}").parse().unwrap())
}

/// Entries of some requests each; few keys, so that they meet again.
fn entries() -> impl Strategy<Value = Vec<Vec<Request>>> {
    let requests =
        (0..40_u32, commands()).prop_map(|(key, command)| request(&format!("k{key}"), command));
    prop::collection::vec(prop::collection::vec(requests, 0..6), 1..30)
}

/// Applies `entries` in groups of at most `group` entries.
fn apply(replica: &mut Replica, entries: &[Vec<Request>], group: usize) -> Vec<Outcome> {
    entries.chunks(group).flat_map(|chunk| replica.group(chunk.to_vec())).flatten().collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_replica_does_what_the_model_does(entries in entries(), group in 1..9_usize) {
        let mut model = Model::default();
        let expected: Vec<Outcome> = entries.iter().flatten().map(|request| model.request(request)).collect();

        let mut one_by_one = Replica::new();
        prop_assert_eq!(&apply(&mut one_by_one, &entries, 1), &expected);
        // Another index of keys, with a part of it in each place.
        let mut config = StateConfig::default();
        config.key_index.run_orders = 5;
        let mut grouped = Replica::with(config);
        prop_assert_eq!(&apply(&mut grouped, &entries, group), &expected);

        // Replicas agree, however the entries came, also in their text logs.
        let status = one_by_one.reader().status();
        prop_assert_eq!(status, grouped.reader().status());
        prop_assert_eq!(one_by_one.text_log("requests.txt"), grouped.text_log("requests.txt"));
        prop_assert_eq!(one_by_one.hook.take(), grouped.hook.take());

        // The state is that of the model, it adds up, and a restart keeps it.
        grouped.reopen();
        prop_assert_eq!(status, grouped.reader().status());
        grouped.reader().verify().unwrap();
        prop_assert_eq!(status.orders, model.orders);
        for n in 1..6 {
            let found = grouped.reader().item(number(n)).unwrap().value;
            prop_assert_eq!(found.as_ref(), model.items.get(&n));
        }
        let (mut shown, mut topics) = (BTreeSet::new(), 0);
        for topic in grouped.reader().topics().unwrap().value.topics {
            topics += topic.items;
            let page = PageRequest { limit: 9, after: 0 };
            shown.extend(grouped.reader().page(&topic.topic, page).unwrap().value.items.iter().map(|item| item.item_number.get()));
        }
        prop_assert!(shown.iter().eq(model.items.keys()));
        prop_assert_eq!(topics, model.items.len() as u64);

        // Everything again, after the restart: what was done is replayed, nothing is done twice.
        let again: Vec<Outcome> = entries.iter().flatten().map(|request| model.request(request)).collect();
        prop_assert_eq!(apply(&mut grouped, &entries, group), again);
        grouped.reader().verify().unwrap();

        // A snapshot carries all of it to another replica.
        let mut other = Replica::stocked();
        let (meta, file) = grouped.dump(&other.snapshots());
        if meta.last_log_id > other.reader().status().applied {
            other.writer().install(&meta, file).unwrap();
            other.reader().verify().unwrap();
            let (ours, theirs) = (grouped.reader().status(), other.reader().status());
            prop_assert_eq!((ours.applied, ours.state_hash), (theirs.applied, theirs.state_hash));
        }
    }
}
