"""A CUDA library without the code of other GPUs than one.

What the compiler embeds for each architecture lies in containers of one format, one entry after the
other; the driver takes the entry that fits its GPU and looks at no other. The content of those is
zeroed: the file keeps its size and every address in it, and packs to a third.
"""

import struct
from collections import Counter
from pathlib import Path

CONTAINER = struct.pack("<IHH", 0xBA55ED50, 1, 16)  # magic number, version, size of its header
ENTRY = struct.Struct("<HHIQ")  # kind, version, size of its header, size of its content
ARCHITECTURE = 28  # where an entry's header says it, as 90 for 9.0


def slim(path: Path, architecture: int) -> Counter[int]:
    """Zero the content of all entries but those of an architecture, in place.

    Returns the bytes of each architecture. A file that has none of the wanted one is left as it is,
    and so is a container that is not understood.
    """
    data = bytearray(path.read_bytes())
    found: Counter[int] = Counter()
    others: list[tuple[int, int]] = []
    at = data.find(CONTAINER)
    while at >= 0:
        start = at + 16
        end = start + int.from_bytes(data[at + 8 : at + 16], "little")
        entries = list(_entries(data, start, end))
        for architecture_of, first, last in entries:
            found[architecture_of] += last - first
            if architecture_of != architecture:
                others.append((first, last))
        at = data.find(CONTAINER, max(end, start) if entries else start)
    if architecture in found and others:
        for first, last in others:
            data[first:last] = bytes(last - first)
        path.write_bytes(data)
    return found


def _entries(data: bytearray, at: int, end: int) -> list[tuple[int, int, int]]:
    """(architecture, first byte, byte after the last) of each content; none if they do not fill the
    container exactly."""
    entries = []
    while at + ENTRY.size <= min(end, len(data)):
        _, _, header, size = ENTRY.unpack_from(data, at)
        (architecture,) = struct.unpack_from("<I", data, at + ARCHITECTURE)
        first = at + header
        entries.append((architecture, first, first + size))
        at = first + size
    return entries if at == end <= len(data) else []
