"""The command line of `bench/run`, and the files that it writes."""

import argparse
import json
import os
import shutil
import sys
import tempfile
import unittest
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path

from . import machine, plot, programs, results
from .growth_report import kept_section
from .rounds import PARTS, PROGRAMS, Comparison
from .stage import SIGNALS, Failure, Interrupted, say

BENCH = programs.ROOT / "bench"
OUT = programs.TARGET / "bench"
IN_MEMORY = ("tmpfs", "ramfs")
# Processes that run or want to, of the last minute, on a machine that does nothing else.
QUIET_LOAD = 0.5
SETTINGS = """\
- Everything is on loopback of one machine, the load generators too.
- Buys are durable on two of three servers before they are answered; three replicas share a disk.
- Redis: `appendfsync always` on all three, EVALSHA and `WAIT 1` in one write; the replica that \
WAIT waits for has not fsynced yet, which favours Redis. No rewrite of the file during the run.
- PostgreSQL: `synchronous_standby_names = 'ANY 1 (s2, s3)'`, one prepared statement for a sale, \
pgbench with two threads, no checkpoint during the run.
- etcd: compare-and-swap of the stock and the order in one transaction over gRPC at the leader; \
a swap that fails tries again with the value that it is told.
- Pygmy: `pygmy demo --layout nodes`, three processes with all tiers in each; "each tier its own \
process" is `--layout tiers`, nine processes. Every buy is an HTTP request at one of the front \
ends, with a key of its own. Default settings.
- Lookups and balancers: wrk for all; every server has {threads} thread(s) for requests.
"""


def main():
    """Runs what the arguments say; gives the exit code."""
    arguments = parser().parse_args()
    if arguments.self_test:
        return self_test()
    return ended(lambda: run_comparison(arguments))


def run_comparison(arguments):
    """Measures, or reads what was measured, and shows it; gives the exit code."""
    if arguments.report:
        data = merged([json.loads(file.read_text()) for file in arguments.report])
    else:
        data = compare(arguments)
    show(data, arguments)
    return 1 if data["leftOut"] else 0


def ended(work):
    """The exit code of `work`, which signals and failures may end."""
    SIGNALS.catch()
    try:
        return work()
    except Interrupted as signal:
        say(f"stopped by {signal}; all servers have ended")
        return 130
    except (Failure, OSError, ValueError, KeyError) as failure:
        say(f"failed: {failure}")
        return 1


def parser():
    """The arguments."""
    made = argparse.ArgumentParser(
        prog="bench/run", description="Runs Pygmy in turns with its peers on this machine, and "
        "prints one table of ratios. Missing packages of Debian are installed.")
    made.add_argument("--only", metavar="PARTS", type=parts, default=PARTS,
                      help=f"of {','.join(PARTS)}")
    made.add_argument("--seconds", type=whole(1, 600), default=10,
                      help="of one measurement (%(default)s)")
    made.add_argument("--rounds", type=whole(1, 100), default=3,
                      help="in each everything is measured once (%(default)s)")
    made.add_argument("--dir", type=Path, default=Path("/var/tmp"),
                      help="where the servers keep their data meanwhile: a real disk (%(default)s)")
    made.add_argument("--write", action="store_true",
                      help="write bench/RESULTS.md, results.json and results.svg; else they go to "
                      "target/bench")
    made.add_argument("--report", metavar="FILE", nargs="+", type=Path,
                      help="measure nothing: make table and plot of what earlier runs have left")
    made.add_argument("--self-test", action="store_true",
                      help="test this program, and nothing else")
    return made


def parts(text):
    """Names of parts, in their order."""
    asked = text.split(",")
    if unknown := [each for each in asked if each not in PARTS]:
        raise argparse.ArgumentTypeError(f"{unknown[0]} is none of {', '.join(PARTS)}")
    return [each for each in PARTS if each in asked]


def whole(low, high):
    """A number between the two."""

    def number(text):
        if text.isascii() and text.isdigit() and low <= int(text) <= high:
            return int(text)
        raise argparse.ArgumentTypeError(f"a whole number from {low} to {high} is needed")

    return number


