"""Files: hashes, text in any Unicode encoding, and writing that leaves a whole file or none.

Whatever is written goes through `replacing`: into a temporary file beside the target, on to the
disk, and only then under its name. What a killed program left is known by its name and by the lock
that nobody holds any more, and the next one that writes into the same folder removes it.
"""

import errno
import hashlib
import json
import os
import secrets
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from mimo_edge.runtime.bundle.manifest import FileSpec

if sys.platform != "win32":
    import fcntl

CHUNK = 1 << 22  # bytes read at a time while hashing
LARGEST_DOCUMENT = 1 << 28  # bytes of a JSON or text file; the largest of a checkpoint has 12 MB
PRIVATE = 0o600  # for what only its owner should read
PREFIX, PART, LOCK = ".mimo-edge-", ".part", ".lock"


def hash_file(path: Path) -> FileSpec:
    """sha256 and size of a file."""
    digest, size = hashlib.sha256(), 0
    for chunk in chunks(path):
        digest.update(chunk)
        size += len(chunk)
    return FileSpec(digest.hexdigest(), size)


def chunks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            yield chunk


def read_text(path: Path) -> str:
    """The text of a file in UTF-8, UTF-16 or UTF-32, without its byte order mark if it has one.

    Raises OSError, and ValueError for what is no such text or is far too large for one.
    """
    content = bytearray()
    for chunk in chunks(path):  # a device has no end, and one large read would be memory at once
        content += chunk
        if len(content) > LARGEST_DOCUMENT:
            raise ValueError(f"it has more than {LARGEST_DOCUMENT >> 20} MiB")
    return content.decode(json.detect_encoding(bytes(content[:4]))).removeprefix("\ufeff")


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: Path, content: bytes, mode: int | None = None) -> None:
    """Write a file whole or not at all; a failure leaves nothing behind. For `mode` see
    `replacing`."""
    with replacing(path, mode) as temporary, temporary.open("wb") as file:
        file.write(content)


@contextmanager
def replacing(path: Path, mode: int | None = None) -> Iterator[Path]:
    """Give a file to write to, which becomes `path` if the block ends well, and else is removed.

    A link stays a link: what it points to is replaced. A file that is there keeps its permissions
    and its owner; a new one gets `mode`, or what the process gives to every new file. Raises
    FileExistsError for a device, a pipe or a folder, which root could replace.
    """
    place = Path(os.path.realpath(path))
    if place.exists() and not place.is_file():
        raise FileExistsError(errno.EEXIST, "It exists and is not a regular file", str(path))
    sweep(place.parent)
    old = place.stat() if place.is_file() else None
    closed = old is not None or mode is not None  # others may not read it before it is `path`
    temporary, descriptor = _new_file(place.parent, PRIVATE if closed else 0o666)
    try:
        yield temporary
        with temporary.open("rb") as written:  # a library may have replaced what was opened here
            if old is not None:
                _keep(written.fileno(), old)
            os.fsync(written.fileno())
        os.replace(temporary, place)
        sync_folder(place.parent)
    finally:
        temporary.unlink(missing_ok=True)  # gone already where all went well
        os.close(descriptor)


def sweep(folder: Path) -> None:
    """Remove the temporary files and locks that killed programs left in a folder."""
    with suppress(OSError):
        for path in folder.glob(f"{PREFIX}*"):
            if path.suffix in (PART, LOCK):
                _remove_orphan(path)


def sync_folder(folder: Path) -> None:
    """Let the names in a folder survive a loss of power; not every file system can."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """Let a folder and all files in it survive a loss of power."""
    for path in folder.iterdir():
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
    sync_folder(folder)


def own(descriptor: int) -> bool | None:
    """Lock an open file for as long as it is open. False if somebody else has it, None where the
    system or the file system knows no locks."""
    if sys.platform == "win32":
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except BlockingIOError:
        return False
    except OSError:
        return None


def _new_file(folder: Path, mode: int) -> tuple[Path, int]:
    """A temporary file that is owned, and its descriptor."""
    flags = os.O_CREAT | os.O_EXCL | os.O_RDWR | getattr(os, "O_BINARY", 0)
    while True:
        # not made from the target's name, which may already be as long as a name can be
        path = folder / f"{PREFIX}{os.getpid()}-{secrets.token_hex(4)}{PART}"
        descriptor = os.open(path, flags, mode)
        if own(descriptor) is not False and os.fstat(descriptor).st_nlink:
            return path, descriptor
        os.close(descriptor)  # a sweep took it for an orphan before it was owned


def _remove_orphan(path: Path) -> None:
    with suppress(OSError):
        # neither waits for a writer nor follows a link
        flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOFOLLOW", 0)
        descriptor = os.open(path, flags)
        try:
            if stat.S_ISREG(os.fstat(descriptor).st_mode) and own(descriptor):
                path.unlink()
        finally:
            os.close(descriptor)


def _keep(descriptor: int, old: os.stat_result) -> None:
    if sys.platform == "win32":
        return
    with suppress(OSError):  # only root can give files away
        os.fchown(descriptor, old.st_uid, old.st_gid)
    os.fchmod(descriptor, stat.S_IMODE(old.st_mode))
