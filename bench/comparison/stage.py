"""Where servers run: directories, ports and processes, all of which end with the run."""

import os
import pwd
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

# Below the ports that Linux gives to outgoing connections.
PORTS = range(20_000, 32_000)
STOP_S = 10
POLL_S = 0.05
LOG_LINES_SHOWN = 8


class Failure(Exception):
    """Something cannot be measured, and why."""


class Interrupted(BaseException):
    """A signal asked for the end."""


def say(text):
    """Tells people what happens."""
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


class Signals:
    """Makes the first SIGINT, SIGTERM or SIGHUP end the run through every `finally`.

    Further ones do not disturb that."""

    def __init__(self):
        self.busy = 0
        self.caught = None

    def catch(self):
        """From now on."""
        for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(each, self.handle)

    def handle(self, number, _frame):
        """Called by Python between two of its instructions, whichever these are."""
        if self.caught is None:
            self.caught = signal.Signals(number).name
            if not self.busy:
                raise Interrupted(self.caught)

    @contextmanager
    def later(self):
        """Lets what is done here be done to its end before a signal counts."""
        before = self.caught
        self.busy += 1
        try:
            yield
        finally:
            self.busy -= 1
        if self.caught != before and not self.busy:
            raise Interrupted(self.caught)


SIGNALS = Signals()


def free_ports(count):
    """Finds `count` ports of loopback in a row that nobody listens on; gives the first."""
    for _ in range(200):
        first = random.choice(PORTS)
        sockets = []
        try:
            for port in range(first, first + count):
                sockets.append(socket.socket())
                sockets[-1].bind(("127.0.0.1", port))
            return first
        except OSError:
            continue
        finally:
            for each in sockets:
                each.close()
    raise Failure(f"no {count} free ports in a row")


def environment():
    """That of this process, without what would change Pygmy's settings or people's language."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PYGMY_", "LC_", "ETCD"))}
    return kept | {"LC_ALL": "C.UTF-8"}


class Stage:
    """A directory and the processes in it; both are gone at the end of the `with` block."""

    def __init__(self, parent, name):
        self.directory = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=parent))
        self.processes = []

    def __enter__(self):
        # Servers that run as a user of their own must get through.
        self.directory.chmod(0o711)
        return self

    def __exit__(self, *_):
        with SIGNALS.later():
            # All at once: members that are left alone might wait for the others.
            for process in self.processes:
                process.ask_to_stop()
            deadline = time.monotonic() + STOP_S
            for process in self.processes:
                process.stop(deadline)
            shutil.rmtree(self.directory, ignore_errors=True)

    def own_directory(self, name, user=None):
        """Makes a directory that belongs to `user`."""
        path = self.directory / name
        path.mkdir(mode=0o700)
        if user:
            shutil.chown(path, user)
        return path

    def start(self, name, argv, user=None, stop_signal=signal.SIGTERM):
        """Starts a program, whose output goes to a file."""
        log = self.directory / f"{name}.log"
        with SIGNALS.later(), open(log, "wb") as output:
            try:
                popen = subprocess.Popen(
                    [str(part) for part in argv], stdin=subprocess.DEVNULL, stdout=output,
                    stderr=subprocess.STDOUT, cwd=self.directory, env=environment(),
                    # A group of its own: Ctrl-C at the terminal is for us, and what a server
                    # leaves behind can be found.
                    start_new_session=True, **as_user(user))
            except OSError as error:
                raise Failure(f"cannot start {argv[0]}: {error}") from error
            self.processes.append(Process(name, popen, log, stop_signal))
        return self.processes[-1]

    def wait_until(self, what, check, seconds=30):
        """Waits until `check` gives something true, as long as all servers live."""
        deadline = time.monotonic() + seconds
        while True:
            for process in self.processes:
                if not process.lives():
                    raise Failure(f"{process.name} has ended: {process.last_words()}")
            try:
                if value := check():
                    return value
                reason = ""
            except (Failure, OSError) as error:
                reason = f": {error}"
            if time.monotonic() > deadline:
                raise Failure(f"{what} takes more than {seconds} s{reason}")
            time.sleep(POLL_S)


class Process:
    """A server that was started here."""

    def __init__(self, name, popen, log, stop_signal):
        self.name, self.popen, self.log, self.stop_signal = name, popen, log, stop_signal

    def lives(self):
        """Whether it has not ended. It is not reaped, so that its number stays its own."""
        options = os.WEXITED | os.WNOHANG | os.WNOWAIT
        return os.waitid(os.P_PID, self.popen.pid, options) is None

    def output(self, seconds):
        """What it has printed when it has ended, which it must within `seconds`."""
        deadline = time.monotonic() + seconds
        while self.lives():
            if time.monotonic() > deadline:
                raise Failure(f"{self.name} takes more than {seconds} s")
            time.sleep(POLL_S)
        return self.log.read_text(errors="replace")

    def last_words(self):
        """The end of its log."""
        text = self.log.read_text(errors="replace")
        return " | ".join(text.strip().splitlines()[-LOG_LINES_SHOWN:])

    def ask_to_stop(self):
        """Sends the signal at which it should end."""
        if self.lives():
            os.kill(self.popen.pid, self.stop_signal)

    def stop(self, deadline):
        """Waits until it ends, kills it at the deadline, and what is left of its group."""
        while self.lives() and time.monotonic() < deadline:
            time.sleep(POLL_S)
        try:
            os.killpg(self.popen.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self.popen.wait()


def as_user(user):
    """Arguments of `subprocess` that run a program as `user`, if that is not who we are."""
    if user is None or user == pwd.getpwuid(os.geteuid()).pw_name:
        return {}
    return {"user": user, "group": pwd.getpwnam(user).pw_gid, "extra_groups": []}


def run(argv, seconds=60, user=None, cwd=None, stdin=None):
    """Runs a program to its end and gives what it prints. It does not outlive this call."""
    process = None
    try:
        with SIGNALS.later():
            process = subprocess.Popen(
                [str(part) for part in argv], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                stderr=subprocess.PIPE, text=True, env=environment(), cwd=cwd,
                start_new_session=True, **as_user(user))
        output, errors = process.communicate(stdin, seconds)
    except subprocess.TimeoutExpired as error:
        raise Failure(f"{argv[0]} takes more than {seconds} s") from error
    except OSError as error:
        raise Failure(f"cannot run {argv[0]}: {error}") from error
    finally:
        if process and process.returncode is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    if process.returncode != 0:
        words = (errors.strip() or output.strip()).splitlines()[-LOG_LINES_SHOWN:]
        raise Failure(f"{argv[0]} failed ({process.returncode}): {' | '.join(words)}")
    return output
