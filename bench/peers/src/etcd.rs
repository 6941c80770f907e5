//! Sales in etcd: compare-and-swap of an item's stock, and the order, in one transaction.
//!
//! A buyer reads the stock from the leader's memory (a serializable read: the swap checks it), then
//! swaps it. A swap that fails gives the stock as it is now, so that the next try needs no read:
//! all in etcd's favour. The messages are the few of etcd's `rpc.proto` that this takes, with the
//! fields that it uses; the others keep their defaults.

use std::{net::SocketAddr, time::Duration};

use anyhow::{Context, bail, ensure};
use http::uri::PathAndQuery;
use prost::Message;
use serde_json::Value;
use tonic::{
    Request,
    client::Grpc,
    transport::{Channel, Endpoint},
};
use tonic_prost::ProstCodec;

use crate::load::{Buyer, Load, drive};

const RANGE: PathAndQuery = PathAndQuery::from_static("/etcdserverpb.KV/Range");
const TXN: PathAndQuery = PathAndQuery::from_static("/etcdserverpb.KV/Txn");
/// Fewer than the `max-txn-ops` of a server.
const PUTS_MAX: u32 = 100;
/// Buyers that share a connection, as the threads of one client process do.
const BUYERS_PER_CHANNEL: u32 = 16;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Of `Compare.target`.
const CREATE_REVISION: i32 = 1;
const MOD_REVISION: i32 = 2;

#[derive(Clone, PartialEq, Message)]
struct RangeRequest {
    #[prost(bytes = "vec", tag = "1")]
    key: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    range_end: Vec<u8>,
    #[prost(bool, tag = "7")]
    serializable: bool,
}

#[derive(Clone, PartialEq, Message)]
struct RangeResponse {
    #[prost(message, repeated, tag = "2")]
    kvs: Vec<KeyValue>,
}

#[derive(Clone, PartialEq, Message)]
struct KeyValue {
    #[prost(int64, tag = "3")]
    mod_revision: i64,
    #[prost(bytes = "vec", tag = "5")]
    value: Vec<u8>,
}

#[derive(Clone, PartialEq, Message)]
struct PutRequest {
    #[prost(bytes = "vec", tag = "1")]
    key: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    value: Vec<u8>,
}

/// Holds if the revision is equal.
#[derive(Clone, PartialEq, Message)]
struct Compare {
    #[prost(int32, tag = "2")]
    target: i32,
    #[prost(bytes = "vec", tag = "3")]
    key: Vec<u8>,
    #[prost(int64, optional, tag = "5")]
    create_revision: Option<i64>,
    #[prost(int64, optional, tag = "6")]
    mod_revision: Option<i64>,
}

/// One of the two.
#[derive(Clone, PartialEq, Message)]
struct RequestOp {
    #[prost(message, optional, tag = "1")]
    range: Option<RangeRequest>,
    #[prost(message, optional, tag = "2")]
    put: Option<PutRequest>,
}

#[derive(Clone, PartialEq, Message)]
struct TxnRequest {
    #[prost(message, repeated, tag = "1")]
    compare: Vec<Compare>,
    #[prost(message, repeated, tag = "2")]
    success: Vec<RequestOp>,
    #[prost(message, repeated, tag = "3")]
    failure: Vec<RequestOp>,
}

#[derive(Clone, PartialEq, Message)]
struct ResponseOp {
    #[prost(message, optional, tag = "1")]
    range: Option<RangeResponse>,
}

#[derive(Clone, PartialEq, Message)]
struct TxnResponse {
    #[prost(bool, tag = "2")]
    succeeded: bool,
    #[prost(message, repeated, tag = "3")]
    responses: Vec<ResponseOp>,
}

/// Buys from items of its own, which stay.
pub(crate) async fn run(address: SocketAddr, load: &Load) -> anyhow::Result<Value> {
    let endpoint = Endpoint::from_shared(format!("http://{address}"))?
        .connect_timeout(CONNECT_TIMEOUT)
        .tcp_nodelay(true);
    let topic = format!("{:016x}", fastrand::u64(..));
    let mut client = Client::open(&endpoint).await?;
    client.make_items(&topic, load).await?;
    let mut buyers = Vec::new();
    for number in 0..load.connections {
        if number % BUYERS_PER_CHANNEL == 0 {
            client = Client::open(&endpoint).await?;
        }
        buyers.push(EtcdBuyer { client: client.clone(), topic: topic.clone() });
    }
    let outcome = drive(buyers, load).await?;
    let left = client.count_stock(&topic).await?;
    outcome.checked(load, left)
}

struct EtcdBuyer {
    client: Client,
    topic: String,
}

