"""The device that is measured: its memory, and how fast it copies."""

import resource
import time

from mimo_edge.runtime.backends.ort_memory import Memory

COPIED = {"cpu": 1 << 26, "cuda": 1 << 30}  # bytes: past every cache


class Device:
    """Of a backend; the same figures on both kinds."""

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        self._free = self._free_bytes()

    def used(self) -> float:
        """GB that are in use since this was made: of the GPU, or of the process at its peak."""
        if self._memory.device == "cpu":
            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
        return (self._free - self._free_bytes()) / 1e9

    def copy_rate(self, runs: int = 10) -> float:
        """Bytes a second that a copy on the device reads and writes, the best of some."""
        size = COPIED[self._memory.device]
        shape = (1, 1, size // 1024, 256)
        source, target = (self._memory.allocate(shape, "float32") for _ in range(2))
        best = float("inf")
        for _ in range(runs):
            began = time.perf_counter()
            target.copy_row(0, 0, shape[2], source)
            best = min(best, time.perf_counter() - began)
        return 2 * size / best

    def _free_bytes(self) -> int:
        return 0 if self._memory.device == "cpu" else self._memory.cuda.free_bytes()
