#![no_main]

use std::sync::LazyLock;

use pygmy::fuzzing::{ItemsDir, items};

static DIR: LazyLock<ItemsDir> = LazyLock::new(ItemsDir::new);

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| items(&DIR, bytes));
