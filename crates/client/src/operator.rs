//! The store as its operator sees it: changes of stock and cost, through the balancers.

use http::Method;
use pygmy_protocol::{
    Env, IdempotencyKey, RequestContext,
    http::Secret,
    item::{Item, ItemNumber},
};

use crate::{
    Call,
    store::{Patience, Servers, StoreError, parse},
};

/// A client of the internal routes that change items.
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

    async fn update(&self, target: String) -> Result<Item, StoreError> {
        self.send(Method::POST, target).await
    }

    async fn send(&self, method: Method, target: String) -> Result<Item, StoreError> {
        let context = RequestContext::fresh(&self.env, self.servers.patience.total);
        let key = IdempotencyKey::random(&self.env);
        let call = Call::new(method, target, context).with_secret(&self.secret).with_key(&key);
        parse(&self.servers.call(&call).await?)
    }
}
