"""Tests of what reads the generators and makes the table; `bench/run --self-test` runs them."""

import signal
import subprocess
import sys
import tempfile
import unittest
from contextlib import contextmanager, nullcontext
from pathlib import Path
from unittest import mock
from xml.etree import ElementTree

from . import command, growth_report, plot, postgres, programs, results, rounds, web
from .buys import pygmy_sales
from .stage import Failure, Interrupted, Signals, Stage

WRK = """\
Running 2s test @ http://127.0.0.1:8081
  1 threads and 64 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency   687.10us  289.29us   9.93ms   90.42%
    Req/Sec    90.95k     8.98k  101.55k    80.95%
  Latency Distribution
     50%  665.00us
     75%  771.00us
     90%    0.90ms
     99%    1.50s
  190012 requests in 2.10s, 53.32MB read
Requests/sec:  90480.35
Transfer/sec:     25.39MB
"""
PGBENCH = """\
transaction type: sale.sql
number of transactions actually processed: 3576
number of failed transactions: 0 (0.000%)
latency average = 0.559 ms
initial connection time = 1.9 ms
tps = 1788.351 (without initial connection time)
"""


def run_of(subject, number, value, measure="buys-64-7"):
    """A run as a comparison notes it."""
    return {"round": number, "measure": measure, "subject": subject, "value": value, "found": {}}


class Generators(unittest.TestCase):
    """What the generators print is read."""

    def test_wrk(self):
        self.assertEqual(web.parse_wrk(WRK), {
            "perSecond": 90480.35, "p50Ms": 0.665, "p99Ms": 1500.0, "done": 190012})

    def test_answers_of_wrk_that_do_not_count(self):
        for line in ("  Non-2xx or 3xx responses: 3\n",
                     "  Socket errors: connect 0, read 1, write 0, timeout 0\n"):
            with self.assertRaises(Failure):
                web.parse_wrk(WRK + line)
        with self.assertRaises(Failure):
            web.parse_wrk("unable to connect")

    def test_pgbench(self):
        self.assertEqual(postgres.transactions(PGBENCH), 3576)
        self.assertEqual(postgres.per_second(PGBENCH), 1788.351)
        failed = PGBENCH.replace("failed transactions: 0", "failed transactions: 1")
        with self.assertRaises(Failure):
            postgres.transactions(failed)

    def test_latencies_of_pgbench(self):
        with tempfile.TemporaryDirectory() as directory:
            path = Path(directory) / "latency.1"
            path.write_text("0 1 700 0 1795603200 5\n1 1 500 0 1795603200 9\n")
            latencies = postgres.read_latencies([path])
        self.assertEqual(latencies, [0.5, 0.7])
        self.assertEqual(postgres.quantile(latencies, 0.99), 0.7)

    def test_a_failed_buy_of_pygmy_is_no_result(self):
        buys = {"done": 9, "donePerSecond": 4.5, "failed": 0, "failures": {},
                "latencyMs": {"p50": 1, "p99": 2}}
        self.assertEqual(pygmy_sales({"requests": {"buy": buys}})["perSecond"], 4.5)
        buys["failed"] = 1
        with self.assertRaises(Failure):
            pygmy_sales({"requests": {"buy": buys}})


class Table(unittest.TestCase):
    """Medians and ratios."""

    def test_ratios_are_of_one_round(self):
        runs = [run_of(results.PYGMY, 1, 300), run_of("Redis", 1, 100),
                run_of(results.PYGMY, 2, 200), run_of("Redis", 2, 50),
                # Pygmy has no third round: no ratio.
                run_of("Redis", 3, 1)]
        pygmy, redis = results.rows(runs)
        self.assertEqual((pygmy.value, pygmy.ratio), (250, None))
        self.assertEqual((redis.value, redis.ratios, redis.ratio), (50, (3, 4), 3.5))

    def test_a_lower_latency_is_better(self):
        runs = [run_of("Redis", 1, 3, "buy-1-p50"), run_of(results.PYGMY, 1, 2, "buy-1-p50")]
        self.assertEqual([row.ratio for row in results.rows(runs)], [None, 1.5])

    def test_markdown(self):
        runs = [run_of(results.PYGMY, 1, 50_000), run_of("Redis", 1, 20_000),
                run_of(results.PYGMY, 2, 60_000), run_of("Redis", 2, 20_000)]
        lines = results.markdown(results.rows(runs)).splitlines()
        self.assertEqual(lines[2], "| buys, 64 clients, 7 hot items | **Pygmy** | 55,000/s |  |")
        self.assertEqual(lines[3], "|  | Redis | 20,000/s | **2.75** (2.50 to 3.00) |")
        self.assertIn("| Redis | 20,000 | 20,000 |", results.every_round(runs))

    def test_bars_point_to_who_is_ahead(self):
        runs = [run_of(results.PYGMY, 1, 100), run_of("Redis", 1, 20), run_of("a<b", 1, 400)]
        drawn = ElementTree.fromstring(plot.draw(results.rows(runs)))
        bars = [each.get("class") for each in drawn.iter() if each.tag.endswith("rect")]
        self.assertEqual(bars, ["ahead", "behind"])


