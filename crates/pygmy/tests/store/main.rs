//! The whole store, as real processes on real disks and sockets.
//!
//! [`harness`] starts servers from a configuration of its own on free ports, kills and restarts
//! them, and asks them as a client would.
#![allow(clippy::unwrap_used, reason = "a test fails where it is surprised")]
#![allow(clippy::disallowed_methods, reason = "tests run on the real machine")]

mod exposition;
#[path = "../support/harness.rs"]
#[allow(dead_code, reason = "other test binaries use the rest")]
mod harness;

mod bad_input;
mod bench;
mod caches;
mod command_line;
mod demo;
mod direct;
mod disks;
mod doctor;
mod failures;
mod full_disk;
mod items;
mod membership;
mod metrics;
mod overload;
mod poor;
mod publishing;
mod rejoin;
mod respawn;
mod selling;
mod stalled_disk;
