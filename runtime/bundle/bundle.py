"""The bundle: the directory that the exporter writes and the runtime reads, opened and checked.

A pack (`runtime.bundle.pack`) is what one device needs of one, and is opened in the same way.
"""

import hashlib
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path

from mimo_edge.runtime.bundle.check import check_graphs, check_manifest
from mimo_edge.runtime.bundle.errors import MALFORMED, BundleError, unreadable
from mimo_edge.runtime.bundle.family import SPEECH_PIECES, Member, member
from mimo_edge.runtime.bundle.files import chunks, read_text
from mimo_edge.runtime.bundle.graph_file import stored_tensors
from mimo_edge.runtime.bundle.manifest import (
    MANIFEST,
    PIECES,
    FileSpec,
    Manifest,
    ModelSpec,
    PieceSpec,
)
from mimo_edge.runtime.bundle.pack import PACK, Pack, read_pack
from mimo_edge.runtime.bundle.verified import LARGE, Verified

_State = tuple[int, int, int]


def _state(path: Path) -> _State:
    """What changes when a file is replaced or written: its number, size, and time."""
    found = path.stat()
    return found.st_ino, found.st_size, found.st_mtime_ns


class Bundle:
    """An opened bundle. `open` refuses a folder that is not exactly what its manifest says.

    `verify` says whether what lies in it is hashed before it is used: files, and engines too.
    """

    def __init__(
        self, folder: Path, manifest: Manifest, verify: bool = True, pack: Pack | None = None
    ) -> None:
        self.folder, self.manifest, self.verify, self.pack = folder, manifest, verify, pack
        self._seen: dict[str, _State] = {}  # file -> as it was when it was checked

    @classmethod
    def open(
        cls,
        folder: str | Path,
        *,
        verify: bool = True,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> "Bundle":
        """Read and check a bundle.

        `verify` hashes every file (about a second per GB; of a large bundle only what was not
        hashed before), and later the engines that a backend takes from it; sizes are checked in
        any case.
        `on_progress` is called with (bytes hashed, bytes in all). Raises BundleError.
        """
        folder = Path(folder)
        try:
            return cls._open(folder, verify, on_progress)
        except OSError as error:
            raise BundleError(
                unreadable(error.filename or folder, error, "Check the path and the disk.")
            ) from error

    @classmethod
    def _open(
        cls, folder: Path, verify: bool, on_progress: Callable[[int, int], None] | None
    ) -> "Bundle":
        path = folder / MANIFEST
        if not path.is_file():
            raise BundleError(
                f"{folder} is not a bundle: it has no {MANIFEST}. "
                "Make one with `mimo-edge export CHECKPOINT --audio-tokenizer DIR -o BUNDLE`."
            )
        try:
            manifest = Manifest.from_json(read_text(path))
            if missing := _missing(manifest):
                lacks = f"it lacks the pieces {', '.join(missing)}"
                raise BundleError(f"{lacks}. Export it again.")
            check_manifest(manifest)
        except BundleError as error:
            raise BundleError(f"{folder}: {error}") from error
        except MALFORMED as error:
            raise BundleError(
                f"{path} is damaged ({type(error).__name__}: {error}). Export the bundle again."
            ) from error
        bundle = cls(folder, manifest, verify, read_pack(folder))
        if bundle.pack is not None and bundle.pack.packed_from != bundle.identity:
            raise BundleError(
                f"{folder / PACK} is of another bundle than {path} beside it. {bundle._again}."
            )
        bundle._check_sizes()
        graphs = [piece for piece in manifest.pieces.values() if piece.file in bundle.files]
        check_graphs(folder, graphs, bundle.files)
        if verify:
            bundle._check_hashes(on_progress)
        return bundle

    def piece(self, name: str) -> PieceSpec:
        """Raises BundleError for a piece that speaks, in a bundle that only listens."""
        try:
            return self.manifest.pieces[name]
        except KeyError:
            raise BundleError(
                f"{self.folder} has no piece {name}: {self.member.title} is exported without what "
                "makes speech. Export it again with --with-speech if you want it."
            ) from None

    def path(self, name: str) -> Path:
        """The ONNX file of a piece. Raises BundleError for a pack that has engines in its place."""
        self.check_unchanged()
        file = self.piece(name).file
        if self.pack is not None and file not in self.files:
            raise BundleError(
                f"{self.folder} is packed for {self.pack.target}: it has engines and no graph of "
                f"{name}. Run it with --backend {self.pack.backend}; for anything else take the "
                "bundle that it was packed from."
            )
        return self.folder / file

    def weights(self, name: str) -> FileSpec:
        """The file that the weights of a piece lie in: its hash and size."""
        return self.manifest.files[self.manifest.pieces[name].data]

    def weight_bytes(self, name: str) -> int:
        """Bytes of a piece's own weights, packed forms counted too: others may lie in its file."""
        return sum(tensor.bytes + tensor.packed for tensor in stored_tensors(self.path(name)))

    def data_bytes(self, *names: str) -> int:
        """Of the files that the weights of pieces lie in, of all if none is named."""
        data = {self.piece(name).data for name in names or self.manifest.pieces}
        return sum(self.manifest.files[file].bytes for file in data)

    @property
    def files(self) -> Mapping[str, FileSpec]:
        """The files that are here: all of the manifest, or those of a pack."""
        return self.manifest.files if self.pack is None else self.pack.files

    def check_backend(self, name: str) -> None:
        """Raises BundleError if the bundle is packed for another backend."""
        if self.pack is not None and self.pack.backend != name:
            raise BundleError(
                f"{self.folder} is packed for {self.pack.target}, not for {name}. Run it with "
                f"--backend {self.pack.backend}, or pack the bundle again: mimo-edge pack BUNDLE "
                f"--target {name}{':8.9' if name == 'trt-rtx' else ''} -o OUT"
            )

    def check_whole(self, doing: str) -> None:
        """Raises BundleError for a pack, from which nothing can be made. `doing` is what for."""
        if self.pack is not None:
            raise BundleError(
                f"{self.folder} is packed for {self.pack.target} and has no more than that needs. "
                f"To {doing}, take the bundle that it was packed from ({self.identity[:16]})."
            )

    @cached_property
    def bytes(self) -> int:
        """Of all files that are here."""
        return sum(spec.bytes for spec in self.files.values())

    def check_unchanged(self) -> None:
        """Raises BundleError if a file is another than the one that was opened: what is loaded now
        would not fit what is loaded already."""
        for name, seen in self._seen.items():
            path = self.folder / name
            try:
                changed = _state(path) != seen
            except OSError:
                changed = True
            if changed:
                raise BundleError(f"{path} has changed since the bundle was opened. Open it again.")

    @property
    def model(self) -> ModelSpec:
        return self.manifest.model

    @property
    def member(self) -> Member:
        """Which model of the family it is of."""
        return member(self.manifest.architecture)

    @property
    def speaks(self) -> bool:
        """Whether the pieces that make speech are in it."""
        return all(name in self.manifest.pieces for name in SPEECH_PIECES)

    @cached_property
    def identity(self) -> str:
        """sha256 over the hashes of all files: two bundles with the same identity are the same."""
        digest = hashlib.sha256()
        for name in sorted(self.manifest.files):
            digest.update(f"{name} {self.manifest.files[name].sha256}\n".encode())
        return digest.hexdigest()

    @property
    def _again(self) -> str:
        """What to do about damage."""
        if self.pack is None:
            return "Copy the whole bundle again, or export it again"
        return "Copy the whole folder again, or pack the bundle again"

    def _check_sizes(self) -> None:
        for name, spec in self.files.items():
            path = self.folder / name
            if not path.is_file():
                raise BundleError(f"{path} is missing. {self._again}.")
            self._seen[name] = _state(path)
            size = path.stat().st_size
            if size != spec.bytes:
                raise BundleError(
                    f"{path} has {size} bytes, the manifest says {spec.bytes}: it is truncated or "
                    f"altered. {self._again}."
                )

    def _check_hashes(self, on_progress: Callable[[int, int], None] | None) -> None:
        done, total = 0, self.bytes
        known = Verified.of_user() if total >= LARGE else None
        listed = MANIFEST if self.pack is None else PACK
        for name, spec in self.files.items():
            path = self.folder / name
            if known is not None and known.holds(path, spec):
                done += spec.bytes
                continue
            digest = hashlib.sha256()
            for chunk in chunks(path):
                digest.update(chunk)
                done += len(chunk)
                if on_progress is not None:
                    on_progress(done, total)
            if digest.hexdigest() != spec.sha256:
                raise BundleError(
                    f"{path} was altered: its sha256 is not the one in {listed}. {self._again}."
                )
            if known is not None:
                known.add(path, spec)
        if known is not None:
            known.save()


def _missing(manifest: Manifest) -> list[str]:
    """The pieces that its model needs and it does not have."""
    listens = member(manifest.architecture).listens_only
    listens = listens and not manifest.pieces.keys() & SPEECH_PIECES
    needed = [name for name in PIECES if not (listens and name in SPEECH_PIECES)]
    return [name for name in needed if name not in manifest.pieces]
