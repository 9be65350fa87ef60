"""Folders that appear whole or not at all: written under another name, and renamed at the end.

<output>.partial     an export until it is finished; the file MARK in it says that it is one
<output>.replaced    what had the name before, for the moment in which the two change places; the
                     file PUT_ASIDE in it says so

What a killed export leaves of these, `recover` puts right at the next one.
"""

import errno
import os
import shutil
import stat
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from mimo_edge.runtime.bundle.errors import InputError
from mimo_edge.runtime.bundle.files import sync_folder, sync_tree
from mimo_edge.runtime.bundle.manifest import MANIFEST

MARK, PUT_ASIDE = "unfinished", "replaced"  # empty


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
    place = check_place(output)
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
    if os.path.lexists(partial) and not left_unfinished(partial):
        raise InputError(
            f"{partial} is in the way: the bundle is written there first, and no export left it. "
            "Move it away, or choose another name."
        )
    if os.path.lexists(replaced) and not _was_put_aside(replaced):
        raise InputError(
            f"{replaced} is in the way: it may be what an export replaced when it was killed. "
            "Move it away, or remove it."
        )
    return place


def check_place(output: Path) -> Path:
    """Where a folder really is that is to be renamed or replaced. Raises InputError if it cannot
    be, or if somebody would find himself in a folder that is deleted."""
    place = output.resolve()
    if os.path.ismount(place):
        raise InputError(f"{output} is a mount point and cannot be renamed. Give a folder in it.")
    if any(place == folder for folder in _above_here()):
        raise InputError(
            f"{output} is the current folder, or holds it, and would be replaced while somebody is "
            "in it. Go to another folder, or choose another name."
        )
    return place


def take_place(new: Path, place: Path) -> None:
    """`new` gets the name `place`; what had it is put aside before, and deleted after.

    Whatever happens, an interruption included, one of the two has the name in the end; after a kill
    or a loss of power, once `recover` was called. Permissions stay those of what is replaced.
    """
    sync_tree(new)
    if not place.exists():
        os.rename(new, place)
        sync_folder(place.parent)
        return
    replaced = replaced_of(place)
    if os.path.lexists(replaced):
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(replaced))
    new.chmod(stat.S_IMODE(place.stat().st_mode))
    try:
        (place / PUT_ASIDE).touch()
        os.rename(place, replaced)
        os.rename(new, place)
        sync_folder(place.parent)
    finally:
        recover(place)


def recover(place: Path) -> None:
    """Put right what an end in the middle of `take_place` left: what was put aside gets its name
    back if nothing else has it, and goes if something has. For who holds the lock of `place`."""
    replaced = replaced_of(place)
    if os.path.lexists(replaced) and _was_put_aside(replaced):
        if place.exists():
            remove_folder(replaced)
        else:
            os.rename(replaced, place)
    (place / PUT_ASIDE).unlink(missing_ok=True)


def remove_folder(folder: Path) -> None:
    """Remove a folder of ours in an order that can be broken off anywhere: first what makes it look
    whole, last what says that it is to go."""
    with suppress(OSError):
        (folder / MANIFEST).unlink(missing_ok=True)
        for path in folder.iterdir():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            elif path.name not in (MARK, PUT_ASIDE):
                path.unlink()
    shutil.rmtree(folder, ignore_errors=True)


def _was_put_aside(replaced: Path) -> bool:
    return not replaced.is_symlink() and (replaced / PUT_ASIDE).is_file()


def _above_here() -> list[Path]:
    """The current folder and those that hold it."""
    try:
        here = Path.cwd()
    except FileNotFoundError:  # it is deleted already
        return []
    return [here, *here.parents]


def left_unfinished(partial: Path) -> bool:
    """Whether an export or another command of ours left the folder when it was killed."""
    if partial.is_symlink() or not partial.is_dir():
        return False
    inside = _inside(partial)
    return not inside or MARK in inside


def _inside(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
