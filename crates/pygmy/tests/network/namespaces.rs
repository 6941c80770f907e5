//! A network in the kernel, for one store: a network namespace with an address for each server,
//! joined by a bridge in one more namespace, and a way in for the customers, who are this process.
//!
//! Everything passes the bridge, and there the packet filter drops what a cut says, by pairs of
//! addresses, so that a cut may be one-way. The servers see what they see when a switch fails:
//! silence, no refused connection. Dropping a [`Network`] removes it; what a killed test has left is
//! removed by the next one.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::Write,
    path::Path,
    process::{Command, Stdio},
    sync::{
        OnceLock,
        atomic::{AtomicU32, Ordering},
    },
};

use crate::harness::{Machines, PYGMY};

/// Begins the names of all namespaces; the process id and a number follow.
const PREFIX: &str = "pygmytest";
/// The names of a network's parts inside its hub.
const BRIDGE: &str = "bridge0";
const CUSTOMERS: &str = "customers";
/// Host part of the first server's address. The customers have 1.
const FIRST_SERVER: u8 = 11;
/// What the packet filter of a hub does.
const FILTER: &str = "
table bridge faults {
    set cut { type ipv4_addr . ipv4_addr; }
    set lossy { type ipv4_addr; }
    chain forward {
        type filter hook forward priority 0;
        ip saddr . ip daddr @cut drop
        ip saddr @lossy numgen random mod 100 < 5 drop
        ip daddr @lossy numgen random mod 100 < 5 drop
    }
}
";
/// For a machine behind a slow line: with netem, what arrives there arrives later. Few kernels that
/// are built small have it; without it, the line takes so little that packets queue for as long.
const DELAY: &str = "netem delay 100ms";
const NARROW: &str = "tbf rate 400kbit burst 3000 latency 400ms";

pub(crate) struct Network {
    /// Of this network only, on this machine.
    name: String,
    /// The first three bytes of all addresses.
    subnet: String,
    servers: BTreeMap<String, u8>,
}

impl Network {
    /// A network with a machine for each server.
    ///
    /// # Errors
    /// Why there can be none here.
    pub(crate) fn new(servers: &[String]) -> Result<Network, String> {
        static POSSIBLE: OnceLock<Result<(), String>> = OnceLock::new();
        POSSIBLE.get_or_init(possible).clone()?;
        let servers = servers.iter().cloned().zip(FIRST_SERVER..).collect();
        let network = Network { name: fresh_name(), subnet: free_subnet(), servers };
        network.make().expect("what was possible a moment ago");
        Ok(network)
    }

    fn make(&self) -> Result<(), String> {
        let (hub, outside, subnet) = (self.hub(), self.outside(), &self.subnet);
        run(&["ip", "netns", "add", &hub])?;
        let mut links = format!("link add name {BRIDGE} type bridge\nlink set {BRIDGE} up\n");
        for (server, host) in &self.servers {
            let namespace = self.namespace(server);
            run(&["ip", "netns", "add", &namespace])?;
            links += &format!(
                "link add name {server} type veth peer name eth0 netns {namespace}\n\
                 link set {server} master {BRIDGE} up\n"
            );
            run_with(&["ip", "-n", &hub, "-batch", "-"], &std::mem::take(&mut links))?;
            let inside =
                format!("link set lo up\naddr add {subnet}.{host}/24 dev eth0\nlink set eth0 up\n");
            run_with(&["ip", "-n", &namespace, "-batch", "-"], &inside)?;
        }
        let way_in = format!(
            "link add name {outside} type veth peer name {CUSTOMERS} netns {hub}\n\
             addr add {subnet}.1/24 dev {outside}\n\
             link set {outside} up\n"
        );
        run_with(&["ip", "-batch", "-"], &way_in)?;
        run(&["ip", "-n", &hub, "link", "set", CUSTOMERS, "master", BRIDGE, "up"])?;
        run_with(&["ip", "netns", "exec", &hub, "nft", "-f", "-"], FILTER)
    }

    /// Nothing from `from` arrives at `to` any more; the other direction is as it was.
    pub(crate) fn cut_one_way(&self, from: &[&str], to: &[&str]) {
        let pairs: BTreeSet<_> = from
            .iter()
            .flat_map(|from| to.iter().map(move |to| (from, to)))
            .filter(|(from, to)| from != to)
            .map(|(from, to)| format!("{} . {}", self.ip(from), self.ip(to)))
            .collect();
        let pairs: Vec<_> = pairs.into_iter().collect();
        self.nft(&format!("add element bridge faults cut {{ {} }}", pairs.join(", ")));
    }

    /// Nothing passes between `some` and `others`.
    pub(crate) fn cut(&self, some: &[&str], others: &[&str]) {
        self.cut_one_way(some, others);
        self.cut_one_way(others, some);
    }

    /// Names of all servers except one.
    pub(crate) fn all_but(&self, server: &str) -> Vec<&str> {
        self.servers.keys().map(String::as_str).filter(|name| *name != server).collect()
    }

