use std::{ops::RangeInclusive, time::Duration};

use pygmy_protocol::registration::Role;
use serde::{Deserialize, Serialize};

use crate::pick::Policy;

/// How a balancer balances (`[balancer]` in the configuration).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// How order servers are chosen.
    pub order_policy: Policy,
    /// How catalog servers are chosen, where it need not be the leader.
    pub catalog_policy: Policy,
    /// Time between two probes of a server's `/readyz`, in milliseconds, 50 to 60,000. A probe
    /// may take as long, but no longer than a second.
    pub probe_interval_ms: u64,
    /// Unanswered probes in a row after which a server is dead, 1 to 100.
    pub probe_failures: u64,
    /// Heartbeats that a server may miss before its registration expires, 1 to 100.
    pub missed_heartbeats: u64,
    /// How long a server whose registration expired stays listed as dead, in milliseconds, 1000
    /// to 86,400,000.
    pub forget_after_ms: u64,
    /// Requests in a row without an answer after which a server is set aside, 1 to 1000.
    pub breaker_failures: u64,
    /// Retries per role, as a percentage of the requests of the last ten seconds, 0 to 100.
    pub retry_percent: u64,
    /// Retries per role and second that are allowed on top of that, 0 to 10,000.
    pub retry_floor_per_s: u64,
    /// Most requests that are forwarded at the same time, 1 to 1,000,000; over it: 503.
    pub max_in_flight: u64,
    /// Most registered servers, 1 to 4096: each is probed at every interval.
    pub max_servers: u64,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            order_policy: Policy::RoundRobin,
            catalog_policy: Policy::RoundRobin,
            probe_interval_ms: 2000,
            probe_failures: 2,
            missed_heartbeats: 3,
            forget_after_ms: 600_000,
            breaker_failures: 3,
            retry_percent: 20,
            retry_floor_per_s: 10,
            max_in_flight: 10_000,
            max_servers: 256,
        }
    }
}

impl Settings {
    /// Checks the ranges.
    ///
    /// # Errors
    /// A sentence that names the first setting that is out of its range.
    pub fn check(&self) -> Result<(), String> {
        let ranges: [(&str, u64, RangeInclusive<u64>); 9] = [
            ("probe_interval_ms", self.probe_interval_ms, 50..=60_000),
            ("probe_failures", self.probe_failures, 1..=100),
            ("missed_heartbeats", self.missed_heartbeats, 1..=100),
            ("forget_after_ms", self.forget_after_ms, 1000..=86_400_000),
            ("breaker_failures", self.breaker_failures, 1..=1000),
            ("retry_percent", self.retry_percent, 0..=100),
            ("retry_floor_per_s", self.retry_floor_per_s, 0..=10_000),
            ("max_in_flight", self.max_in_flight, 1..=1_000_000),
            ("max_servers", self.max_servers, 1..=4096),
        ];
        for (name, value, range) in ranges {
            if !range.contains(&value) {
                let (low, high) = range.into_inner();
                return Err(format!("{name} is {value}; it must be from {low} to {high}"));
            }
        }
        Ok(())
    }

    pub(crate) fn probe_interval(&self) -> Duration {
        Duration::from_millis(self.probe_interval_ms)
    }

    pub(crate) fn policy(&self, role: Role) -> Policy {
        match role {
            Role::Order => self.order_policy,
            _ => self.catalog_policy,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_are_in_range_and_the_error_names_the_setting() {
        assert_eq!(Settings::default().check(), Ok(()));
        let settings = Settings { probe_interval_ms: 49, ..Settings::default() };
        let error = settings.check().unwrap_err();
        assert_eq!(error, "probe_interval_ms is 49; it must be from 50 to 60000");
    }
}
