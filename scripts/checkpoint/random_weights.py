"""Random weights under which the model behaves: finite everywhere, audible, and undecided.

A tensor's values depend on the seed and its name only, so they can be made in any order and in
pieces. Undecided: greedy or sampled, generation goes back and forth between text and speech.
"""

import re
import zlib
from collections.abc import Iterator, Mapping
from math import prod

import numpy as np

Shape = tuple[int, ...]

CHUNK_ELEMENTS = 1 << 24  # 64 MiB of float32

# Linear and convolution weights are drawn with 1 / sqrt(fan-in) times the first gain that matches.
_GAINS = (
    (r"^lm_head\.", 3.0),  # scores as peaked as a trained model's
    (r"^local_transformer_lm_heads\.", 3.0),
    (r"^model\.layers\..*[qk]_proj\.", 2.0),  # attention that picks, so that context matters
    (r"^speech_group_downcast\.", 0.25),  # as large as a text embedding
    (r"^encoder\.conv1\.", 0.5),  # log-mel spreads by about 2
)
# Rows that sum to zero: these see changes, not the level, or all frames would get the same codes.
_ZERO_SUM = re.compile(r"^encoder\.(conv\d|down_sample_layer\.0)\.weight$")
_RESIDUAL = re.compile(r"^(.*layers)\.\d+\..*(o_proj|out_proj|down_proj|fc2)\.weight$")
# What the row of an "empty" id gets on top. Its score then rises above all others, or falls below
# them, by turns: in half of the patches for text, in one of a few draws for a code.
_EMPTY_TEXT_GAIN, _EMPTY_CODE_GAIN = 16.0, 3.0
# Log-magnitudes N(1, 0.5^2) make audio of about 0.1 RMS; phases N(0, 3^2) are as good as uniform.
_MAGNITUDE_MEAN, _MAGNITUDE_GAIN, _PHASE_GAIN = 1.0, 0.5, 3.0


class RandomWeights:
    """Values for every tensor of one model. `empty_rows`: head's tensor name -> its empty id."""

    def __init__(
        self, shapes: Mapping[str, Shape], empty_rows: Mapping[str, int], seed: int
    ) -> None:
        self.shapes, self.empty_rows, self.seed = shapes, empty_rows, seed
        self._layers: dict[str, int] = {}  # stack -> its number of layers
        for name in shapes:
            if stack := re.match(r"(.*layers)\.(\d+)\.", name):
                last = self._layers.get(stack[1], 0)
                self._layers[stack[1]] = max(last, int(stack[2]) + 1)

    def chunks(self, name: str) -> Iterator[np.ndarray]:
        """float32 rows of the tensor, in order, at most about CHUNK_ELEMENTS at a time."""
        shape = self.shapes[name]
        if name.endswith("istft.window"):
            import torch  # for this alone

            yield torch.hann_window(shape[0]).numpy()
            return
        mean, deviation = self._rows(name, shape)
        stream = np.random.Generator(np.random.SFC64([self.seed, zlib.crc32(name.encode())]))
        step = max(1, CHUNK_ELEMENTS // prod(shape[1:]))
        column = (-1,) + (1,) * (len(shape) - 1)
        for start in range(0, shape[0], step):
            rows = slice(start, min(start + step, shape[0]))
            values = stream.standard_normal((rows.stop - start, *shape[1:]), dtype=np.float32)
            if _ZERO_SUM.match(name):
                values -= values.mean(axis=(1, 2), keepdims=True)
            values *= deviation[rows].reshape(column)
            values += mean[rows].reshape(column)
            yield values

    def _rows(self, name: str, shape: Shape) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation of each row."""
        mean, deviation = self._spread(name, shape)
        means = np.full(shape[0], mean, np.float32)
        deviations = np.full(shape[0], deviation, np.float32)
        if name in self.empty_rows:
            gain = _EMPTY_TEXT_GAIN if name == "lm_head.weight" else _EMPTY_CODE_GAIN
            deviations[self.empty_rows[name]] *= gain
        half = shape[0] // 2
        if name.endswith("vocoder.head.out.weight"):
            deviations[:half] *= _MAGNITUDE_GAIN
            deviations[half:] *= _PHASE_GAIN
        if name.endswith("vocoder.head.out.bias"):
            means[:half] = _MAGNITUDE_MEAN
        return means, deviations

    def _spread(self, name: str, shape: Shape) -> tuple[float, float]:
        if name.endswith("norm.weight"):
            return 1.0, 0.1
        if name.endswith(".bias"):
            return 0.0, 0.1
        if name.endswith("embed_tokens.weight"):
            return 0.0, 0.25  # less than the layers add, or a token would decide what follows it
        if re.match(r"speech_embeddings\.\d", name):
            return 0.0, 0.35  # eight of them are summed
        if name.endswith("_codebook.embed"):
            return 0.0, 3.0 / shape[1] ** 0.5  # so that each one shortens the residual
        gain = next((gain for pattern, gain in _GAINS if re.match(pattern, name)), 1.0)
        if residual := _RESIDUAL.match(name):
            gain = (2 * self._layers[residual[1]]) ** -0.5
        return 0.0, gain / prod(shape[1:]) ** 0.5
