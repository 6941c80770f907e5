//! Servers as child processes.
//!
//! A [`Store`] writes a configuration of its own, starts its servers on [`Machines`] (by default on
//! free ports of this one), kills and restarts them, and asks them as a client would. Several test
//! binaries have it.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::Arc,
    time::Duration,
};

use http::{Method, StatusCode};
use pygmy_client::{Answer, Call, Failure, Upstream};
use pygmy_protocol::{
    Env, IdempotencyKey, RequestContext,
    http::Secret,
    item::Item,
    order::Order,
    registration::{CatalogStatus, Servers},
};
use tempfile::TempDir;

/// The binary under test.
pub(crate) const PYGMY: &str = env!("CARGO_BIN_EXE_pygmy");
/// How long a test waits for what must happen. Only a failing test waits that long.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
/// How long one request may take.
const REQUEST: Duration = Duration::from_secs(5);
const SECRET: &str = "the-secret-of-this-test";

/// Which servers run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Layout {
    /// Nine servers, each tier in processes of its own.
    Tiers,
    /// Three servers with all tiers in each.
    Nodes,
}

/// Where servers run.
pub(crate) trait Machines: Send + Sync {
    /// An address to listen on for a server; `port`, below 20, tells the store's listeners apart.
    fn address(&self, server: &str, port: u16) -> String;
    /// The binary under test, to be run on the machine of a server.
    fn program(&self, server: &str) -> Command;
}

/// This machine. Ports in a row, from the first one on, are free.
struct ThisMachine(u16);

impl Machines for ThisMachine {
    fn address(&self, _: &str, port: u16) -> String {
        format!("127.0.0.1:{}", self.0 + port)
    }

    fn program(&self, _: &str) -> Command {
        Command::new(PYGMY)
    }
}

impl Layout {
    /// Names and roles of the servers.
    pub(crate) fn servers(self) -> Vec<(String, &'static str)> {
        match self {
            Layout::Tiers => TIERS.map(|(name, role)| (name.to_owned(), role)).to_vec(),
            Layout::Nodes => (1..=3).map(|number| (format!("node-{number}"), "all")).collect(),
        }
    }
}

struct Server {
    role: &'static str,
    url: String,
    child: Option<Child>,
}

/// A running store. Dropping it kills every server.
pub(crate) struct Store {
    pub(crate) env: Env,
    pub(crate) layout: Layout,
    dir: TempDir,
    secret: Secret,
    machines: Arc<dyn Machines>,
    servers: BTreeMap<String, Server>,
    public: Vec<Arc<Upstream>>,
    /// Whoever looks after the servers, if it is not the test.
    demo: Option<Child>,
}

/// What a demo writes into a configuration of its own.
const RESPAWN: &str = r#"
[respawn]
command = ["{program}", "respawn", "{reason}", "{name}", "--watcher", "{watcher}", "--config", "{config}"]
after_ms = 1000
"#;

impl Store {
    /// A store with the seven books, ready.
    pub(crate) async fn start(layout: Layout) -> Store {
        Store::start_with(layout, "").await
    }

    /// The same with more settings.
    pub(crate) async fn start_with(layout: Layout, settings: &str) -> Store {
        Store::start_on(layout, settings, |_| {}).await
    }

    /// The same on what `prepare` has made ready.
    pub(crate) async fn start_on(
        layout: Layout,
        settings: &str,
        prepare: impl FnOnce(&Store),
    ) -> Store {
        let machine = ThisMachine(free_ports(&Env::production(), 20));
        Store::start_across(Arc::new(machine), layout, settings, prepare).await
    }

    /// The same on machines of the caller's choice.
    pub(crate) async fn start_across(
        machines: Arc<dyn Machines>,
        layout: Layout,
        settings: &str,
        prepare: impl FnOnce(&Store),
    ) -> Store {
        let mut store = Store::configured(machines, layout, settings);
        prepare(&store);
        for name in store.names() {
            store.spawn(&name);
        }
        store.bootstrap().await;
        store.ready().await;
        store.front_ends_follow().await;
        store
    }

    /// A store in a `pygmy demo`, whose servers start one another again.
    pub(crate) async fn start_in_demo(layout: Layout) -> Store {
        let machine = ThisMachine(free_ports(&Env::production(), 20));
        let mut store = Store::configured(Arc::new(machine), layout, RESPAWN);
        let output = |name: &str| File::create(store.dir().join(name)).unwrap();
        let (out, err) = (output("demo-out.txt"), output("demo-err.txt"));
        let mut command = Command::new(PYGMY);
        command.args(["demo", "--dir"]).arg(store.dir()).stdin(Stdio::null());
        store.demo = Some(command.stdout(out).stderr(err).spawn().unwrap());
        until("the demo is ready", async || {
            let said = fs::read_to_string(store.dir().join("demo-out.txt")).unwrap();
            said.contains("Ctrl-C stops everything").then_some(())
        })
        .await;
        store.front_ends_follow().await;
        store
    }

