"""PostgreSQL as a store: a primary, two standbys of which one must have the sale, and pgbench."""

import glob
import os
import signal
from contextlib import contextmanager
from pathlib import Path

from .buys import COPIES
from .programs import need
from .stage import Failure, Stage, free_ports, run

DATABASE = "postgres"
# The order's key is a number, which is cheaper than the text of the other stores.
TABLES = f"""
DROP TABLE IF EXISTS items, orders;
CREATE TABLE items (number bigint PRIMARY KEY, stock bigint NOT NULL CHECK (stock >= 0),
                    cost bigint NOT NULL) WITH (fillfactor = 50);
CREATE TABLE orders (key bigint PRIMARY KEY, number bigint GENERATED ALWAYS AS IDENTITY,
                     item bigint NOT NULL, quantity bigint NOT NULL, cost bigint NOT NULL);
INSERT INTO items SELECT number, {COPIES}, 2000 FROM generate_series(1, %d) number;
VACUUM ANALYZE items;
"""
SALE = """
\\set item random(1, %d)
\\set key random(1, 9000000000000000000)
WITH sold AS (UPDATE items SET stock = stock - 1 WHERE number = :item AND stock > 0
              RETURNING number, cost)
INSERT INTO orders (key, item, quantity, cost) SELECT :key, number, 1, cost FROM sold;
"""
SOLD = f"SELECT (SELECT count(*) FROM orders), (SELECT sum({COPIES} - stock) FROM items)"
# Checkpoints and full pages cost PostgreSQL much right after the start of a run: rare ones favour
# it. Room for 256 buyers.
SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "max_connections": 300,
    "shared_buffers": "256MB",
    "max_wal_size": "8GB",
    "checkpoint_timeout": "30min",
    "synchronous_commit": "on",
    "synchronous_standby_names": "ANY 1 (s2, s3)",
}


def settings(**more):
    """As flags of the server."""
    pairs = (SETTINGS | more).items()
    return [part for name, value in pairs for part in ("-c", f"{name}={value}")]


@contextmanager
def postgres_store(parent):
    """Starts the three; sales are one prepared statement each."""
    server = Path(os.path.realpath(need("postgres")))
    bin_directory = server.parent
    # It refuses to run as root; its package brings a user for it.
    user = "postgres" if os.geteuid() == 0 else None
    with Stage(parent, "postgres") as stage:
        first = free_ports(3)
        data = {name: stage.own_directory(name, user) for name in ("s1", "s2", "s3")}
        work = stage.own_directory("work", user)

        def psql(sql):
            return run([bin_directory / "psql", "-h", "127.0.0.1", "-p", first, "-U", "shop",
                        "-d", DATABASE, "-v", "ON_ERROR_STOP=1", "-At", "-F", " "],
                       user=user, cwd=work, stdin=sql)

        def start(name, port, **more):
            more |= {"port": port}
            stage.start(name, [server, "-D", data[name], *settings(**more)], user,
                        # Ends sessions instead of waiting for them.
                        stop_signal=signal.SIGINT)
            stage.wait_until(f"the start of PostgreSQL {name}", lambda: run(
                [bin_directory / "pg_isready", "-h", "127.0.0.1", "-p", port]))

        run([bin_directory / "initdb", "-D", data["s1"], "-U", "shop", "--auth=trust"],
            user=user, cwd=work)
        start("s1", first)
        for number, name in enumerate(("s2", "s3"), start=1):
            run([bin_directory / "pg_basebackup", "-h", "127.0.0.1", "-p", first, "-U", "shop",
                 "-D", data[name], "-R", "-c", "fast"], user=user, cwd=work)
            upstream = f"host=127.0.0.1 port={first} user=shop application_name={name}"
            start(name, first + number, primary_conninfo=upstream)
        stage.wait_until("the start of the standbys", lambda: "2" == psql(
            "SELECT count(*) FROM pg_stat_replication WHERE sync_state = 'quorum'").strip())

        def sell(load):
            psql(TABLES % load.items)
            script = stage.directory / "sale.sql"
            script.write_text(SALE % load.items)

            def pgbench(seconds, *more):
                return run([bin_directory / "pgbench", "-h", "127.0.0.1", "-p", first,
                            "-U", "shop", "-n", "-M", "prepared", "-f", script,
                            "-c", load.clients, "-j", min(2, load.clients), "-T", seconds, *more,
                            DATABASE], load.limit_s(), user=user, cwd=work)

            done = transactions(pgbench(load.warm_up)) if load.warm_up else 0
            for old in work.glob("latency*"):
                old.unlink()
            measured = pgbench(load.seconds, "-l", "--log-prefix", work / "latency")
            if not transactions(measured):
                raise Failure("nothing was sold")
            done += transactions(measured)
            orders, sold = map(int, psql(SOLD).split())
            if not orders == sold == done:
                raise Failure(f"{done} sales, {orders} orders, {sold} copies gone")
            latencies = read_latencies(glob.glob(f"{work}/latency*"))
            return {"done": transactions(measured), "perSecond": per_second(measured),
                    "p50Ms": quantile(latencies, 0.5), "p99Ms": quantile(latencies, 0.99)}

        yield sell


def number_after(text, words):
    """The number behind `words` in what pgbench prints."""
    for line in text.splitlines():
        if line.startswith(words):
            return float(line.removeprefix(words).split()[0].split("/")[0])
    raise Failure(f"pgbench does not say: {words}")


def transactions(text):
    """How many were done. One that failed makes the run fail."""
    if number_after(text, "number of failed transactions: "):
        raise Failure("transactions failed")
    return int(number_after(text, "number of transactions actually processed: "))


def per_second(text):
    """Transactions a second."""
    return number_after(text, "tps = ")


def read_latencies(paths):
    """The latencies that pgbench has logged, sorted, in milliseconds."""
    latencies = []
    for path in paths:
        with open(path, encoding="ascii") as lines:
            # client transaction latency_us script seconds microseconds
            latencies += [int(line.split(maxsplit=3)[2]) / 1e3 for line in lines]
    return sorted(latencies)


def quantile(ordered, part):
    """The value that `part` of the values are not above."""
    if not ordered:
        raise Failure("no latencies")
    return ordered[min(len(ordered) - 1, int(len(ordered) * part))]