impl Buyer for EtcdBuyer {
    async fn buy(&mut self, item: u32, key: &str) -> anyhow::Result<u64> {
        let item = item_key(&self.topic, item);
        let mut now = self.client.read(&item).await?;
        let mut retries = 0;
        loop {
            let swap = sale(&item, format!("order/{key}").into_bytes(), &now)?;
            let TxnResponse { succeeded, responses } = self.client.call(TXN, swap).await?;
            if succeeded {
                return Ok(retries);
            }
            let seen = responses.into_iter().find_map(|op| op.range?.kvs.into_iter().next());
            let seen = seen.context("an item is gone")?;
            ensure!(seen.mod_revision != now.mod_revision, "the key {key} is known");
            now = seen;
            retries += 1;
        }
    }
}

/// Takes one copy of `item`, whose stock was read as `now`, if neither that nor the order has
/// changed since.
fn sale(item: &[u8], order: Vec<u8>, now: &KeyValue) -> anyhow::Result<TxnRequest> {
    let left = match stock_of(now)? {
        0 => bail!("sold out"),
        stock => (stock - 1).to_string(),
    };
    let unchanged = Compare {
        target: MOD_REVISION,
        key: item.to_vec(),
        mod_revision: Some(now.mod_revision),
        create_revision: None,
    };
    let no_order = Compare {
        target: CREATE_REVISION,
        key: order.clone(),
        create_revision: Some(0),
        mod_revision: None,
    };
    Ok(TxnRequest {
        compare: vec![unchanged, no_order],
        success: vec![put(item.to_vec(), left), put(order, "1 2000".to_owned())],
        failure: vec![RequestOp { range: Some(read_request(item)), put: None }],
    })
}

fn put(key: Vec<u8>, value: String) -> RequestOp {
    RequestOp { range: None, put: Some(PutRequest { key, value: value.into_bytes() }) }
}

fn read_request(key: &[u8]) -> RangeRequest {
    RangeRequest { key: key.to_vec(), range_end: Vec::new(), serializable: true }
}

fn item_key(topic: &str, item: u32) -> Vec<u8> {
    format!("{topic}/{item}").into_bytes()
}

fn stock_of(item: &KeyValue) -> anyhow::Result<u64> {
    Ok(std::str::from_utf8(&item.value)?.parse()?)
}

#[derive(Clone)]
struct Client(Grpc<Channel>);

impl Client {
    async fn open(endpoint: &Endpoint) -> anyhow::Result<Client> {
        Ok(Client(Grpc::new(endpoint.connect().await.context("cannot reach etcd")?)))
    }

    async fn call<Q, A>(&mut self, path: PathAndQuery, request: Q) -> anyhow::Result<A>
    where
        Q: Message + 'static,
        A: Message + Default + 'static,
    {
        self.0.ready().await?;
        let codec = ProstCodec::<Q, A>::default();
        Ok(self.0.unary(Request::new(request), path, codec).await?.into_inner())
    }

    async fn read(&mut self, item: &[u8]) -> anyhow::Result<KeyValue> {
        let answer: RangeResponse = self.call(RANGE, read_request(item)).await?;
        answer.kvs.into_iter().next().context("an item is missing")
    }

    async fn make_items(&mut self, topic: &str, load: &Load) -> anyhow::Result<()> {
        for first in (0..load.items).step_by(PUTS_MAX as usize) {
            let last = load.items.min(first + PUTS_MAX);
            let items = (first..last).map(|n| put(item_key(topic, n), load.stock.to_string()));
            let request = TxnRequest { success: items.collect(), ..TxnRequest::default() };
            let _: TxnResponse = self.call(TXN, request).await?;
        }
        Ok(())
    }

    async fn count_stock(&mut self, topic: &str) -> anyhow::Result<u64> {
        let (key, range_end) = (format!("{topic}/").into(), format!("{topic}0").into());
        let request = RangeRequest { key, range_end, serializable: false };
        let answer: RangeResponse = self.call(RANGE, request).await?;
        answer.kvs.iter().map(stock_of).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sale_takes_one_copy_and_needs_one() {
        let now = KeyValue { mod_revision: 7, value: b"3".to_vec() };
        let sale = sale(b"item", b"order".to_vec(), &now).unwrap();
        assert_eq!(sale.success[0].put.as_ref().unwrap().value, b"2");
        // The zero is on the wire, or etcd would compare with nothing.
        assert!(sale.compare[1].encode_to_vec().ends_with(&[0x28, 0]));
        let none = KeyValue { mod_revision: 7, value: b"0".to_vec() };
        super::sale(b"item", b"order".to_vec(), &none).unwrap_err();
    }
}
