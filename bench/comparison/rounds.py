"""The rounds: in each, everything is measured once, one after the other.

So what drifts on the machine (its neighbours, its disk, its temperature) hits all alike, and a
ratio is taken within a round.
"""

import json

from . import results
from .buys import COPIES, GRACE_S, Load, etcd_store, pygmy_store, redis_store
from .postgres import postgres_store
from .programs import PYGMY
from .stage import Failure, Stage, say
from .web import ask, axum_site, balancer_site, haproxy_site, nginx_site, pygmy_site

PARTS = ("buys", "lookups", "balancer")
PROGRAMS = {
    "buys": ["redis-server", "redis-cli", "postgres", "pgbench", "etcd", "etcdctl"],
    "lookups": ["nginx", "wrk"],
    "balancer": ["haproxy", "nginx", "wrk"],
}
STORES = {
    results.PYGMY: lambda parent: pygmy_store(parent, "nodes"),
    results.TIERS: lambda parent: pygmy_store(parent, "tiers"),
    "Redis": redis_store,
    "PostgreSQL": postgres_store,
    "etcd": etcd_store,
}
SITES = {results.PYGMY: pygmy_site, "axum, a constant": axum_site, "nginx, a constant": nginx_site}
BALANCERS = {results.PYGMY: balancer_site, "HAProxy": haproxy_site, "nginx": nginx_site}
# Buyers and items.
LOADS = ((1, 7), (64, 7), (64, 10_000), (256, 7))
CONNECTIONS = (1, 64)
BUYS_PER_SECOND = 10_000
BUYING_CONNECTIONS = 64
WARM_UP_S = 2
# Longer than wrk takes, so that all its time is among buys.
MORE_BUYING_S = 4
HOT_ITEMS = 7
# One that Pygmy's balancer passes on to a catalog server.
BALANCED_PATH = "/query/1"
# What a server or a generator may come to, or print.
UNEXPECTED = (Failure, OSError, ValueError, KeyError)


class Comparison:
    """What has been measured so far."""

    def __init__(self, directory, seconds, rounds):
        self.directory, self.seconds, self.rounds = directory, seconds, rounds
        self.warm_up = min(WARM_UP_S, seconds)
        self.runs = []
        self.left_out = []

    def round(self, number, parts):
        """Measures all `parts` once."""
        for part in parts:
            getattr(self, part)(number)

    def note(self, number, measure, subject, value, found):
        """Keeps what was found."""
        self.runs.append({"round": number, "measure": measure, "subject": subject,
                          "value": value, "found": found})

    def each(self, number, part, subjects, measure):
        """Lets `measure` have every subject. One that cannot be measured is left out."""
        for subject, start in subjects.items():
            say(f"round {number} of {self.rounds}, {part}: {subject}")
            try:
                with start(self.directory) as running:
                    measure(subject, running)
            except UNEXPECTED as failure:
                self.leave_out(number, part, subject, failure)

    def leave_out(self, number, part, subject, failure):
        """Keeps why something was not measured."""
        say(f"{subject} is left out: {failure}")
        self.left_out.append({"round": number, "part": part, "subject": subject,
                              "why": str(failure)})

    def buys(self, number):
        """Every store, under every load."""

        def measure(subject, sell):
            for clients, items in LOADS:
                found = sell(Load(clients, items, self.seconds, self.warm_up))
                say(f"  {clients} clients, {items} items: {found['perSecond']:,.0f}/s, "
                    f"p50 {found['p50Ms']:.3g} ms, p99 {found['p99Ms']:.3g} ms")
                if clients == 1:
                    self.note(number, "buy-1-p50", subject, found["p50Ms"], found)
                    self.note(number, "buy-1-p99", subject, found["p99Ms"], found)
                else:
                    name = f"buys-{clients}-{items}"
                    self.note(number, name, subject, found["perSecond"], found)

        self.each(number, "buys", STORES, measure)

    def lookups(self, number):
        """Pygmy's cache and constants; then the cache while its items are sold."""

        def measure(subject, target):
            found = self.ask_with_all(target)
            self.note(number, "lookup-1-p50", subject, found[1]["p50Ms"], found[1])
            self.note(number, "lookups-64", subject, found[64]["perSecond"], found[64])
            if target.config:
                selling = self.ask_while_selling(target)
                self.note(number, "lookups-hot", subject, selling["perSecond"], selling)
            else:
                self.note(number, "lookups-hot", subject, found[64]["perSecond"], found[64])

        self.each(number, "lookups", SITES, measure)

    def balancer(self, number):
        """Balancers before a constant, and that constant alone."""
        try:
            with axum_site(self.directory, "constant") as constant:
                subjects = {
                    name: lambda parent, start=start: start(parent, upstream=constant.port)
                    for name, start in BALANCERS.items()}

                def measure(subject, target):
                    target.paths = [BALANCED_PATH]
                    found = self.ask_with_all(target)
                    self.note(number, "balancer-1-p50", subject, found[1]["p50Ms"], found[1])
                    self.note(number, "balancer-64", subject, found[64]["perSecond"], found[64])

                measure("none: axum itself", constant)
                self.each(number, "balancer", subjects, measure)
        except UNEXPECTED as failure:
            self.leave_out(number, "balancer", "the constant behind them", failure)

    def ask_with_all(self, target):
        """What wrk finds with each number of connections."""
        found = {}
        for connections in CONNECTIONS:
            ask(self.directory, target, connections, max(1, self.warm_up // 2))
            found[connections] = ask(self.directory, target, connections, self.seconds)
            say(f"  {connections} connections: {found[connections]['perSecond']:,.0f}/s, "
                f"p50 {found[connections]['p50Ms']:.3g} ms")
        return found

    def ask_while_selling(self, target):
        """Looks the items up that `pygmy bench` makes and buys meanwhile, through all nodes."""
        seconds = self.seconds + MORE_BUYING_S
        with Stage(self.directory, "selling") as stage:
            bench = stage.start("bench", [
                PYGMY, "bench", "--mix", "buy=1", "--json", "--config", target.config,
                "--rate", BUYS_PER_SECOND, "--connections", BUYING_CONNECTIONS,
                "--items", HOT_ITEMS, "--stock", COPIES, "--warm-up", 1, "--seconds", seconds])
            target.paths = stage.wait_until("the making of items", lambda: hot_items(target))
            found = ask(self.directory, target, 64, self.seconds)
            report = json.loads(bench.output(seconds + GRACE_S))
        if not report["sales"]["addsUp"]:
            raise Failure("the stock does not add up")
        found["buysPerSecond"] = report["requests"]["buy"]["donePerSecond"]
        say(f"  64 connections: {found['perSecond']:,.0f}/s "
            f"while {found['buysPerSecond']:,.0f}/s are bought")
        return found


def hot_items(target):
    """Paths of the items that `pygmy bench` has made in the store, once all are there."""
    topics = [each["topic"] for each in json.loads(target.get("/topics"))["topics"]]
    for topic in topics:
        if topic.startswith("bench-"):
            items = json.loads(target.get(f"/search/{topic}"))["items"]
            if len(items) == HOT_ITEMS:
                return [f"/lookup/{item['itemNumber']}" for item in items]
    return None
