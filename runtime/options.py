"""What every task takes beside its input: how ids and codes are drawn, and how much."""

from dataclasses import dataclass, replace

from mimo_edge.runtime.chat.checks import check_options
from mimo_edge.runtime.chat.presets import Sampling

_GREEDY = Sampling(0.0)


@dataclass(frozen=True)
class Options:
    """What every task takes. None means what the task's preset says.

    `temperature` and its like change one thing of the preset and keep the rest; `text` and `audio`
    replace it whole.
    """

    text: Sampling | None = None
    audio: Sampling | None = None
    temperature: float | None = None  # of text ids; 0 is greedy
    top_k: int | None = None
    top_p: float | None = None
    audio_temperature: float | None = None  # of audio codes
    audio_top_k: int | None = None
    audio_top_p: float | None = None
    seed: int = 0
    max_new: int | None = None  # patches: text tokens, and 160 ms pieces of speech
    min_new: int = 0
    template: str | None = None  # the instruction of asr and tts, otherwise drawn by seed

    def __post_init__(self) -> None:
        check_options(self)
        for channel in ("text", "audio"):  # a value that cannot be is refused here, not later
            self.sampling(_GREEDY, channel)

    def sampling(self, preset: Sampling, channel: str) -> Sampling:
        """How `channel`, text or audio, is drawn where the task's preset is `preset`."""
        prefix = "" if channel == "text" else "audio_"
        given = {name: getattr(self, prefix + name) for name in ("temperature", "top_k", "top_p")}
        base: Sampling = getattr(self, channel) or preset
        return replace(base, **{name: v for name, v in given.items() if v is not None})
