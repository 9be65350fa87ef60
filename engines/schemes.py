"""Weight schemes: how the numbers of a matrix become fewer bits, in numpy.

A matrix is quantised as [outputs, inputs], a slice of outputs at a time. Each block of inputs, or
each whole row ("channel"), has one scale; there are no zero points. `search` looks for the scale
with the least squared error, `nearest` takes the one that just holds the largest weight. `awq`
searches, too, but for the least error of what comes out: an input counts by its mean square.
"""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import ml_dtypes
import numpy as np
from mimo_edge.runtime.bundle.errors import InputError
from numpy.typing import DTypeLike, NDArray

Floats = NDArray[np.float32]
Read = Callable[[int, int], Floats]  # outputs from, to -> float32 [to - from, inputs]

CHANNEL = 0  # the block of a scale that a whole row shares
ACTIVATION_AWARE = "awq"
METHODS = ("nearest", "search", ACTIVATION_AWARE)
# of the scale that just holds a block's largest weight: smaller ones cut it off, and fit the rest
_CANDIDATES = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7)
_SLICE = 1 << 23  # weights that a thread reads at a time
_EXPONENT = np.uint32(0x7F800000)  # of a float32
_TILE = 1 << 16  # weights that are worked on at a time: they stay in the cache
_GAIN = 1 + 1e-6  # what a fitted scale must gain to be taken: below is rounding of the sums


@dataclass(frozen=True)
class Scheme:
    """A form of stored weights."""

    name: str
    bits: int
    lowest: float  # codes reach from lowest to largest
    largest: float
    dtype: DTypeLike  # of the codes, one a number
    blocks: tuple[int, ...]  # numbers that may share a scale

    def codes(self, scaled: Floats) -> Floats:
        """The nearest codes of numbers that are divided by their scale; in place if it can."""
        if self.name == "fp8":
            return _to_e4m3(np.clip(scaled, self.lowest, self.largest, out=scaled))
        np.rint(scaled, out=scaled)
        return np.clip(scaled, self.lowest, self.largest, out=scaled)


SCHEMES = {
    scheme.name: scheme
    for scheme in (
        # -8 is used where it fits better; symmetric all the same: there is no zero point
        Scheme("int4", 4, -8, 7, np.int8, (32, 64, 128)),
        Scheme("int8", 8, -127, 127, np.int8, (CHANNEL, 32, 64, 128)),
        Scheme("fp8", 8, -448, 448, ml_dtypes.float8_e4m3fn, (CHANNEL,)),
    )
}


@dataclass(frozen=True)
class Quantized:
    """codes [outputs, inputs] of the scheme's dtype, scales [outputs, inputs / block]."""

    codes: NDArray
    scales: NDArray


