//! The table of servers.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use pygmy_client::Upstream;
use pygmy_protocol::{
    Code, Env, Problem,
    registration::{MAX_NAME_BYTES, MAX_URL_BYTES, Registration, Role, ServerStatus},
    watched::Story,
};

use crate::{
    LocalServer,
    metrics::Counters,
    pick::Candidate,
    server::{Fit, Rules, Server},
    settings::Settings,
};

/// Shortest and longest time between heartbeats, in milliseconds. Shorter ones would expire
/// whenever a machine is busy; longer ones would keep a dead server listed for minutes.
const HEARTBEAT_MS: std::ops::RangeInclusive<u64> = 50..=60_000;

pub(crate) struct Registry {
    env: Env,
    rules: Rules,
    max_servers: usize,
    forget_after: Duration,
    local: Vec<LocalServer>,
    /// The newest term in which a catalog replica said that it leads. An older leader that still
    /// thinks so is none. (In a cluster that is made anew terms begin anew: until the balancers
    /// are restarted too its writes go through any replica.)
    newest_term: AtomicU64,
    counters: Arc<Counters>,
    /// By name. Never held across an await.
    servers: RwLock<BTreeMap<String, Arc<Server>>>,
}

impl Registry {
    pub(crate) fn new(env: &Env, settings: &Settings, local: Vec<LocalServer>) -> Registry {
        Registry {
            env: env.clone(),
            rules: Rules::new(settings),
            max_servers: settings.max_servers as usize,
            forget_after: Duration::from_millis(settings.forget_after_ms),
            local,
            newest_term: AtomicU64::new(0),
            counters: Arc::default(),
            servers: RwLock::default(),
        }
    }

    /// Takes a registration or its repetition. A new nonce is a new process, which takes the
    /// place of the old one of its name.
    ///
    /// # Errors
    /// `bad_value`; `unavailable` if the table is full.
    pub(crate) fn register(&self, registration: &Registration) -> Result<(), Problem> {
        check(registration)?;
        let now = self.env.now();
        if let Some(term) = registration.leads_term {
            self.newest_term.fetch_max(term, Ordering::Relaxed);
        }
        if let Some(server) = self.find(&registration.name)
            && server.sent(registration)
        {
            server.heartbeat(registration, now);
            return Ok(());
        }
        let upstream = self.upstream(registration)?;
        let mut servers = self.servers.write().unwrap_or_else(PoisonError::into_inner);
        let old = servers.get(&registration.name);
        if old.is_none() && servers.len() >= self.max_servers {
            let max = self.max_servers;
            let detail = format!("the table is full: {max} servers (max_servers)");
            return Err(Problem::unavailable(detail));
        }
        let Registration { name, role, url, .. } = registration;
        tracing::info!(server = name, %role, url, again = old.is_some(), "registered");
        let load = old.map(|server| Arc::clone(&server.load)).unwrap_or_default();
        self.counters.registrations.inc();
        let counters = Arc::clone(&self.counters);
        let server = Server::new(registration, upstream, load, self.rules, counters, now);
        servers.insert(registration.name.clone(), Arc::new(server));
        Ok(())
    }

    /// What is counted of the servers in the table.
    pub(crate) fn counters(&self) -> &Arc<Counters> {
        &self.counters
    }

    /// Takes a server out of the table, if it is the process with that nonce, or whichever it is if
    /// none is named; what it has in flight goes on.
    pub(crate) fn leave(&self, name: &str, nonce: Option<&str>) {
        let mut servers = self.servers.write().unwrap_or_else(PoisonError::into_inner);
        let leaves = |server: &Arc<Server>| nonce.is_none_or(|nonce| server.nonce() == nonce);
        if servers.get(name).is_some_and(leaves) {
            servers.remove(name);
            tracing::info!(server = name, "left");
        }
    }

