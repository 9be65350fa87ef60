"""How each task samples and where it stops: the settings that upstream ships."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Integral, Real
from types import MappingProxyType

from mimo_edge.runtime.bundle.errors import InputError
from mimo_edge.runtime.chat.text_tokenizer import SpecialIds

COLDEST, HOTTEST = 1e-5, 1e5  # scores divided by a temperature outside these overflow float32
NO_LIMIT = 1 << 24  # above every vocabulary, and exact in every type that it is cast to


@dataclass(frozen=True)
class Sampling:
    """How one token is drawn. Temperature 0 is greedy; top_k 0 and top_p 1 are off.

    Raises InputError for a value that is no number or out of range.
    """

    temperature: float
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        if not _is_number(self.temperature) or not (
            self.temperature == 0 or COLDEST <= self.temperature <= HOTTEST
        ):
            raise InputError(
                f"temperature must be 0, or a number from {COLDEST:g} to {HOTTEST:g}, "
                f"not {self.temperature!r}; use 0 for greedy, 0.3 to 1 for more variety"
            )
        if not isinstance(self.top_k, Integral) or isinstance(self.top_k, bool) or self.top_k < 0:
            raise InputError(
                f"top_k must be a whole number, 0 or more, not {self.top_k!r}; use 0 for no limit"
            )
        if not _is_number(self.top_p) or not 0 < self.top_p <= 1:
            raise InputError(
                f"top_p must be above 0 and at most 1, not {self.top_p!r}; use 1 for no limit"
            )
        # plain numbers, whatever kind was given
        object.__setattr__(self, "temperature", float(self.temperature))
        object.__setattr__(self, "top_k", min(int(self.top_k), NO_LIMIT))
        object.__setattr__(self, "top_p", float(self.top_p))

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is always taken."""
        return self.temperature == 0


@dataclass(frozen=True)
class TaskPreset:
    """The defaults of one task."""

    text: Sampling
    audio: Sampling
    stop: tuple[str, ...]  # fields of SpecialIds
    speaks: bool  # whether the answer is speech

    def stop_ids(self, special: SpecialIds) -> tuple[int, ...]:
        """The text ids that end an answer, each once."""
        return tuple(dict.fromkeys(int(getattr(special, name)) for name in self.stop))


def _is_number(value: object) -> bool:
    if not isinstance(value, Real) or isinstance(value, bool):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number that no float holds
        return False


_GREEDY = Sampling(temperature=0.0)
_AUDIO = Sampling(temperature=0.9, top_p=0.95)
_WRITES = ("eos", "im_end")
_SPEAKS = ("eos", "eostm", "im_end")

PRESETS: Mapping[str, TaskPreset] = MappingProxyType(
    {
        "asr": TaskPreset(_GREEDY, _AUDIO, _WRITES, speaks=False),
        "tts": TaskPreset(Sampling(0.6), _AUDIO, _SPEAKS, speaks=True),
        "understand": TaskPreset(Sampling(0.3, top_p=0.95), _AUDIO, _WRITES, speaks=False),
        "dialogue": TaskPreset(Sampling(0.6, top_p=0.95), _AUDIO, _SPEAKS, speaks=True),
        "speech-to-text": TaskPreset(Sampling(0.6, top_p=0.95), _AUDIO, _WRITES, speaks=False),
        "chat": TaskPreset(Sampling(0.4, top_p=0.95), _AUDIO, _WRITES, speaks=False),
        # The base model's task: it knows no turns, so im_end means nothing here.
        "in-context": TaskPreset(_GREEDY, _AUDIO, ("eos", "eostm"), speaks=True),
    }
)
