"""Which files of large bundles were hashed before and found sound: hashing 17 GB takes a minute.

A file counts as the one that was hashed while its size, time of change and inode are the same. What
is remembered lies in the user's cache folder; of small bundles nothing is, and nothing is written.
"""

import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from mimo_edge.runtime.bundle.errors import MALFORMED
from mimo_edge.runtime.bundle.files import write_text
from mimo_edge.runtime.bundle.manifest import FileSpec

LARGE = 1_000_000_000  # bytes of a bundle from which on its files are remembered
MOST = 256  # files that are remembered


class Verified:
    """The files that were found sound. `add` and `save` never fail: a cache may be read-only."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._known: dict[str, list[Any]] = {}
        with suppress(OSError, *MALFORMED):
            if path is not None:
                self._known = {**json.loads(path.read_text(encoding="utf-8"))}

    @classmethod
    def of_user(cls) -> "Verified":
        """In $XDG_CACHE_HOME, or ~/.cache; nowhere for a user without a home."""
        try:
            root = os.environ.get("XDG_CACHE_HOME")
            folder = Path(root) if root else Path.home() / ".cache"
        except RuntimeError:
            return cls(None)
        return cls(folder / "mimo-edge" / "verified.json")

    def holds(self, path: Path, spec: FileSpec) -> bool:
        """Whether this very file was hashed before and had this hash."""
        return self._known.get(str(path.resolve())) == [*_state(path), spec.sha256]

    def add(self, path: Path, spec: FileSpec) -> None:
        """The file was hashed and has the hash that it should have."""
        name = str(path.resolve())
        self._known.pop(name, None)  # the newest is the last
        self._known[name] = [*_state(path), spec.sha256]

    def save(self) -> None:
        """Write what is known, whole or not at all."""
        if self._path is None:
            return
        newest = dict(list(self._known.items())[-MOST:])
        with suppress(OSError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_text(self._path, json.dumps(newest, indent=1) + "\n")


def _state(path: Path) -> tuple[int, int, int]:
    found = path.stat()
    return found.st_size, found.st_mtime_ns, found.st_ino
