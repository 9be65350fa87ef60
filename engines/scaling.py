"""Activation-aware scaling: inputs that carry much get finer steps of the weights' codes.

Input channel j of some layers is multiplied by s_j in their weights, and divided by it where it is
made: in the norm or the layer before. The graph stays as it is, and so does what it computes: all
s are powers of two, so that nothing is rounded by it. What changes is how well codes fit.

s = x^alpha / w^(1 - alpha), where x is what the channel carries and w the largest weight on it;
alpha is the one with the least squared error of what comes out, among them "as it is".
"""

import os
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

import numpy as np
from mimo_edge.engines.calibration import Calibration, Statistics
from mimo_edge.engines.components import STREAM, Matrix
from mimo_edge.engines.recipe import Form
from mimo_edge.engines.schemes import ACTIVATION_AWARE, SCHEMES, Floats, Read, rounded

# what makes a tensor -> the layers that read it; a star is what both names have in common
_MAKERS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("*.input_layernorm", ("*.self_attn.q_proj", "*.self_attn.k_proj", "*.self_attn.v_proj")),
    ("*.post_attention_layernorm", ("*.mlp.gate_proj", "*.mlp.up_proj")),
    ("*.self_attn_layer_norm", ("*.self_attn.q_proj", "*.self_attn.k_proj", "*.self_attn.v_proj")),
    ("*.final_layer_norm", ("*.fc1",)),
    ("*.self_attn.v_proj", ("*.self_attn.o_proj", "*.self_attn.out_proj")),
    ("*.mlp.up_proj", ("*.mlp.down_proj",)),
    ("backbone.model.norm", ("backbone.lm_head", "patch_decoder.hidden_states_downcast")),
    ("patch_decoder.local_transformer.norm", ("patch_decoder.local_transformer_lm_heads.?",)),
    ("decoder.vocoder.layer_norm", ("decoder.vocoder.head.out",)),
)
_ALPHAS = tuple(i / 10 for i in range(1, 10))
_ROWS = 256  # outputs of a layer that alpha is tried on
_MOST = 8  # of the exponent of s: beyond it half precision would suffer
ROUNDED = ("int8",)  # activations whose step is the same for all channels

ReadOf = Callable[[str], Read]


@dataclass(frozen=True, eq=False)
class Factors:
    """What a tensor is multiplied by: a matrix by row and column, a vector by row."""

    outputs: Floats | None = None
    inputs: Floats | None = None

    def rows(self, start: int, stop: int, values: Floats) -> Floats:
        """Outputs start to stop of a matrix, multiplied."""
        if self.outputs is not None:
            values = values * self.outputs[start:stop, None]
        return values if self.inputs is None else values * self.inputs


@dataclass(frozen=True)
class Scaling:
    """What calibration makes of a piece.

    `factors` by tensor; `squares` are the mean squares of what each layer will read [inputs];
    `steps` are the scales of what layers read, of those whose activations are rounded.
    """

    factors: Mapping[str, Factors] = field(default_factory=dict)
    squares: Mapping[str, Floats] = field(default_factory=dict)
    steps: Mapping[str, float] = field(default_factory=dict)

    def read(self, name: str, read: Read) -> Read:
        """A matrix as it is with its factors."""
        factors = self.factors.get(name)
        if factors is None:
            return read
        return lambda start, stop: factors.rows(start, stop, read(start, stop))


@dataclass(frozen=True)
class _Group:
    """Layers that read one tensor, and what makes it: a layer or vectors (of a norm, a bias)."""

    readers: tuple[str, ...]
    vectors: tuple[str, ...]
    maker: str | None


def find(
    weights: Mapping[str, Matrix],
    forms: Mapping[str, Form],
    vectors: Iterable[str],
    calibration: Calibration,
    activations: Mapping[str, str],
    read_of: ReadOf,
    head_dim: int,
    on_progress: Callable[[float], None] = lambda _: None,
) -> Scaling:
    """What is done to a piece: `vectors` are its initializers of one axis, `activations` says of
    layers what their input is rounded to, if it is. On all cores; `on_progress` hears how much is
    done, of 1.

    Raises CalibrationError if statistics are missing.
    """
    layers = [name for name in forms if not weights[name].table]
    aware = {name for name in layers if forms[name].method == ACTIVATION_AWARE}
    rounding = {name for name in layers if name in activations}
    statistics = {n: calibration.of(n, weights[n].inputs) for n in aware | rounding}
    factors: dict[str, Factors] = {}
    groups = _groups(aware, weights, forms, set(vectors))
    left = total = sum(tried_on(weights[name]) for group in groups for name in group.readers)

    def tried(group: _Group) -> Floats | None:
        maker = None if group.maker is None else weights[group.maker]
        return _scale(group, maker, weights, forms, statistics, activations, read_of, head_dim)

    with ThreadPoolExecutor(os.cpu_count()) as pool:  # numpy lets go of the interpreter
        scales = pool.map(tried, groups)
        for group, scale in zip(groups, scales, strict=True):
            left -= sum(tried_on(weights[name]) for name in group.readers)
            on_progress(1 - left / total)
            if scale is None:
                continue
            maker = None if group.maker is None else weights[group.maker]
            for name in group.readers:
                factors[name] = _with(factors.get(name), inputs=scale)
            made = _shared(scale, maker, head_dim)
            for name in (*group.vectors, *([group.maker] if group.maker else [])):
                factors[name] = _with(factors.get(name), outputs=(1 / made).astype(np.float32))
    found = {name: factors.get(name, Factors()).inputs for name in statistics}
    return Scaling(
        factors,
        {n: (statistics[n].mean_square / _of(found[n]) ** 2).astype(np.float32) for n in aware},
        {n: _step(statistics[n], _of(found[n]), activations[n]) for n in rounding},
    )


