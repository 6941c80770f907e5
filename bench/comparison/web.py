"""Servers that answer reads, all asked by wrk: cached lookups, and balancers before a constant.

A site is a context manager that gives a `Target`. All of them have as many threads as Pygmy takes
by itself: one on two processors or fewer, else one for each.
"""

import http.client
import json
import os
import secrets
from contextlib import contextmanager
from dataclasses import dataclass, field

from .buys import GRACE_S, pygmy
from .programs import PEERS, PYGMY, need
from .stage import Failure, Stage, free_ports, run

THREADS = 1 if (os.cpu_count() or 1) <= 2 else os.cpu_count()
# The books of the demo.
BOOKS = range(1, 8)
BODY = ('{"itemNumber":1,"title":"How to get a good grade in 677 in 20 minutes a day",'
        '"topic":"Distributed Systems","stock":1500,"cost":2000}')
# Asks for the paths of the command line in turns.
SCRIPT = """
local requests, turn = {}, 0
function init(paths)
   for _, path in ipairs(paths) do
      requests[#requests + 1] = wrk.format("GET", path)
   end
end
function request()
   turn = turn % #requests + 1
   return requests[turn]
end
"""
NGINX = """
worker_processes %(threads)d;
daemon off;
pid %(directory)s/nginx.pid;
error_log %(directory)s/error.log;
events { worker_connections 4096; }
http {
    access_log off;
    default_type application/json;
    keepalive_requests 1000000000;
    client_body_temp_path %(directory)s;
    proxy_temp_path %(directory)s;
    fastcgi_temp_path %(directory)s;
    uwsgi_temp_path %(directory)s;
    scgi_temp_path %(directory)s;
    %(upstream)s
    server {
        listen 127.0.0.1:%(port)d backlog=1024;
        location / { %(location)s }
    }
}
"""
NGINX_UPSTREAM = """
    upstream constant {
        server 127.0.0.1:%d;
        keepalive 256;
        keepalive_requests 1000000000;
    }
"""
NGINX_PROXY = ('proxy_pass http://constant; proxy_http_version 1.1; '
               'proxy_set_header Connection "";')
HAPROXY = """
global
    maxconn 4096
    nbthread %(threads)d
defaults
    mode http
    timeout connect 5s
    timeout client 60s
    timeout server 60s
    http-reuse always
frontend public
    bind 127.0.0.1:%(port)d
    default_backend constant
backend constant
    server constant 127.0.0.1:%(upstream)d
"""


