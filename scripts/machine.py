"""What this machine has."""

import os
import sys
from pathlib import Path

_GROUPS = Path("/sys/fs/cgroup")
_OWN_GROUP = Path("/proc/self/cgroup")


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
