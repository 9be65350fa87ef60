"""The sound that a Wyoming client sends, in its own format."""

import numpy as np
from mimo_edge.runtime.audio.channels import downmix_weights
from mimo_edge.runtime.audio.read import audio_from_array
from mimo_edge.runtime.backends.base import Floats
from mimo_edge.runtime.bundle.errors import AudioError
from mimo_edge.runtime.server.errors import RequestError
from mimo_edge.runtime.server.wyoming_events import field
from wyoming.event import Event

_SAMPLES = {2: ("<i2", 1 << 15), 4: ("<i4", 1 << 31)}  # bytes of one: dtype, full scale
_RATES = range(8000, 192_001)
_CHANNELS = range(1, 9)


class Recording:
    """Raw samples from `audio-start` to `audio-stop`."""

    def __init__(self, start: Event, max_seconds: float) -> None:
        self._format = self._checked(start)
        self._seconds = max_seconds
        rate, width, channels = self._format
        self._most = int(max_seconds * rate) * width * channels
        self._data = bytearray()

    def append(self, chunk: Event) -> None:
        """An `audio-chunk`. Raises RequestError."""
        if self._checked(chunk) != self._format:
            raise RequestError("The format of the sound changes in the middle.")
        self._data += chunk.payload or b""
        if len(self._data) > self._most:
            raise RequestError(f"The recording is longer than {self._seconds:g} s.")

    def wav(self, rate: int) -> Floats:
        """wav [N] at `rate`. Raises RequestError."""
        given, width, channels = self._format
        dtype, scale = _SAMPLES[width]
        frames = len(self._data) // (width * channels)
        samples = np.frombuffer(self._data, dtype, frames * channels).reshape(frames, channels)
        mono = samples.astype(np.float32) / np.float32(scale) @ downmix_weights(channels)
        try:
            return audio_from_array(
                mono, given, rate=rate, max_seconds=self._seconds, name="the recording"
            )
        except AudioError as error:
            raise RequestError(f"{error}") from error

    def _checked(self, event: Event) -> tuple[int, int, int]:
        """Rate, width, channels."""
        rate, width, channels = (field(event, n, int) for n in ("rate", "width", "channels"))
        if rate not in _RATES or width not in _SAMPLES or channels not in _CHANNELS:
            raise RequestError(
                f"{rate} Hz, {width} bytes, {channels} channels: sound must have 8 to 192 kHz, "
                "samples of 2 or 4 bytes, 1 to 8 channels."
            )
        return rate, width, channels
