"""The folder of an engine while it is built: every file whole or not there, engine.json last.

<piece>.plan is written under a temporary name and renamed, <piece>.log beside it, and then
<piece>.json says that the two are finished and of which build they are. A later build takes those
over, and not only from its own folder: another bundle that shares a piece, or other limits on which
a piece does not depend, need no second build of it.

Beside the engine folders lies timing/, what classic TensorRT measured on a GPU; it is no engine.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from mimo_edge.runtime.bundle.engine import MANIFEST, EngineManifest, Identity, PlanSpec
from mimo_edge.runtime.bundle.errors import (
    DISK_FULL,
    MALFORMED,
    EnvironmentProblem,
    ResourceError,
)
from mimo_edge.runtime.bundle.files import hash_file, write_bytes, write_text
from mimo_edge.runtime.bundle.lock import locked
from mimo_edge.runtime.bundle.manifest import PIECES


class EngineStore:
    """One engine folder, for one identity. It is made when the first piece begins."""

    def __init__(self, folder: Path, identity: Identity) -> None:
        self.folder, self._identity = folder, identity
        gpu = "_".join(identity.capabilities)
        name = f"{identity.product}-{identity.version}-{gpu}"
        self._timing = folder.parent / "timing" / name

    def kept(self, piece: str, strict: bool = False) -> PlanSpec | None:
        """A plan that an earlier build finished just so, in this folder from now on; or None.

        `strict` does not take one of which TensorRT warned.
        """
        if (spec := self._finished(self.folder, piece, strict)) is not None:
            return spec
        # folders of the same product beside this one, and those of other bundles beside its parent
        pattern = f"*/{self._identity.product}-[0-9]*/{piece}.json"
        for marker in sorted(self.folder.parent.parent.glob(pattern)):
            if (spec := self._finished(marker.parent, piece, strict)) is not None:
                self._take_over(marker.parent, piece, spec)
                return spec
        return None

    @contextmanager
    def held(self) -> Iterator[None]:
        """Be the only build that writes this folder. Raises InputError if another does."""
        with self._typed_errors():
            self.folder.parent.mkdir(parents=True, exist_ok=True)
        try:
            with locked(self.folder):
                yield
        finally:
            with suppress(OSError):  # it is not empty where something was built
                self.folder.parent.rmdir()

    def begin(self, piece: str) -> None:
        """What is there of a piece is not of this build: nothing may take it for whole."""
        with self._typed_errors():
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            for name in (MANIFEST, f"{piece}.json"):
                (self.folder / name).unlink(missing_ok=True)

    def finish(
        self, piece: str, plan: Any, log: str, seconds: float, warnings: int = 0
    ) -> PlanSpec:
        """Keep a plan, which may be anything that has a buffer."""
        path = self.folder / f"{piece}.plan"
        with self._typed_errors():
            write_bytes(path, plan)
            write_text(self.folder / f"{piece}.log", log)
            spec = PlanSpec(self._identity.key(piece), hash_file(path), seconds, warnings)
            self._mark(piece, spec)
        return spec

    def seal(self, plans: dict[str, PlanSpec]) -> EngineManifest:
        """All pieces are there: write engine.json."""
        log = hashlib.sha256()
        for piece in PIECES:
            log.update((self.folder / f"{piece}.log").read_bytes())
        manifest = EngineManifest(self._identity, plans, log.hexdigest())
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

    def _finished(self, folder: Path, piece: str, strict: bool) -> PlanSpec | None:
        """The plan of a folder, if it is whole and of this build."""
        try:
            raw = json.loads((folder / f"{piece}.json").read_text(encoding="utf-8"))
            spec = PlanSpec.from_raw(raw)
            fits = spec.key == self._identity.key(piece) and not (strict and spec.warnings)
            whole = fits and (folder / f"{piece}.log").is_file()
            return spec if whole and hash_file(folder / f"{piece}.plan") == spec.file else None
        except (OSError, *MALFORMED):
            return None

    def _take_over(self, source: Path, piece: str, spec: PlanSpec) -> None:
        """A plan is never changed once it has its name, so two folders may have one on the disk."""
        self.begin(piece)
        with self._typed_errors():
            for name in (f"{piece}.plan", f"{piece}.log"):
                (self.folder / name).unlink(missing_ok=True)
                try:
                    os.link(source / name, self.folder / name)
                except OSError:  # another disk, or one without links
                    shutil.copyfile(source / name, self.folder / name)
            self._mark(piece, spec)

    def _mark(self, piece: str, spec: PlanSpec) -> None:
        write_text(self.folder / f"{piece}.json", json.dumps(spec.to_raw()))

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
                f"cannot write {error.filename or self.folder} ({error.strerror}). Name a folder "
                "for the engines that can be written: --engines DIR."
            ) from error