    /// Servers of `role` that may get traffic now, by name.
    pub(crate) fn candidates(&self, role: Role) -> Vec<Candidate> {
        let now = self.env.now();
        let newest_term = self.newest_term.load(Ordering::Relaxed);
        let servers = self.servers.read().unwrap_or_else(PoisonError::into_inner);
        let candidate = |server: &Arc<Server>| {
            let Fit { leads_term, set_aside } = server.fit(now)?;
            Some(Candidate {
                local: server.upstream.is_local(),
                leads: leads_term == Some(newest_term),
                set_aside,
                in_flight: server.load.in_flight(),
                server: Arc::clone(server),
            })
        };
        servers.values().filter(|server| server.role == role).filter_map(candidate).collect()
    }

    /// All servers whose registration is in force.
    pub(crate) fn registered(&self) -> Vec<Arc<Server>> {
        let now = self.env.now();
        let servers = self.servers.read().unwrap_or_else(PoisonError::into_inner);
        servers.values().filter(|s| s.expired_for(now).is_none()).cloned().collect()
    }

    /// What `GET /servers` tells of each, by name, with what is `remembered` of its process.
    pub(crate) fn statuses(
        &self,
        remembered: impl Fn(&str) -> (u64, Option<Story>),
    ) -> Vec<ServerStatus> {
        let now = self.env.now();
        let newest_term = self.newest_term.load(Ordering::Relaxed);
        let servers = self.servers.read().unwrap_or_else(PoisonError::into_inner);
        let leads = |server: &Server| server.leads_term() == Some(newest_term);
        let status =
            |server: &Arc<Server>| server.status(leads(server), remembered(&server.name), now);
        servers.values().map(status).collect()
    }

    /// Tells the log of servers that have expired, and forgets those that did so long ago.
    pub(crate) fn sweep(&self) {
        let now = self.env.now();
        let mut servers = self.servers.write().unwrap_or_else(PoisonError::into_inner);
        servers.retain(|_, server| {
            server.observe(now);
            server.expired_for(now).is_none_or(|expired| expired < self.forget_after)
        });
    }

    fn find(&self, name: &str) -> Option<Arc<Server>> {
        self.servers.read().unwrap_or_else(PoisonError::into_inner).get(name).cloned()
    }

    fn upstream(&self, registration: &Registration) -> Result<Upstream, Problem> {
        let Registration { name, role, url, .. } = registration;
        let here = self.local.iter().find(|s| s.url == *url && s.name == *name && s.role == *role);
        match here {
            Some(local) => Ok(Upstream::local(&self.env, url, local.tier.clone())),
            None => Upstream::remote(&self.env, url).map_err(bad_value),
        }
    }
}

fn check(registration: &Registration) -> Result<(), Problem> {
    let Registration { name, role, url, nonce, heartbeat_ms, leads_term, .. } = registration;
    for (field, text) in [("name", name), ("nonce", nonce)] {
        let visible = text.bytes().all(|b| b.is_ascii_graphic());
        if !visible || !(1..=MAX_NAME_BYTES).contains(&text.len()) {
            return Err(bad_value(format!(
                "{field} has 1 to {MAX_NAME_BYTES} visible ASCII characters"
            )));
        }
    }
    if url.len() > MAX_URL_BYTES {
        return Err(bad_value(format!("url has {MAX_URL_BYTES} bytes at most")));
    }
    if matches!(role, Role::Balancer | Role::All) {
        let detail = format!("a server registers as frontend, order or catalog, not as {role}");
        return Err(bad_value(detail));
    }
    if !HEARTBEAT_MS.contains(heartbeat_ms) {
        let (low, high) = HEARTBEAT_MS.into_inner();
        return Err(bad_value(format!("heartbeatMs is a whole number from {low} to {high}")));
    }
    if leads_term.is_some() && *role != Role::Catalog {
        return Err(bad_value("only a catalog server has a leadsTerm".to_owned()));
    }
    Ok(())
}

