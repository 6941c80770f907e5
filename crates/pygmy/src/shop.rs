//! What customers do: topics, search, lookup, buy, order.

use std::path::Path;

use anyhow::{Context, anyhow};
use pygmy_client::store::{Bought, Patience, Store, StoreError};
use pygmy_protocol::{
    Code, Env, IdempotencyKey, Problem,
    item::{Item, ItemNumber},
    order::{BuyBody, Order},
};

use crate::{
    cli::{
        BuyArgs, CustomerArgs, DEMO_CONFIG, LookupArgs, OrderArgs, SearchArgs, StoreArgs,
        TopicsArgs,
    },
    config::{Config, Settings},
    money::Currency,
    print::{self, Column},
    runtime::{Signals, block_on},
    wait,
};

/// Where front ends are that nothing was said about: as in a demo with the default layout and
/// ports, and the first is in the other layout, too.
const DEFAULT_SERVERS: [&str; 2] = ["http://127.0.0.1:8081", "http://127.0.0.1:8088"];

/// The store and how it writes prices.
struct Shop {
    env: Env,
    store: Store,
    currency: Currency,
    json: bool,
}

impl Shop {
    fn open(args: &CustomerArgs) -> anyhow::Result<Shop> {
        let StoreArgs { server, config } = &args.store;
        let env = Env::production();
        let demo =
            || Some(Path::new(DEMO_CONFIG)).filter(|path| server.is_empty() && path.exists());
        let config = match config.as_deref().or_else(demo) {
            Some(path) => Some(Config::load(path, &Settings::of_process(&[]))?),
            None => None,
        };
        let urls = match &config {
            _ if !server.is_empty() => server.clone(),
            Some(config) => config.public_urls(),
            None => DEFAULT_SERVERS.map(str::to_owned).to_vec(),
        };
        let store = Store::new(&env, &urls, Patience::default()).map_err(|e| anyhow!(e))?;
        let store = store.with_notice(wait::notice);
        let currency = config.map_or_else(Currency::default, |config| config.currency());
        Ok(Shop { env, store, currency, json: args.json })
    }

    /// Buys. Where fewer copies are left than are wanted, the error says how many.
    async fn buy(
        &self,
        item: ItemNumber,
        body: BuyBody,
        key: IdempotencyKey,
    ) -> Result<Bought, StoreError> {
        let bought = self.store.buy(item, body, key).await;
        if !bought.as_ref().is_err_and(|error| has_code(error, Code::OutOfStock)) {
            return bought;
        }
        // Others may have bought or brought some meanwhile, or it is not to be had for now.
        match self.store.lookup(item).await {
            Ok(Item { stock, .. }) if (1..body.quantity).contains(&stock) => {
                let are = if stock == 1 { "is" } else { "are" };
                let detail = format!("{stock} {are} left, and {} were wanted", body.quantity);
                Err(StoreError::Problem(Problem::new(Code::OutOfStock, detail)))
            }
            _ => bought,
        }
    }

    fn print_items(&self, items: &[Item]) -> anyhow::Result<()> {
        let columns = [
            Column::Number("ITEM"),
            Column::Text("TITLE"),
            Column::Text("TOPIC"),
            Column::Number("STOCK"),
            Column::Number("PRICE"),
        ];
        let rows = items.iter().map(|item| {
            vec![
                item.item_number.to_string(),
                item.title.clone(),
                item.topic.clone(),
                item.stock.to_string(),
                self.currency.format(item.cost),
            ]
        });
        Ok(print::table(&columns, rows)?)
    }

    fn print_order(&self, order: &Order) -> anyhow::Result<()> {
        if self.json {
            return Ok(print::json(order)?);
        }
        let columns = [
            Column::Number("ORDER"),
            Column::Number("ITEM"),
            Column::Text("TITLE"),
            Column::Number("COPIES"),
            Column::Number("PRICE"),
            Column::Number("TOTAL"),
        ];
        let total = u128::from(order.cost) * u128::from(order.quantity);
        let row = vec![
            order.order_number.to_string(),
            order.item_number.to_string(),
            order.title.clone(),
            order.quantity.to_string(),
            self.currency.format(order.cost),
            self.currency.format_total(total),
        ];
        Ok(print::table(&columns, [row])?)
    }
}

