//! What a configuration must be beyond well-formed.

use std::collections::BTreeMap;

use pygmy_catalog::{ELECTION_HEARTBEATS, LEASE_HEARTBEATS};
use pygmy_client::{Upstream, watch};
use pygmy_protocol::{Env, registration::Role};

use super::{Config, ConfigError, Document, Part, ServerEntry, overrides::By};

/// Longest name of a server: it names a directory and stands in every table.
const MAX_NAME_BYTES: usize = 60;
/// Segments of the log that fit at least into what is kept free: one is reserved while another is
/// written.
const FREE_SEGMENTS: u64 = 2;

/// Key and sentence.
type Wrong = (String, String);

impl Config {
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        let tables = self.check_cluster().and_then(|()| self.check_limits());
        let tables = tables.and_then(|()| self.check_tiers());
        tables.and_then(|()| self.check_servers()).map_err(|wrong| self.place(wrong))
    }

    fn place(&self, (key, message): Wrong) -> ConfigError {
        let named = if message.starts_with(key.rsplit('.').next().unwrap_or_default()) {
            message
        } else {
            format!("{key}: {message}")
        };
        match self.overrides.get(&key) {
            Some(By::Variable(name)) => ConfigError { place: name.clone(), message: named },
            Some(By::Flag) => ConfigError { place: format!("--set {key}"), message: named },
            None => ConfigError::in_file(&self.path, self.lines.nearest(&key), named),
        }
    }

    fn check_cluster(&self) -> Result<(), Wrong> {
        let cluster = &self.document.cluster;
        within("cluster.currency_digits", u64::from(cluster.currency_digits), 0..=6)?;
        within("cluster.heartbeat_ms", cluster.heartbeat_ms, 50..=60_000)?;
        within("cluster.attempt_timeout_ms", cluster.attempt_timeout_ms, 1..=60_000)
    }

    fn check_limits(&self) -> Result<(), Wrong> {
        let limits = &self.document.limits;
        // The upper ends keep a slip of the keyboard from turning a limit off.
        within("limits.max_body_bytes", limits.max_body_bytes as u64, 1_024..=64 << 20)?;
        within("limits.max_header_bytes", limits.max_header_bytes as u64, 1_024..=64 << 10)?;
        within("limits.max_connections", limits.max_connections as u64, 1..=1_000_000)?;
        within("limits.request_timeout_ms", limits.request_timeout_ms, 100..=60_000)?;
        within("limits.idle_timeout_ms", limits.idle_timeout_ms, 1_000..=3_600_000)?;
        within("limits.drain_timeout_ms", limits.drain_timeout_ms, 0..=600_000)
    }

    /// The tiers' own checks give sentences that begin with the name of the setting.
    fn check_tiers(&self) -> Result<(), Wrong> {
        let document = &self.document;
        let of_table = |table: &str, checked: Result<(), String>| {
            checked.map_err(|message| {
                let name = message.split_whitespace().next().unwrap_or_default();
                (format!("{table}.{name}"), message)
            })
        };
        of_table("balancer", document.balancer.check())?;
        of_table("frontend", document.frontend.check())?;
        // Before the others: they would blame one setting, without the one that sets its bound.
        self.check_multiples()?;
        of_table("catalog", document.catalog.check())?;
        of_table("respawn", document.respawn.check())
    }

    /// Settings that must be so many times another one at least.
    fn check_multiples(&self) -> Result<(), Wrong> {
        let Document { cluster, limits, frontend, catalog, respawn, .. } = &self.document;
        let request = ("limits.request_timeout_ms", limits.request_timeout_ms);
        let attempt = ("cluster.attempt_timeout_ms", cluster.attempt_timeout_ms);
        let lease = ("frontend.lease_ms", frontend.lease_ms);
        let heartbeat = ("catalog.raft_heartbeat_ms", catalog.raft_heartbeat_ms);
        let election_min = ("catalog.election_timeout_min_ms", catalog.election_timeout_min_ms);
        let election_max = ("catalog.election_timeout_max_ms", catalog.election_timeout_max_ms);
        let free = ("catalog.min_free_bytes", catalog.min_free_bytes);
        let segment = ("catalog.log_segment_bytes", catalog.log_segment_bytes);
        let backoff_min = ("respawn.backoff_min_ms", respawn.backoff_min_ms);
        let backoff_max = ("respawn.backoff_max_ms", respawn.backoff_max_ms);
        self.check_multiple(request, 1, attempt)?;
        self.check_multiple(lease, LEASE_HEARTBEATS, heartbeat)?;
        self.check_multiple(election_min, ELECTION_HEARTBEATS, heartbeat)?;
        self.check_multiple(election_max, 1, election_min)?;
        self.check_multiple(free, FREE_SEGMENTS, segment)?;
        self.check_multiple(backoff_max, 1, backoff_min)
    }

    /// Checks that a setting is at least `times` another one. Where only the other one is set, that
    /// one is to blame.
    fn check_multiple(
        &self,
        (large, value): (&str, u64),
        times: u64,
        (small, unit): (&str, u64),
    ) -> Result<(), Wrong> {
        let least = times.saturating_mul(unit);
        if value >= least {
            return Ok(());
        }
        let name = |key: &str| key.rsplit('.').next().unwrap_or_default().to_owned();
        let is_set = |key| self.lines.get(key).is_some() || self.overrides.contains(key);
        if !is_set(large) && is_set(small) {
            let times = if times == 1 { String::new() } else { format!("{times} times ") };
            let message = format!(
                "{} is {unit}; {large} must be at least {times}as much, and is {value}",
                name(small)
            );
            return Err((small.to_owned(), message));
        }
        let why = if times == 1 { "as is".to_owned() } else { format!("{times} times") };
        let message =
            format!("{} is {value}; it must be at least {least}, {why} {small}", name(large));
        Err((large.to_owned(), message))
    }

    /// Servers and their parts are known by their names.
    fn check_names(&self) -> Result<(), Wrong> {
        let mut names = BTreeMap::new();
        let mut parts = BTreeMap::new();
        for (index, server) in self.servers().iter().enumerate() {
            let key = || format!("server.{index}.name");
            if let Some(other) = names.insert(&server.name, index) {
                let line = self.lines.nearest(&format!("server.{other}.name")).unwrap_or_default();
                let message =
                    format!("name {:?} is taken by the server of line {line}", server.name);
                return Err((key(), message));
            }
            for role in Role::TIERS {
                let Some(Part { name, .. }) = server.part(role) else { continue };
                if let Some(other) = parts.insert(name.clone(), &server.name) {
                    let message = format!(
                        "name {:?} clashes with {other:?}: one of them has all tiers, and its part \
                         {name} would have the name of the other; rename one",
                        server.name
                    );
                    return Err((key(), message));
                }
            }
        }
        Ok(())
    }

    fn check_servers(&self) -> Result<(), Wrong> {
        self.check_names()?;
        for (index, server) in self.servers().iter().enumerate() {
            let key = |name: &str| format!("server.{index}.{name}");
            check_server(server).map_err(|(name, message)| (key(name), message))?;
            watch::check_command(server.respawn.as_deref().unwrap_or_default())
                .map_err(|why| (key("respawn"), format!("respawn {why}")))?;
        }
        self.check_addresses()?;
        for role in Role::TIERS {
            if self.parts(role).is_empty() {
                let message = format!(
                    "no server does the work of a {role}; add a [[server]] with role = \"{role}\" \
                     or \"all\""
                );
                return Err(("server".to_owned(), message));
            }
        }
        Ok(())
    }

    /// No two servers have the same address, or are called at the same URL.
    fn check_addresses(&self) -> Result<(), Wrong> {
        let (mut addresses, mut urls) = (BTreeMap::new(), BTreeMap::new());
        for (index, server) in self.servers().iter().enumerate() {
            let key = |name: &str| format!("server.{index}.{name}");
            let name = &server.name;
            let listens =
                [("listen", Some(server.listen)), ("public_listen", server.public_listen)];
            for (setting, address) in listens {
                // The same address on two machines, behind two URLs, is no clash.
                let Some(address) = address.filter(|_| server.url.is_none()) else { continue };
                if let Some(other) = addresses.insert(address, name) {
                    let message = format!(
                        "{setting} {address} of {name} is taken by {other}; choose another port"
                    );
                    return Err((key(setting), message));
                }
            }
            let called = if server.url.is_some() { "url" } else { "listen" };
            let url = server.base_url();
            if let Some(other) = urls.insert(url.to_ascii_lowercase(), name) {
                let message = format!(
                    "{called} of {name}: {url} is the URL of {other}; each server needs one of its own"
                );
                return Err((key(called), message));
            }
        }
        Ok(())
    }
}

