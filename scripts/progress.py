"""Progress of a long write, on stderr: bytes of the total, rate, and time left."""

import sys
import time
from types import TracebackType
from typing import TextIO


class ByteProgress:
    """Say once in a while how far it is; a terminal line is overwritten, a log gets a few lines."""

    def __init__(self, total: int, stream: TextIO | None = None) -> None:
        self._total, self._stream = total, stream or sys.stderr
        self._live = self._stream.isatty()
        self._every = 0.5 if self._live else 10.0  # seconds
        self._done, self._start = 0, time.monotonic()
        self._said = self._start

    def __enter__(self) -> "ByteProgress":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._say()
        if self._live:
            print(file=self._stream)

    def add(self, count: int) -> None:
        """`count` more bytes are written."""
        self._done += count
        if time.monotonic() - self._said >= self._every:
            self._say()

    def _say(self) -> None:
        self._said = time.monotonic()
        rate = self._done / max(self._said - self._start, 1e-3)
        left = round((self._total - self._done) / rate) if rate else 0
        text = (
            f"{size(self._done)} of {size(self._total)}, {size(rate)}/s, "
            f"{left // 60}:{left % 60:02} left"
        )
        self._stream.write(f"\r{text:<60}" if self._live else f"{text}\n")
        self._stream.flush()


def size(count: float) -> str:
    """Bytes for people: 1.5 GB."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.2f} GB"


class StageProgress:
    """Named stages of a long work, of known and unknown length: what is done, and time left."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr
        self._live = self._stream.isatty()
        self._start = self._said = time.monotonic()
        self._stage = ""
        self._measure: tuple[str, int, str] | None = None  # what `done` counts
        self._began, self._from = self._start, 0  # when that was first heard of, and how far it was

    def __enter__(self) -> "StageProgress":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.end()

    def end(self) -> None:
        """Of a terminal's line that is overwritten."""
        if self._live:
            print(file=self._stream)

    def note(self, text: str) -> None:
        """A line of its own."""
        print(text, file=self._stream, flush=True)

    def report(self, stage: str, done: int, total: int, unit: str = "") -> None:
        """`done` of `total` bytes, or of `unit`, inside `stage`; called as often as one likes.

        Bytes are those of all stages together, other units those of this one. Time left is reckoned
        at the rate since the first report of the same total, and by what was done since.
        """
        self._report(stage, done, total, f" of {f'{total} {unit}' if unit else size(total)}", unit)

    def work(self, stage: str, done: int, total: int) -> None:
        """The same for what is counted by its cost, of all stages together: only the ratio of the
        two says something."""
        self._report(stage, done, total)

    def _report(self, stage: str, done: int, total: int, of: str = "", unit: str = "") -> None:
        now = time.monotonic()
        measure = stage if unit else "", total, of
        if measure != self._measure:
            self._measure, self._began, self._from = measure, now, done
        every = 0.5 if self._live else 10.0
        if stage == self._stage and now - self._said < every:
            return
        if self._live and stage != self._stage and self._stage:
            print(file=self._stream)
        self._stage, self._said = stage, now
        text = f"[{now - self._start:6.1f} s] {stage}"
        if total and done:
            text += f"  {100 * done // total}%{of}"
            if self._from < done < total:
                left = (now - self._began) * (total - done) / (done - self._from)
                text += f", about {left:.0f} s left"
        self._stream.write(f"\r{text:<78}" if self._live else f"{text}\n")
        self._stream.flush()
