"""Pygmy as it grows: orders in the database, connections, snapshots."""

import argparse
import asyncio
import json
import resource
import threading
import time
import urllib.request
from contextlib import contextmanager
from pathlib import Path

from . import programs
from .command import BENCH, OUT, ended, started, whole, write
from .growth_report import draw, section, with_section
from .programs import PYGMY
from .stage import Failure, Stage, free_ports, run, say

ORDERS = (10, 1_000_000, 10_000_000)
CLIENTS = (1, 64, 1024)
# Of one run that only makes orders.
FILL_S = 20
FILL_CLIENTS = 1024
CONNECTIONS = (100, 10_000)
IDLE = 10_000
# While snapshots are taken: far below what the store can do, so that a pause is a pause.
STEADY_RATE = 500
STEADY_S = 30
SNAPSHOT_LOG_BYTES = 1 << 20


def main():
    """Measures what the arguments say; gives the exit code."""
    arguments = parser().parse_args()
    return ended(lambda: show(measure(arguments), arguments))


def show(data, arguments):
    """Prints the section and writes the files; gives the exit code."""
    print(section(data))
    directory = BENCH if arguments.write else OUT
    write(directory / "growth.json", json.dumps(data, indent=1) + "\n")
    write(directory / "growth.svg", draw(data))
    if arguments.write:
        results = BENCH / "RESULTS.md"
        write(results, with_section(results.read_text(), section(data)))
    return 0


def parser():
    """The arguments."""
    made = argparse.ArgumentParser(
        prog="bench/growth", description="Measures buys with more and more orders in the "
        "database, the pause that a snapshot makes, and lookups over many connections. With ten "
        "million orders it takes about a quarter of an hour and 10 GB of disk.")
    made.add_argument("--orders", type=numbers, default=ORDERS, metavar="N,N,…",
                      help="how many orders there are when buys are measured")
    made.add_argument("--seconds", type=whole(1, 600), default=10,
                      help="of one measurement (%(default)s)")
    made.add_argument("--dir", type=Path, default=Path("/var/tmp"),
                      help="where the servers keep their data meanwhile (%(default)s)")
    made.add_argument("--write", action="store_true",
                      help="write growth.json, growth.svg and the section of bench/RESULTS.md; "
                      "else the first two go to target/bench")
    return made


def numbers(text):
    """Rising whole numbers."""
    found = [int(each) for each in text.split(",")]
    if found != sorted(set(found)) or found[0] < 10:
        raise argparse.ArgumentTypeError("rising whole numbers from 10 are needed")
    return found


def measure(arguments):
    """Gives all there is to know of the run."""
    with started("bench/growth", arguments.dir) as (directory, about):
        data = about | {
            "version": programs.pygmy_version(), "seconds": arguments.seconds,
            "orders": [], "snapshots": [], "lookups": [],
        }
        with Stage(directory, "growth") as stage:
            store = Store(stage)
            store.start()
            data["lookups"] = lookups(store, arguments.seconds)
            for orders in arguments.orders:
                store.fill(orders)
                data["orders"].append(buys(store, orders, arguments.seconds))
                if orders >= 1_000_000 and not data["snapshots"]:
                    data["snapshots"] = snapshots(store)
                write(OUT / "growth.json", json.dumps(data, indent=1) + "\n")
        return data


class Store:
    """Three nodes, which are stopped and started again on the same data."""

    def __init__(self, stage):
        self.stage = stage
        self.port = free_ports(14)
        self.data = stage.directory / "data"
        self.config = self.data / "pygmy.toml"
        self.demo = None

    def start(self):
        """Starts all servers for the first time."""
        self.run_demo("--layout", "nodes", "--base-port", self.port)

    def run_demo(self, *flags):
        """Starts all servers, and waits until they are ready."""
        self.demo = self.stage.start("demo", [PYGMY, "demo", "--dir", self.data, *flags])
        log = self.demo.log
        self.stage.wait_until("the start", lambda: "the store is ready" in log.read_text(), 300)

    def restart(self, settings):
        """Starts all servers anew with `settings` at the beginning of the configuration."""
        self.demo.ask_to_stop()
        self.demo.stop(time.monotonic() + 60)
        self.stage.processes.remove(self.demo)
        plain = self.config.with_suffix(".plain")
        if not plain.exists():
            plain.write_text(self.config.read_text())
        self.config.write_text(settings + plain.read_text())
        # A configuration that is there already names its ports itself.
        self.run_demo()

    def bench(self, *flags, seconds):
        """What `pygmy bench` reports."""
        said = run([PYGMY, "bench", "--json", "--config", self.config, "--seconds", seconds,
                    "--stock", 10_000_000, *flags], seconds + 120)
        return json.loads(said)

    def metrics(self, node=1):
        """The metrics of a node, by what stands before the value."""
        url = f"http://127.0.0.1:{self.port + 10 + node}/metrics"
        with urllib.request.urlopen(url, timeout=10) as answer:
            lines = answer.read().decode().splitlines()
        pairs = (line.rpartition(" ") for line in lines if not line.startswith("#"))
        return {name: float(value) for name, _, value in pairs}

    def orders(self):
        """How many there are."""
        return int(self.metrics()["pygmy_orders"])

    def fill(self, orders):
        """Makes orders until there are so many."""
        there = begun = self.orders()
        since = time.monotonic()
        while there < orders:
            if orders <= 100:
                for _ in range(orders - there):
                    run([PYGMY, "buy", 1, "--config", self.config,
                         "--server", f"http://127.0.0.1:{self.port + 1}"])
            else:
                rate = (there - begun) / (time.monotonic() - since) or 15_000
                seconds = max(1, min(FILL_S, round((orders - there) / rate)))
                self.bench("--mix", "buy=1", "--connections", FILL_CLIENTS, "--warm-up", 0,
                           seconds=seconds)
            there = self.orders()
            say(f"{there:,} of {orders:,} orders")