def _groups(
    aware: set[str], weights: Mapping[str, Matrix], forms: Mapping[str, Form], vectors: set[str]
) -> list[_Group]:
    """Those of which all layers are of this method, and whose maker can be changed.

    A layer that stays in floats reads the same tensor, too: nothing is scaled beside it.
    """
    every = {name.removesuffix(".weight") for name in weights}
    owners = every | {name.rpartition(".")[0] for name in vectors}
    found = []
    for maker in sorted(owners):
        for pattern, readers in _MAKERS:
            tail = pattern.removeprefix("*")
            prefix = maker.removesuffix(tail)
            if prefix == maker or (tail == pattern and prefix not in ("", STREAM)):
                continue
            globs = [prefix + reader.removeprefix("*") for reader in readers]
            names = [f"{n}.weight" for n in sorted(every) if any(fnmatchcase(n, g) for g in globs)]
            own = tuple(n for n in (f"{maker}.weight", f"{maker}.bias") if n in vectors)
            layer = f"{maker}.weight" if f"{maker}.weight" in forms else None
            if maker in every and layer is None:
                continue  # a layer in floats is written as it is
            if names and aware.issuperset(names) and (own or layer):
                found.append(_Group(tuple(names), own, layer))
    return found


def _scale(
    group: _Group,
    maker: Matrix | None,
    weights: Mapping[str, Matrix],
    forms: Mapping[str, Form],
    statistics: Mapping[str, Statistics],
    activations: Mapping[str, str],
    read_of: ReadOf,
    head_dim: int,
) -> Floats | None:
    """The best s [inputs], None for none."""
    read = statistics[group.readers[0]]  # all read the same
    rows = {name: _sample(weights[name], read_of(name)) for name in group.readers}
    largest, carried = read.largest, np.sqrt(read.mean_square)
    weight = np.max([np.abs(values).max(axis=0) for values in rows.values()], axis=0)
    sizes = (largest.astype(np.float32), carried.astype(np.float32), weight)
    shared = [_shared(values, maker, head_dim) for values in sizes]

    def error(scale: Floats) -> float:
        total = 0.0
        for name, values in rows.items():
            form = forms[name]
            scaled = values * scale
            change = (rounded(scaled, SCHEMES[form.scheme], form.block) - scaled) / scale
            squares = np.einsum("ij,ij->j", change, change, dtype=np.float64) @ read.mean_square
            if activations.get(name) in ROUNDED:
                step = _step(read, scale, activations[name])
                squares += step**2 / 12 * float(np.square(scaled, dtype=np.float64).sum())
            total += float(squares) * weights[name].outputs / len(values)
        return total

    best, least = None, error(np.ones_like(weight))
    for scale in _candidates(*shared):
        tried = error(_spread(scale, maker, len(weight), head_dim))
        if tried < least:
            best, least = scale, tried
    return None if best is None else _spread(best, maker, len(weight), head_dim)


def _candidates(largest: Floats, carried: Floats, weight: Floats) -> Iterable[Floats]:
    """Powers of two around x^alpha / w^(1 - alpha), x the largest or the usual, and x^alpha."""
    for size in (largest, carried):
        for alpha in _ALPHAS:
            for power in (1 - alpha, 0.0):
                logs = alpha * _log(size) - power * _log(weight)
                yield np.exp2(np.clip(np.rint(logs - np.median(logs)), -_MOST, _MOST))


def _log(values: Floats) -> Floats:
    """Base 2; what is nothing counts as very little."""
    least = max(float(values.max()) * 1e-4, 1e-30)
    return np.log2(np.maximum(values, least)).astype(np.float32)


def tried_on(weight: Matrix) -> int:
    """Numbers of a matrix on which alpha is tried."""
    return min(weight.outputs, _ROWS) * weight.inputs


def _sample(weight: Matrix, read: Read) -> Floats:
    """Some outputs, evenly, whole blocks of neighbours: reading them one by one would be slow."""
    if weight.outputs <= _ROWS:
        return read(0, weight.outputs)
    parts, length = 8, _ROWS // 8
    starts = np.linspace(0, weight.outputs - length, parts).astype(int)
    return np.concatenate([read(start, start + length) for start in starts.tolist()])


def _repeats(maker: Matrix | None, inputs: int) -> int:
    """Heads that read the same values."""
    return 1 if maker is None else inputs // maker.outputs


def _shared(values: Floats, maker: Matrix | None, head_dim: int) -> Floats:
    """[inputs] -> [outputs of the maker]: the largest over the heads that share values."""
    repeats = _repeats(maker, len(values))
    if repeats == 1:
        return values
    return values.reshape(-1, repeats, head_dim).max(axis=1).reshape(-1)


def _spread(scale: Floats, maker: Matrix | None, inputs: int, head_dim: int) -> Floats:
    """[outputs of the maker] -> [inputs]"""
    repeats = _repeats(maker, inputs)
    if repeats == 1:
        return scale
    heads = scale.reshape(-1, 1, head_dim)
    return np.broadcast_to(heads, (len(heads), repeats, head_dim)).reshape(-1)


def _step(read: Statistics, scale: Floats, scheme: str) -> float:
    """The scale of codes that hold all that was read."""
    return float((read.largest / scale).max() / SCHEMES[scheme].largest)


def _of(scale: Floats | None) -> Floats:
    return np.ones(1, np.float32) if scale is None else scale


def _with(
    factors: Factors | None, outputs: Floats | None = None, inputs: Floats | None = None
) -> Factors:
    """Both, of a layer that reads one scaled tensor and makes another."""
    factors = factors or Factors()
    return Factors(
        factors.outputs if outputs is None else outputs,
        factors.inputs if inputs is None else inputs,
    )
