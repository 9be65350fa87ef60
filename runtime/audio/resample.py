"""Change the sampling rate with the windowed-sinc kernel that the model was trained behind.

Upstream calls `torchaudio.functional.resample` with its defaults (Hann-windowed sinc, six zero
crossings each side, roll-off 0.99) in float32. The kernel here repeats that arithmetic operation by
operation, because at odd ratios its float32 rounding is larger than the tolerance of the result.

The rates are reduced to `orig : new`; one *frame* is `orig` samples in, `new` out, one filter phase
per output. Upstream convolves with the dense `[new, 2 * width + orig]` kernel. Almost all of it is
zero when `orig` is large (22 GB at 44101 Hz), so only its diagonal is kept, in bands of
neighbouring phases, each of which is one matrix product over all the frames of a block.
"""

import itertools
import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from mimo_edge.runtime.bundle.errors import AudioError

LOWPASS_WIDTH = 6  # zero crossings of the sinc on each side
ROLLOFF = 0.99  # cut-off as a share of the lower Nyquist frequency
BLOCK = 1 << 18  # input samples per matrix product: bounds the memory, not the result

_BAND = 32  # phases per band: fewer waste less on zeros, more make better matrix products
_MAX_TAPS = 1 << 22  # 16 MiB of float32; real rates up to 346 kHz fit whatever their ratio


@dataclass(frozen=True)
class _Band:
    """Neighbouring phases and the inputs they see, both counted within one frame."""

    first_phase: int
    first_input: int
    weights: np.ndarray  # float32 [inputs, phases]


@dataclass(frozen=True)
class _Kernel:
    orig: int  # samples per frame in
    new: int  # samples per frame out
    width: int  # zeros before the first sample
    bands: tuple[_Band, ...]

    @property
    def reach(self) -> int:
        """Samples that must follow the last frame for every band to see a whole frame."""
        return self.bands[-1].first_input


