//! Sales in Redis: a script that decrements and notes the order, then WAIT for a replica.
//!
//! With `appendfsync always` the primary answers after its fsync. WAIT is answered when a replica
//! has the data in memory, and says nothing about that replica's fsync: weaker than what Pygmy
//! promises, and in Redis's favour.

use std::net::SocketAddr;

use anyhow::{Context, bail, ensure};
use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::TcpStream,
};

use crate::load::{Buyer, Load, drive};

/// Once per key, never below zero. Gives what is left; -1: sold out; -2: the key is known.
const SELL: &str = "\
if redis.call('EXISTS', KEYS[2]) == 1 then return -2 end
local stock = tonumber(redis.call('GET', KEYS[1]))
if not stock or stock < 1 then return -1 end
redis.call('SET', KEYS[2], ARGV[1])
return redis.call('DECR', KEYS[1])";
const MAKE_ITEMS: &str =
    "for i = 0, ARGV[1] - 1 do redis.call('SET', 'item:' .. i, ARGV[2]) end return 0";
const COUNT_STOCK: &str = "\
local sum = 0
for i = 0, ARGV[1] - 1 do sum = sum + redis.call('GET', 'item:' .. i) end
return sum";
/// Longest wait for a replica.
const WAIT_MS: &str = "5000";
/// No answer that is wanted here is longer.
const BULK_BYTES_MAX: usize = 1024;

/// Buys from an empty Redis, and empties it again.
pub(crate) async fn run(address: SocketAddr, load: &Load) -> anyhow::Result<Value> {
    let mut setup = Connection::open(address).await?;
    let (items, stock) = (load.items.to_string(), load.stock.to_string());
    setup.integer(&["EVAL", MAKE_ITEMS, "0", &items, &stock]).await?;
    let sell: String = setup.text(&["SCRIPT", "LOAD", SELL]).await?;
    let mut buyers = Vec::new();
    for _ in 0..load.connections {
        let connection = Connection::open(address).await?;
        buyers.push(RedisBuyer { connection, sell: sell.clone(), request: Vec::new() });
    }
    let outcome = drive(buyers, load).await?;
    let left = setup.integer(&["EVAL", COUNT_STOCK, "0", &items]).await?;
    setup.text(&["FLUSHALL", "SYNC"]).await?;
    outcome.checked(load, u64::try_from(left)?)
}

struct RedisBuyer {
    connection: Connection,
    /// The script's name.
    sell: String,
    request: Vec<u8>,
}

impl Buyer for RedisBuyer {
    async fn buy(&mut self, item: u32, key: &str) -> anyhow::Result<u64> {
        let (stock, order) = (format!("item:{item}"), format!("order:{key}"));
        let what = format!("{item} 1 2000");
        self.request.clear();
        encode(&mut self.request, &["EVALSHA", &self.sell, "2", &stock, &order, &what]);
        encode(&mut self.request, &["WAIT", "1", WAIT_MS]);
        self.connection.stream.write_all(&self.request).await?;
        let left = self.connection.read_integer().await?;
        let replicas = self.connection.read_integer().await?;
        ensure!(left >= 0, "no sale of item {item}: {left}");
        ensure!(replicas >= 1, "no replica has the sale");
        Ok(0)
    }
}

struct Connection {
    stream: BufReader<TcpStream>,
    line: Vec<u8>,
}

impl Connection {
    async fn open(address: SocketAddr) -> anyhow::Result<Connection> {
        let stream = TcpStream::connect(address).await.context("cannot reach Redis")?;
        stream.set_nodelay(true)?;
        Ok(Connection { stream: BufReader::new(stream), line: Vec::new() })
    }

    async fn send(&mut self, arguments: &[&str]) -> anyhow::Result<()> {
        let mut request = Vec::new();
        encode(&mut request, arguments);
        Ok(self.stream.write_all(&request).await?)
    }

    async fn integer(&mut self, arguments: &[&str]) -> anyhow::Result<i64> {
        self.send(arguments).await?;
        self.read_integer().await
    }

    /// A simple or a bulk string.
    async fn text(&mut self, arguments: &[&str]) -> anyhow::Result<String> {
        self.send(arguments).await?;
        let (kind, text) = self.read_line().await?;
        let text = text.to_owned();
        if kind == b'+' {
            return Ok(text);
        }
        ensure!(kind == b'$', "a text was expected, not {text}");
        let length: usize = text.parse()?;
        ensure!(length <= BULK_BYTES_MAX, "an answer of {length} bytes");
        let mut bytes = vec![0; length + 2];
        self.stream.read_exact(&mut bytes).await?;
        bytes.truncate(length);
        Ok(String::from_utf8(bytes)?)
    }

    async fn read_integer(&mut self) -> anyhow::Result<i64> {
        match self.read_line().await? {
            (b':', number) => Ok(number.parse()?),
            (_, text) => bail!("a number was expected, not {text}"),
        }
    }

    /// The first line of an answer without its end: its kind, and what it says. An error is one.
    async fn read_line(&mut self) -> anyhow::Result<(u8, &str)> {
        self.line.clear();
        self.stream.read_until(b'\n', &mut self.line).await?;
        let line = self.line.strip_suffix(b"\r\n").context("Redis closed the connection")?;
        let (kind, text) = line.split_first().context("an empty line from Redis")?;
        let text = std::str::from_utf8(text)?;
        ensure!(*kind != b'-', "Redis: {text}");
        Ok((*kind, text))
    }
}

/// Adds a command in RESP (<https://redis.io/docs/latest/develop/reference/protocol-spec/>).
fn encode(request: &mut Vec<u8>, arguments: &[&str]) {
    request.extend_from_slice(format!("*{}\r\n", arguments.len()).as_bytes());
    for argument in arguments {
        request.extend_from_slice(format!("${}\r\n{argument}\r\n", argument.len()).as_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_encoded() {
        let mut request = Vec::new();
        encode(&mut request, &["WAIT", "1"]);
        assert_eq!(request, b"*2\r\n$4\r\nWAIT\r\n$1\r\n1\r\n");
    }
}
