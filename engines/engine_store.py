"""The folder of an engine while it is built: every file whole or not there, engine.json last.

<piece>.plan is written under a temporary name and renamed, <piece>.log beside it, and then
<piece>.json says that the two are finished and for which identity. The next build takes those over.

Beside the engine folders lies timing/, what classic TensorRT measured on a GPU; it is no engine.
"""

import dataclasses
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mimo_edge.runtime.bundle.engine import MANIFEST, EngineManifest, Identity
from mimo_edge.runtime.bundle.errors import (
    DISK_FULL,
    MALFORMED,
    EnvironmentProblem,
    ResourceError,
)
from mimo_edge.runtime.bundle.files import hash_file, write_bytes, write_text
from mimo_edge.runtime.bundle.lock import locked
from mimo_edge.runtime.bundle.manifest import PIECES, FileSpec


class EngineStore:
    """One engine folder, for one identity. It is made when the first piece begins."""

    def __init__(self, folder: Path, identity: Identity) -> None:
        self.folder, self._identity, self._key = folder, identity, identity.key
        gpu = "_".join(identity.capabilities)
        name = f"{identity.product}-{identity.version}-{gpu}"
        self._timing = folder.parent / "timing" / name

    def kept(self, piece: str) -> tuple[FileSpec, float] | None:
        """A plan that an earlier build of the same identity finished, and its time; or None."""
        try:
            raw = json.loads((self.folder / f"{piece}.json").read_text(encoding="utf-8"))
            spec = FileSpec(**raw["plan"])
            whole = (self.folder / f"{piece}.log").is_file()
            if raw["key"] == self._key and whole and hash_file(self._plan(piece)) == spec:
                return spec, float(raw["seconds"])
        except (OSError, *MALFORMED):
            pass
        return None

    @contextmanager
    def held(self) -> Iterator[None]:
        """Be the only build that writes this folder. Raises InputError if another does."""
        with self._typed_errors():
            self.folder.parent.mkdir(parents=True, exist_ok=True)
        with locked(self.folder):
            yield

    def begin(self, piece: str) -> None:
        """What is there of a piece is not of this identity: nothing may take it for whole."""
        with self._typed_errors():
            self.folder.mkdir(parents=True, exist_ok=True)
            for name in (MANIFEST, f"{piece}.json"):
                (self.folder / name).unlink(missing_ok=True)

    def finish(self, piece: str, plan: Any, log: str, seconds: float) -> FileSpec:
        """Keep a plan, which may be anything that has a buffer."""
        path = self._plan(piece)
        with self._typed_errors():
            write_bytes(path, plan)
            write_text(self.folder / f"{piece}.log", log)
            spec = hash_file(path)
            marker = {"key": self._key, "plan": dataclasses.asdict(spec), "seconds": seconds}
            write_text(self.folder / f"{piece}.json", json.dumps(marker))
        return spec

    def seal(self, plans: dict[str, FileSpec], seconds: dict[str, float]) -> EngineManifest:
        """All pieces are there: write engine.json."""
        log = hashlib.sha256()
        for piece in PIECES:
            log.update((self.folder / f"{piece}.log").read_bytes())
        manifest = EngineManifest(self._identity, plans, log.hexdigest(), seconds)
        with self._typed_errors():
            write_text(self.folder / MANIFEST, manifest.to_json())
        return manifest

    def timing_cache(self) -> bytes:
        """What classic TensorRT measured for one piece, or build, helps the next; maybe nothing."""
        return self._timing.read_bytes() if self._timing.is_file() else b""

    def keep_timing_cache(self, content: bytes) -> None:
        """For the next piece, and the next build."""
        with self._typed_errors():
            self._timing.parent.mkdir(exist_ok=True)
            write_bytes(self._timing, content)

    def _plan(self, piece: str) -> Path:
        return self.folder / f"{piece}.plan"

    @contextmanager
    def _typed_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno in DISK_FULL:
                raise ResourceError(
                    f"the disk of {self.folder} is full. Free some and build again: finished "
                    "pieces are kept."
                ) from error
            raise EnvironmentProblem(
                f"cannot write {error.filename or self.folder} ({error.strerror}). Engines lie in "
                "the bundle: copy it to a folder that can be written."
            ) from error
