"""Times of single stages, and what they must read of the weights."""

import statistics
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from mimo_edge.runtime.backends.base import Floats, Ints, RowStates
from mimo_edge.runtime.bundle.bundle import Bundle
from mimo_edge.runtime.bundle.dtypes import PRECISIONS
from mimo_edge.scripts.machine import seconds_of

TAIL = 0.95
_READ = 64  # patches of a prompt that are really read


@dataclass(frozen=True)
class Stage:
    """Times of one stage in milliseconds. `weight_mb` is what it must read of the weights,
    `bound_ms` that over the measured read rate of this memory."""

    stage: str
    median_ms: float
    p95_ms: float
    fastest_ms: float
    weight_mb: float
    bound_ms: float

    @property
    def gb_per_s(self) -> float:
        """Weights read in the median time."""
        return self.weight_mb / self.median_ms


def measure(
    name: str, call: Callable[[], object], runs: int, weight_bytes: int, rate: float
) -> Stage:
    """Time a call so many times, after one that does not count."""
    call()
    return stage_of(name, [seconds_of(call) for _ in range(runs)], weight_bytes, rate)


def stage_of(name: str, took: list[float], weight_bytes: int, rate: float) -> Stage:
    """From seconds."""
    times = [1e3 * each for each in took]
    bound = 1e3 * weight_bytes / rate
    tail = float(np.quantile(times, TAIL))
    return Stage(name, statistics.median(times), tail, min(times), weight_bytes / 1e6, bound)


def weights_read(bundle: Bundle, piece: str, positions: int) -> int:
    """Bytes of weights that one call of a piece must read.

    Of the text embedding that is a row for each position; the patch decoder reads its weights in
    every one of its sub-steps. Embeddings of codes are small and count whole. What a built bundle
    holds twice counts once.
    """
    model, built = bundle.model, bundle.manifest.built
    stored = bundle.weight_bytes(piece)
    if built is not None:
        stored -= built.unread.get(piece, 0)
    if piece == "patch_encoder":
        row = model.hidden_size * row_width(bundle)
        return max(0, stored - (model.vocab_size - positions) * row)
    if piece == "patch_decoder":
        return stored * model.sub_steps
    return stored


def row_width(bundle: Bundle) -> int:
    """Bytes of each number in the text embedding."""
    spec = bundle.piece("patch_encoder")
    scheme = spec.weights["text_embedding"].scheme
    return PRECISIONS[scheme].bytes if scheme in PRECISIONS else 1  # int8 and fp8


class Speaking:
    """Rows that hold some positions, of noise, and take one more patch together again and again."""

    def __init__(self, new_rows: Callable[[int], RowStates], bundle: Bundle, rows: int) -> None:
        self._model, self._rows, self._rng = bundle.model, rows, np.random.default_rng(0)
        self.states = new_rows(rows)
        self._settings = (
            np.full(rows, 0.9, np.float32),
            np.zeros(rows, np.int64),
            np.full(rows, 0.95, np.float32),
        )
        self._codes = self._some(rows)

    def prefill(self, positions: int) -> None:
        """Every row reads a prompt, in chunks as the loop hands them over."""
        for row in range(self._rows):
            for at in range(0, positions, 256):
                count = min(256, positions - at)
                self.states.extend(row, np.zeros(count, np.int64), self._some(count))

    def hold(self, positions: int) -> None:
        """As if every row had read so many: what it holds then is zeros, which take as long."""
        lengths = self.states.lengths
        while lengths.max() < positions:  # memory grows by less than twice at a time
            self.step()
            lengths[:] = min(positions, (1 << int(lengths.max()).bit_length()) - 1)
            self.step()
        lengths[:] = positions

    def step(self) -> Floats:
        """The backbone reads a patch -> text scores [rows, V]."""
        active = np.ones(self._rows, bool)
        return self.states.step(0, np.zeros(self._rows, np.int64), self._codes, active)

    def draw(self) -> Ints:
        """The codes of the next one [rows, G, K]."""
        shape = self._rows, self._model.group_size, self._model.n_q
        uniforms = self._rng.random(shape, np.float32)
        drawn = self.states.draw_codes(0, uniforms, *self._settings)
        self._codes = drawn.swapaxes(1, 2).copy()
        return drawn

    def close(self) -> None:
        self.states.close()

    def _some(self, count: int) -> Ints:
        shape = count, self._model.n_q, self._model.group_size
        return self._rng.integers(0, min(self._model.empty_codes), shape)


def patch_stages(
    new_rows: Callable[[int], RowStates],
    bundle: Bundle,
    rows: int,
    positions: int,
    runs: int,
    rate: float,
) -> list[Stage]:
    """Of one patch in some rows, each of which holds some positions: step, patch decoder, both."""
    speaking = Speaking(new_rows, bundle, rows)
    try:
        speaking.prefill(min(positions, _READ))
        speaking.hold(positions)
        speaking.step()
        speaking.draw()
        steps, draws = [], []
        for _ in range(runs):  # by turns, as an answer does
            steps.append(seconds_of(speaking.step))
            draws.append(seconds_of(speaking.draw))
    finally:
        speaking.close()
    read = [
        weights_read(bundle, "patch_encoder", rows) + weights_read(bundle, "backbone", rows),
        weights_read(bundle, "patch_decoder", rows),
    ]
    both = [step + draw for step, draw in zip(steps, draws, strict=True)]
    return [
        stage_of(f"step, {rows} rows", steps, read[0], rate),
        stage_of(f"patch_decoder, {rows} rows", draws, read[1], rate),
        stage_of(f"patch, {rows} rows", both, sum(read), rate),
    ]