/// `pygmy topics`.
pub(crate) fn topics(args: &TopicsArgs) -> anyhow::Result<()> {
    let shop = Shop::open(&args.customer)?;
    let topics = block_on(&shop.env, shop.store.topics())??;
    if shop.json {
        return Ok(print::json(&topics)?);
    }
    let rows = topics.topics.into_iter().map(|topic| vec![topic.topic, topic.items.to_string()]);
    Ok(print::table(&[Column::Text("TOPIC"), Column::Number("ITEMS")], rows)?)
}

/// `pygmy search`.
pub(crate) fn search(args: &SearchArgs) -> anyhow::Result<()> {
    let shop = Shop::open(&args.customer)?;
    let search = shop.store.search(&args.topic, args.limit, args.cursor.clone());
    let page = block_on(&shop.env, search)??;
    if shop.json {
        return Ok(print::json(&page)?);
    }
    if page.items.is_empty() {
        eprintln!("nothing in the topic {:?}; `pygmy topics` lists those there are", args.topic);
        return Ok(());
    }
    shop.print_items(&page.items)?;
    if let Some(next) = page.next {
        eprintln!("there is more: --cursor {next}");
    }
    Ok(())
}

/// `pygmy lookup`.
pub(crate) fn lookup(args: &LookupArgs) -> anyhow::Result<()> {
    let shop = Shop::open(&args.customer)?;
    let item = block_on(&shop.env, shop.store.lookup(args.item))??;
    if shop.json { Ok(print::json(&item)?) } else { shop.print_items(&[item]) }
}

/// `pygmy order`.
pub(crate) fn order(args: &OrderArgs) -> anyhow::Result<()> {
    let shop = Shop::open(&args.customer)?;
    let order = block_on(&shop.env, shop.store.order(args.order))??;
    shop.print_order(&order)
}

/// `pygmy buy`.
pub(crate) fn buy(args: &BuyArgs) -> anyhow::Result<()> {
    let shop = Shop::open(&args.customer)?;
    let key = args.key.clone().unwrap_or_else(|| IdempotencyKey::random(&shop.env));
    let body = BuyBody { quantity: args.quantity, expected_cost: args.expected_cost };
    let buying = async {
        // Who interrupts a buy must hear how to find out what has become of it.
        let mut signals = Signals::catch().context("cannot catch signals")?;
        tokio::select! {
            bought = shop.buy(args.item, body, key.clone()) => anyhow::Ok(bought),
            _ = signals.next() => Ok(Err(interrupted())),
        }
    };
    let Bought { order, replayed } = match block_on(&shop.env, buying)?? {
        Err(error) if has_code(&error, Code::OutcomeUnknown) => {
            return Err(error).with_context(|| ask_again(args, &key));
        }
        bought => bought?,
    };
    shop.print_order(&order)?;
    if let Some(remark) = remark(args.key.as_ref(), &key, replayed) {
        eprintln!("{remark}");
    }
    Ok(())
}

/// What is said below an order that was bought with `key`. With a fresh key a replay is no news:
/// the earlier request was an attempt of this very command.
fn remark(given: Option<&IdempotencyKey>, key: &IdempotencyKey, replayed: bool) -> Option<String> {
    match given {
        None => Some(format!("its key: {key} (for --key, to repeat it safely)")),
        Some(_) => replayed
            .then(|| format!("this order was made by an earlier request with the key {key}")),
    }
}

fn interrupted() -> StoreError {
    StoreError::Problem(Problem::outcome_unknown("interrupted"))
}

fn has_code(error: &StoreError, code: Code) -> bool {
    matches!(error, StoreError::Problem(problem) if problem.code == code)
}

fn ask_again(args: &BuyArgs, key: &IdempotencyKey) -> String {
    let cost = args.expected_cost.map(|cost| format!(" --expected-cost {cost}"));
    let quantity = (args.quantity != 1).then(|| format!(" --quantity {}", args.quantity));
    format!(
        "it is not known whether item {item} was bought; ask again with `pygmy buy {item}\
         {quantity}{cost} --key {key}`",
        item = args.item,
        quantity = quantity.unwrap_or_default(),
        cost = cost.unwrap_or_default(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_who_gave_the_key_hears_of_an_earlier_request() {
        let key: IdempotencyKey = "k".parse().unwrap();
        for replayed in [false, true] {
            assert!(remark(None, &key, replayed).unwrap().starts_with("its key: k"));
        }
        assert_eq!(remark(Some(&key), &key, false), None);
        assert!(remark(Some(&key), &key, true).unwrap().contains("earlier request"));
    }
}
