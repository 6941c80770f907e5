//! Many items at once: imports, and reading all items.

use http::Method;
use pygmy_protocol::{
    IdempotencyKey, RequestContext,
    import::{
        ImportId, ImportProgress, ItemsBody, PublishBody, UnfinishedImport, UnfinishedImports,
    },
    item::{ItemPage, PageRequest},
};

use super::Operator;
use crate::{Call, store::StoreError};

impl Operator {
    /// Stages one part of an import, which nobody sees before [`Operator::publish`]. However often
    /// part number `part` is sent, it counts once.
    ///
    /// # Errors
    /// See [`StoreError`]; `item_exists` if one of the numbers is taken.
    pub async fn stage(
        &self,
        import: &ImportId,
        part: u64,
        items: &ItemsBody,
    ) -> Result<ImportProgress, StoreError> {
        let key = import_key(import, &part.to_string())?;
        let call = self.call(Method::POST, format!("/imports/{import}/items"));
        self.ask(call.with_key(&key).with_json(items)).await
    }

    /// Puts an import of `items` items on sale, all at once.
    ///
    /// # Errors
    /// See [`StoreError`]; `import_refused` if it has another number of items.
    pub async fn publish(
        &self,
        import: &ImportId,
        items: u64,
    ) -> Result<ImportProgress, StoreError> {
        let key = import_key(import, "publish")?;
        let call = self.call(Method::POST, format!("/imports/{import}/publish"));
        self.ask(call.with_key(&key).with_json(&PublishBody { items })).await
    }

    /// Drops some of what an import has staged, and gives how much is left: to be repeated until
    /// nothing is.
    ///
    /// # Errors
    /// See [`StoreError`]; `import_refused` if it is published.
    pub async fn discard(&self, import: &ImportId) -> Result<ImportProgress, StoreError> {
        let key = IdempotencyKey::random(&self.env);
        let call = self.call(Method::POST, format!("/imports/{import}/discard"));
        self.ask(call.with_key(&key)).await
    }

    /// The imports that are neither published nor discarded, the oldest first.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub async fn unfinished_imports(&self) -> Result<Vec<UnfinishedImport>, StoreError> {
        let answer: UnfinishedImports =
            self.ask(self.call(Method::GET, "/imports".to_owned())).await?;
        Ok(answer.imports)
    }

    /// A page of all items, in the order of their numbers; `cursor` is `next` of the page before.
    /// It may be empty and not the last.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub async fn all_items(&self, cursor: Option<&str>) -> Result<ItemPage, StoreError> {
        let limit = PageRequest::MAX_LIMIT;
        // A cursor has letters and digits only.
        let cursor = cursor.map(|cursor| format!("&cursor={cursor}")).unwrap_or_default();
        self.ask(self.call(Method::GET, format!("/items?limit={limit}{cursor}"))).await
    }

    fn call(&self, method: Method, target: String) -> Call {
        let context = RequestContext::fresh(&self.env, self.servers.patience.total);
        Call::new(method, target, context).with_secret(&self.secret)
    }
}

fn import_key(import: &ImportId, what: &str) -> Result<IdempotencyKey, StoreError> {
    format!("import-{import}-{what}").parse().map_err(StoreError::Problem)
}
