//! Items that have changed, whose new value is here and may not be told yet.
//!
//! Who asks for such an item waits for the word that it may be told: that is sooner than the
//! catalog's answer, which waits for the same, and it spares the catalog a question for each front
//! end and each sale of a hot item. What is answered then is a hit like any other.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use pygmy_protocol::item::ItemNumber;
use tokio::sync::watch;

/// The items of one front end that are becoming something else.
#[derive(Debug, Default)]
pub(crate) struct Becoming {
    /// By the last index that has changed them.
    items: Mutex<BTreeMap<ItemNumber, u64>>,
    settled: watch::Sender<()>,
}

impl Becoming {
    /// `item` has changed at `index`, and the stream will say when that may be told.
    pub(crate) fn begin(&self, item: ItemNumber, index: u64) {
        self.lock().insert(item, index);
    }

    /// Everything up to `index` may be told, and is where it is looked for.
    pub(crate) fn settle(&self, index: u64) {
        self.lock().retain(|_, changed_at| *changed_at > index);
        self.settled.send_replace(());
    }

    /// Nothing is waited for any more.
    pub(crate) fn clear(&self) {
        self.settle(u64::MAX);
    }

    /// Waits until `item` is no longer becoming something else. The caller sets the limit.
    pub(crate) async fn settled(&self, item: ItemNumber) {
        let mut settled = self.settled.subscribe();
        // The sender lives as long as this.
        let _ = settled.wait_for(|()| !self.is_becoming(item)).await;
    }

    /// Whether the new value of `item` waits for its release.
    pub(crate) fn is_becoming(&self, item: ItemNumber) -> bool {
        self.lock().contains_key(&item)
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<ItemNumber, u64>> {
        self.items.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    fn number(item: u64) -> ItemNumber {
        item.try_into().unwrap()
    }

    #[test]
    fn who_waits_goes_on_when_the_last_change_may_be_told() {
        let becoming = Becoming::default();
        becoming.begin(number(7), 3);
        becoming.begin(number(7), 5);
        becoming.begin(number(8), 9);
        let mut waiting = Box::pin(becoming.settled(number(7)));
        assert_eq!(waiting.as_mut().now_or_never(), None);
        becoming.settle(3);
        assert_eq!(waiting.as_mut().now_or_never(), None, "it has changed again");
        becoming.settle(5);
        assert_eq!(waiting.now_or_never(), Some(()));
        assert!(!becoming.is_becoming(number(7)) && becoming.is_becoming(number(8)));
        becoming.clear();
        assert_eq!(becoming.settled(number(8)).now_or_never(), Some(()));
    }
}
