"""What a sound file says about itself, beside what is there."""

from dataclasses import dataclass
from typing import BinaryIO

from mimo_edge.runtime.bundle.errors import AudioError

MORE_THAN_ONE = (
    "holds more than one stream, of which only the first would be heard; make one of them: "
    "ffmpeg -i INPUT OUTPUT.wav"
)

LESS_THAN_HELD = (
    "announces less sound than it holds; export it again, or repair it: ffmpeg -i INPUT OUTPUT.wav"
)


@dataclass(frozen=True)
class Layout:
    """Where the sound of a file lies, and how much of it the file announces.

    `there` and `announced` count the same thing: samples of a channel where `rate` is given, else
    bytes of sound. `announced` is None where nothing says it, or where it is not known yet when the
    header is written, as in a pipe.
    """

    kind: str  # the container, as a user calls it
    start: int  # the bytes [start, stop) are shown to the decoder
    stop: int
    there: int = 0
    announced: int | None = None
    cut: bool = False  # something announced is missing
    rate: int = 0  # Hz of what `there` counts; 0 if it counts bytes
    fields: tuple[tuple[int, bytes], ...] = ()  # (offset, bytes) that a header should have said
    told: int = 0  # bytes the decoder is told, where it guesses a length from them; 0: as they are
    byte_rate: int = 400_000  # at most so many bytes a second; 48 kHz stereo in float, if unknown
    mask: int = 0  # WAVE_FORMAT_EXTENSIBLE's speakers, 0 if not said


@dataclass
class Damaged(Exception):
    """A file contradicts itself. `what` goes on from "the audio file ... "."""

    what: str


def read_at(file: BinaryIO, offset: int, count: int) -> bytes:
    """`count` bytes from `offset` on, fewer at the end."""
    file.seek(offset)
    return file.read(count)


def cut_short(name: str, there: float, whole: float | None) -> AudioError:
    """The error for sound of which only a part is there; seconds, `whole` None if unknown."""
    heard = f"only {there:.2f} s are there"
    if whole is not None:
        heard = f"{there:.2f} of {whole:.2f} s are there"
    return AudioError(
        f"{name} is cut short: {heard}; fetch or record it again, or keep what is there: "
        "ffmpeg -i INPUT OUTPUT.wav"
    )
