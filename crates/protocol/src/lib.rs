//! What the tiers of Pygmy share.
//!
//! A request enters a server through [`http::serve`], which gives it a [`RequestContext`]: an id
//! and a deadline that travel with it from tier to tier. Its path and body become an
//! [`item::ItemNumber`], an [`order::BuyBody`], an [`IdempotencyKey`]; whatever is wrong with
//! them becomes a [`Problem`], the one error that clients see. In the catalog it ends as a
//! [`command::Command`] in the log, and comes back as an [`command::Outcome`].
//!
//! Around that: how servers make themselves known ([`registration`]), what they say of themselves
//! ([`health`]) and how they watch one another ([`watched`]), which replicas belong to the cluster
//! ([`members`]), how two servers talk over a connection of their own ([`frame`]), how the leader
//! keeps caches fresh ([`invalidation`]), what every server counts ([`metrics`]), and the
//! environment that every server takes its clock, randomness, network, files and threads from
//! ([`mod@env`]), so that the simulator runs the very same code.

pub mod env;
pub mod http;
pub mod metrics;

pub mod context;
pub mod import;
pub mod item;
pub mod key;
pub mod order;
pub mod problem;
pub mod time;

pub mod command;

pub mod frame;
pub mod health;
pub mod invalidation;
pub mod members;
pub mod registration;
pub mod watched;

#[cfg(feature = "planted-bugs")]
pub mod planted;

pub use context::RequestContext;
pub use env::Env;
pub use key::IdempotencyKey;
pub use problem::{Code, Problem};

/// Whether a bug is planted: `planted!(AckBeforeFsync)`. Without the feature `planted-bugs` it is
/// the constant `false`, and the compiler drops what depends on it.
#[cfg(feature = "planted-bugs")]
#[macro_export]
macro_rules! planted {
    ($bug:ident) => {
        $crate::planted::is($crate::planted::Bug::$bug)
    };
}

/// Whether a bug is planted: `planted!(AckBeforeFsync)`. Without the feature `planted-bugs` it is
/// the constant `false`, and the compiler drops what depends on it.
#[cfg(not(feature = "planted-bugs"))]
#[macro_export]
macro_rules! planted {
    ($bug:ident) => {
        false
    };
}

#[cfg(all(test, not(feature = "planted-bugs")))]
mod tests {
    #[test]
    fn a_production_build_holds_no_planted_bug() {
        const PLANTED: bool = crate::planted!(AckBeforeFsync);
        const { assert!(!PLANTED) };
    }
}