def compare(arguments):
    """Measures; gives all there is to know of the run."""
    programs.install_missing([name for part in arguments.only for name in PROGRAMS[part]])
    with started("bench/run", arguments.dir) as (directory, about):
        comparison = Comparison(directory, arguments.seconds, arguments.rounds)
        data = about | {
            "versions": programs.versions(),
            "seconds": arguments.seconds, "warmUp": comparison.warm_up,
            "runs": comparison.runs, "leftOut": comparison.left_out,
        }
        for number in range(1, arguments.rounds + 1):
            comparison.round(number, arguments.only)
            # What is there is kept if a later round is interrupted.
            write(OUT / "results.json", json.dumps(data, indent=1) + "\n")
        return data


@contextmanager
def started(command, parent):
    """Builds what is needed; gives a directory below `parent` and what is to know of the run.

    The directory is removed in the end."""
    load = os.getloadavg()[0]
    if load > QUIET_LOAD:
        say(f"this machine is busy with other things (load {load:.1f}): the results will not be "
            "worth much")
    programs.build()
    directory = Path(tempfile.mkdtemp(prefix="pygmy-bench-", dir=parent)).resolve()
    # Servers that run as users of their own must get through.
    directory.chmod(0o711)
    try:
        kind = machine.file_system(directory)
        if kind in IN_MEMORY:
            raise Failure(f"{directory} is in memory ({kind}): choose a --dir on a disk")
        yield directory, {
            "date": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
            "command": " ".join([command, *sys.argv[1:]]),
            "machine": machine.describe(directory) | {"load before the run": f"{load:.1f}"},
        }
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def merged(all_data):
    """What several runs have left, as one; machine and versions are those of the first."""
    first = all_data[0]
    first["command"] = "; ".join(data["command"] for data in all_data)
    for data in all_data[1:]:
        # Rounds go on counting where both have measured the same.
        both = {run["measure"] for run in first["runs"]} & {run["measure"] for run in data["runs"]}
        before = max((run["round"] for run in first["runs"] if run["measure"] in both), default=0)
        for name in ("runs", "leftOut"):
            first[name] += [each | {"round": each["round"] + before} for each in data[name]]
    return first


def show(data, arguments):
    """Prints the table and writes the files."""
    table = results.rows(data["runs"])
    if not table:
        raise Failure("nothing could be measured")
    print(results.markdown(table))
    print(left_out(data), end="")
    directory = BENCH if arguments.write else OUT
    write(directory / "results.json", json.dumps(data, indent=1) + "\n")
    write(directory / "results.svg", plot.draw(table))
    path = directory / "RESULTS.md"
    growth = kept_section(path.read_text()) if path.exists() else ""
    write(path, document(data, table) + (f"\n{growth}" if growth else ""))
    say(f"RESULTS.md, results.json and results.svg are in {directory}")


def write(path, text):
    """Writes a file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_suffix(path.suffix + ".new")
    new.write_text(text)
    new.replace(path)


def left_out(data):
    """What could not be measured, for people."""
    return "".join(f"\nLeft out in round {each['round']}: {each['subject']} ({each['part']}): "
                   f"{each['why']}\n" for each in data["leftOut"])


def document(data, table):
    """RESULTS.md."""
    about = [f"- {name}: {words}" for name, words in data["machine"].items()]
    versions = ", ".join(f"{name} {version}" for name, version in data["versions"].items())
    from .web import THREADS
    return "\n".join([
        "# Pygmy and its peers", "",
        f"Measured on {data['date']} with `{data['command']}`: {data['seconds']} s each after "
        f"{data['warmUp']} s of warm-up, all in turns. Written by `bench/run --write`; "
        "[README.md](README.md) says how it is done and whom it favours.", "",
        "A ratio is taken within a round, and the median of the rounds is shown; above 1 Pygmy is "
        "ahead. Absolute figures belong to this machine and day.", "",
        results.markdown(table), left_out(data), "![The ratios as bars](results.svg)", "",
        "## Machine and versions", "", *about, f"- versions: {versions}", "",
        "## Settings", "", SETTINGS.format(threads=THREADS),
        "## Every round", "", results.every_round(data["runs"]), "",
        "[results.json](results.json) has all of it, with latencies.", ""])


def self_test():
    """The tests of this program."""
    from . import tests
    suite = unittest.defaultTestLoader.loadTestsFromModule(tests)
    return 0 if unittest.TextTestRunner().run(suite).wasSuccessful() else 1
