//! `pygmy demo`, as a person runs it.

use std::{
    fs,
    net::{TcpListener, TcpStream},
    path::Path,
    process::{Child, Command, Output, Stdio},
};

use pygmy_protocol::Env;

use crate::{
    harness::{PYGMY, free_ports, until},
    items::file_of,
};

fn demo(dir: &Path, base_port: u16, more: &[&str]) -> Command {
    let mut command = Command::new(PYGMY);
    command
        .arg("demo")
        .arg("--dir")
        .arg(dir)
        .args(["--base-port", &base_port.to_string()])
        .args(more);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Process ids of all servers whose configuration is in `dir`.
pub(crate) fn servers_of(dir: &Path) -> Vec<u32> {
    processes_with(dir, "\0serve\0")
}

/// The process id of one of them.
pub(crate) fn process_of(dir: &Path, server: &str) -> Option<u32> {
    processes_with(dir, &format!("\0--name\0{server}\0")).pop()
}

fn processes_with(dir: &Path, argument: &str) -> Vec<u32> {
    let config = dir.join("pygmy.toml").to_string_lossy().into_owned();
    let processes = fs::read_dir("/proc").unwrap().filter_map(|entry| {
        let id: u32 = entry.ok()?.file_name().to_str()?.parse().ok()?;
        let arguments = fs::read_to_string(format!("/proc/{id}/cmdline")).ok()?;
        (arguments.contains(argument) && arguments.contains(&config)).then_some(id)
    });
    processes.collect()
}

pub(crate) fn signal(child: &Child, signal: rustix::process::Signal) {
    rustix::process::kill_process(rustix::process::Pid::from_child(child), signal).unwrap();
}

pub(crate) async fn ended(mut child: Child) -> Output {
    // Its pipes hold more than it prints, so it never waits for us.
    let cell = std::cell::RefCell::new(&mut child);
    until("the demo ends", async || cell.borrow_mut().try_wait().unwrap()).await;
    child.wait_with_output().unwrap()
}

#[tokio::test]
async fn the_demo_sells_a_book_and_leaves_nothing_behind() {
    for (layout, count, signal_kind) in
        [("tiers", 9, rustix::process::Signal::INT), ("nodes", 3, rustix::process::Signal::TERM)]
    {
        let dir = tempfile::tempdir().unwrap();
        let dir = fs::canonicalize(dir.path()).unwrap();
        let base = free_ports(&Env::production(), 20);
        let child = demo(&dir, base, &["--client", "--layout", layout]).spawn().unwrap();
        until("the test cases are written", async || {
            let tests = fs::read_to_string(dir.join("tests.txt")).ok()?;
            tests.contains("passed").then_some(())
        })
        .await;
        assert_eq!(servers_of(&dir).len(), count);
        signal(&child, signal_kind);
        let output = ended(child).await;
        let printed = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{printed}");
        assert_eq!(servers_of(&dir), Vec::<u32>::new());
        assert!(TcpStream::connect(("127.0.0.1", base + 1)).is_err(), "its ports are free again");

        let tests = fs::read_to_string(dir.join("tests.txt")).unwrap();
        assert!(tests.contains("PASS") && !tests.contains("FAIL"), "{tests}");
        let client = fs::read_to_string(dir.join("ClientOutput.txt")).unwrap();
        assert!(
            client.contains("/buy/") && client.contains("/lookup/") && client.contains("/search/")
        );
        for shown in [" search ", " buy ", " admin status"] {
            assert!(printed.contains(shown), "it shows what to try: {printed}");
        }
    }
}

#[tokio::test]
async fn a_killed_demo_leaves_nothing_behind_and_its_data_stays() {
    let dir = tempfile::tempdir().unwrap();
    let dir = fs::canonicalize(dir.path()).unwrap();
    let base = free_ports(&Env::production(), 20);
    for round in 0..2 {
        let child = demo(&dir, base, &["--layout", "nodes"]).spawn().unwrap();
        let url = format!("http://127.0.0.1:{}", base + 1);
        let order = (round + 1).to_string();
        until("a book is bought", async || {
            let bought = Command::new(PYGMY)
                .args(["buy", "2", "--server", &url, "--json"])
                .output()
                .unwrap();
            bought.status.success().then_some(())
        })
        .await;
        let found = Command::new(PYGMY)
            .args(["order", &order, "--server", &url, "--json"])
            .output()
            .unwrap();
        assert!(found.status.success(), "orders count on over a restart");
        signal(&child, rustix::process::Signal::KILL);
        ended(child).await;
        until("the servers have followed", async || servers_of(&dir).is_empty().then_some(()))
            .await;
    }
}

/// Kills all servers of a demo and gives what it says then.
async fn killed_at_once(dir: &Path, child: Child) -> String {
    for server in servers_of(dir) {
        let server = rustix::process::Pid::from_raw(server.cast_signed()).unwrap();
        rustix::process::kill_process(server, rustix::process::Signal::KILL).unwrap();
    }
    let output = ended(child).await;
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{error}");
    assert!(error.contains("SIGKILL"), "{error}");
    error
}

#[tokio::test]
async fn a_demo_ends_when_no_server_is_left_to_start_another() {
    let dir = tempfile::tempdir().unwrap();
    let dir = fs::canonicalize(dir.path()).unwrap();
    let base = free_ports(&Env::production(), 20);
    let up = async || dir.join("bootstrapped").exists().then_some(());
    let child = demo(&dir, base, &["--layout", "nodes"]).spawn().unwrap();
    until("the store is up", up).await;
    let error = killed_at_once(&dir, child).await;
    assert!(error.contains("no server is left"), "{error}");
    // Without [respawn], as demos were written before: who dies is named with the way to start it.
    let config = fs::read_to_string(dir.join("pygmy.toml")).unwrap();
    let servers = &config[config.find("[[server]]").unwrap()..];
    fs::write(dir.join("pygmy.toml"), servers).unwrap();
    let child = demo(&dir, base, &["--layout", "nodes"]).spawn().unwrap();
    until("the servers run", async || (servers_of(&dir).len() == 3).then_some(())).await;
    let error = killed_at_once(&dir, child).await;
    assert!(error.contains("serve all --name node-") && error.contains("pygmy.toml"), "{error}");
}

#[tokio::test]
async fn chaos_says_whom_it_strikes_and_they_come_back() {
    let dir = tempfile::tempdir().unwrap();
    let dir = fs::canonicalize(dir.path()).unwrap();
    let base = free_ports(&Env::production(), 20);
    let said = dir.join("said.txt");
    let mut command = demo(&dir, base, &["--layout", "nodes", "--chaos"]);
    // A server that hangs is ended soon.
    command.env("PYGMY_RESPAWN_AFTER_MS", "500");
    let child = command.stderr(fs::File::create(&said).unwrap()).spawn().unwrap();
    until("two servers were struck and came back", async || {
        let said = fs::read_to_string(&said).ok()?;
        let (struck, back) =
            (said.matches("chaos: node-").count(), said.matches(" is back").count());
        (struck >= 2 && back >= 2).then_some(())
    })
    .await;
    signal(&child, rustix::process::Signal::INT);
    assert!(ended(child).await.status.success());
    let said = fs::read_to_string(&said).unwrap();
    assert!(said.contains("servers were killed, "), "{said}");
    assert_eq!(servers_of(&dir), Vec::<u32>::new());
}

#[tokio::test]
async fn a_demo_that_was_broken_off_while_it_loaded_its_items_goes_on() {
    const COUNT: u64 = 20_000;
    let dir = tempfile::tempdir().unwrap();
    let dir = fs::canonicalize(dir.path()).unwrap();
    let base = free_ports(&Env::production(), 20);
    let file = file_of(&dir, COUNT);
    let with_items = ["--items", file.to_str().unwrap()];
    let (done, loading) = (dir.join("bootstrapped"), dir.join("loading"));
    let admin = async |arguments: &[&str]| {
        let mut command = Command::new(PYGMY);
        command.args(["admin", "--config"]).arg(dir.join("pygmy.toml")).args(arguments);
        let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
        String::from_utf8(output.stdout).unwrap()
    };

    let nodes_and_items = [&["--layout", "nodes"], &with_items[..]].concat();
    let child = demo(&dir, base, &nodes_and_items).spawn().unwrap();
    until("it loads", async || {
        let listed = admin(&["import", "--unfinished", "--json"]).await;
        // On a fast machine it may be over before that is seen.
        (listed.contains("items") || done.exists()).then_some(())
    })
    .await;
    signal(&child, rustix::process::Signal::INT);
    assert!(ended(child).await.status.success());
    assert!(loading.exists() != done.exists());

    // Without a word of the file; as if it had ended just before the marker was written; and as if
    // nothing were known of the file.
    for (more, is_recorded) in [(&[][..], true), (&with_items, true), (&[], true), (&[], false)] {
        let _ = fs::remove_file(&done);
        if is_recorded {
            fs::write(&loading, file.to_str().unwrap()).unwrap();
        }
        let child = demo(&dir, base, &[&["--layout", "nodes"], more].concat()).spawn().unwrap();
        until("it has its items", async || done.exists().then_some(())).await;
        assert!(admin(&["export"]).await.lines().count() as u64 == 1 + COUNT, "and no others");
        signal(&child, rustix::process::Signal::INT);
        let output = ended(child).await;
        let error = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success(), "{error}");
        assert!(!loading.exists());
    }
}

#[tokio::test]
async fn a_taken_port_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let base = free_ports(&Env::production(), 20);
    let _taken = TcpListener::bind(("127.0.0.1", base + 3)).unwrap();
    let output = demo(dir.path(), base, &[]).output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{error}");
    assert!(error.contains(&(base + 3).to_string()), "{error}");
    assert!(error.contains("catalog-2"), "and who wants it: {error}");
    assert!(error.contains("--base-port"), "and what to do: {error}");
    assert_eq!(servers_of(dir.path()), Vec::<u32>::new());
    assert!(!dir.path().join("pygmy.toml").exists(), "the directory takes other ports still");
}
