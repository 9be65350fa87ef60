"""The patch decoder as a step graph: against the goldens at every sub-step, and what may not count.

Two kinds of numbers may not: those of heads that the delay pattern does not draw at a sub-step, and
those that are no numbers.
"""

import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from mimo_edge.mimo_ref.generate import Sampling, removed_ids
from mimo_edge.mimo_ref.model import LanguageModel
from mimo_edge.mimo_ref.weights import load_language_model
from mimo_edge.parity import tolerances
from mimo_edge.runtime.backends.delay import DelayPattern
from mimo_edge.runtime.backends.ort import OrtBackend
from mimo_edge.runtime.backends.ort_rows import OrtRowStates
from mimo_edge.runtime.bundle.bundle import Bundle
from mimo_edge.runtime.bundle.errors import BundleError
from mimo_edge.runtime.chat.presets import Sampling as Preset
from mimo_edge.runtime.generation.loop import Request, generate
from mimo_edge.runtime.generation.sampling import Noise

from tests import check
from tests.bundles import exported
from tests.golden import Golden

Open = Callable[[str], OrtBackend]
GREEDY, HOT = (0.0, 0, 1.0), (0.9, 20, 0.95)  # temperature, top_k, top_p
NODES = 240  # of the tiny model, with its three layers: 213 and some air


