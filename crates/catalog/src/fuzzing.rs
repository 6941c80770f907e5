//! What the fuzz targets in `fuzz/` call: each function takes any bytes and panics if a promise
//! about them is broken.

pub use crate::{
    log::fuzzing::{log_record, log_recovery},
    peer::fuzzing::frames,
    state::fuzzing::snapshot,
};