def buys(store, orders, seconds):
    """Buys with `orders` there, or a few more after what was measured before."""
    found = {"orders": store.orders(), "clients": {}}
    for clients in CLIENTS:
        report = store.bench("--mix", "buy=1", "--connections", clients, seconds=seconds)
        sold = report["requests"]["buy"]
        if sold["failed"] or not report["sales"]["addsUp"]:
            raise Failure(f"buys failed: {sold['failures']}")
        found["clients"][clients] = {"perSecond": sold["donePerSecond"], **sold["latencyMs"]}
        say(f"{orders:,} orders, {clients} clients: {sold['donePerSecond']:,.0f} buys/s")
    found["memoryBytes"] = store.metrics()["pygmy_process_resident_memory_bytes"]
    return found


def snapshots(store):
    """The longest wait of a buy, without a snapshot and while snapshots are taken."""
    found = []
    built = 'pygmy_snapshot_seconds_count{how="built"}'
    spent = 'pygmy_snapshot_seconds_sum{how="built"}'
    for settings, what in (("", "none"),
                           (f"[catalog]\nsnapshot_log_bytes = {SNAPSHOT_LOG_BYTES}\n\n", "some")):
        store.restart(settings)
        report = store.bench("--mix", "buy=1", "--connections", 64, "--rate", STEADY_RATE,
                             seconds=STEADY_S)
        after = [store.metrics(node) for node in (1, 2, 3)]
        count = sum(int(each.get(built, 0)) for each in after)
        seconds = sum(each.get(spent, 0) for each in after)
        if bool(count) != (what == "some"):
            raise Failure(f"{count} snapshots were taken")
        sold = report["requests"]["buy"]
        found.append({"orders": store.orders(), "snapshots": count, "failed": sold["failed"],
                      "secondsEach": seconds / count if count else None, **sold["latencyMs"]})
        say(f"{count} snapshots: the longest buy took {sold['latencyMs']['max']:.0f} ms")
    store.restart("")
    return found


def lookups(store, seconds):
    """Lookups over few and many connections, and over few beside many idle ones."""
    found = []

    def ask(connections, idle=0):
        before = store.metrics()["pygmy_process_resident_memory_bytes"]
        report = store.bench("--mix", "lookup=1", "--connections", connections, seconds=seconds)
        done = report["requests"]["lookup"]
        found.append({"connections": connections, "idle": idle, "failed": done["failed"],
                      "perSecond": done["donePerSecond"], "memoryBytes": before,
                      **done["latencyMs"]})
        say(f"{connections} connections, {idle} idle: {done['donePerSecond']:,.0f} lookups/s")

    for connections in CONNECTIONS:
        ask(connections)
    before = store.metrics()["pygmy_process_resident_memory_bytes"]
    with idle_connections(store.port + 1, IDLE):
        ask(CONNECTIONS[0], IDLE)
    found[-1]["memoryOfIdleBytes"] = found[-1]["memoryBytes"] - before
    return found


@contextmanager
def idle_connections(port, count):
    """Connections to one node that have asked once and say nothing more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < count + 100:
        raise Failure(f"{count} connections need as many open files, and {hard} are allowed")
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    writers = []

    async def opened():
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET /lookup/1 HTTP/1.1\r\nHost: idle\r\n\r\n")
        await reader.readuntil(b"}")
        writers.append(writer)

    async def all_opened():
        for _ in range(0, count, 500):
            await asyncio.gather(*(opened() for _ in range(500)))

    try:
        asyncio.run_coroutine_threadsafe(all_opened(), loop).result(120)
        yield
    finally:
        def close():
            for writer in writers:
                writer.transport.abort()
            loop.stop()
        loop.call_soon_threadsafe(close)
        thread.join()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
