"""The folder of a checkpoint pair, which is written whole or not at all."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mimo_edge.runtime.bundle.errors import DISK_FULL, InputError, ResourceError, no_room
from mimo_edge.runtime.bundle.folders import (
    MARK,
    left_unfinished,
    partial_of,
    recover,
    remove_folder,
    take_place,
)
from mimo_edge.runtime.bundle.lock import locked
from mimo_edge.scripts.progress import size

LANGUAGE_MODEL, AUDIO_TOKENIZER = "language_model", "audio_tokenizer"
_SPARE_BYTES = 64 << 20  # headers, configs, tokenizer files, and room for everyone else


@contextmanager
def new_pair(out: Path, weights: int, force: bool, remedy: str) -> Iterator[Path]:
    """A folder beside `out` that takes its place at the end of the block, or is removed.

    `weights` bytes will be written, `remedy` says what makes them fewer. Raises InputError for a
    folder that cannot be used, ResourceError if the disk is too small.
    """
    needed = weights + _SPARE_BYTES
    _check_replaceable(out, force)
    partial = partial_of(out)
    with _typed_errors(out, needed, remedy):
        out.parent.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(out.parent).free
        if free < needed:
            raise ResourceError(
                f"{out} needs {size(needed)}, its disk has {size(free)} free. Free "
                f"{size(needed - free)}, or choose a folder on another disk. {remedy}"
            )
        with locked(out):
            recover(out)
            _check_replaceable(out, force)
            if partial.is_dir() and left_unfinished(partial):
                remove_folder(partial)
            partial.mkdir()
            try:
                (partial / MARK).touch()
                yield partial
                take_place(partial, out)
                (out / MARK).unlink()
            finally:
                remove_folder(partial)


@contextmanager
def _typed_errors(out: Path, needed: int, remedy: str) -> Iterator[None]:
    try:
        yield
    except FileExistsError as error:
        raise InputError(
            f"{error.filename} is in the way: no run of this command left it. Move it away, or "
            "choose another name."
        ) from error
    except OSError as error:
        if error.errno in DISK_FULL:
            raise ResourceError(
                f"{out} cannot be written ({error.strerror}); {size(needed)} are needed. "
                f"{no_room(error)} {remedy}"
            ) from error
        raise InputError(f"cannot write {out} ({error}). Choose another folder.") from error


def _check_replaceable(out: Path, force: bool) -> None:
    """Refuse to overwrite, and even with `force` refuse what this command did not write."""
    if out.is_symlink() or (out.exists() and not out.is_dir()):
        raise InputError(f"{out} exists and is not a folder. Choose another name.")
    inside = sorted(p.name for p in out.iterdir()) if out.exists() else []
    foreign = [name for name in inside if name not in (LANGUAGE_MODEL, AUDIO_TOKENIZER)]
    if foreign:
        raise InputError(f"{out} holds {foreign[0]}, no checkpoint of ours. Choose a new folder.")
    if inside and not force:
        raise InputError(f"{out} already holds a checkpoint. Choose a new folder, or pass --force.")
