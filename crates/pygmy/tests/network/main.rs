//! The whole store on a network that is cut: every server has a machine of its own, as far as the
//! network goes, and the kernel drops what must not arrive.
//!
//! [`namespaces`] makes the network and cuts it, the harness runs the store on it, customers buy and
//! read all the time, and when the network is whole again the store must have kept its promises
//! ([`customers`]). This needs Linux, root, `ip` and `nft`; elsewhere each test says that it is
//! skipped.
#![allow(clippy::unwrap_used, reason = "a test fails where it is surprised")]
#![allow(clippy::disallowed_methods, reason = "tests run on the real machine")]

#[path = "../support/harness.rs"]
#[allow(dead_code, reason = "other test binaries use the rest")]
mod harness;

#[path = "../support/customers.rs"]
#[allow(dead_code, reason = "other test binaries use the rest")]
mod customers;
mod namespaces;
mod town;

mod cuts;
mod slow;