class Resampler:
    """Resample a signal in pieces; any cut gives the result of the whole, to float32 rounding."""

    def __init__(self, from_rate: int, to_rate: int) -> None:
        """Rates in Hz. AudioError as `check_rate` says, or for an absurd ratio."""
        from_rate, to_rate = check_rate(from_rate), check_rate(to_rate)
        gcd = math.gcd(from_rate, to_rate)
        # The ratio decides how long the result is, the kernel (which may cover several reduced
        # frames at once) only how it is computed.
        self._orig, self._new = from_rate // gcd, to_rate // gcd
        self._kernel = None if from_rate == to_rate else _kernel(self._orig, self._new)
        width = self._kernel.width if self._kernel else 0
        self._held = np.zeros(width, np.float32)  # padded input that later frames still need
        self._taken = 0  # samples in
        self._given = 0  # samples out

    def feed(self, wav: np.ndarray) -> np.ndarray:
        """Take float32 `[N]`, give the float32 `[M]` that it settles.

        Whole frames only, so up to about one frame stays behind: some milliseconds at common rates,
        a second where the rates share no factor.
        """
        if self._kernel is None:
            return wav
        self._taken += wav.shape[0]
        padded = np.concatenate((self._held, wav))
        frames = max(0, (padded.shape[0] - self._kernel.reach) // self._kernel.orig)
        self._held = padded[frames * self._kernel.orig :].copy()
        self._given += frames * self._kernel.new
        return _convolve(self._kernel, padded, frames)

    def finish(self) -> np.ndarray:
        """Give what is left, float32 `[M]`, as if silence followed. Nothing may be fed after it."""
        if self._kernel is None:
            return np.zeros(0, np.float32)
        left = resampled_length(self._taken, self._orig, self._new) - self._given
        if left <= 0:  # the float32 length can fall short of frames already given by some samples
            return np.zeros(0, np.float32)
        frames = -(-left // self._kernel.new)
        padded = np.zeros(frames * self._kernel.orig + self._kernel.reach, np.float32)
        held = self._held[: padded.shape[0]]
        padded[: held.shape[0]] = held
        return _convolve(self._kernel, padded, frames)[:left]


def resample(wav: np.ndarray, from_rate: int, to_rate: int) -> np.ndarray:
    """Resample float32 `[N]` at `from_rate` Hz to float32 `[M]` at `to_rate` Hz.

    Equal to `torchaudio.functional.resample(wav, from_rate, to_rate)` to 5e-6, its length included
    (`resampled_length`). Equal rates give `wav` itself. Needs the memory of input and output plus
    some MiB. AudioError if `wav` is not 1-D floating point, or for rates as `Resampler` says.
    """
    if wav.ndim != 1 or not np.issubdtype(wav.dtype, np.floating):
        raise AudioError(
            f"resample takes one channel of floating-point samples [N], not {wav.dtype} "
            f"{list(wav.shape)}; average the channels and scale integers to [-1, 1] first"
        )
    wav = wav.astype(np.float32, copy=False)
    resampler = Resampler(from_rate, to_rate)
    if from_rate == to_rate:
        return wav
    out = np.empty(resampled_length(wav.shape[0], int(from_rate), int(to_rate)), np.float32)
    given = 0
    for start in range(0, wav.shape[0], BLOCK):
        piece = resampler.feed(wav[start : start + BLOCK])[: out.shape[0] - given]
        out[given : given + piece.shape[0]] = piece
        given += piece.shape[0]
    out[given:] = resampler.finish()
    return out


def resampled_length(length: int, from_rate: int, to_rate: int) -> int:
    """Samples that `length` samples at `from_rate` become at `to_rate`.

    That is `ceil(length * to_rate / from_rate)`, with the quotient rounded to float32 before the
    ceiling as upstream does: from some seconds on it can differ by a sample, above 2 ** 24 samples
    (12 minutes at 24 kHz) by a few. Kept because a sample can decide on a mel frame.
    """
    gcd = math.gcd(from_rate, to_rate)
    orig, new = from_rate // gcd, to_rate // gcd
    if orig == new:
        return length
    # Rounding up can promise more than the convolution of the padded signal has.
    available = (length // orig + 1) * new
    return min(math.ceil(np.float32(new * length / orig)), available) if length else 0


def check_rate(rate: int) -> int:
    """A sampling rate in Hz as int. AudioError if it is not a whole number from 1 to 1e9."""
    if isinstance(rate, bool) or not isinstance(rate, int | np.integer) or not 1 <= rate <= 10**9:
        raise AudioError(f"a sampling rate is a whole number of Hz, such as 24000, not {rate!r}")
    return int(rate)


def _convolve(kernel: _Kernel, padded: np.ndarray, frames: int) -> np.ndarray:
    """Filter the first `frames` frames of `padded` (which holds `reach` samples more)."""
    out = np.empty((frames, kernel.new), np.float32)
    for band in kernel.bands:
        inputs, phases = band.weights.shape
        # A band sees at most one frame's length, so its rows are a strided view that BLAS takes
        # as it is: nothing is copied.
        stop = band.first_input + frames * kernel.orig
        rows = padded[band.first_input : stop].reshape(frames, kernel.orig)[:, :inputs]
        last_phase = band.first_phase + phases
        np.matmul(rows, band.weights, out=out[:, band.first_phase : last_phase])
    return out.reshape(-1)


@lru_cache(maxsize=8)
def _kernel(orig: int, new: int) -> _Kernel:
    """The filter for the reduced ratio `orig : new`, as bands."""
    base = min(orig, new) * ROLLOFF
    width = math.ceil(LOWPASS_WIDTH * orig / base)
    if 2 * width * new > _MAX_TAPS:
        raise AudioError(
            f"cannot resample by the ratio {orig}:{new}, it needs {2 * width * new} filter taps "
            f"(limit {_MAX_TAPS}); is the sampling rate right? If so, convert the audio to a "
            "common rate such as 48000 Hz first"
        )
    # Inputs that _BAND phases see. Several reduced frames make one of ours where that is needed to
    # hold so many: 16000 -> 24000 is 2 : 3, far too small for a matrix product.
    span = 2 * width + math.ceil(_BAND * orig / new) + 2
    repeat = -(-span // orig)
    phases = repeat * new
    edges = np.linspace(0, phases, -(-phases // _BAND) + 1).astype(int).tolist()
    bands = tuple(
        _band(orig, new, width, base, first, last) for first, last in itertools.pairwise(edges)
    )
    return _Kernel(orig=repeat * orig, new=phases, width=width, bands=bands)


def _band(orig: int, new: int, width: int, base: float, first: int, last: int) -> _Band:
    """The kernel's phases [first, last). Every float32 operation in upstream's order."""
    start = first * orig // new
    stop = -(-(last - 1) * orig // new) + 2 * width + 1
    phase = np.arange(first, last)[None, :]  # [1, phases]
    inputs = np.arange(start, stop)[:, None]  # [inputs, 1]
    index = (inputs - width - phase // new * orig).astype(np.float32) / np.float32(orig)
    time = (-(phase % new)).astype(np.float32) / np.float32(new) + index  # [inputs, phases]
    time *= np.float32(base)
    outside = np.abs(time) >= LOWPASS_WIDTH
    window = np.cos(time * np.float32(math.pi) / LOWPASS_WIDTH / 2) ** 2
    time *= np.float32(math.pi)
    weights = np.ones_like(time)
    np.divide(np.sin(time), time, out=weights, where=time != 0)
    weights *= window * np.float32(base / orig)
    weights[outside] = 0
    return _Band(first, start, weights)