    /// What arrives at a server arrives late, and one packet in twenty, to or from it, not at all.
    /// Gives what makes it late.
    pub(crate) fn slow_down(&self, server: &str) -> &'static str {
        self.nft(&format!("add element bridge faults lossy {{ {} }}", self.ip(server)));
        let hub = self.hub();
        let shape = |discipline: &'static str| {
            let mut words = vec!["tc", "-n", &hub, "qdisc", "replace", "dev", server, "root"];
            words.extend(discipline.split(' '));
            run(&words)
        };
        if shape(DELAY).is_ok() {
            return DELAY;
        }
        shape(NARROW).expect("a traffic shaper: the kernel has neither netem nor tbf");
        NARROW
    }

    /// The network is whole and fast again.
    pub(crate) fn heal(&self) {
        self.nft("flush set bridge faults cut\nflush set bridge faults lossy");
        for server in self.servers.keys() {
            // There is an error where there was nothing to delete.
            let _ = run(&["tc", "-n", &self.hub(), "qdisc", "del", "dev", server, "root"]);
        }
    }

    fn nft(&self, commands: &str) {
        let command = ["ip", "netns", "exec", &self.hub(), "nft", "-f", "-"];
        run_with(&command, commands).expect("the packet filter obeys");
    }

    fn ip(&self, server: &str) -> String {
        format!("{}.{}", self.subnet, self.servers[server])
    }

    fn hub(&self) -> String {
        self.namespace("hub")
    }

    fn namespace(&self, part: &str) -> String {
        format!("{}-{part}", self.name)
    }

    /// The customers' interface. Its name has 15 characters at most.
    fn outside(&self) -> String {
        self.name.replacen(PREFIX, "pt", 1)
    }
}

impl Machines for Network {
    fn address(&self, server: &str, port: u16) -> String {
        format!("{}:{}", self.ip(server), 8080 + port)
    }

    fn program(&self, server: &str) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.namespace(server), PYGMY]);
        command
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        for part in self.servers.keys().map(String::as_str).chain(["hub"]) {
            let _ = run(&["ip", "netns", "del", &self.namespace(part)]);
        }
        // Gone with the hub, unless that was never made.
        let _ = run(&["ip", "link", "del", &self.outside()]);
    }
}

/// Tries all that is needed, once, and cleans up after tests that were killed.
fn possible() -> Result<(), String> {
    remove_what_is_left()?;
    let probe = format!("{}-probe", fresh_name());
    run(&["ip", "netns", "add", &probe])?;
    let filtered = run_with(&["ip", "netns", "exec", &probe, "nft", "-f", "-"], FILTER);
    let bridged = run(&["ip", "-n", &probe, "link", "add", "name", BRIDGE, "type", "bridge"]);
    run(&["ip", "netns", "del", &probe])?;
    filtered.and(bridged)
}

/// Removes namespaces whose process has ended.
fn remove_what_is_left() -> Result<(), String> {
    for line in run_for_output(&["ip", "netns", "list"], "")?.lines() {
        let name = line.split(' ').next().unwrap_or(line);
        let process = name.strip_prefix(PREFIX).and_then(|rest| rest.split('-').next());
        if process.is_some_and(|id| !Path::new("/proc").join(id).exists()) {
            // Another test binary may be at it, too.
            let _ = run(&["ip", "netns", "del", name]);
        }
    }
    Ok(())
}

fn fresh_name() -> String {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    format!("{PREFIX}{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed))
}

/// One of the networks that are set aside for measurements (RFC 2544), with no route yet.
fn free_subnet() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    for _ in 0..512 {
        let number = std::process::id() + NEXT.fetch_add(1, Ordering::Relaxed);
        let subnet = format!("198.{}.{}", 18 + number / 256 % 2, number % 256);
        let routes = ["ip", "route", "show", "root", &format!("{subnet}.0/24")];
        if run_for_output(&routes, "").is_ok_and(|routes| routes.is_empty()) {
            return subnet;
        }
    }
    panic!("198.18.0.0/15 is used up");
}

fn run(words: &[&str]) -> Result<(), String> {
    run_with(words, "")
}

fn run_with(words: &[&str], input: &str) -> Result<(), String> {
    run_for_output(words, input).map(drop)
}

/// Runs a command to its end.
///
/// # Errors
/// What it said.
fn run_for_output(words: &[&str], input: &str) -> Result<String, String> {
    let failed = |why: &dyn std::fmt::Display| format!("`{}`: {why}", words.join(" "));
    let mut child = Command::new(words[0])
        .args(&words[1..])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| failed(&error))?;
    // A command that reads nothing may have ended.
    let _ = child.stdin.take().expect("it is piped").write_all(input.as_bytes());
    let output = child.wait_with_output().map_err(|error| failed(&error))?;
    if !output.status.success() {
        return Err(failed(&String::from_utf8_lossy(&output.stderr).trim()));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
