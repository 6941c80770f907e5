"""What the comparison ran on."""

import os
import platform
import time
from statistics import median

SYNCS = 200
BLOCK = b"\0" * 4096


def describe(directory):
    """The machine, as names and words. Takes a moment: it measures the disk of `directory`."""
    return {
        "processor": f"{processor()}, {os.cpu_count()} cores",
        "memory": f"{memory_gib():.0f} GiB",
        "system": f"{system()}, Linux {platform.release()}",
        "disk": f"{file_system(directory)}; fdatasync of 4 KiB, appended: "
                f"{fdatasync_us(directory):.0f} us (median of {SYNCS})",
    }


def processor():
    """The model's name."""
    with open("/proc/cpuinfo", encoding="utf-8") as lines:
        for line in lines:
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.machine()


def memory_gib():
    """All there is."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30


def system():
    """The distribution."""
    try:
        return platform.freedesktop_os_release()["PRETTY_NAME"]
    except (OSError, KeyError):
        return platform.system()


def file_system(directory):
    """The type of the file system that `directory` is on."""
    best = ("", "unknown")
    with open("/proc/self/mounts", encoding="utf-8") as mounts:
        for line in mounts:
            _, place, kind = line.split()[:3]
            inside = os.path.commonpath([place, directory]) == place
            if inside and len(place) >= len(best[0]):
                best = (place, kind)
    return best[1]


def fdatasync_us(directory):
    """How long the disk takes to keep four more kilobytes."""
    path = os.path.join(directory, "fdatasync")
    took = []
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        for _ in range(SYNCS):
            os.write(file, BLOCK)
            before = time.perf_counter()
            os.fdatasync(file)
            took.append((time.perf_counter() - before) * 1e6)
    finally:
        os.close(file)
        os.unlink(path)
    return median(took)
