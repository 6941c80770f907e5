//! What people see while a command waits for the store.

use std::{
    io::{self, IsTerminal},
    time::Duration,
};

use pygmy_protocol::Env;

/// What takes longer is said to take long.
const SOON: Duration = Duration::from_secs(2);
/// Between two looks at the clock after that.
const TICK: Duration = Duration::from_secs(1);

/// A line on the terminal, until it is dropped.
struct Line {
    chars: usize,
}

impl Drop for Line {
    fn drop(&mut self) {
        // The terminal shows a Ctrl-C as two characters more.
        let width = self.chars + 2;
        eprint!("\r{:width$}\r", "");
    }
}

/// Says on a terminal that the store does not answer and is tried for `total` at most; see
/// [`pygmy_client::store::Notice`].
pub(crate) fn notice(total: Duration) -> Box<dyn Send> {
    if !io::stderr().is_terminal() {
        return Box::new(());
    }
    let seconds = total.as_secs();
    let text = format!("the store does not answer yet; trying for up to {seconds} s …");
    eprint!("{text}");
    Box::new(Line { chars: text.chars().count() })
}

/// Waits for `work`, and says on a terminal what it is, and for how long it has gone on, if that is
/// long.
pub(crate) async fn patiently<T>(env: &Env, what: &str, work: impl Future<Output = T>) -> T {
    let begun = env.now();
    tokio::pin!(work);
    let mut shown: Option<Line> = None;
    let mut until_tick = SOON;
    loop {
        if let Ok(done) = env.timeout(until_tick, work.as_mut()).await {
            return done;
        }
        until_tick = TICK;
        if io::stderr().is_terminal() {
            // The one before goes first.
            drop(shown.take());
            let seconds = env.now().saturating_since(begun).as_secs();
            let text = format!("{what}: {seconds} s …");
            eprint!("{text}");
            shown = Some(Line { chars: text.chars().count() });
        }
    }
}