@dataclass
class Patch:
    """Runs of the step graph with the caches as ordinary arrays."""

    session: ort.InferenceSession
    bundle: Bundle
    uniforms: np.ndarray  # [S, B, K]
    settings: tuple[float, int, float] = GREEDY
    caches: list[np.ndarray] = field(default_factory=list)

    def __post_init__(self) -> None:
        rows = self.uniforms.shape[1]
        shapes = [(rows, *p.axes[1:]) for p in self._spec.inputs if p.name.startswith("past_")]
        # what later sub-steps have not written yet: nothing may come of it
        self.caches = [np.full(shape, 7.0, np.float32) for shape in shapes]

    @property
    def _spec(self):  # type: ignore[no-untyped-def]
        return self.bundle.piece("patch_decoder")

    def run(self, step: int, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Codes [B, K] and the next x of one sub-step."""
        rows, (temperature, top_k, top_p) = len(x), self.settings
        inputs = [
            x,
            np.full(rows, step),
            self.uniforms[step],
            np.full(rows, temperature, np.float32),
            np.full(rows, top_k),
            np.full(rows, top_p, np.float32),
            *self.caches,
        ]
        names = [port.name for port in self._spec.inputs]
        feed = dict(zip(names, inputs, strict=True))
        codes, following, *self.caches = self.session.run(None, feed)
        return codes, following

    def whole(self, x: np.ndarray) -> np.ndarray:
        """The patch [B, G, K]."""
        drawn = []
        for step in range(len(self.uniforms)):
            codes, x = self.run(step, x)
            drawn.append(codes)
        return DelayPattern(self.bundle.model).collect(np.stack(drawn))


def uniforms_of(bundle: Bundle, rows: int, seed: int) -> np.ndarray:
    """[rows, G, K]"""
    model = bundle.model
    return np.stack(
        [
            Noise(seed)(row, model.group_size * model.n_q).reshape(model.group_size, -1)
            for row in range(rows)
        ]
    )


def patch_of(backend: OrtBackend, rows: int, settings: tuple[float, int, float] = GREEDY) -> Patch:
    bundle = backend.bundle
    uniforms = DelayPattern(bundle.model).spread(uniforms_of(bundle, rows, seed=3))
    return Patch(backend.session("patch_decoder"), bundle, uniforms, settings)


def counts(bundle: Bundle, step: int) -> np.ndarray:
    """bool [K]: which codebooks are drawn at a sub-step."""
    frames = step - np.array(bundle.model.delays)
    return (frames >= 0) & (frames < bundle.model.group_size)


def test_every_sub_step(golden: Golden, open_backend: Open, lm_name: str) -> None:
    """Greedy, from the golden x: the codes that count, 0 for the others, and the next x."""
    backend, arrays = open_backend(lm_name), golden.npz(f"{lm_name}.local.npz")
    bundle, expected = backend.bundle, arrays["codes"]  # [B, G, K]
    patch, x = patch_of(backend, len(expected)), arrays["hidden"]
    for step in range(bundle.model.sub_steps):
        check.close(x, arrays["step_inputs_embeds"][:, step], tolerances.LM, f"x of {step}")
        codes, x = patch.run(step, x)
        for codebook, drawn in enumerate(counts(bundle, step)):
            frame = step - bundle.model.delays[codebook]
            wanted = expected[:, frame, codebook] if drawn else np.zeros(len(x), np.int64)
            check.equal(codes[:, codebook], wanted, f"codebook {codebook} at sub-step {step}")


def test_sampled_as_the_reference(golden: Golden, open_backend: Open, lm_name: str) -> None:
    """Rows together and alone, with the reference's codes from the same uniform numbers."""
    backend, start = open_backend(lm_name), golden.npz(f"{lm_name}.local.npz")["hidden"]
    model = load_language_model(golden.folder / lm_name, golden.empty_id)
    expected = reference_patch(model, start, uniforms_of(backend.bundle, len(start), seed=3))
    together = patch_of(backend, len(start), HOT)
    check.equal(together.whole(start), expected, "codes")
    for row in range(len(start)):
        alone = patch_of(backend, 1, HOT)
        alone.uniforms = together.uniforms[:, row : row + 1]
        check.equal(alone.whole(start[row : row + 1])[0], expected[row], f"row {row} alone")


def reference_patch(model: LanguageModel, start: np.ndarray, uniforms: np.ndarray) -> np.ndarray:
    sampling, noise = Sampling(*HOT), torch.from_numpy(uniforms)

    def choose(scores: list[torch.Tensor], draws: list[tuple[int, int]]) -> list[torch.Tensor]:
        empties = model.config.speech_zeroemb_idx
        return [
            sampling(s, noise[:, g, k], removed_ids(s.shape[-1], {empties[k]}))
            for s, (k, g) in zip(scores, draws, strict=True)
        ]

    with torch.inference_mode():
        return model.patch_decoder(torch.from_numpy(start), choose).numpy()


@pytest.mark.parametrize("settings", [GREEDY, HOT], ids=["greedy", "sampled"])
@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_scores_that_are_no_numbers(
    golden: Golden, backend: OrtBackend, settings: tuple[float, int, float], wrong: float
) -> None:
    """Their row has the code -1 wherever the pattern draws; the other rows do not notice."""
    start = golden.npz(f"{golden.lm_names[0]}.local.npz")["hidden"][:3]
    expected = patch_of(backend, 3, settings).whole(start)
    broken = start.copy()
    broken[1, 5] = wrong
    codes = patch_of(backend, 3, settings).whole(broken)
    assert (codes[1] == -1).all()
    check.equal(codes[[0, 2]], expected[[0, 2]], "the other rows")


@pytest.fixture(scope="module")
def damaged(golden: Golden, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """The graph with one of its weights all NaN, or another number in a column alone."""

    def make(weight: str, column: int | None = None, number: float = np.nan) -> Path:
        source = exported(golden, golden.lm_names[0]) / "patch_decoder.onnx"
        folder = tmp_path_factory.mktemp("copy")  # onnx refuses data that has another link
        for name in (source.name, f"{source.name}.data"):
            shutil.copyfile(source.with_name(name), folder / name)
        model = onnx.load(folder / source.name)
        tensor = next(t for t in model.graph.initializer if t.name.endswith(weight))
        values = onnx.numpy_helper.to_array(tensor).copy()
        values[:, slice(None) if column is None else column] = number
        tensor.raw_data = values.tobytes()
        path = tmp_path_factory.mktemp("damaged") / "patch_decoder.onnx"
        onnx.save(model, path)
        return path

    return make


@pytest.mark.parametrize("part", ["local_transformer_lm_heads", "speech_embeddings"])
def test_what_is_not_drawn_counts_for_nothing(
    golden: Golden, backend: OrtBackend, damaged: Callable[..., Path], part: str
) -> None:
    """The last codebook is NaN throughout: nothing changes before it is drawn for the first time,
    and it is not drawn silently."""
    start = golden.npz(f"{golden.lm_names[0]}.local.npz")["hidden"][:2]
    model = backend.bundle.model
    last, first = model.n_q - 1, model.delays[-1]
    assert first == max(model.delays) > 0
    whole, broken = patch_of(backend, 2, HOT), patch_of(backend, 2, HOT)
    broken.session = ort.InferenceSession(damaged(f"{part}.{last}.weight"))
    expected, found = start, start
    for step in range(first):
        codes, expected = whole.run(step, expected)
        ours, found = broken.run(step, found)
        check.equal(ours, codes, f"codes of sub-step {step}")
        check.equal(found, expected, f"x after sub-step {step}")
    codes, found = broken.run(first, found)
    if part == "speech_embeddings":  # it hits what comes after the first draw
        codes, _ = broken.run(first + 1, found)
    assert (codes[:, last] == -1).all()


@pytest.mark.parametrize("number", [np.inf, -np.inf])
def test_one_infinite_score(
    golden: Golden, backend: OrtBackend, damaged: Callable[..., Path], number: float
) -> None:
    """Of an id that is hardly ever drawn; other codebooks do not notice."""
    start = golden.npz(f"{golden.lm_names[0]}.local.npz")["hidden"][:2]
    whole, broken = patch_of(backend, 2, HOT), patch_of(backend, 2, HOT)
    broken.session = ort.InferenceSession(damaged("local_transformer_lm_heads.0.weight", 7, number))
    expected, _ = whole.run(1, start)
    codes, following = broken.run(1, start)
    assert (codes[:, 0] == -1).all() and np.isfinite(following).all()
    check.equal(codes[:, 1:], expected[:, 1:], "the other codes")


def poison(states: OrtRowStates) -> np.ndarray:
    """As an overflow in the backbone leaves it; returns what was there."""
    good = states._local_hidden.read().copy()
    states._local_hidden.write(np.full_like(good, np.nan))
    return good


@pytest.mark.parametrize("settings", [GREEDY, HOT], ids=["greedy", "sampled"])
def test_an_overflow_is_an_error_and_leaves_nothing(
    golden: Golden,
    backend: OrtBackend,
    settings: tuple[float, int, float],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Not code 0, as an argmax over NaN gives; and the row's next patch is as if nothing was."""
    case = golden.generate_cases(golden.lm_names[0])[0]
    prompt = golden.npz(f"{golden.lm_names[0]}.generate.npz")[f"{case}.ids"]
    draw, patches = OrtRowStates.draw_codes, []

    def draw_thrice(states: OrtRowStates, first: int, *given: np.ndarray) -> np.ndarray:
        patches.append(draw(states, first, *given))
        good = poison(states)
        patches.append(draw(states, first, *given))
        states._local_hidden.write(good)
        patches.append(draw(states, first, *given))
        return patches[1]

    monkeypatch.setattr(OrtRowStates, "draw_codes", draw_thrice)
    speech = Preset(*settings)
    request = Request(prompt, Preset(0.0), speech, max_new=400)
    with pytest.raises(BundleError, match="audio codes are NaN or infinite"):
        list(generate(backend, request, golden.empty_id))
    before, during, after = patches
    assert (during == -1).all() and (before >= 0).all()
    check.equal(after, before, "codes after an overflow")


def test_size_of_the_graph(backend: OrtBackend) -> None:
    """One sub-step, and each weight in one place, for all that it runs many times for a patch."""
    model = onnx.load(backend.bundle.path("patch_decoder"), load_external_data=False)
    assert len(model.graph.node) <= NODES
    used = [name for node in model.graph.node for name in node.input]
    weights = [t.name for t in model.graph.initializer if t.name.endswith("weight")]
    assert weights and all(used.count(name) == 1 for name in weights)
    ours = [name for name in weights if "." in name]
    assert all(name.startswith("patch_decoder.") for name in ours), "the checkpoint's names"
