//! A store on a network of its own.

use std::{io::Write, sync::Arc};

use crate::{
    harness::{Layout, Store},
    namespaces::Network,
};

pub(crate) struct Town {
    pub(crate) store: Arc<Store>,
    pub(crate) network: Arc<Network>,
}

/// A store that is ready. `None`, and a line that says why, where the machine allows no network.
pub(crate) async fn town(layout: Layout) -> Option<Town> {
    let servers: Vec<_> = layout.servers().into_iter().map(|(name, _)| name).collect();
    match Network::new(&servers) {
        Ok(network) => {
            let network = Arc::new(network);
            let store = Store::start_across(Arc::clone(&network) as _, layout, "", |_| {}).await;
            Some(Town { store: Arc::new(store), network })
        }
        Err(why) => {
            let test = std::thread::current().name().unwrap_or("a test").to_owned();
            // Straight to the terminal: what a passed test prints is not shown.
            let _ = writeln!(
                std::io::stderr(),
                "{test} is skipped: it needs Linux, root, `ip` and `nft` ({why})"
            );
            None
        }
    }
}
