"""A bundle while it is written: its folder, and which of its pieces are whole."""

import dataclasses
import json
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from mimo_edge.runtime.bundle.errors import DISK_FULL, MALFORMED, InputError, ResourceError, no_room
from mimo_edge.runtime.bundle.files import hash_file, write_text
from mimo_edge.runtime.bundle.folders import MARK, partial_of, recover, remove_folder, take_place
from mimo_edge.runtime.bundle.lock import locked
from mimo_edge.runtime.bundle.manifest import MANIFEST, PIECES, FileSpec, PieceSpec

Finished = tuple[PieceSpec, Mapping[str, FileSpec]]  # a piece, and its files


@contextmanager
def own_place(output: Path) -> Iterator[None]:
    """Hold the lock of the bundle; folders that are made for it go if they stay empty."""
    new = [folder for folder in output.parents if not folder.exists()]
    try:
        try:
            output.parent.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError) as error:
            raise InputError(
                f"{output} cannot be written: {error.filename} is no folder. Check the path."
            ) from error
        with locked(output):
            recover(output)
            yield
    finally:
        for folder in new:
            with suppress(OSError):  # it is not empty where the export went well
                folder.rmdir()


@contextmanager
def partial_folder(output: Path, total: int, resume: bool) -> Iterator[Path]:
    """Where a bundle of `total` bytes is written until it is finished.

    It is removed on a failure, unless with `resume`. Raises ResourceError if the disk is too small.
    """
    partial = partial_of(output)
    if partial.exists() and not resume:
        remove_folder(partial)
    try:
        partial.mkdir(exist_ok=True)
        (partial / MARK).touch()
        (partial / MANIFEST).unlink(missing_ok=True)  # it looks whole no longer
        _check_disk(partial, total)
        yield partial
    except OSError as error:
        if error.errno in DISK_FULL:
            raise ResourceError(
                f"{output} cannot be written ({error.strerror}); it needs {total / 1e9:.1f} GB. "
                f"{no_room(error)}"
            ) from error
        raise
    finally:
        if partial.exists() and not resume:
            remove_folder(partial)


def finish(partial: Path, output: Path) -> None:
    """The whole bundle gets its name."""
    take_place(partial, output)
    for left in (*(_marker(output, name) for name in PIECES), output / MARK):
        left.unlink(missing_ok=True)


def write_markers(
    folder: Path, key: str, made: Mapping[str, tuple[PieceSpec, FileSpec]], data: FileSpec
) -> dict[str, Finished]:
    """Note that the pieces of one data file are whole: each with its graph's file, and the data."""
    found: dict[str, Finished] = {}
    for name, (spec, graph) in made.items():
        found[name] = spec, {spec.file: graph, spec.data: data}
        write_marker(folder, name, key, found[name])
    return found


def read_markers(folder: Path, names: Iterable[str], key: str) -> dict[str, Finished] | None:
    """The pieces of one data file that were finished before from the same: all of them, or None."""
    found: dict[str, Finished] = {}
    for name in names:
        finished = read_marker(folder, name, key)
        if finished is None:
            return None
        found[name] = finished
    return found


def write_marker(folder: Path, name: str, key: str, finished: Finished) -> None:
    """Note that a piece is whole; `key` is all that it was made from."""
    spec, files = finished
    raw = {"key": key, "piece": dataclasses.asdict(spec)}
    raw["files"] = {n: dataclasses.asdict(f) for n, f in files.items()}
    write_text(_marker(folder, name), json.dumps(raw))


def read_marker(folder: Path, name: str, key: str) -> Finished | None:
    """A piece that was finished before from the same, or None."""
    try:
        raw = json.loads(_marker(folder, name).read_text())
        if raw["key"] != key:  # before the rest: another version may write it otherwise
            return None
        files = {n: FileSpec(**f) for n, f in raw["files"].items()}
        if not all(hash_file(folder / n) == f for n, f in files.items()):
            return None
        return PieceSpec.from_raw(raw["piece"]), files
    except (OSError, *MALFORMED):
        return None


def _check_disk(partial: Path, total: int) -> None:
    held = sum(path.stat().st_size for path in partial.iterdir())
    free = shutil.disk_usage(partial).free + held
    if free < total:
        raise ResourceError(
            f"{partial.parent} has {free / 1e9:.1f} GB free, the bundle needs "
            f"{total / 1e9:.1f} GB. Free some, write elsewhere, or choose a smaller precision."
        )


def _marker(folder: Path, name: str) -> Path:
    return folder / f"{name}.finished.json"