fn bad_value(detail: String) -> Problem {
    Problem::new(Code::BadValue, detail)
}

#[cfg(test)]
mod tests {
    use pygmy_protocol::registration::Health;

    use super::*;
    use crate::{
        server::Probed,
        testing::{FakeClock, registration},
    };

    struct Table {
        registry: Registry,
        clock: Arc<FakeClock>,
    }

    impl Table {
        fn new() -> Table {
            Table::with(Settings::default())
        }

        fn with(settings: Settings) -> Table {
            let (env, clock) = FakeClock::environment();
            Table { registry: Registry::new(&env, &settings, Vec::new()), clock }
        }

        fn register(&self, registration: &Registration) {
            self.registry.register(registration).unwrap();
        }

        fn advance_ms(&self, ms: u64) {
            self.clock.advance(Duration::from_millis(ms));
        }

        fn probe(&self, name: &str, outcome: Probed) {
            let now = self.registry.env.now();
            self.registry.find(name).unwrap().probed(outcome, now, now);
        }

        fn health(&self, name: &str) -> Health {
            self.status(name).health
        }

        fn status(&self, name: &str) -> ServerStatus {
            self.registry.statuses(|_| (0, None)).into_iter().find(|s| s.name == name).unwrap()
        }

        fn candidates(&self, role: Role) -> Vec<String> {
            self.registry.candidates(role).iter().map(|c| c.server.name.clone()).collect()
        }

        fn leader(&self) -> Option<String> {
            let candidates = self.registry.candidates(Role::Catalog);
            candidates.iter().find(|c| c.leads).map(|c| c.server.name.clone())
        }
    }

    fn order(name: &str) -> Registration {
        registration(name, Role::Order)
    }

    fn leading(name: &str, term: u64) -> Registration {
        Registration { leads_term: Some(term), ..registration(name, Role::Catalog) }
    }

    fn silence() -> Probed {
        Probed::Unanswered("no answer: connection refused".to_owned())
    }

    #[test]
    fn a_registration_expires_after_three_missed_heartbeats() {
        let table = Table::new();
        table.register(&order("a"));
        table.advance_ms(3000);
        assert_eq!(table.health("a"), Health::Ready);
        table.advance_ms(1);
        assert_eq!(table.health("a"), Health::Dead);
        assert_eq!(table.status("a").reason.unwrap(), "silent for 3 s");
        assert!(table.candidates(Role::Order).is_empty());
        table.register(&order("a"));
        assert_eq!(table.candidates(Role::Order), ["a"]);
    }

    #[test]
    fn a_server_that_stops_getting_traffic_is_counted_once_by_its_cause() {
        let table = Table::new();
        let ejected = || {
            let counters = table.registry.counters();
            let by = [&counters.ejected_by_breaker, &counters.ejected_silent];
            [by[0].get(), by[1].get(), counters.ejected_unready.get()]
        };
        let fails = |times: u64| {
            let (server, now) = (table.registry.find("a").unwrap(), table.registry.env.now());
            (0..times).for_each(|_| server.unanswered(now));
        };
        let failures = Settings::default().breaker_failures;
        table.register(&order("a"));
        fails(failures - 1);
        assert_eq!(ejected(), [0, 0, 0]);
        // What was on its way when it was set aside is no second ejection.
        fails(3);
        assert_eq!(ejected(), [1, 0, 0]);
        table.register(&Registration { ready: false, ..order("a") });
        table.register(&Registration { ready: false, ..order("a") });
        assert_eq!(ejected(), [1, 0, 1]);
        table.register(&order("a"));
        table.advance_ms(3001);
        table.registry.sweep();
        table.registry.sweep();
        assert_eq!(ejected(), [1, 1, 1]);
        assert_eq!(table.registry.counters().registrations.get(), 1);
        table.register(&Registration { nonce: "second".to_owned(), ..order("a") });
        assert_eq!(table.registry.counters().registrations.get(), 2);
    }

