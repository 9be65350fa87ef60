"""What this machine has, and how fast it reads and multiplies."""

import os
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

_GROUPS = Path("/sys/fs/cgroup")
_OWN_GROUP = Path("/proc/self/cgroup")


_BLOCK = 1 << 28  # bytes that are read, past every cache
_WIDTH = 4096  # of the product that is measured


def cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def read_rate(threads: int | None = None) -> float:
    """Bytes a second that one pass over a large array reads, with as many threads as cores or as
    are asked for; the best of five."""
    parts = np.array_split(np.ones(_BLOCK // 8), threads or cores())
    with ThreadPoolExecutor(len(parts)) as pool:  # numpy lets go of the interpreter

        def read() -> None:
            list(pool.map(np.max, parts))

        return _BLOCK / min(seconds_of(read) for _ in range(5))


def product_rate() -> float:
    """Operations a second of float32 products, as numpy's library computes them; the best of
    three."""
    left, right = (np.ones((rows, _WIDTH), np.float32) for rows in (_WIDTH // 4, _WIDTH))
    fastest = min(seconds_of(lambda: left @ right) for _ in range(3))
    return 2 * len(left) * _WIDTH * _WIDTH / fastest


def seconds_of(call: Callable[[], object]) -> float:
    """How long a call takes."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def memory_bytes() -> int | None:
    """Main memory, of it what this process may have, or None where the system does not say."""
    if sys.platform != "linux":
        return None
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min([total, *group_limits(_GROUPS, _OWN_GROUP)])


def group_limits(groups: Path, own: Path) -> list[int]:
    """Limits of a container's memory: of this process's control group and of those above it.

    `groups` is where control groups are mounted, `own` says which is this process's.
    """
    try:
        lines = own.read_text().splitlines()
    except OSError:
        return []
    limits = []
    for line in lines:
        number, controllers, place = line.split(":", 2)
        if number == "0":  # version 2: one tree
            root, name = groups, "memory.max"
        elif "memory" in controllers.split(","):
            root, name = groups / "memory", "memory.limit_in_bytes"
        else:
            continue
        # inside a container its own group is mounted as the root, whatever its name outside
        folder = root / place.lstrip("/")
        for group in (folder, *folder.parents):
            if group.is_relative_to(root):
                limits += _limit(group / name)
    return limits


def _limit(path: Path) -> list[int]:
    try:
        return [int(path.read_text())]
    except (OSError, ValueError):  # not there, or "max"
        return []
