//! The store as its operator sees it: changes of stock and cost and imports of items, through the
//! balancers, and the making of the cluster.

mod items;

use http::Method;
use pygmy_protocol::{
    Env, IdempotencyKey, RequestContext,
    http::Secret,
    item::{Item, ItemNumber, ItemPage, PageRequest},
};

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::{
    Call,
    store::{Notice, Patience, Servers, StoreError, parse},
};

/// A client of the internal routes that change and import items.
pub struct Operator {
    env: Env,
    secret: Secret,
    servers: Servers,
}

impl Operator {
    /// Works through the balancers at `urls`, at least one.
    ///
    /// # Errors
    /// A sentence that names the URL that is none.
    pub fn new(
        env: &Env,
        urls: &[String],
        secret: Secret,
        patience: Patience,
    ) -> Result<Operator, String> {
        Ok(Operator { env: env.clone(), secret, servers: Servers::new(env, urls, patience)? })
    }

    /// The same operator, who hears of long waits.
    #[must_use]
    pub fn with_notice(mut self, notice: Notice) -> Operator {
        self.servers.notice = Some(notice);
        self
    }

    /// Sets the stock of an item to `stock` copies and gives the item as it is then.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub async fn set_stock(&self, item: ItemNumber, stock: u64) -> Result<Item, StoreError> {
        self.update(format!("/updateStock/{item}/{stock}")).await
    }

    /// Sets the price of one copy, in the minor unit of the store's currency, and gives the item
    /// as it is then.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub async fn set_cost(&self, item: ItemNumber, cost: u64) -> Result<Item, StoreError> {
        self.update(format!("/updateCost/{item}/{cost}")).await
    }

    /// An item, as the catalog has it: past the front ends' caches.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub async fn query(&self, item: ItemNumber) -> Result<Item, StoreError> {
        self.send(Method::GET, format!("/query/{item}")).await
    }

    /// Adds items, so many as fit one request; a number that exists already is left as it is.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub async fn add_items(&self, items: &[Item]) -> Result<(), StoreError> {
        let call = self.keyed(Method::POST, "/items".to_owned());
        let call = call.with_json(&serde_json::json!({ "items": items }));
        self.servers.call(&call).await.map(drop)
    }

    /// A page of a topic, as the catalog has it; `topic` has no characters to encode.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub(crate) async fn page(
        &self,
        topic: &str,
        cursor: Option<&str>,
    ) -> Result<ItemPage, StoreError> {
        let limit = PageRequest::MAX_LIMIT;
        let cursor = cursor.map(|cursor| format!("&cursor={cursor}")).unwrap_or_default();
        let target = format!("/query/{topic}?limit={limit}{cursor}");
        self.ask(self.keyed(Method::GET, target)).await
    }

    async fn update(&self, target: String) -> Result<Item, StoreError> {
        self.send(Method::POST, target).await
    }

    async fn send(&self, method: Method, target: String) -> Result<Item, StoreError> {
        self.ask(self.keyed(method, target)).await
    }

    async fn ask<T: DeserializeOwned>(&self, call: Call) -> Result<T, StoreError> {
        parse(&self.servers.call(&call).await?)
    }

    fn keyed(&self, method: Method, target: String) -> Call {
        let context = RequestContext::fresh(&self.env, self.servers.patience.total);
        let key = IdempotencyKey::random(&self.env);
        Call::new(method, target, context).with_secret(&self.secret).with_key(&key)
    }
}

/// What a bootstrap gave.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bootstrapped {
    /// Whether it made the cluster just now.
    pub created: bool,
    /// How many first items the cluster was made with.
    pub items: u64,
}

/// The catalog replicas of a cluster that is to be made.
pub struct Founder {
    env: Env,
    secret: Secret,
    replicas: Servers,
}

impl Founder {
    /// Works through the replicas at `urls`, at least one.
    ///
    /// # Errors
    /// A sentence that names the URL that is none.
    pub fn new(
        env: &Env,
        urls: &[String],
        secret: Secret,
        patience: Patience,
    ) -> Result<Founder, String> {
        Ok(Founder { env: env.clone(), secret, replicas: Servers::new(env, urls, patience)? })
    }

    /// The same founder, who hears of long waits.
    #[must_use]
    pub fn with_notice(mut self, notice: Notice) -> Founder {
        self.replicas.notice = Some(notice);
        self
    }

    /// Makes the replicas a cluster whose first items are `items`. All of them must be running;
    /// asking again with the same items changes nothing.
    ///
    /// # Errors
    /// See [`StoreError`]; `idempotency_key_reused` if there is a cluster with other first items.
    pub async fn bootstrap(&self, items: &[Item]) -> Result<Bootstrapped, StoreError> {
        let context = RequestContext::fresh(&self.env, self.replicas.patience.total);
        // The catalog has its own key for this; ours says only that it may be sent again.
        let key = IdempotencyKey::random(&self.env);
        let call = Call::new(Method::POST, "/bootstrap", context).with_secret(&self.secret);
        let call = call.with_key(&key).with_json(&serde_json::json!({ "items": items }));
        parse(&self.replicas.call(&call).await?)
    }
}