    #[test]
    fn a_server_that_refuses_connections_is_dead_at_once() {
        let table = Table::new();
        let refused = || Probed::Refused("cannot connect".to_owned());
        table.register(&order("a"));
        table.probe("a", refused());
        assert_eq!(table.health("a"), Health::Dead);
        assert_eq!(table.status("a").reason.as_deref(), Some("cannot connect"));
        table.register(&order("a"));
        assert_eq!(table.candidates(Role::Order), ["a"], "it was heard of since");
        let (server, now) = (table.registry.find("a").unwrap(), table.registry.env.now());
        server.refused("cannot connect", now);
        assert!(table.candidates(Role::Order).is_empty(), "a request finds it as well");
        assert_eq!(table.registry.counters().ejected_silent.get(), 2);
        table.probe("a", Probed::Ready);
        assert_eq!(table.candidates(Role::Order), ["a"]);
    }

    #[test]
    fn the_last_server_of_a_role_is_never_set_aside_for_good() {
        let table = Table::new();
        table.register(&order("a"));
        let (server, now) = (table.registry.find("a").unwrap(), table.registry.env.now());
        (0..100).for_each(|_| server.unanswered(now));
        let candidates = table.registry.candidates(Role::Order);
        assert!(candidates.iter().all(|c| c.set_aside) && candidates.len() == 1, "last in line");
    }

    #[test]
    fn an_expired_server_is_listed_for_a_while_and_then_forgotten() {
        let table = Table::with(Settings { forget_after_ms: 10_000, ..Settings::default() });
        table.register(&order("a"));
        table.advance_ms(12_999);
        table.registry.sweep();
        assert_eq!(table.health("a"), Health::Dead);
        table.advance_ms(1);
        table.registry.sweep();
        assert!(table.registry.statuses(|_| (0, None)).is_empty());
    }

    #[test]
    fn a_server_gets_traffic_as_soon_as_it_says_so_and_none_once_it_does_not() {
        let table = Table::new();
        let unready = Registration { ready: false, ..order("a") };
        table.register(&unready);
        assert_eq!(table.health("a"), Health::Starting);
        table.register(&order("a"));
        assert_eq!(table.candidates(Role::Order), ["a"]);
        table.register(&unready);
        assert_eq!(table.health("a"), Health::Unready);
        assert!(table.candidates(Role::Order).is_empty());
    }

    #[test]
    fn two_unanswered_probes_in_a_row_take_it_out_until_one_is_answered() {
        let table = Table::new();
        table.register(&order("a"));
        table.probe("a", silence());
        table.probe("a", Probed::Ready);
        table.probe("a", silence());
        assert_eq!(table.health("a"), Health::Ready);
        table.probe("a", silence());
        assert_eq!(table.health("a"), Health::Dead);
        table.register(&order("a"));
        assert_eq!(table.health("a"), Health::Dead, "a heartbeat alone proves nothing");
        table.probe("a", Probed::Ready);
        assert_eq!(table.health("a"), Health::Ready);
    }

    #[test]
    fn an_unready_answer_takes_it_out_at_once_with_its_reason() {
        let table = Table::new();
        table.register(&order("a"));
        table.probe("a", Probed::Unready("raft: catching up".to_owned()));
        assert_eq!(table.health("a"), Health::Unready);
        assert_eq!(table.status("a").reason.unwrap(), "raft: catching up");
        table.register(&order("a"));
        assert_eq!(table.health("a"), Health::Unready, "nothing has changed");
    }

    #[test]
    fn becoming_ready_again_needs_no_probe() {
        let table = Table::new();
        table.register(&order("a"));
        table.probe("a", Probed::Unready("raft: no leader".to_owned()));
        table.register(&Registration { ready: false, ..order("a") });
        table.register(&order("a"));
        assert_eq!(table.health("a"), Health::Ready);
    }

