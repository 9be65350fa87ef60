"""What this process holds of the machine's memory while it is measured."""

import sys
from dataclasses import dataclass
from pathlib import Path

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
