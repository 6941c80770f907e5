//! A front end on real sockets: what clients, operators and the catalog's leader see of it.
#![allow(clippy::unwrap_used, reason = "a failure of a helper is a failure of its test")]

mod store;

mod reads;
mod requests;
mod stream;
