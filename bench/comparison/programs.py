"""Which programs are compared, where they are, and their versions."""

import functools
import os
import shutil
from pathlib import Path

from .stage import Failure, run, say

ROOT = Path(__file__).resolve().parents[2]
TARGET = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")).resolve()
PYGMY = TARGET / "release/pygmy"
PEERS_TARGET = TARGET / "bench-peers"
PEERS = PEERS_TARGET / "release/pygmy-peers"

# Debian's package of each program.
PACKAGES = {
    "redis-server": "redis-server",
    "redis-cli": "redis-tools",
    "postgres": "postgresql",
    "pgbench": "postgresql",
    "etcd": "etcd-server",
    "etcdctl": "etcd-client",
    "nginx": "nginx-light",
    "haproxy": "haproxy",
    "wrk": "wrk",
}
VERSIONS = {
    "Redis": ("redis-server", "--version"),
    "PostgreSQL": ("postgres", "--version"),
    "etcd": ("etcd", "--version"),
    "nginx": ("nginx", "-V"),
    "HAProxy": ("haproxy", "-v"),
    "wrk": ("wrk", "-v"),
}
INSTALL_S = 600
BUILD_S = 1800
# Makes the packages' scripts leave their services alone (invoke-rc.d(8)).
POLICY = Path("/usr/sbin/policy-rc.d")


def find(name):
    """The path of a program, or None."""
    # PostgreSQL's are not in the PATH, nginx is only in root's.
    servers = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda p: p.parent.name)
    places = [*map(str, servers[::-1]), os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/bin"]
    return shutil.which(name, path=os.pathsep.join(places))


def need(name):
    """The path of a program.

    Raises Failure if it is missing."""
    if path := find(name):
        return path
    raise Failure(f"{name} is missing (package {PACKAGES[name]})")


def install_missing(names):
    """Installs the packages of those of the programs that are missing, without their services."""
    packages = sorted({PACKAGES[name] for name in names if not find(name)})
    if not packages:
        return
    command = f"apt-get update && apt-get install -y {' '.join(packages)}"
    if os.geteuid() != 0 or not find("apt-get"):
        say(f"missing: {', '.join(packages)}; as root: {command}")
        return
    say(f"installing {', '.join(packages)}")
    own_policy = not POLICY.exists()
    try:
        if own_policy:
            POLICY.write_text("#!/bin/sh\nexit 101\n")
            POLICY.chmod(0o755)
        run(["apt-get", "-qq", "update"], INSTALL_S)
        for package in packages:
            try:
                run(["env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "-qq", "install", "-y",
                     "--no-install-recommends", package], INSTALL_S)
            except Failure as failure:
                say(f"cannot install {package}: {failure}")
    except Failure as failure:
        say(f"cannot install packages: {failure}")
    finally:
        if own_policy:
            POLICY.unlink(missing_ok=True)


def build():
    """Builds Pygmy and the peers' tools, unless they are up to date."""
    say("building; the first time takes minutes")
    cargo = ["cargo", "build", "--release", "--locked"]
    run([*cargo, "-p", "pygmy", "--target-dir", TARGET], BUILD_S, cwd=ROOT)
    run([*cargo, "--target-dir", PEERS_TARGET], BUILD_S, cwd=ROOT / "bench/peers")


@functools.cache
def pygmy_version():
    """Version and commit, and whether the tree has changes."""
    version = run([PYGMY, "--version"]).strip().removeprefix("pygmy ")
    try:
        commit = run(["git", "-C", ROOT, "rev-parse", "--short=12", "HEAD"]).strip()
        # What the comparison itself writes does not change what it compares.
        changed = run(["git", "-C", ROOT, "status", "--porcelain", "-uno", "--", "crates",
                       "Cargo.toml", "Cargo.lock"])
    except Failure:
        return version
    return f"{version} ({commit}{', changed' if changed.strip() else ''})"


def versions():
    """The versions of what is installed, for people."""
    found = {"Pygmy": pygmy_version()}
    for name, (program, flag) in VERSIONS.items():
        if path := find(program):
            # Some say it on stderr, and wrk fails as well; the first line has it in each.
            said = run(["sh", "-c", '"$0" "$1" 2>&1 | head -n 1; exit 0', path, flag])
            numbers = [word for word in said.replace("=", " ").replace("/", " ").split()
                       if word[:1].isdigit()]
            found[name] = numbers[0] if numbers else said.strip()
    return found
