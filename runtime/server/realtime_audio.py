"""Sound on a realtime connection: 16 bit at the model's rate, or G.711 at 8 kHz."""

import numpy as np
from mimo_edge.runtime.audio.resample import Resampler
from mimo_edge.runtime.backends.base import Floats
from mimo_edge.runtime.server.errors import RequestError
from mimo_edge.runtime.server.formats import Encoder, Pcm
from mimo_edge.runtime.server.telephone import G711, LAWS, RATE


class Heard:
    """What a client sends, as wav at `rate`."""

    def __init__(self, name: str, rate: int) -> None:
        self._law = LAWS.get(name)
        self._rates = (rate if self._law is None else RATE, rate)
        self._resampler = Resampler(*self._rates)

    def feed(self, data: bytes) -> Floats:
        """The bytes of whole samples -> wav [N]. Raises RequestError."""
        if self._law is not None:
            return self._resampler.feed(self._law.decode(data))
        if len(data) % 2:
            raise RequestError("audio is whole samples of 16 bits.", param="audio")
        wav: Floats = np.frombuffer(data, "<i2").astype(np.float32) / np.float32(32768)
        return wav

    def finish(self) -> Floats:
        """The last milliseconds, wav [N]; what is fed then begins anew."""
        resampler, self._resampler = self._resampler, Resampler(*self._rates)
        return resampler.finish()


def open_sender(name: str, rate: int) -> Encoder:
    """What makes bytes of wav at `rate`."""
    law = LAWS.get(name)
    return Pcm() if law is None else _Telephone(law, rate)


class _Telephone:
    def __init__(self, law: G711, rate: int) -> None:
        self._law, self._resampler = law, Resampler(rate, RATE)

    def push(self, wav: Floats) -> bytes:
        return self._law.encode(self._resampler.feed(wav))

    def finish(self) -> bytes:
        return self._law.encode(self._resampler.finish())
