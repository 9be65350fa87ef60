"""Every tolerance of the parity ladder. No other file states one, and no test is loosened to pass.

float32 against the golden vectors: measured on two very different float32 runs, then rounded up
(tests/golden/GOLDEN.md, section 3). Absolute differences unless the name says otherwise.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Tolerance:
    name: str
    absolute: float
    largest: float = 0.0  # of the goldens' values, where rounding grows with the value

    def at(self, expected: np.ndarray) -> float:
        """The limit for a checkpoint whose values may be larger than the goldens'."""
        if not self.largest:
            return self.absolute
        return self.absolute * max(1.0, float(np.abs(expected).max()) / self.largest)


RESAMPLED = Tolerance("resampled audio", 5e-6)
ENCODER = Tolerance("encoder hidden and intermediates", 3e-5)
AUDIO = Tolerance("decoder, streaming and pipeline audio", 1e-5)
DECODER = Tolerance("decoder hidden and intermediates", 1e-5)
LM = Tolerance("language model embeddings, states, logits, keys, values", 3e-5, 10.0)
LOCAL_HEADS = Tolerance("local heads", 1e-4)
PROBABILITIES = Tolerance("sampler probabilities", 1e-6)
ORACLE = Tolerance("backbone against the Qwen2 model of transformers", 2e-5)

SAMPLER_RELATIVE = 1e-6
MEL_RELATIVE = 3e-6  # of the largest mel value, on exp(logmel)
MEL_LOG = 5e-3  # on logmel, where it is above MEL_QUIET: below, the logarithm magnifies rounding
MEL_QUIET = -6.0

# what upstream itself loses in bfloat16 is 1 to 2 % of the largest state, and audio at 35 dB
HALF_STATES_RELATIVE = 5e-2  # of the largest value
HALF_AUDIO_SNR = 25.0  # dB

# A choice that the float32 model prefers by less than this, in its own scores, is a near tie: at
# this margin its two candidates are 1.1 to 1 (level 5 of the ladder).
NEAR_TIE = 0.1

# What a build may lose on a set of utterances against the model's own score: points of word error
# rate, or, if that is more, what chance explains. Speech is drawn, and the least rounding makes
# other draws, so two sound builds differ by about the root of their errors.
SPEECH_POINTS = 0.03
SPEECH_DEVIATIONS = 2.0


def difference(actual: np.ndarray, expected: np.ndarray) -> float:
    """Largest absolute difference; infinite if the shapes differ or one is not finite."""
    actual, expected = np.asarray(actual), np.asarray(expected)
    if actual.shape != expected.shape:
        return float("inf")
    if actual.size == 0:
        return 0.0
    gap = np.abs(actual.astype(np.float64) - expected.astype(np.float64)).max()
    return float(gap) if np.isfinite(gap) else float("inf")


def relative_difference(actual: np.ndarray, expected: np.ndarray) -> float:
    """Largest absolute difference over the largest expected value."""
    return difference(actual, expected) / float(np.abs(expected).max())


def speech_edits(own: int, words: int) -> float:
    """The most word errors a build may make where the model itself makes `own` in `words`."""
    return own + max(SPEECH_POINTS * words, SPEECH_DEVIATIONS * float(np.sqrt(own)))


def snr(actual: np.ndarray, expected: np.ndarray) -> float:
    """Signal-to-noise ratio in dB, the difference being the noise; minus infinity if not finite."""
    noise = np.square(np.asarray(actual, np.float64) - np.asarray(expected, np.float64)).sum()
    if not np.isfinite(noise):
        return float("-inf")
    signal = np.square(np.asarray(expected, np.float64)).sum()
    return float(10 * np.log10(signal / noise)) if noise else float("inf")


def worst_snr(mine: Sequence[np.ndarray], theirs: Sequence[np.ndarray]) -> float:
    """The worst of several runs, in dB. Shapes may differ where sizes do not."""
    worst = float("inf")
    if len(mine) != len(theirs):
        return float("-inf")
    for a, b in zip(mine, theirs, strict=True):
        worst = min(worst, snr(a.ravel(), b.ravel()) if a.size == b.size else float("-inf"))
    return worst


def mel_difference(actual: np.ndarray, expected: np.ndarray) -> tuple[float, float]:
    """(relative difference of the mel, log difference where it is not quiet) of two log-mels."""
    if actual.shape != expected.shape:
        return float("inf"), float("inf")
    mel, reference = np.exp(actual.astype(np.float64)), np.exp(expected.astype(np.float64))
    relative = np.abs(mel - reference).max() / reference.max()
    loud = expected > MEL_QUIET
    log = np.abs(actual - expected)[loud].max() if loud.any() else 0.0
    return float(relative), float(log)