    #[test]
    fn a_probe_that_a_registration_overtook_says_nothing_about_readiness() {
        let table = Table::new();
        table.register(&Registration { ready: false, ..order("a") });
        let sent_at = table.registry.env.now();
        table.advance_ms(5);
        table.register(&order("a"));
        let late = Probed::Unready("raft: no leader".to_owned());
        table.registry.find("a").unwrap().probed(late, sent_at, table.registry.env.now());
        assert_eq!(table.health("a"), Health::Ready);
    }

    #[test]
    fn a_new_process_starts_afresh_and_its_counters_go_on() {
        let table = Table::new();
        table.register(&order("a"));
        let old = table.registry.find("a").unwrap();
        let in_flight = old.load.enter();
        in_flight.answered();
        table.probe("a", silence());
        table.probe("a", silence());
        table.register(&Registration { nonce: "second".to_owned(), ..order("a") });
        let status = table.status("a");
        assert_eq!((status.health, status.served, status.in_flight), (Health::Ready, 1, 1));
        drop(in_flight);
        assert_eq!(table.status("a").in_flight, 0);
    }

    #[test]
    fn a_server_that_leaves_is_gone() {
        let table = Table::new();
        table.register(&order("a"));
        table.registry.leave("a", Some("another"));
        assert!(table.registry.find("a").is_some(), "its predecessor leaves late");
        table.registry.leave("a", Some("first"));
        table.registry.leave("a", None);
        assert!(table.registry.statuses(|_| (0, None)).is_empty());
    }

    #[test]
    fn the_newest_term_leads() {
        let table = Table::new();
        table.register(&leading("a", 1));
        assert_eq!(table.leader().unwrap(), "a");
        table.register(&leading("b", 2));
        assert_eq!(table.leader().unwrap(), "b");
        table.register(&leading("a", 1));
        assert_eq!(table.leader().unwrap(), "b", "an older term never replaces a newer one");
        table.register(&registration("b", Role::Catalog));
        assert_eq!(table.leader(), None, "not even when the newer leader steps down");
        assert_eq!(table.candidates(Role::Catalog), ["a", "b"]);
    }

    #[test]
    fn a_leader_that_is_not_eligible_is_none() {
        let table = Table::new();
        table.register(&leading("a", 1));
        table.register(&Registration { ready: false, ..leading("a", 1) });
        assert_eq!(table.leader(), None);
        assert!(table.status("a").leader);
    }

    #[test]
    fn the_table_has_a_limit_that_known_servers_do_not_meet() {
        let table = Table::with(Settings { max_servers: 1, ..Settings::default() });
        table.register(&order("a"));
        let refused = table.registry.register(&order("b")).unwrap_err();
        assert_eq!(refused.code, Code::Unavailable);
        table.register(&Registration { nonce: "second".to_owned(), ..order("a") });
    }

    #[test]
    fn registrations_have_limits() {
        let table = Table::new();
        let bad = [
            Registration { name: String::new(), ..order("a") },
            Registration { name: "a".repeat(MAX_NAME_BYTES + 1), ..order("a") },
            Registration { name: "a b".to_owned(), ..order("a") },
            Registration { nonce: String::new(), ..order("a") },
            Registration { url: "https://a".to_owned(), ..order("a") },
            Registration { url: format!("http://{}", "a".repeat(512)), ..order("a") },
            Registration { heartbeat_ms: 49, ..order("a") },
            Registration { heartbeat_ms: 60_001, ..order("a") },
            Registration { leads_term: Some(1), ..order("a") },
            registration("a", Role::Balancer),
            registration("a", Role::All),
        ];
        for registration in bad {
            let problem = table.registry.register(&registration).unwrap_err();
            assert_eq!(problem.code, Code::BadValue, "{registration:?}");
        }
        assert!(table.registry.statuses(|_| (0, None)).is_empty());
    }
}
