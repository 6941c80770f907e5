"""How long customers notice that a server was killed, and how long until it is back."""

import argparse
import http.client
import itertools
import json
import os
import signal
import statistics
import threading
import time
from pathlib import Path

from . import programs
from .buys import pygmy
from .command import BENCH, OUT, ended, started, whole, write
from .programs import PYGMY
from .stage import Failure, run, say

BUYERS = 4
ITEM = 1
STOCK = 100_000_000
# A buy that is not certain after this has failed.
PATIENCE_S = 20
# For one answer; a front end gives up after five seconds by itself.
ANSWER_S = 6
# Before an attempt elsewhere.
PAUSE_S = 0.005
# Longest time until a server is back in service.
BACK_S = 60
# Of undisturbed buying between two kills.
QUIET_S = 1.0
# A server that is lost again within a minute is started later and later. Here that is the
# measurement's doing, so the wait stays what it is after the first loss.
SETTINGS = ("PYGMY_RESPAWN_BACKOFF_MAX_MS=500",)
# What is killed, by layout: the leader, and one server of each kind.
KINDS = {
    "tiers": ("leader", "follower", "order", "balancer", "frontend"),
    "nodes": ("leader", "follower"),
}


def main():
    """Measures what the arguments say; gives the exit code."""
    arguments = parser().parse_args()
    return ended(lambda: show(measure(arguments), arguments))


def show(data, arguments):
    """Prints the table and writes the file; gives the exit code."""
    print(table(data))
    directory = BENCH if arguments.write else OUT
    write(directory / "failover.json", json.dumps(data, indent=1) + "\n")
    return 0


def parser():
    """The arguments."""
    made = argparse.ArgumentParser(
        prog="bench/failover", description="Kills servers with SIGKILL, one at a time, while four "
        "buyers buy, and measures when the next buy succeeds and when the server is back. The "
        "store's own watchers start it again.")
    made.add_argument("--layout", choices=sorted(KINDS), help="only this one")
    made.add_argument("--kinds", type=lambda text: text.split(","), metavar="KIND,…",
                      help=f"only these: {', '.join(KINDS['tiers'])}")
    made.add_argument("--leaders", type=whole(1, 1000), default=30,
                      help="how often the leader is killed (%(default)s)")
    made.add_argument("--others", type=whole(1, 1000), default=10,
                      help="how often each other kind is (%(default)s)")
    made.add_argument("--dir", type=Path, default=Path("/var/tmp"),
                      help="where the servers keep their data meanwhile (%(default)s)")
    made.add_argument("--write", action="store_true",
                      help="write bench/failover.json; else it goes to target/bench")
    return made


def measure(arguments):
    """Gives all there is to know of the run."""
    with started("bench/failover", arguments.dir) as (directory, about):
        data = about | {"version": programs.pygmy_version(), "buyers": BUYERS, "kills": []}
        for layout in [arguments.layout] if arguments.layout else sorted(KINDS):
            with pygmy(directory, layout, SETTINGS) as (config, port):
                store = Store(config, layout, port)
                with Buyers(store) as buyers:
                    for kind in KINDS[layout]:
                        if arguments.kinds and kind not in arguments.kinds:
                            continue
                        times = arguments.leaders if kind == "leader" else arguments.others
                        data["kills"].append(kill_again_and_again(store, buyers, kind, times))
                        write(OUT / "failover.json", json.dumps(data, indent=1) + "\n")
        return data


def kill_again_and_again(store, buyers, kind, times):
    """Kills a server of that kind so many times; gives what customers noticed."""
    rounds = []
    for number in range(times):
        say(f"{store.layout}: {kind}, {number + 1} of {times}")
        buyers.wait_for_quiet()
        rounds.append(kill_one(store, buyers, kind))
    return {"layout": store.layout, "kind": kind, "rounds": rounds,
            "failed": buyers.failed, "buys": len(buyers.succeeded)}


def kill_one(store, buyers, kind):
    """Kills one server and waits until it is back in service."""
    name = store.one(kind)
    pid = store.pid(name)
    killed_at = time.monotonic()
    os.kill(pid, signal.SIGKILL)
    respawned_at = until("a new process", lambda: store.pid(name) not in (None, pid))
    back_at = until(f"{name} is back", lambda: store.in_service(name))
    next_at = until("the next buy", lambda: buyers.first_begun_after(killed_at))
    return {
        "server": name,
        "next": buyers.first_begun_after(killed_at) - killed_at,
        "gap": buyers.longest_gap(killed_at, max(back_at, next_at)),
        "respawned": respawned_at - killed_at,
        "back": back_at - killed_at,
    }


def until(what, check):
    """Waits until `check` gives something true; gives the time."""
    deadline = time.monotonic() + BACK_S
    while True:
        try:
            if check():
                return time.monotonic()
        except OSError:
            pass
        if time.monotonic() > deadline:
            raise Failure(f"{what}: not within {BACK_S} s")
        time.sleep(0.005)


