"""The machine while it is measured: how fast it reads memory, and what this process holds of it."""

import os
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

_STATUS = Path("/proc/self/status")


@dataclass(frozen=True)
class Held:
    """Bytes of memory that a process holds: of its own, and pages of files that others share."""

    heap: int
    mapped: int

    @property
    def resident(self) -> int:
        return self.heap + self.mapped

    def most(self, other: "Held") -> "Held":
        """The larger one of each."""
        return Held(max(self.heap, other.heap), max(self.mapped, other.mapped))


def held(status: Path = _STATUS) -> Held:
    """What this process holds now; nothing where the system does not tell the two apart."""
    if sys.platform != "linux":
        return Held(0, 0)
    sizes = {}
    for line in status.read_text(encoding="utf-8").splitlines():
        name, _, value = line.partition(":")
        if value.endswith("kB"):
            sizes[name] = int(value.split()[0]) * 1024
    return Held(sizes.get("RssAnon", 0), sizes.get("RssFile", 0) + sizes.get("RssShmem", 0))


def read_rate(threads: int | None = None) -> float:
    """Bytes a second that some threads, or one for each core, read together: the best of five."""
    count = threads or os.cpu_count() or 1
    blocks = [np.ones(1 << 24, np.float64) for _ in range(count)]  # 128 MB, past every cache
    with ThreadPoolExecutor(count) as pool:  # numpy lets go of the interpreter

        def once() -> None:
            list(pool.map(np.max, blocks))

        once()
        return sum(block.nbytes for block in blocks) / min(seconds(once) for _ in range(5))


def seconds(call: Callable[[], object]) -> float:
    """How long a call takes."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start
