"""Where audio is read from: paths, bytes, streams and stdin; and which container it is."""

import contextlib
import io
import os
import stat
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from mimo_edge.runtime.audio import chunks
from mimo_edge.runtime.audio.flac import flac
from mimo_edge.runtime.audio.layout import Damaged, Layout, read_at
from mimo_edge.runtime.audio.mpeg import id3_length, mpeg
from mimo_edge.runtime.audio.ogg import ogg
from mimo_edge.runtime.bundle.errors import AudioError

Source = str | Path | bytes | bytearray | memoryview | BinaryIO

FORMATS = "WAV, FLAC, MP3, Ogg Vorbis or Opus"

_HEAD = 1 << 16  # bytes of a pipe that must show what it is
_MARGIN = 16 << 20  # bytes of a pipe beside the sound: pictures and other tags
_PIECE = 1 << 20
_MAGIC: tuple[tuple[bytes, int, bytes, Callable[[BinaryIO, int, int], Layout]], ...] = (
    # begins with, then at an offset, how it is read
    (b"RIFF", 8, b"WAVE", chunks.wav),
    (b"RIFX", 8, b"WAVE", chunks.wav),
    (b"RF64", 8, b"WAVE", chunks.rf64),
    (b"riff", 24, b"wave", chunks.w64),
    (b"FORM", 8, b"AIF", chunks.aiff),
    (b"caff", 4, b"", chunks.caf),
    (b".snd", 4, b"", chunks.au),
    (b"dns.", 4, b"", chunks.au),
    (b"NIST_1A", 7, b"", chunks.nist),
    (b"fLaC", 4, b"", flac),
    (b"OggS", 4, b"", ogg),
)


def source_name(source: object) -> str:
    """How messages call it."""
    if isinstance(source, str) and source == "-":
        return "the audio on stdin"
    if isinstance(source, str | Path):
        return f"the audio file {str(source)!r}"
    if isinstance(source, bytes | bytearray | memoryview):
        return "the audio given as bytes"
    name = getattr(source, "name", None)  # of an open file; a pipe has a number or none
    return f"the audio stream {name!r}" if isinstance(name, str) else "the audio stream"


@contextlib.contextmanager
def opened(source: Source, name: str, max_seconds: float) -> Iterator[tuple[BinaryIO, Layout]]:
    """A seekable stream and what lies in it. What cannot seek is read into memory first.

    A pipe is refused after its first bytes if they are no audio, and as soon as it has given more
    than `max_seconds` of its format can take.
    """
    with contextlib.ExitStack() as stack:
        if isinstance(source, bytes | bytearray | memoryview):
            file: BinaryIO = io.BytesIO(source)
        elif isinstance(source, str) and source == "-":
            file = _stdin()
        elif isinstance(source, str | Path):
            file = stack.enter_context(_file(source, name))
        else:
            file = source  # the caller's, so left open
        try:
            seekable = _seekable(file)
            if not seekable:
                file = _copied(file, name, max_seconds)
            layout = _examined(file, name)
        except AudioError:
            raise
        except (AttributeError, TypeError, ValueError) as error:
            raise AudioError(
                f"{name} is not an open binary stream ({error}); give a path, bytes, or a file "
                "opened with mode 'rb'"
            ) from None
        except OSError as error:
            raise _unreadable(name, error) from None
        try:
            yield file, layout
        except OSError as error:  # the disk fails while it is decoded
            raise _unreadable(name, error) from None


def _unreadable(name: str, error: OSError) -> AudioError:
    return AudioError(f"{name} cannot be read ({error}); copy it to a disk that is well first")


def _file(path: str | Path, name: str) -> BinaryIO:
    try:
        return Path(path).open("rb")
    except FileNotFoundError:
        raise AudioError(f"{name} does not exist; check the path") from None
    except IsADirectoryError:
        raise AudioError(f"{name} is a directory; name a file in it") from None
    except PermissionError:
        raise AudioError(f"{name} may not be read; change its permissions") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise AudioError(f"{name} cannot be opened ({error}); check the path") from None


def _stdin() -> BinaryIO:
    if sys.stdin is None or sys.stdin.closed:
        raise AudioError("stdin is closed; name a sound file instead of -")
    if sys.stdin.isatty():
        raise AudioError("stdin is a terminal; pipe a sound file in, or name one instead of -")
    stdin: Any = sys.stdin
    return getattr(stdin, "buffer", stdin)  # text, as a test may put there, is refused later


def _seekable(stream: BinaryIO) -> bool:
    if not isinstance(stream.read(0), bytes):
        raise TypeError("it reads text")
    try:  # /dev/zero says that it can seek, and has no end to seek to
        if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
            return False
    except (AttributeError, OSError):
        pass  # not of the file system: in memory, or a program's own
    return stream.seekable()


def _copied(stream: BinaryIO, name: str, max_seconds: float) -> BinaryIO:
    """A pipe's content in memory."""
    copy = io.BytesIO()

    def fill(size: int) -> None:
        """Read on until `size` bytes are there, or the end."""
        copy.seek(0, os.SEEK_END)
        while copy.tell() < size:
            piece = stream.read(min(_PIECE, size - copy.tell()))
            if not piece:
                return
            copy.write(piece)

    fill(_HEAD)
    tags = min(_skipped(copy, copy.getbuffer().nbytes), _MARGIN)
    fill(tags + _HEAD)
    layout = _examined(copy, name, whole=False)
    limit = tags + _MARGIN + int(layout.byte_rate * min(max_seconds, 1e9))
    fill(limit + 1)
    if copy.getbuffer().nbytes > limit:
        raise too_long(name, None, max_seconds)
    return copy


def _examined(file: BinaryIO, name: str, whole: bool = True) -> Layout:
    end = file.seek(0, os.SEEK_END)
    if end == 0:
        again = " or -, which serves one input only" if name.endswith("stdin") else ""
        raise AudioError(f"{name} is empty (0 bytes{again}); record or export it again")
    start = _skipped(file, end)
    head = read_at(file, start, 32)
    for magic, offset, more, read in _MAGIC:
        # a file that was cut within its first bytes is still known by the first four
        if head.startswith(magic) and more.startswith(head[offset : offset + len(more)]):
            try:
                return read(file, start, end)
            except Damaged as damaged:
                if not whole:  # what is beyond these bytes is not known yet
                    return Layout("", start, end)
                raise AudioError(f"{name} {damaged.what}") from None
    try:
        layout = mpeg(file, start, end)
    except Damaged as damaged:
        raise AudioError(f"{name} {damaged.what}") from None
    if layout is None:
        raise unknown_format(name, "no container that is read here")
    return layout


def unknown_format(name: str, why: str) -> AudioError:
    return AudioError(
        f"{name} is not audio in a known format ({why}); give {FORMATS}, or convert it: "
        "ffmpeg -i INPUT OUTPUT.wav"
    )


def too_long(name: str, seconds: float | None, max_seconds: float) -> AudioError:
    """`seconds` None if it was not read to its end."""
    lasts = "lasts" if seconds is None else f"lasts {-int(-seconds // 1)} s,"
    return AudioError(
        f"{name} {lasts} longer than the limit of {max_seconds:g} s; cut it into shorter pieces or "
        "raise max_seconds"
    )


def _skipped(file: BinaryIO, end: int) -> int:
    """Bytes of ID3v2 tags, which some programs put before any format."""
    at = 0
    while (length := id3_length(read_at(file, at, 10))) and at + length < end + _MARGIN:
        at += length
    return at
