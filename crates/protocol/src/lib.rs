//! What the tiers of Pygmy share.
//!
//! A request enters a server through [`http::serve`], which gives it a [`RequestContext`]: an id
//! and a deadline that travel with it from tier to tier. Its path and body become an
//! [`item::ItemNumber`], an [`order::BuyBody`], an [`IdempotencyKey`]; whatever is wrong with
//! them becomes a [`Problem`], the one error that clients see. In the catalog it ends as a
//! [`command::Command`] in the log, and comes back as an [`command::Outcome`].
//!
//! Around that: how servers make themselves known ([`registration`]), how two servers talk over
//! a connection of their own ([`frame`]), how the leader keeps caches fresh ([`invalidation`]),
//! and the environment that every server takes its clock, randomness, network, files and threads
//! from ([`mod@env`]), so that the simulator runs the very same code.

pub mod env;
pub mod http;

pub mod context;
pub mod item;
pub mod key;
pub mod order;
pub mod problem;

pub mod command;

pub mod frame;
pub mod invalidation;
pub mod registration;

pub use context::RequestContext;
pub use env::Env;
pub use key::IdempotencyKey;
pub use problem::{Code, Problem};