@dataclass
class Target:
    """What is asked for."""

    port: int
    paths: list
    headers: dict = field(default_factory=dict)
    # Pygmy's configuration, for more than lookups.
    config: str = ""

    def get(self, path):
        """One answer; Failure if it is not 200."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
        try:
            connection.request("GET", path, headers=self.headers)
            answer = connection.getresponse()
            body = answer.read()
        except http.client.HTTPException as error:
            raise Failure(f"no answer: {error!r}") from error
        finally:
            connection.close()
        if answer.status != 200:
            raise Failure(f"GET {path}: {answer.status} {body[:200]}")
        return body


def ask(parent, target, connections, seconds):
    """Lets wrk ask; gives requests a second and latencies."""
    script = parent / "turns.lua"
    script.write_text(SCRIPT)
    threads = min(connections, max(1, (os.cpu_count() or 1) // 2))
    headers = [part for name, value in target.headers.items()
               for part in ("-H", f"{name}: {value}")]
    said = run([need("wrk"), "-t", threads, "-c", connections, "-d", f"{seconds}s", "--latency",
                "-s", script, *headers, f"http://127.0.0.1:{target.port}", "--", *target.paths],
               seconds + GRACE_S)
    return parse_wrk(said)


def parse_wrk(said):
    """What wrk prints, as numbers. An answer that is no 200 is a Failure."""
    found = {}
    wrong = [line.strip() for line in said.splitlines()
             if "Non-2xx" in line or "Socket errors" in line]
    if wrong:
        raise Failure(f"wrk: {'; '.join(wrong)}")
    for line in said.splitlines():
        words = line.split()
        if line.startswith("Requests/sec:"):
            found["perSecond"] = float(words[1])
        elif words and words[0] in ("50%", "99%"):
            found[f"p{words[0][:-1]}Ms"] = milliseconds(words[1])
        elif "requests in" in line:
            found["done"] = int(words[0])
    if len(found) != 4 or not found["done"]:
        raise Failure("wrk does not say what it found")
    return found


def milliseconds(text):
    """A time as wrk writes it."""
    for unit, factor in (("us", 1e-3), ("ms", 1.0), ("s", 1e3), ("m", 6e4)):
        if text.endswith(unit):
            return float(text.removesuffix(unit)) * factor
    raise Failure(f"wrk's time is not understood: {text}")


def lookups(first, count):
    """Paths of so many items."""
    return [f"/lookup/{number}" for number in range(first, first + count)]


@contextmanager
def pygmy_site(parent):
    """Node 1 of three, whose front end has the books in its cache."""
    with pygmy(parent, "nodes") as (config, port):
        yield Target(port + 1, lookups(BOOKS.start, len(BOOKS)), config=config)


@contextmanager
def axum_site(parent, name="axum"):
    """axum with a constant answer."""
    with Stage(parent, name) as stage:
        port = free_ports(1)
        stage.start("axum", [PEERS, "constant", "--listen", f"127.0.0.1:{port}",
                             "--threads", THREADS])
        target = Target(port, lookups(BOOKS.start, len(BOOKS)))
        stage.wait_until("the start of axum", lambda: target.get("/"))
        yield target


@contextmanager
def nginx_site(parent, upstream=None):
    """nginx with a constant answer, or before `upstream`."""
    server = need("nginx")
    with Stage(parent, "nginx") as stage:
        port = free_ports(1)
        file = stage.directory / "nginx.conf"
        file.write_text(NGINX % {
            "threads": THREADS, "directory": stage.directory, "port": port,
            "upstream": NGINX_UPSTREAM % upstream if upstream else "",
            "location": NGINX_PROXY if upstream else f"return 200 '{BODY}';"})
        stage.start("nginx", [server, "-p", stage.directory, "-c", file])
        target = Target(port, lookups(BOOKS.start, len(BOOKS)))
        stage.wait_until("the start of nginx", lambda: target.get("/"))
        yield target


@contextmanager
def haproxy_site(parent, upstream):
    """HAProxy before `upstream`."""
    server = need("haproxy")
    with Stage(parent, "haproxy") as stage:
        port = free_ports(1)
        file = stage.directory / "haproxy.cfg"
        file.write_text(HAPROXY % {"threads": THREADS, "port": port, "upstream": upstream})
        stage.start("haproxy", [server, "-db", "-f", file])
        target = Target(port, ["/query/1"])
        stage.wait_until("the start of HAProxy", lambda: target.get("/query/1"))
        yield target


@contextmanager
def balancer_site(parent, upstream):
    """Pygmy's balancer, at which `upstream` is registered as a catalog server."""
    with Stage(parent, "balancer") as stage:
        port = free_ports(4)
        secret = secrets.token_hex(32)
        (stage.directory / "secret").write_text(secret)
        (stage.directory / "secret").chmod(0o600)
        file = stage.directory / "pygmy.toml"
        # The others are never started: a configuration has all tiers.
        servers = zip(("balancer", "frontend", "catalog", "order"), range(port, port + 4))
        file.write_text("".join(
            f'[[server]]\nname = "{role}-1"\nrole = "{role}"\nlisten = "127.0.0.1:{each}"\n'
            for role, each in servers))
        stage.start("balancer-1", [PYGMY, "serve", "balancer", "--name", "balancer-1",
                                   "--config", file])
        headers = {"Authorization": f"Bearer {secret}"}
        target = Target(port, ["/query/1"], headers)
        stage.wait_until("the start of the balancer", lambda: target.get("/livez"))
        register(target, upstream)
        stage.wait_until("the balancer's first look at its server", lambda: target.get("/query/1"))
        yield target


def register(balancer, upstream):
    """Makes the constant server known as a catalog, for longer than a run takes."""
    body = json.dumps({"name": "catalog-1", "role": "catalog", "nonce": secrets.token_hex(8),
                       "url": f"http://127.0.0.1:{upstream}", "heartbeatMs": 60_000,
                       "ready": True})
    connection = http.client.HTTPConnection("127.0.0.1", balancer.port, timeout=5)
    try:
        connection.request("POST", "/register", body,
                           balancer.headers | {"Content-Type": "application/json"})
        answer = connection.getresponse()
        if answer.status >= 300:
            raise Failure(f"the balancer refuses its server: {answer.status} {answer.read()}")
    finally:
        connection.close()
