//! openraft's own storage suite, on the real log and the real state machine together.

use std::{sync::Arc, time::Duration};

use openraft::{
    StorageError,
    testing::log::{StoreBuilder, Suite},
};
use pygmy_protocol::{
    Env,
    env::{BoxFuture, Clock, Instant},
};
use tempfile::TempDir;

use crate::{
    log::{LogConfig, LogStore},
    raft::{LogId, TypeConfig},
    state::{AppliedHook, Changed, Holders, StateConfig, StateMachine},
};

/// Gives the suite a fresh directory for each test.
struct Builder(Env);

impl StoreBuilder<TypeConfig, LogStore, StateMachine, TempDir> for Builder {
    async fn build(&self) -> Result<(TempDir, LogStore, StateMachine), StorageError<TypeConfig>> {
        let dir = tempfile::tempdir().unwrap();
        let config = LogConfig { segment_bytes: 4096, ..LogConfig::default() };
        let log = LogStore::open(&self.0, &dir.path().join("log"), config).unwrap();
        let machine =
            StateMachine::open(&self.0, dir.path(), StateConfig::default(), Arc::new(Deaf));
        let (machine, _reader) = machine.unwrap();
        Ok((dir, log, machine))
    }
}

struct Deaf;

impl AppliedHook for Deaf {
    fn damaged(&self, _error: &crate::state::StateError) {}

    fn applied(&self, _: LogId, _: Changed) {}
    fn holders(&self, _: Arc<Holders>) {}
    fn restored(&self, _: LogId) {}
}

/// Sleeps are over at once: the suite sleeps for what a store may do in the background, which
/// these two do not.
struct Hurried(Arc<dyn Clock>);

impl Clock for Hurried {
    fn now(&self) -> Instant {
        self.0.now()
    }

    fn wall_ms(&self) -> u64 {
        self.0.wall_ms()
    }

    fn sleep(&self, _: Duration) -> BoxFuture<'static, ()> {
        Box::pin(std::future::ready(()))
    }
}

#[tokio::test]
async fn openraft_accepts_the_log_and_the_state_machine() {
    let real = Env::production();
    let env = Env { clock: Arc::new(Hurried(Arc::clone(&real.clock))), ..real };
    env.enter(Suite::test_all(Builder(env.clone()))).await.unwrap();
}
