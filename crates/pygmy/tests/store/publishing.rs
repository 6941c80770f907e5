//! Imports whose publication goes wrong on its way: a line between the command and the store holds
//! or loses it.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::Notify,
};

use crate::{
    harness::{Layout, Store},
    items::{BEFORE, admin, counted, ended, file_of, run},
};

const COUNT: u64 = 30;
const REFUSAL: &[u8] = b"HTTP/1.1 409 Conflict\r\ncontent-length: 0\r\n\r\n";

/// What becomes of the request that publishes.
#[derive(Clone)]
enum Fate {
    /// It waits until it is let go.
    Held { came: Arc<Notify>, go: Arc<Notify> },
    /// It gets no answer, whether the store hears of it or not; if it is repeated, it is refused.
    Lost { heard: bool, repeated: Arc<AtomicBool> },
}

/// A line to the balancer at `store`; gives its address.
async fn line(store: &str, fate: Fate) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let host = store.trim_start_matches("http://").to_owned();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(carry(stream, host.clone(), fate.clone()));
        }
    });
    format!("http://{address}/balancer")
}

async fn carry(mut client: TcpStream, host: String, fate: Fate) {
    let mut store = TcpStream::connect(host).await.unwrap();
    let (mut asked, mut said) = (vec![0; 1 << 16], vec![0; 1 << 16]);
    let mut is_lost = false;
    loop {
        tokio::select! {
            read = client.read(&mut asked) => {
                let Ok(bytes @ 1..) = read else { return };
                if asked[..bytes].windows(8).any(|window| window == b"/publish") {
                    match &fate {
                        Fate::Held { came, go } => {
                            came.notify_one();
                            go.notified().await;
                        }
                        Fate::Lost { repeated, .. } if repeated.swap(true, Ordering::Relaxed) => {
                            return client.write_all(REFUSAL).await.unwrap();
                        }
                        Fate::Lost { heard: false, .. } => return,
                        Fate::Lost { heard: true, .. } => is_lost = true,
                    }
                }
                store.write_all(&asked[..bytes]).await.unwrap();
            }
            read = store.read(&mut said) => {
                let Ok(bytes @ 1..) = read else { return };
                if is_lost {
                    return;
                }
                client.write_all(&said[..bytes]).await.unwrap();
            }
        }
    }
}

/// `pygmy admin import` of `file` over such a line.
async fn import_over(store: &Store, fate: Fate, file: &str) -> std::process::Child {
    let url = line(&store.url("node-1"), fate).await;
    let secret = store.dir().join("secret");
    let mut command = admin(store, &["--balancer", &url, "--secret-file"]);
    command.arg(secret).args(["import", file]).spawn().unwrap()
}

#[tokio::test]
async fn an_import_that_may_be_on_sale_is_said_to_be_and_the_same_command_tells() {
    for heard in [true, false] {
        let store = Store::start(Layout::Nodes).await;
        let file = file_of(store.dir(), COUNT).to_str().unwrap().to_owned();
        let fate = Fate::Lost { heard, repeated: Arc::default() };
        let output = ended(import_over(&store, fate, &file).await).await;
        let error = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(3), "{error}");
        assert!(error.contains("the items may be on sale, all of them or none"), "{error}");
        assert!(!error.contains("--discard"), "{error}");
        assert_eq!(counted(&store, 0).await, if heard { BEFORE + COUNT } else { BEFORE });

        let (code, told, error) = run(&store, &["import", &file]).await;
        assert_eq!(code, 0, "{error}");
        let expected = if heard { "this file was imported before" } else { "30 items in 3 topics" };
        assert!(told.starts_with(expected), "{told}");
        assert_eq!(counted(&store, 0).await, BEFORE + COUNT);
    }
}

#[tokio::test]
async fn who_interrupts_an_import_while_it_is_published_sees_it_published() {
    let store = Store::start(Layout::Nodes).await;
    let file = file_of(store.dir(), COUNT).to_str().unwrap().to_owned();
    let (came, go) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let fate = Fate::Held { came: Arc::clone(&came), go: Arc::clone(&go) };
    let mut child = import_over(&store, fate, &file).await;
    came.notified().await;
    crate::demo::signal(&child, rustix::process::Signal::INT);
    // It has heard the signal when it says so.
    let mut stderr = child.stderr.take().unwrap();
    let said = tokio::task::spawn_blocking(move || {
        let mut said = [0; 200];
        let bytes = std::io::Read::read(&mut stderr, &mut said).unwrap();
        (String::from_utf8_lossy(&said[..bytes]).into_owned(), stderr)
    });
    let (said, _stderr) = said.await.unwrap();
    assert!(said.contains("being put on sale, which is not interrupted"), "{said}");
    go.notify_one();
    let output = ended(child).await;
    assert_eq!(output.status.code(), Some(0));
    let told = String::from_utf8(output.stdout).unwrap();
    assert!(told.starts_with("30 items in 3 topics are on sale after"), "{told}");
    assert_eq!(counted(&store, 0).await, BEFORE + COUNT);
}

#[tokio::test]
async fn a_file_whose_import_was_discarded_can_be_imported() {
    let store = Store::start(Layout::Nodes).await;
    let file = file_of(store.dir(), COUNT).to_str().unwrap().to_owned();
    let fate = Fate::Lost { heard: false, repeated: Arc::default() };
    ended(import_over(&store, fate, &file).await).await;
    let (_, listed, _) = run(&store, &["import", "--unfinished", "--json"]).await;
    let listed: serde_json::Value = serde_json::from_str(&listed).unwrap();
    let name = listed[0]["id"].as_str().unwrap();
    let (code, _, error) = run(&store, &["import", "--discard", name]).await;
    assert_eq!(code, 0, "{error}");
    for expected in ["30 items in 3 topics are on sale", "this file was imported before"] {
        let (code, told, error) = run(&store, &["import", &file]).await;
        assert_eq!(code, 0, "{error}");
        assert!(told.starts_with(expected), "{told}");
    }
    assert_eq!(counted(&store, 0).await, BEFORE + COUNT);
}
