"""Standard streams that end, fill up, or were never there.

Progress and messages go to stderr for as long as somebody takes them, and are dropped then: they
are no reason to end the work. Results go to stdout; what it does not take is dropped too, so that
files which were asked for are finished all the same, and the command says in the end what became
of it.
"""

import errno
import io
import os
import select
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any

from mimo_edge.runtime.bundle.errors import DISK_FULL, InputError, ResourceError, no_room

_GONE = (errno.EPIPE, errno.ECONNRESET)  # of an OSError: nobody reads any more


class ReaderGone(Exception):
    """Nobody reads stdout any more, and nothing else was asked for."""


class _Tolerant(io.RawIOBase):
    """A descriptor to write to; the first error is kept, and what comes after it is dropped."""

    def __init__(self, descriptor: int, error: OSError | None = None) -> None:
        self._descriptor, self.error = descriptor, error

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._descriptor

    def isatty(self) -> bool:
        return os.isatty(self._descriptor)

    def write(self, content: Any) -> int:
        whole = memoryview(content).cast("B")
        rest = whole
        while self.error is None and len(rest):
            try:
                rest = rest[os.write(self._descriptor, rest) :]
            except BlockingIOError:  # somebody shares it who does not wait
                select.select([], [self._descriptor], [])
            except OSError as error:
                self.error = error
        return len(whole)


@contextmanager
def tolerant_streams() -> Iterator[None]:
    """Put streams that tolerate errors in the place of stdout and stderr while the block runs.

    Streams that are no files, as a program or a test may have put there, are left as they are.
    """
    closed = _open_missing()
    before = sys.stdout, sys.stderr
    try:
        # JSON is UTF-8, and an answer in Chinese must not fail in a locale that has no Chinese
        sys.stdout = _tolerant(sys.stdout, 1, 1 in closed, "utf-8", "backslashreplace")
        encoding = getattr(sys.stderr, "encoding", "utf-8")
        sys.stderr = _tolerant(sys.stderr, 2, 2 in closed, encoding, "backslashreplace")
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            if stream is not None and stream not in before:
                stream.flush()
        sys.stdout, sys.stderr = before


def stdout_lost() -> bool:
    """Whether what is written to stdout reaches nobody."""
    return _raw(sys.stdout) is not None and _raw(sys.stdout).error is not None


def check_stdout() -> None:
    """Say what became of the results on stdout, at the end of a command.

    Nothing if they were taken, or if their reader has left, who has seen what he wanted. Raises
    InputError if stdout was closed or broke, ResourceError if it has no room.
    """
    raw = _raw(sys.stdout)
    if raw is None:
        if sys.stdout is not None:
            sys.stdout.flush()
        return
    sys.stdout.flush()
    error = raw.error
    if error is None or error.errno in _GONE:
        return
    if error.errno in DISK_FULL:
        raise ResourceError(f"stdout: {error}. {no_room(error)}")
    if error.errno == errno.EBADF:
        raise InputError("stdout is closed, so the results went nowhere. Send it to a file.")
    raise InputError(f"stdout: {error}. Send it to a file, or to another program.")


def _raw(stream: Any) -> Any:
    raw = getattr(getattr(stream, "buffer", None), "raw", None)
    return raw if isinstance(raw, _Tolerant) else None


def _tolerant(
    stream: IO[str] | None, descriptor: int, closed: bool, encoding: str, errors: str
) -> Any:
    """A stream over the same descriptor; `closed`, over one that its caller had closed."""
    buffer = getattr(stream, "buffer", None)
    file = getattr(buffer, "raw", buffer)  # with PYTHONUNBUFFERED there is no buffer around it
    if stream is not None and not isinstance(file, io.FileIO):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding=encoding, errors=errors)
        return stream
    if stream is not None:
        stream.flush()
        descriptor = stream.fileno()
    failed = OSError(errno.EBADF, os.strerror(errno.EBADF)) if closed else None
    raw = _Lost(descriptor, failed) if closed else _Tolerant(descriptor)
    # lines to a terminal appear at once, as do those of stderr
    lines = descriptor == 2 or raw.isatty() or buffer is file
    buffered = io.BufferedWriter(raw)
    return io.TextIOWrapper(buffered, encoding, errors, line_buffering=lines)


class _Lost(_Tolerant):
    """A descriptor that was closed; it is no error before something is written."""

    def __init__(self, descriptor: int, error: OSError | None) -> None:
        super().__init__(descriptor)
        self._closed_error = error

    def write(self, content: Any) -> int:
        self.error = self._closed_error
        return super().write(content)


def _open_missing() -> list[int]:
    """Standard descriptors that the caller had closed, now open to nothing: the next file that is
    opened would become one of them, and get the messages of every library."""
    missing = []
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            missing.append(descriptor)
            os.open(os.devnull, os.O_RDWR)  # takes the lowest that is free, which is this one
            os.set_inheritable(descriptor, True)
    return missing
