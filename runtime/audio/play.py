"""Sound out loud, through a player that the system has: raw samples to its standard input."""

import shutil
import subprocess
import tempfile
from types import TracebackType
from typing import IO, Self

import numpy as np
from mimo_edge.runtime.audio.write import AudioSink, pcm16
from mimo_edge.runtime.bundle.errors import EnvironmentProblem

# program -> arguments for 16-bit mono samples on standard input at {rate} Hz; the first is taken
PLAYERS = {
    "paplay": ("--raw", "--format=s16le", "--channels=1", "--rate={rate}"),
    "pw-cat": ("-p", "--raw", "--format=s16", "--channels=1", "--rate={rate}", "-"),
    "aplay": ("-q", "-t", "raw", "-f", "S16_LE", "-c", "1", "-r", "{rate}"),
    "ffplay": (
        *("-nodisp", "-autoexit", "-loglevel", "error", "-fflags", "nobuffer"),
        *("-f", "s16le", "-ch_layout", "mono", "-sample_rate", "{rate}", "-i", "-"),
    ),
    "play": ("-q", "-t", "raw", "-e", "signed", "-b", "16", "-c", "1", "-r", "{rate}", "-"),
}


class SystemPlayer:
    """An `AudioSink` that is heard. Raises EnvironmentProblem if there is no player."""

    def __init__(self, rate: int) -> None:
        self.name = next((name for name in PLAYERS if shutil.which(name)), "")
        if not self.name:
            raise EnvironmentProblem(
                f"no player is installed that takes samples ({', '.join(PLAYERS)}): install one of "
                "them (ffplay comes with ffmpeg), or write with -o FILE or -o -"
            )
        self._command = [self.name, *(part.format(rate=rate) for part in PLAYERS[self.name])]
        self._process: subprocess.Popen[bytes] | None = None
        self._said: IO[bytes] | None = None

    def __enter__(self) -> Self:
        self._said = tempfile.TemporaryFile()
        try:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=self._said,
            )
        except OSError as error:
            self._said.close()
            raise EnvironmentProblem(f"{self.name} does not start ({error}); use -o") from error
        return self

    def write(self, wav: np.ndarray) -> None:
        """Play wav [N] after what came before; waits while the player holds enough."""
        samples = pcm16(wav, self.name).astype("<i2", copy=False)
        assert self._process is not None and self._process.stdin is not None
        try:
            self._process.stdin.write(samples.tobytes())
            self._process.stdin.flush()
        except OSError as error:
            raise self._stopped() from error

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._process is not None and self._said is not None
        with self._said:
            if kind is not None:  # nobody wants to hear the rest
                self._process.kill()
            self._process.communicate()  # until all has been heard
            if kind is None and self._process.returncode:
                raise self._stopped()

    def _stopped(self) -> EnvironmentProblem:
        assert self._process is not None and self._said is not None
        self._process.wait()
        self._said.seek(0)
        said = self._said.read().decode(errors="replace").strip() or "without a word"
        return EnvironmentProblem(f"{self.name} stopped playing: {said}. Use -o FILE or -o -")


class BothSinks:
    """Audio into two sinks at once."""

    def __init__(self, first: AudioSink, second: AudioSink) -> None:
        self._sinks = first, second

    def __enter__(self) -> Self:
        self._sinks[0].__enter__()
        try:
            self._sinks[1].__enter__()
        except BaseException as error:
            self._sinks[0].__exit__(type(error), error, error.__traceback__)
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            self._sinks[0].__exit__(kind, error, trace)
        finally:
            self._sinks[1].__exit__(kind, error, trace)

    def write(self, wav: np.ndarray) -> None:
        for sink in self._sinks:
            sink.write(wav)
