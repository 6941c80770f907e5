//! catalog
mod raft;
