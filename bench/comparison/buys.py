"""Stores that sell: each is started afresh, three servers of it, and sells under every load.

A store is a context manager that gives a function: a load in, what `pygmy-peers` prints out
(`done`, `perSecond`, `p50Ms`, `p99Ms`). Only sales that add up with the stock count: a store whose
stock does not is a Failure. Every server is on loopback, with a directory of its own on the same
disk, and fsync as it should be.
"""

import json
from contextlib import contextmanager
from dataclasses import dataclass

from .programs import PEERS, PYGMY, need
from .stage import Failure, Stage, free_ports, run

COPIES = 1_000_000
# On top of what a measurement takes by itself.
GRACE_S = 60


@dataclass(frozen=True)
class Load:
    """Buyers that each buy one copy after another, of items equally wanted."""

    clients: int
    items: int
    seconds: int
    warm_up: int

    def limit_s(self):
        """How long it may take."""
        return self.seconds + self.warm_up + GRACE_S

    def flags(self):
        """As `pygmy bench` and `pygmy-peers` take it."""
        return ["--connections", self.clients, "--items", self.items, "--stock", COPIES,
                "--seconds", self.seconds, "--warm-up", self.warm_up]


@contextmanager
def pygmy(parent, layout, settings=()):
    """Pygmy's demo, with `settings` as NAME=VALUE; gives the path of its configuration and its
    first port."""
    with Stage(parent, f"pygmy-{layout}") as stage:
        port = free_ports(14)
        data = stage.directory / "data"
        stage.start("demo", ["env", *settings, PYGMY, "demo", "--layout", layout, "--base-port", port,
                             "--dir", data])
        log = stage.processes[0].log
        stage.wait_until("the start of Pygmy", lambda: "the store is ready" in log.read_text(), 90)
        yield data / "pygmy.toml", port


@contextmanager
def pygmy_store(parent, layout):
    """Pygmy, through all its front ends."""
    with pygmy(parent, layout) as (config, _):

        def sell(load):
            report = json.loads(run([PYGMY, "bench", "--mix", "buy=1", "--json", "--config",
                                     config, *load.flags()], load.limit_s()))
            return pygmy_sales(report)

        yield sell


def pygmy_sales(report):
    """What `pygmy bench` says about buys, in the words of `pygmy-peers`."""
    buys = report["requests"]["buy"]
    if buys["failed"]:
        raise Failure(f"{buys['failed']} buys failed: {buys['failures']}")
    latency = buys["latencyMs"]
    return {"done": buys["done"], "perSecond": buys["donePerSecond"],
            "p50Ms": latency["p50"], "p99Ms": latency["p99"]}


@contextmanager
def redis_store(parent):
    """A primary and two replicas, each with its append-only file fsynced after every write."""
    server, cli = need("redis-server"), need("redis-cli")
    with Stage(parent, "redis") as stage:
        first = free_ports(3)
        for port in range(first, first + 3):
            replica = ["--replicaof", "127.0.0.1", first] if port != first else []
            stage.start(f"redis-{port}", [
                server, "--port", port, "--bind", "127.0.0.1",
                "--dir", stage.own_directory(f"{port}"), "--appendonly", "yes",
                "--appendfsync", "always", "--save", "", "--auto-aof-rewrite-percentage", 0,
                "--repl-diskless-sync-delay", 0, *replica])

        def replicas_online():
            info = run([cli, "-p", first, "info", "replication"])
            return info.count("state=online") == 2

        stage.wait_until("the start of Redis", replicas_online)
        address = f"127.0.0.1:{first}"
        yield lambda load: json.loads(
            run([PEERS, "redis", "--address", address, *load.flags()], load.limit_s()))


@contextmanager
def etcd_store(parent):
    """Three members; the buyers talk to the leader."""
    server, cli = need("etcd"), need("etcdctl")
    with Stage(parent, "etcd") as stage:
        first = free_ports(6)
        urls = [(f"http://127.0.0.1:{first + n}", f"http://127.0.0.1:{first + 3 + n}")
                for n in range(3)]
        cluster = ",".join(f"m{n}={peer}" for n, (_, peer) in enumerate(urls))
        for n, (client, peer) in enumerate(urls):
            stage.start(f"m{n}", [
                server, "--name", f"m{n}", "--data-dir", stage.own_directory(f"m{n}"),
                "--listen-client-urls", client, "--advertise-client-urls", client,
                "--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer,
                "--initial-cluster", cluster, "--initial-cluster-state", "new",
                "--quota-backend-bytes", 8 << 30])

        def leader():
            endpoints = ",".join(client for client, _ in urls)
            said = json.loads(run([cli, "--endpoints", endpoints, "endpoint", "status",
                                   "-w", "json"]))
            leading = [each["Endpoint"] for each in said
                       if each["Status"]["leader"] == each["Status"]["header"]["member_id"]]
            return leading[0] if len(said) == 3 and leading else None

        address = stage.wait_until("the start of etcd", leader).removeprefix("http://")
        yield lambda load: json.loads(
            run([PEERS, "etcd", "--address", address, *load.flags()], load.limit_s()))
