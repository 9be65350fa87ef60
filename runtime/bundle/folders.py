"""Folders that appear whole or not at all: written under another name, and renamed at the end.

<output>.partial     an export until it is finished; the file MARK in it says that it is one
<output>.replaced    what had the name before, for the moment in which the two change places
"""

import errno
import os
import shutil
from collections.abc import Iterable
from pathlib import Path

from mimo_edge.runtime.bundle.errors import InputError
from mimo_edge.runtime.bundle.manifest import MANIFEST

MARK = "unfinished"  # empty


def partial_of(place: Path) -> Path:
    """Where the folder is written until it is finished."""
    return place.with_name(place.name + ".partial")


def replaced_of(place: Path) -> Path:
    """Where the folder that had the name before is put aside."""
    return place.with_name(place.name + ".replaced")


def check_output(output: Path, sources: Iterable[Path], force: bool) -> Path:
    """Refuse, before the long work, a place for a bundle that must not or cannot be taken.

    Returns where it really is: a link stays a link, what it points to is replaced. Raises
    InputError; `force` replaces a bundle, and nothing else that is not empty.
    """
    place = output.resolve()
    if os.path.ismount(place):
        raise InputError(f"{output} is a mount point and cannot be renamed. Give a folder in it.")
    partial, replaced = partial_of(place), replaced_of(place)
    read = [folder.resolve() for folder in sources]
    for taken in (place, partial, replaced):
        if any(taken in (folder, *folder.parents) for folder in read):
            raise InputError(f"{taken} holds the checkpoint that is exported. Choose another name.")
    if place.exists() and not place.is_dir():
        raise InputError(f"{output} is a file, not a folder. Choose another name, or remove it.")
    inside = _inside(place)
    if inside and MANIFEST not in inside:
        raise InputError(f"{output} holds {inside[0]} and is no bundle. Choose another name.")
    if inside and not force:
        raise InputError(f"{output} exists. Choose another name, or pass --force to replace it.")
    if os.path.lexists(partial) and not _left_by_export(partial):
        raise InputError(
            f"{partial} is in the way: the bundle is written there first, and no export left it. "
            "Move it away, or choose another name."
        )
    if place.exists() and os.path.lexists(replaced):
        raise InputError(
            f"{replaced} is in the way: it may be what an export replaced when it was killed. "
            "Move it away, or remove it."
        )
    return place


def take_place(new: Path, place: Path) -> None:
    """`new` gets the name `place`; what had it is put aside before, and deleted after.

    Whatever happens, an interruption included, one of the two has the name in the end.
    """
    if not place.exists():
        os.rename(new, place)
        return
    replaced = replaced_of(place)
    if os.path.lexists(replaced):
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(replaced))
    try:
        os.rename(place, replaced)
        os.rename(new, place)
    finally:
        if not place.exists():
            os.rename(replaced, place)
        elif not new.exists():
            shutil.rmtree(replaced, ignore_errors=True)


def _left_by_export(partial: Path) -> bool:
    if partial.is_symlink() or not partial.is_dir():
        return False
    inside = _inside(partial)
    return not inside or MARK in inside


def _inside(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
