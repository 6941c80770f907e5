use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::check_command;

/// Longest wait for an answer of `/livez`. Under the worst of floods one took a second.
const LOOK_TIMEOUT: Duration = Duration::from_secs(2);

/// How processes that are lost are started again (`[respawn]` in the configuration).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// The command that starts or restarts a process, with placeholders; empty: nobody does.
    pub command: Vec<String>,
    /// How long a process is silent, to all that watch it, before it is taken for hung, in
    /// milliseconds, 200 to 600,000.
    pub after_ms: u64,
    /// Shortest time between two attempts to start a process that is lost again and again, in
    /// milliseconds, 50 to 600,000. It doubles with each attempt.
    pub backoff_min_ms: u64,
    /// Longest time between two attempts, in milliseconds, `backoff_min_ms` to 3,600,000.
    pub backoff_max_ms: u64,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            command: Vec::new(),
            after_ms: 5_000,
            backoff_min_ms: 500,
            backoff_max_ms: 60_000,
        }
    }
}

impl Settings {
    /// Checks the ranges and the command.
    ///
    /// # Errors
    /// A sentence that begins with the name of the setting.
    pub fn check(&self) -> Result<(), String> {
        let ranges = [
            ("after_ms", self.after_ms, 200..=600_000),
            ("backoff_min_ms", self.backoff_min_ms, 50..=600_000),
            ("backoff_max_ms", self.backoff_max_ms, self.backoff_min_ms..=3_600_000),
        ];
        for (name, value, range) in ranges {
            if !range.contains(&value) {
                let (low, high) = range.into_inner();
                return Err(format!("{name} is {value}; it must be from {low} to {high}"));
            }
        }
        check_command(&self.command).map_err(|why| format!("command {why}"))
    }

    /// How long a look waits for an answer: a server that is only busy is not to be ended.
    pub(super) fn look_timeout(&self) -> Duration {
        self.after().min(LOOK_TIMEOUT)
    }

    pub(super) fn after(&self) -> Duration {
        Duration::from_millis(self.after_ms)
    }

    /// The wait after so many attempts, of which the last brought no minute of life.
    pub(super) fn backoff(&self, attempts: u32) -> Duration {
        let doubled = 1_u64.checked_shl(attempts.saturating_sub(1)).unwrap_or(u64::MAX);
        let ms = self.backoff_min_ms.saturating_mul(doubled).min(self.backoff_max_ms);
        Duration::from_millis(if attempts == 0 { 0 } else { ms })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wait_doubles_up_to_its_maximum() {
        let settings = Settings::default();
        let ms = |attempts| settings.backoff(attempts).as_millis();
        assert_eq!(
            [ms(0), ms(1), ms(2), ms(3), ms(7), ms(8)],
            [0, 500, 1000, 2000, 32_000, 60_000]
        );
        assert_eq!(ms(u32::MAX), 60_000);
    }

    #[test]
    fn what_is_wrong_is_named() {
        assert_eq!(Settings::default().check(), Ok(()));
        let wrong = Settings { backoff_max_ms: 100, ..Settings::default() };
        let error = wrong.check().unwrap_err();
        assert_eq!(error, "backoff_max_ms is 100; it must be from 500 to 3600000");
        let command = vec!["systemctl".to_owned(), "{verb}".to_owned()];
        let error = Settings { command, ..Settings::default() }.check().unwrap_err();
        assert!(error.starts_with("command has the unknown placeholder {verb}"), "{error}");
    }
}
