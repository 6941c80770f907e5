//! Raft: the consensus library behind a wall of our own types.

mod runtime;
mod types;

pub(crate) use types::*;