def quantize(
    name: str,
    shape: tuple[int, int],
    read: Read,
    scheme: Scheme,
    block: int,
    method: str,
    scale_dtype: DTypeLike = np.float32,
    on_progress: Callable[[int], None] = lambda _: None,
    squares: Floats | None = None,
) -> Quantized:
    """Quantise a matrix [outputs, inputs] on all cores. `on_progress` hears of weights done.
    `squares` [inputs] are the mean squares of what comes in, which `awq` needs.

    Raises InputError, with the name, for weights that are NaN or infinite, or whose scale is.
    """
    outputs, inputs = shape
    size = block or inputs
    assert inputs % size == 0, f"{name}: block {size} does not divide {inputs}"
    codes = np.empty(shape, scheme.dtype)
    scales = np.empty((outputs, inputs // size), scale_dtype)
    shares = _shares(squares, size) if method == ACTIVATION_AWARE else None

    def work(part: slice) -> int:
        weights = read(part.start, part.stop)
        for rows in _slices(len(weights), _TILE // inputs):
            tile = weights[rows].reshape(-1, size)
            counts = None if shares is None else np.tile(shares, (len(tile) // len(shares), 1))
            scale = _scales(name, tile, scheme, method, scale_dtype, counts)
            place = slice(part.start + rows.start, part.start + rows.stop)
            with np.errstate(over="ignore"):  # a number too large for its scale is cut off
                found = scheme.codes(tile / scale.astype(np.float32)[:, None])
            codes[place] = found.reshape(-1, inputs).astype(scheme.dtype)
            scales[place] = scale.reshape(-1, inputs // size)
        return weights.size

    with ThreadPoolExecutor(os.cpu_count()) as pool:  # numpy lets go of the interpreter
        for done in pool.map(work, _slices(outputs, _SLICE // inputs)):
            on_progress(done)
    return Quantized(codes, scales)


def dequantize(quantized: Quantized) -> Floats:
    """What the codes stand for, float32 [outputs, inputs]."""
    outputs, inputs = quantized.codes.shape
    codes = quantized.codes.astype(np.float32).reshape(*quantized.scales.shape, -1)
    return (codes * quantized.scales.astype(np.float32)[..., None]).reshape(outputs, inputs)


def pack_int4(codes: NDArray[np.int8]) -> NDArray[np.uint8]:
    """Two codes a byte in the order in which they lie, the first in the low half; ONNX's int4."""
    flat = np.ascontiguousarray(codes).reshape(-1).view(np.uint8) & 15
    if flat.size % 2:
        flat = np.append(flat, np.uint8(0))
    return np.bitwise_or(flat[0::2], flat[1::2] << 4, dtype=np.uint8)


def rounded(weights: Floats, scheme: Scheme, block: int) -> Floats:
    """Rows [n, inputs] as the nearest scales would leave them."""
    tile = weights.reshape(-1, block or weights.shape[1])
    scales = np.abs(tile).max(axis=1, keepdims=True) / np.float32(scheme.largest)
    scales = np.maximum(scales, np.finfo(np.float32).tiny)
    return (scheme.codes(tile / scales) * scales).reshape(weights.shape)


def _to_e4m3(values: Floats) -> Floats:
    """The nearest E4M3 of numbers up to 448, ties to even, as a cast has them; in place. A cast of
    ml_dtypes takes four times as long."""
    bits = np.ascontiguousarray(values).view(np.uint32)
    # 3 bits after the leading one: the step is an eighth of the power of two, 2^-9 the smallest
    step = np.maximum((bits & _EXPONENT).view(np.float32) * np.float32(0.125), np.float32(2**-9))
    np.divide(values, step, out=values)
    return np.multiply(np.rint(values, out=values), step, out=values)


def _shares(squares: Floats | None, size: int) -> Floats:
    """Roots of mean squares, block by block [blocks, size], 1 on average of a block's squares."""
    assert squares is not None
    blocks = squares.reshape(-1, size).astype(np.float64)
    mean = blocks.mean(axis=1, keepdims=True)
    # what was never seen in a block counts a little: it may come
    even = np.where(mean > 0, blocks / np.where(mean > 0, mean, 1), 1)
    return np.sqrt(np.maximum(even, 1e-4)).astype(np.float32)


def _scales(
    name: str,
    blocks: Floats,
    scheme: Scheme,
    method: str,
    dtype: DTypeLike,
    shares: Floats | None = None,
) -> NDArray[np.floating]:
    """One scale for each of the blocks [n, size]; never zero, never infinite."""
    largest = np.abs(blocks).max(axis=1)
    if not np.isfinite(largest).all():
        raise InputError(f"{name} holds weights that are NaN or infinite. Check the checkpoint.")
    plain = np.where(largest > 0, largest / scheme.largest, 1).astype(np.float32)
    plain = np.maximum(plain, np.finfo(np.float32).tiny)
    found = plain if method == "nearest" else _search(blocks, plain, scheme, shares)
    with np.errstate(over="ignore"):
        scales = np.maximum(found.astype(dtype), ml_dtypes.finfo(dtype).tiny)
    if not np.isfinite(scales).all():
        raise InputError(
            f"{name} holds weights up to {largest.max():.3g}, whose scale {np.dtype(dtype)} cannot "
            "hold. Choose a recipe that computes in fp32 or bf16."
        )
    return scales


def _search(blocks: Floats, plain: Floats, scheme: Scheme, shares: Floats | None = None) -> Floats:
    """The scales of least squared error among the candidates, each fitted to its codes.

    With codes q and scale s the error is |w|^2 - gain, gain = 2 s (q.w) - s^2 (q.q). For given
    codes the best scale is (q.w) / (q.q). With `shares` [n, size] each number counts by its square.
    """
    best, best_gain = plain, np.full(len(blocks), -np.inf, np.float32)
    candidates: tuple[float, ...] = _CANDIDATES
    if scheme.lowest < -scheme.largest:  # -8 is there, should the largest weight be negative
        candidates = (*candidates, -scheme.largest / scheme.lowest)
    # sums of squares of tiny weights would vanish: all is done on multiples of the plain scale
    unit = blocks / plain[:, None]
    scaled = np.empty_like(unit)
    weighed = unit if shares is None else unit * shares
    for factor in candidates:
        codes = scheme.codes(np.multiply(unit, np.float32(1 / factor), out=scaled))
        codes = codes if shares is None else codes * shares
        product = np.einsum("ij,ij->i", codes, weighed)
        square = np.einsum("ij,ij->i", codes, codes)
        scale = np.full(len(blocks), factor, np.float32)
        gain = scale * (2 * product - scale * square)
        fitted = np.divide(product, square, out=scale.copy(), where=square > 0)
        better = fitted * product > gain * _GAIN
        scale, gain = np.where(better, fitted, scale), np.where(better, fitted * product, gain)
        better = gain > best_gain * np.where(best_gain > 0, _GAIN, 1)
        best = np.where(better, scale * plain, best)
        best_gain = np.where(better, gain, best_gain)
    return best


def _slices(count: int, size: int) -> Iterator[slice]:
    for start in range(0, count, max(1, size)):
        yield slice(start, min(count, start + max(1, size)))
