"""One writer for each output: whoever comes second is refused at once, and told who is writing.

The lock is a file beside the output, held by the operating system for as long as its owner lives;
what a killed owner leaves is no lock any more, and the next run removes it.
"""

import errno
import hashlib
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from mimo_edge.runtime.bundle.errors import InputError
from mimo_edge.runtime.bundle.files import LOCK, PREFIX, own, sweep


@contextmanager
def locked(output: str | Path) -> Iterator[None]:
    """Be the only one that writes `output`, a file or a folder, as long as the block runs.

    The folder that it lies in must exist. Raises InputError if another process has it, or if
    nothing can be written beside it.
    """
    place = Path(os.path.realpath(output))
    sweep(place.parent)
    path = beside(place, LOCK)
    descriptor = _owned(path, output)
    try:
        with suppress(OSError):  # a full disk: the owner has no name then
            os.truncate(descriptor, 0)
            os.pwrite(descriptor, f"{os.getpid()} on {socket.gethostname()}\n".encode(), 0)
        yield
    finally:
        path.unlink(missing_ok=True)  # while it is owned: nobody else can have begun
        os.close(descriptor)


def beside(output: Path, suffix: str) -> Path:
    """A hidden place beside an output, always the same, whose name is short however long the
    output's is."""
    digest = hashlib.sha256(os.fsencode(output.name)).hexdigest()[:16]
    return output.parent / f"{PREFIX}{digest}{suffix}"


def _owned(path: Path, output: str | Path) -> int:
    """The descriptor of the lock file, owned."""
    while True:
        try:
            descriptor = _open(path)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise InputError(
                f"{output} cannot be written: there is no folder {str(path.parent)!r}; create it "
                "first"
            ) from error
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
                raise
            raise InputError(
                f"{output} cannot be written: no permission to create files in "
                f"{str(path.parent)!r} ({error.strerror}); choose another folder"
            ) from error
        if own(descriptor) is False:
            who = os.pread(descriptor, 300, 0).decode("utf-8", "replace").strip()
            os.close(descriptor)
            raise InputError(
                f"{output} is being written by process {who or 'unknown, which has just begun'}. "
                "Wait until it has ended, or choose another name."
            )
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), path.stat()):
                return descriptor
        os.close(descriptor)  # its last owner has removed it in between


def _open(path: Path) -> int:
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except PermissionError:
        if not path.exists():
            raise
        return os.open(path, os.O_RDONLY)  # another user's: enough to ask whether it is owned
