//! Calling Pygmy's servers.
//!
//! A [`Call`] is one request, with its context; an [`Upstream`] is where it can go: a server at a
//! base URL, through a pool of connections, or a tier in this very process. Both give
//! an [`Answer`], or a [`Failure`] that says whether the request may have had an effect. That
//! difference is what [`Attempts`] keeps through retries on other servers: it decides between
//! "certainly not done" (503) and "may have been done" (504).
//!
//! Servers make themselves known to the balancers through [`register`], and open streams of
//! their own through [`upgrade`]. Balancers and front ends [`watch`] the processes of the cluster, and
//! start those again that are lost.
//!
//! Customers use the store through a [`store::Store`], its operator through an
//! [`operator::Operator`], who changes the catalog's membership through [`members::Members`]; the
//! client process of the reference design ([`process`]) and its test cases ([`cases`]) are made of
//! the first two. The load generator ([`mod@bench`]) has connections of its own, which cost less.

mod attempts;
mod balancers;
mod failure;
mod pool;
mod server;
mod upstream;

pub mod register;
pub mod upgrade;
pub mod watch;

pub mod members;
pub mod operator;
pub mod store;

pub mod cases;
pub mod process;

pub mod bench;

#[cfg(test)]
mod testing;

pub use attempts::{Attempts, call_any};
pub use balancers::Balancers;
pub use failure::Failure;
pub use pygmy_protocol::http::{Answer, Call};
pub use server::{Registered, ServerConfig};
pub use upstream::{LocalPlace, LocalTier, Upstream};