fn check_server(server: &ServerEntry) -> Result<(), (&'static str, String)> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
    let name = &server.name;
    let begins_well = name.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric());
    if name.len() > MAX_NAME_BYTES || !begins_well || !name.bytes().all(plain) {
        let message = format!(
            "name {name:?} must have 1 to {MAX_NAME_BYTES} letters, digits, `-`, `_` or `.` and \
             begin with a letter or digit"
        );
        return Err(("name", message));
    }
    match (server.role, server.public_listen) {
        (Role::All, None) => {
            let message = "public_listen is missing: a server with role \"all\" has its front end \
                           there";
            return Err(("public_listen", message.to_owned()));
        }
        (Role::All, Some(_)) | (_, None) => {}
        (role, Some(_)) => {
            let message =
                format!("public_listen is for the role \"all\"; remove it from this {role}");
            return Err(("public_listen", message));
        }
    }
    match &server.url {
        None if server.listen.ip().is_unspecified() || server.listen.port() == 0 => {
            let message = format!(
                "url is missing: nobody can reach {} by that name; say how, as in \
                 url = \"http://host:port\"",
                server.listen
            );
            Err(("url", message))
        }
        None => Ok(()),
        Some(url) => Upstream::remote(&Env::production(), url)
            .map(drop)
            .map_err(|message| ("url", format!("url {message}"))),
    }
}

fn within(key: &str, value: u64, range: std::ops::RangeInclusive<u64>) -> Result<(), Wrong> {
    if range.contains(&value) {
        return Ok(());
    }
    let name = key.rsplit('.').next().unwrap_or(key);
    let message =
        format!("{name} is {value}; it must be from {} to {}", range.start(), range.end());
    Err((key.to_owned(), message))
}