class Store:
    """A running demo."""

    def __init__(self, config, layout, port):
        self.config, self.layout = config, layout
        self.secret = (config.parent / "secret").read_text().strip()
        nodes = layout == "nodes"
        # As `pygmy demo` lays them out.
        offsets = {f"node-{n}": 10 + n for n in (1, 2, 3)} if nodes else {
            "balancer-1": 0, "frontend-1": 1, "catalog-1": 2, "catalog-2": 3, "catalog-3": 4,
            "order-1": 5, "order-2": 6, "balancer-2": 7, "frontend-2": 8}
        self.ports = {name: port + offset for name, offset in offsets.items()}
        self.public = [port + n for n in ((1, 2, 3) if nodes else (1, 8))]
        run([PYGMY, "admin", "set-stock", ITEM, STOCK, "--config", config])

    def replicas(self):
        """Names of the servers with a replica."""
        return [name for name in self.ports if name.startswith(("catalog", "node"))]

    def one(self, kind):
        """The name of a server of that kind."""
        if kind in ("leader", "follower"):
            roles = {name: self.role(name) for name in self.replicas()}
            names = [name for name, role in roles.items() if role == kind]
        else:
            names = [name for name in self.ports if name.startswith(kind)]
        if not names:
            raise Failure(f"there is no {kind}")
        return names[int(time.monotonic() * 1000) % len(names)]

    def role(self, name):
        """What a replica says that it is."""
        path = "/status" if self.layout == "tiers" else "/catalog/status"
        status, body = self.ask(self.ports[name], path)
        return json.loads(body)["role"] if status == 200 else None

    def in_service(self, name):
        """Whether a server is ready, and both balancers or all nodes say so."""
        status, _ = self.ask(self.ports[name], "/readyz")
        return status == 200

    def ask(self, port, path):
        """One GET, with the secret."""
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2)
        try:
            connection.request("GET", path, headers={"Authorization": f"Bearer {self.secret}"})
            answer = connection.getresponse()
            return answer.status, answer.read()
        except http.client.HTTPException as error:
            raise OSError(str(error)) from error
        finally:
            connection.close()

    def pid(self, name):
        """The process of a server, if it runs."""
        wanted = [b"--name", name.encode(), b"--config", str(self.config).encode()]
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            try:
                words = (entry / "cmdline").read_bytes().split(b"\0")
                dead = (entry / "stat").read_text().rpartition(")")[2].split()[0] in "ZX"
            except OSError:
                continue
            if all(word in words for word in wanted) and b"serve" in words and not dead:
                return int(entry.name)
        return None


class Buyers:
    """Customers who buy all the time, each under keys of its own, and ask again until it is
    certain."""

    def __init__(self, store):
        self.store = store
        # When buys began and when their success was known, in the order of the latter.
        self.succeeded = []
        self.failed = 0
        self.stop = False
        self.threads = [threading.Thread(target=self.buy, args=(number,))
                        for number in range(BUYERS)]

    def __enter__(self):
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self.stop = True
        for thread in self.threads:
            thread.join()

    def wait_for_quiet(self):
        """Waits until nothing has been noticed for a while."""
        since = time.monotonic()
        while True:
            now = time.monotonic()
            if now - since >= QUIET_S and self.longest_gap(now - QUIET_S, now) < 0.1:
                return
            if now - since > BACK_S:
                raise Failure("buys do not go on smoothly")
            time.sleep(0.05)

    def first_begun_after(self, moment):
        """When the first buy that began after `moment` succeeded."""
        found = (end for begun, end in reversed(self.recent()) if begun > moment)
        return min(found, default=None)

    def longest_gap(self, begin, end):
        """Longest time without a success between two moments."""
        ends = sorted(at for _, at in self.recent() if begin < at <= end)
        return max(b - a for a, b in itertools.pairwise([begin, *ends, end]))

    def recent(self):
        """The last successes: more than any kill is looked back for."""
        return self.succeeded[-50_000:]

    def buy(self, buyer):
        """Buys until told to stop."""
        ports = itertools.cycle(self.store.public)
        connection = None
        for number in itertools.count():
            begun = time.monotonic()
            while not self.stop:
                if connection is None:
                    connection = http.client.HTTPConnection("127.0.0.1", next(ports),
                                                            timeout=ANSWER_S)
                if attempt(connection, f"buyer-{buyer}-{number}"):
                    self.succeeded.append((begun, time.monotonic()))
                    break
                connection.close()
                connection = None
                if time.monotonic() - begun > PATIENCE_S:
                    self.failed += 1
                    break
                time.sleep(PAUSE_S)
            if self.stop:
                return


def attempt(connection, key):
    """Whether a front end has acknowledged the buy."""
    try:
        connection.request("POST", f"/buy/{ITEM}", headers={"Idempotency-Key": key})
        answer = connection.getresponse()
        answer.read()
        return answer.status == 201
    except (OSError, http.client.HTTPException):
        return False


def table(data):
    """The results as Markdown."""
    lines = ["| layout | killed | times | next buy p50 / worst | longest gap p50 / worst | "
             "respawned p50 / worst | in service p50 / worst | failed buys |",
             "|---|---|---|---|---|---|---|---|"]
    for kills in data["kills"]:
        cells = [kills["layout"], kills["kind"], str(len(kills["rounds"]))]
        for name in ("next", "gap", "respawned", "back"):
            values = [each[name] for each in kills["rounds"]]
            cells.append(f"{ms(statistics.median(values))} / {ms(max(values))}")
        lines.append("| " + " | ".join([*cells, str(kills["failed"])]) + " |")
    return "\n".join(lines)


def ms(seconds):
    """For people."""
    return f"{seconds * 1000:,.0f} ms"