    /// The process of a server in a demo, if it runs.
    pub(crate) fn process(&self, name: &str) -> Option<rustix::process::Pid> {
        let name = format!("\0--name\0{name}\0");
        let config = self.config().to_string_lossy().into_owned();
        let is_it = |id: &u32| {
            let arguments = fs::read_to_string(format!("/proc/{id}/cmdline")).unwrap_or_default();
            arguments.contains("\0serve\0")
                && arguments.contains(&name)
                && arguments.contains(&config)
        };
        let ids = fs::read_dir("/proc")
            .unwrap()
            .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok());
        rustix::process::Pid::from_raw(ids.into_iter().find(is_it)?.cast_signed())
    }

    /// Waits until the leader has a session with every front end: they are registered in the log.
    async fn front_ends_follow(&self) {
        until("all front ends follow the leader", async || {
            let status = self.status(&self.leader().await).await?;
            (status.front_ends.len() == self.public.len()).then_some(())
        })
        .await;
    }

    fn configured(machines: Arc<dyn Machines>, layout: Layout, settings: &str) -> Store {
        let env = Env::production();
        let dir = tempfile::tempdir().unwrap();
        let mut text = settings.to_owned();
        let mut servers = BTreeMap::new();
        let mut public = Vec::new();
        for (port, (name, role)) in (0..).zip(layout.servers()) {
            let listen = machines.address(&name, port);
            text += &format!(
                "\n[[server]]\nname = \"{name}\"\nrole = \"{role}\"\nlisten = \"{listen}\"\n"
            );
            let url = format!("http://{listen}");
            let open = match role {
                "all" => {
                    let open = machines.address(&name, port + 10);
                    text += &format!("public_listen = \"{open}\"\n");
                    Some(open)
                }
                "frontend" => Some(listen),
                _ => None,
            };
            if let Some(open) = open {
                let upstream = Upstream::remote(&env, &format!("http://{open}")).unwrap();
                public.push(Arc::new(upstream));
            }
            servers.insert(name, Server { role, url, child: None });
        }
        fs::write(dir.path().join("pygmy.toml"), text).unwrap();
        fs::write(dir.path().join("secret"), SECRET).unwrap();
        let secret = Secret::new(SECRET).unwrap();
        Store { env, layout, dir, secret, machines, servers, public, demo: None }
    }

    /// The directory with everything.
    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// The configuration file.
    pub(crate) fn config(&self) -> PathBuf {
        self.dir().join("pygmy.toml")
    }

    /// Names of all servers.
    pub(crate) fn names(&self) -> Vec<String> {
        self.servers.keys().cloned().collect()
    }

    /// Base URLs of the public front ends.
    pub(crate) fn public_urls(&self) -> Vec<String> {
        self.public.iter().map(|upstream| upstream.url().to_owned()).collect()
    }

    /// The data directory of a server.
    pub(crate) fn data(&self, name: &str) -> PathBuf {
        self.dir().join(name)
    }

    /// Another server in the configuration. Those that run do not know of it.
    pub(crate) fn configure_catalog(&mut self, name: &str) {
        let listen = format!("127.0.0.1:{}", free_ports(&self.env, 1));
        let entry =
            format!("\n[[server]]\nname = \"{name}\"\nrole = \"catalog\"\nlisten = \"{listen}\"\n");
        let text = fs::read_to_string(self.config()).unwrap() + &entry;
        fs::write(self.config(), text).unwrap();
        let server = Server { role: "catalog", url: format!("http://{listen}"), child: None };
        self.servers.insert(name.to_owned(), server);
    }

    /// A server that has ended for good.
    pub(crate) fn forget(&mut self, name: &str) {
        self.servers.remove(name);
    }

    /// Runs `pygmy admin` with these arguments.
    pub(crate) fn admin(&self, arguments: &[&str]) -> std::process::Output {
        Command::new(PYGMY)
            .arg("admin")
            .args(arguments)
            .arg("--config")
            .arg(self.config())
            .output()
            .unwrap()
    }

    /// Waits until a server that cannot go on has ended, and gives its exit code.
    pub(crate) async fn ended(&mut self, name: &str) -> Option<i32> {
        let child = self.servers.get_mut(name).unwrap().child.take().expect("it runs");
        let child = std::cell::RefCell::new(child);
        until("the server ends", async || child.borrow_mut().try_wait().unwrap()).await.code()
    }

    /// Starts one server as the demo would.
    pub(crate) fn spawn(&mut self, name: &str) {
        let role = self.servers[name].role;
        fs::create_dir_all(self.data(name)).unwrap();
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.data(name).join("log.txt"))
            .unwrap();
        let child = self
            .machines
            .program(name)
            .args(["serve", role, "--name", name, "--stop-with-parent", "--config"])
            .arg(self.config())
            .env("PYGMY_LOG", "pygmy=debug,pygmy_protocol=debug,info,openraft=error")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        self.servers.get_mut(name).unwrap().child = Some(child);
    }

    /// Kills one server with SIGKILL.
    pub(crate) fn kill(&mut self, name: &str) {
        let mut child = self.servers.get_mut(name).unwrap().child.take().expect("it runs");
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// The process of a running server.
    pub(crate) fn pid(&self, name: &str) -> rustix::process::Pid {
        rustix::process::Pid::from_child(self.servers[name].child.as_ref().expect("it runs"))
    }

    /// Takes note of a server that was killed by its process id.
    pub(crate) fn reap(&mut self, name: &str) {
        let mut child = self.servers.get_mut(name).unwrap().child.take().expect("it ran");
        child.wait().unwrap();
    }

    /// The base URL of a server.
    pub(crate) fn url(&self, name: &str) -> String {
        self.servers[name].url.clone()
    }

    /// Sends SIGTERM and gives the exit code.
    pub(crate) async fn stop(&mut self, name: &str) -> Option<i32> {
        let child = self.servers.get_mut(name).unwrap().child.take().expect("it runs");
        let pid = rustix::process::Pid::from_child(&child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        let child = std::cell::RefCell::new(child);
        let status =
            until("the server exits", async || child.borrow_mut().try_wait().unwrap()).await;
        status.code()
    }

    /// Makes the cluster, with the seven books. Tried until all replicas answer.
    async fn bootstrap(&self) {
        let body = serde_json::json!({ "items": books() });
        until("the cluster is made", async || {
            let call = self.call(Method::POST, "/bootstrap").with_json(&body);
            let answer = self.send_to(&self.catalog_url("1"), &call).await.ok()?;
            (answer.status == StatusCode::OK).then_some(())
        })
        .await;
    }

    /// Whether it was started, by the test or by a demo.
    fn runs(&self, server: &Server) -> bool {
        server.child.is_some() || self.demo.is_some()
    }

    /// Waits until every running server is ready.
    pub(crate) async fn ready(&self) {
        for (name, server) in &self.servers {
            if self.runs(server) {
                self.ready_server(name).await;
            }
        }
    }

    /// Waits until one server is ready.
    pub(crate) async fn ready_server(&self, name: &str) {
        let url = self.servers[name].url.clone();
        let ready = async || {
            let call = self.call(Method::GET, "/readyz");
            let answer = self.send_to(&url, &call).await.ok()?;
            (answer.status == StatusCode::OK).then_some(())
        };
        until(&format!("{name} is ready"), ready).await;
    }

    /// The names of the servers that hold a catalog replica.
    pub(crate) fn replicas(&self) -> Vec<String> {
        let holds = |server: &Server| matches!(server.role, "catalog" | "all");
        self.servers.iter().filter(|(_, s)| holds(s)).map(|(name, _)| name.clone()).collect()
    }

    fn catalog_url(&self, number: &str) -> String {
        match self.layout {
            Layout::Tiers => self.servers[&format!("catalog-{number}")].url.clone(),
            Layout::Nodes => format!("{}/catalog", self.servers[&format!("node-{number}")].url),
        }
    }

    /// `GET /status` of the replica of a server; `None` if it does not answer.
    pub(crate) async fn status(&self, name: &str) -> Option<CatalogStatus> {
        let call = self.public_call(Method::GET, "/status");
        self.send_to_replica(name, call).await.ok()?.json().ok()
    }

    /// Sends to the replica of a server, with the secret.
    pub(crate) async fn send_to_replica(&self, name: &str, call: Call) -> Result<Answer, Failure> {
        let number = name.rsplit('-').next().unwrap();
        self.send_to(&self.catalog_url(number), &call.with_secret(&self.secret)).await
    }

    /// The server whose replica leads.
    pub(crate) async fn leader(&self) -> String {
        until("there is a leader", async || {
            for name in self.replicas() {
                if self.status(&name).await.is_some_and(|status| status.role == "leader") {
                    return Some(name);
                }
            }
            None
        })
        .await
    }

    /// Waits until all running replicas have applied the same, and gives their statuses.
    pub(crate) async fn agreed(&self) -> Vec<CatalogStatus> {
        let running = |name: &String| self.runs(&self.servers[name]);
        let replicas: Vec<_> = self.replicas().into_iter().filter(running).collect();
        until("the replicas agree", async || {
            let mut statuses = Vec::new();
            for name in &replicas {
                statuses.push(self.status(name).await?);
            }
            let first = statuses[0].applied_index;
            let same = |s: &CatalogStatus| s.applied_index == first && s.last_log_index == first;
            statuses.iter().all(same).then_some(statuses)
        })
        .await
    }

    /// Checks that an acknowledged order is there, as it was acknowledged.
    pub(crate) async fn has_order(&self, key: &str, order: &Order) {
        let target = format!("/orders/{}", order.order_number);
        let found = until("the order is found", async || {
            let answer = self.send(0, &self.public_call(Method::GET, &target)).await.ok()?;
            (!matches!(answer.status.as_u16(), 429 | 503)).then_some(answer)
        })
        .await;
        assert_eq!(found.json::<Order>().as_ref(), Ok(order), "the order of {key}");
    }

    /// Has every running replica check its whole database.
    pub(crate) async fn verify(&self) {
        for name in self.replicas() {
            if self.runs(&self.servers[&name]) {
                let call = self.public_call(Method::GET, "/verify");
                let answer = self.send_to_replica(&name, call).await.unwrap();
                assert_eq!(answer.status, StatusCode::OK, "{name}: {:?}", answer.body);
            }
        }
    }

    /// `GET /servers` of a balancer, by its number; `None` if it does not answer.
    pub(crate) async fn servers(&self, balancer: usize) -> Option<Servers> {
        let url = match self.layout {
            Layout::Tiers => self.servers[&format!("balancer-{balancer}")].url.clone(),
            Layout::Nodes => format!("{}/balancer", self.servers[&format!("node-{balancer}")].url),
        };
        self.send_to(&url, &self.call(Method::GET, "/servers")).await.ok()?.json().ok()
    }

    /// A call with the secret.
    pub(crate) fn call(&self, method: Method, target: &str) -> Call {
        self.public_call(method, target).with_secret(&self.secret)
    }

    /// A call as anybody can make it.
    pub(crate) fn public_call(&self, method: Method, target: &str) -> Call {
        Call::new(method, target, RequestContext::fresh(&self.env, REQUEST))
    }

    /// Sends to a base URL, over a connection of its own.
    pub(crate) async fn send_to(&self, url: &str, call: &Call) -> Result<Answer, Failure> {
        Upstream::remote(&self.env, url).unwrap().send(call, REQUEST).await
    }

    /// Sends to a balancer, by its number.
    pub(crate) async fn through_balancer(&self, number: usize, call: &Call) -> Answer {
        let url = match self.layout {
            Layout::Tiers => self.servers[&format!("balancer-{number}")].url.clone(),
            Layout::Nodes => format!("{}/balancer", self.servers[&format!("node-{number}")].url),
        };
        self.send_to(&url, call).await.unwrap()
    }

    /// How many public front ends there are.
    pub(crate) fn front_ends(&self) -> usize {
        self.public.len()
    }

    /// Sends to a public front end.
    pub(crate) async fn send(&self, front_end: usize, call: &Call) -> Result<Answer, Failure> {
        self.public[front_end].send(call, REQUEST).await
    }

    /// Where customers connect to a front end: `host:port`.
    pub(crate) fn public_authority(&self, front_end: usize) -> String {
        self.public[front_end].url().trim_start_matches("http://").to_owned()
    }

    /// GETs from a public front end.
    pub(crate) async fn get(&self, front_end: usize, target: &str) -> Answer {
        self.send(front_end, &self.public_call(Method::GET, target)).await.unwrap()
    }

    /// Looks an item up through a front end.
    pub(crate) async fn lookup(&self, front_end: usize, item: u64) -> Item {
        self.get(front_end, &format!("/lookup/{item}")).await.json().unwrap()
    }

    /// Buys one copy, once.
    pub(crate) async fn buy(
        &self,
        front_end: usize,
        item: u64,
        key: &str,
    ) -> Result<Answer, Failure> {
        let key: IdempotencyKey = key.parse().unwrap();
        let call = self.public_call(Method::POST, &format!("/buy/{item}")).with_key(&key);
        self.send(front_end, &call).await
    }

    /// Buys one copy as a good client does: asks again with the same key, at any front end, until
    /// the answer is certain.
    pub(crate) async fn buy_for_sure(&self, item: u64, key: &str) -> Answer {
        let trying = async {
            for turn in 0.. {
                match self.buy(turn % self.front_ends(), item, key).await {
                    Ok(answer) if !matches!(answer.status.as_u16(), 429 | 503 | 504) => {
                        return answer;
                    }
                    _ => tokio::time::sleep(Duration::from_millis(10)).await,
                }
            }
            unreachable!("the turns do not end")
        };
        tokio::time::timeout(PATIENCE, trying).await.expect("the buy is answered in time")
    }

    /// Buys one copy for sure and expects the order.
    pub(crate) async fn order(&self, item: u64, key: &str) -> Order {
        let answer = self.buy_for_sure(item, key).await;
        assert_eq!(answer.status, StatusCode::CREATED, "{:?}", answer.body);
        answer.json().unwrap()
    }

    /// What a server has logged.
    pub(crate) fn log(&self, name: &str) -> String {
        fs::read_to_string(self.data(name).join("log.txt")).unwrap_or_default()
    }

    /// The text log of updates of a replica, all its files, oldest first.
    pub(crate) fn requests_text(&self, name: &str) -> String {
        let mut files: Vec<_> = fs::read_dir(self.data(name))
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .filter(|path| path.file_name().unwrap().to_string_lossy().starts_with("requests"))
            .collect();
        // requests.2.txt before requests.1.txt before requests.txt
        files.sort_by_key(|path| std::cmp::Reverse(path.to_string_lossy().len()));
        files.sort();
        files.reverse();
        files.iter().map(|path| fs::read_to_string(path).unwrap()).collect()
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        if let Some(demo) = &mut self.demo {
            // Its servers end with it.
            let _ = demo.kill();
            let _ = demo.wait();
        }
        for server in self.servers.values_mut() {
            if let Some(child) = &mut server.child {
                let _ = child.kill();
                let _ = child.wait();
            }
        }
        if std::thread::panicking() {
            for said in ["demo-out.txt", "demo-err.txt"] {
                eprint!("{}", fs::read_to_string(self.dir().join(said)).unwrap_or_default());
            }
            for name in self.servers.keys() {
                let log = self.log(name);
                let tail: Vec<_> = log.lines().rev().take(15).collect();
                eprintln!("--- {name}");
                for line in tail.iter().rev() {
                    eprintln!("{line}");
                }
            }
        }
    }
}

const TIERS: [(&str, &str); 9] = [
    ("balancer-1", "balancer"),
    ("frontend-1", "frontend"),
    ("catalog-1", "catalog"),
    ("catalog-2", "catalog"),
    ("catalog-3", "catalog"),
    ("order-1", "order"),
    ("order-2", "order"),
    ("balancer-2", "balancer"),
    ("frontend-2", "frontend"),
];

/// Two of the seven books and one that is nearly sold out, which the tests buy.
fn books() -> Vec<Item> {
    let book = |number: u64, title: &str, topic: &str, stock: u64, cost: u64| Item {
        item_number: number.try_into().unwrap(),
        title: title.to_owned(),
        topic: topic.to_owned(),
        stock,
        cost,
    };
    vec![
        book(
            1,
            "How to get a good grade in 677 in 20 minutes a day.",
            "Distributed Systems",
            1500,
            2000,
        ),
        book(2, "RPCs for Dummies.", "Distributed Systems", 1500, 150_000),
        book(3, "Xen and the Art of Surviving Graduate School.", "Graduate School", 20, 1000),
    ]
}

/// The first of `count` ports in a row that are free. Below the range from which the system takes
/// the ports of outgoing connections, so that a server finds its port again after a restart.
pub(crate) fn free_ports(env: &Env, count: u16) -> u16 {
    for _ in 0..1000 {
        let base = 10_000 + (env.random.below(1000) * 20) as u16;
        let bound: Vec<_> =
            (base..base + count).map(|port| TcpListener::bind(("127.0.0.1", port))).collect();
        if bound.iter().all(Result::is_ok) {
            return base;
        }
    }
    panic!("no {count} free ports in a row");
}

/// Polls `condition` until it gives something.
pub(crate) async fn until<T>(what: &str, condition: impl AsyncFn() -> Option<T>) -> T {
    let polling = async {
        loop {
            if let Some(found) = condition().await {
                return found;
            }
            // Leaves the processor to the servers between two looks.
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    match tokio::time::timeout(PATIENCE, polling).await {
        Ok(found) => found,
        Err(_) => panic!("waited in vain: {what}"),
    }
}
