//! What people see while a command waits for the store.

use std::{
    io::{self, IsTerminal},
    time::Duration,
};

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