class LeftOut(unittest.TestCase):
    """What cannot be measured is said, and the others are measured all the same."""

    def test_a_missing_program(self):
        @contextmanager
        def store(_parent):
            programs.need("etcd")
            yield None

        measured = []
        comparison = rounds.Comparison(Path(), seconds=1, rounds=1)
        with mock.patch.object(programs, "find", return_value=None), mock.patch.object(
                rounds, "say"):
            comparison.each(1, "buys", {"etcd": store, "none": nullcontext},
                            lambda subject, _: measured.append(subject))
        self.assertEqual(measured, ["none"])
        data = {"leftOut": comparison.left_out}
        self.assertEqual(command.left_out(data), "\nLeft out in round 1: etcd (buys): etcd is "
                         "missing (package etcd-server)\n")

    def test_runs_that_have_measured_the_same_become_more_rounds(self):
        def data():
            return {"command": "run", "runs": [run_of("Redis", 1, 5)], "leftOut": []}

        other = data() | {"runs": [run_of("axum", 1, 5, "lookups-64")]}
        found = command.merged([data(), data(), other])
        self.assertEqual([run["round"] for run in found["runs"]], [1, 2, 1])


class Arguments(unittest.TestCase):
    """What can be asked for."""

    def test_parts_keep_their_order(self):
        arguments = command.parser().parse_args(["--only", "balancer,buys"])
        self.assertEqual(arguments.only, ["buys", "balancer"])


class Growth(unittest.TestCase):
    """What `bench/growth` writes."""

    DATA = {
        "date": "2026-11-25 13:23 UTC", "command": "bench/growth", "version": "0.1.0",
        "seconds": 6, "machine": {"processor": "a processor"},
        "orders": [{"orders": orders, "memoryBytes": 300 << 20, "clients": {
            "64": {"perSecond": per_second, "p50": 3.86, "p99": 9.06, "max": 61.0}}}
            for orders, per_second in ((10, 15_491.0), (10_020_197, 11_851.0))],
        "snapshots": [{"orders": 1_338_678, "snapshots": 3, "secondsEach": 1.4, "failed": 0,
                       "p50": 0.96, "p99": 10.36, "max": 61.0}],
        "lookups": [{"connections": 100, "idle": 10_000, "perSecond": 109_045.0, "failed": 0,
                     "p50": 0.36, "p99": 8.42, "memoryOfIdleBytes": 117 << 20}],
    }

    def test_its_section_takes_the_place_of_the_earlier_one_only(self):
        section = growth_report.section(self.DATA)
        self.assertIn("| 10,020,197 | 64 | 11,851 | 3.86 ms | 9.06 ms | 61 ms | 300 MiB |", section)
        self.assertIn("| 1,338,678 | 3 | 1.4 s | 0.96 ms | 10.36 ms | 61 ms | 0 |", section)
        self.assertIn("10,000 idle connections take 117 MiB of a node.", section)
        once = growth_report.with_section("# Results\n\nA table.\n", "old")
        twice = growth_report.with_section(once, section)
        self.assertTrue(twice.startswith("# Results\n\nA table.\n"))
        self.assertTrue(twice.endswith(section))
        self.assertNotIn("old", twice)
        self.assertEqual(growth_report.kept_section("# Results\n"), "")
        self.assertTrue(twice.endswith(growth_report.kept_section(twice)))

    def test_its_plot_has_a_point_for_each_number_of_orders(self):
        svg = ElementTree.fromstring(growth_report.draw(self.DATA))
        self.assertEqual(len(svg.findall("{*}circle")), 2)
        words = [text.text for text in svg.findall("{*}text")]
        self.assertIn("10,020,197 orders", words)
        self.assertIn("64 clients", words)


class Processes(unittest.TestCase):
    """What is started ends."""

    def test_a_stage_ends_its_programs_and_what_they_have_started(self):
        with tempfile.TemporaryDirectory() as directory:
            script = ("import subprocess, sys; child = subprocess.Popen(['sleep', '60']); "
                      "print(child.pid, flush=True); child.wait()")
            with Stage(Path(directory), "stage") as stage:
                program = stage.start("program", [sys.executable, "-c", script])
                stage.wait_until("its child", lambda: program.log.read_text().endswith("\n"))
                child = int(program.log.read_text())
            self.assertIsNotNone(program.popen.returncode)
            self.assertFalse(runs(child))
            self.assertEqual(list(Path(directory).iterdir()), [])

    def test_a_signal_waits_for_what_must_be_done_to_its_end(self):
        signals, done = Signals(), []
        with self.assertRaises(Interrupted):
            with signals.later():
                signals.handle(signal.SIGTERM, None)
                done.append("all")
        self.assertEqual(done, ["all"])
        # The second one does not disturb the end.
        signals.handle(signal.SIGINT, None)
        with signals.later():
            signals.handle(signal.SIGINT, None)

    def test_the_last_words_of_one_that_ends_are_told(self):
        with tempfile.TemporaryDirectory() as directory, Stage(Path(directory), "s") as stage:
            stage.start("program", ["sh", "-c", "echo no room; exit 3"])
            with self.assertRaisesRegex(Failure, "program has ended: no room"):
                stage.wait_until("nothing", lambda: False)


def runs(pid):
    """Whether it is there and has not ended."""
    said = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True,
                          check=False).stdout.strip()
    return said != "" and not said.startswith("Z")
