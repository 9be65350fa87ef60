"""What each component of a recipe costs: restored to floats alone, how much of the loss goes, and
for how many bytes. The way to a mixed recipe.

Four losses are looked at, and a win is the share of each that goes, summed: the divergence of text
and of codes along the model's own answers, codes that are heard otherwise, and noise in the sound.
"""

import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass, replace
from pathlib import Path

import numpy as np
from mimo_edge.engines.components import component_of
from mimo_edge.engines.quantize import quantize_bundle
from mimo_edge.engines.recipe import FLOAT, Recipe, Weights
from mimo_edge.parity.choices import divergence
from mimo_edge.parity.observe import follow
from mimo_edge.parity.recording import Recording
from mimo_edge.parity.scored_side import ScoredBundleSide
from mimo_edge.parity.tolerances import snr
from mimo_edge.runtime.backends.ort import OrtBackend
from mimo_edge.runtime.bundle.bundle import Bundle

Report = Callable[..., None]


@dataclass(frozen=True)
class Losses:
    """Of a build against the model: nats, nats, a share of codes, and noise over signal."""

    text_kl: float
    codes_kl: float
    heard: float
    noise: float


@dataclass(frozen=True)
class Gain:
    """A component restored: what is lost then, and the bytes that it costs."""

    component: str
    losses: Losses
    win: float  # 0 to 4
    bytes: int

    @property
    def per_megabyte(self) -> float:
        return self.win / (max(1, self.bytes) / 1e6)


def rank(
    bundle: Bundle,
    recipe: Recipe,
    own: Recording,
    threads: int | None = None,
    on_progress: Report | None = None,
) -> list[Gain]:
    """The components of a recipe for a float bundle, the best win per byte first. Needs room for
    one quantised bundle at a time. Raises what `quantize_bundle` raises."""
    with tempfile.TemporaryDirectory(prefix="mimo-edge-") as folder:
        place = Path(folder) / "bundle"
        before, size = _measure(bundle, recipe, own, place, threads)
        gains = []
        quantized = [n for n in recipe.components if restored(recipe, n) != recipe]
        for number, name in enumerate(quantized):
            if on_progress is not None:
                on_progress(f"restoring {name}", number, len(quantized), "components")
            after, bytes_ = _measure(bundle, restored(recipe, name), own, place, threads)
            gains.append(Gain(name, after, _win(before, after), bytes_ - size))
    return sorted(gains, key=lambda gain: gain.per_megabyte, reverse=True)


def restored(recipe: Recipe, component: str) -> Recipe:
    """The recipe with one component left in floats."""
    part = recipe.components[component]
    if part.weights.scheme == FLOAT and not any(
        component_of(tensors) == component for tensors, _ in recipe.exceptions
    ):
        return recipe
    whole = replace(part, weights=Weights(), activations=FLOAT)
    kept = tuple(e for e in recipe.exceptions if component_of(e[0]) != component)
    return replace(recipe, components={**recipe.components, component: whole}, exceptions=kept)


def spend(recipe: Recipe, gains: Sequence[Gain], budget: int, name: str) -> Recipe:
    """A mixed recipe: components are restored, the best win per byte first, while they fit into
    `budget` bytes more."""
    left, chosen, mixed = budget, [], recipe
    for gain in gains:
        if gain.win > 0 and gain.bytes <= left:
            left -= gain.bytes
            chosen.append(gain.component)
            mixed = restored(mixed, gain.component)
    about = f"{recipe.name} with {', '.join(chosen) or 'nothing'} in floats"
    return replace(mixed, name=name, about=about)


def table_of_gains(recipe: str, gains: Sequence[Gain]) -> str:
    """For people, the best win per byte first."""
    titles = ("more MB", "win", "win/MB", "text KL", "codes KL", "heard", "noise")
    lines = [f"leaving one component of {recipe} in floats:"]
    lines.append(f"  {'component':20}" + "".join(f"{title:>10}" for title in titles))
    for gain in gains:
        lost = gain.losses
        lines.append(
            f"  {gain.component:20}{gain.bytes / 1e6:10.2f}{gain.win:10.2f}"
            f"{gain.per_megabyte:10.3f}{lost.text_kl:10.2e}{lost.codes_kl:10.2e}"
            f"{lost.heard:10.4f}{lost.noise:10.4f}"
        )
    return "\n".join(lines)


def _measure(
    bundle: Bundle, recipe: Recipe, own: Recording, place: Path, threads: int | None
) -> tuple[Losses, int]:
    shutil.rmtree(place, ignore_errors=True)
    quantize_bundle(bundle, recipe, place)
    made = Bundle.open(place, verify=False)
    with OrtBackend(made, threads=threads) as backend:
        return losses(follow(ScoredBundleSide(backend, threads), own), own), made.bytes


def losses(candidate: Recording, own: Recording) -> Losses:
    """Along the model's own answers."""

    def pairs(kind: str) -> list[tuple[np.ndarray, np.ndarray]]:
        names = [n for n in own.arrays if n.startswith(f"{kind}/") and own.arrays[n].size]
        return [(candidate.arrays[n], own.arrays[n]) for n in names]

    def kl(kind: str) -> float:
        rows = [divergence(a, e).ravel() for a, e in pairs(kind)]
        return float(np.concatenate(rows).mean()) if rows else 0.0

    heard = [(a != e)[: own.layout.n_q].ravel() for a, e in pairs("heard")]
    noise = [10 ** (-snr(a, e) / 20) for a, e in pairs("sound")]
    return Losses(
        kl("logits"),
        kl("scores"),
        float(np.concatenate(heard).mean()) if heard else 0.0,
        float(np.mean(noise)) if noise else 0.0,
    )


def _win(before: Losses, after: Losses) -> float:
    pairs = zip(astuple(before), astuple(after), strict=True)
    return float(sum(max(0.0, 1 - now / was) for was, now in pairs if was > 0))
