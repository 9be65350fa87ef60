"""What this machine has."""

import os
import sys


def memory_bytes() -> int | None:
    """Main memory, or None where the system does not say."""
    if sys.platform != "linux":
        return None
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
