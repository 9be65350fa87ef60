"""The runtime against the reference on one checkpoint: every piece, then whole answers."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from mimo_edge.mimo_ref import generate as reference
from mimo_edge.mimo_ref.backbone import KVCache
from mimo_edge.mimo_ref.mel import log_mel
from mimo_edge.mimo_ref.model import AudioTokenizer, LanguageModel
from mimo_edge.mimo_ref.weights import load_audio_tokenizer, load_language_model
from mimo_edge.parity import tolerances
from mimo_edge.runtime.audio import codec
from mimo_edge.runtime.backends.base import Backend
from mimo_edge.runtime.chat.presets import Sampling
from mimo_edge.runtime.chat.segments import Grid
from mimo_edge.runtime.generation.loop import generate
from mimo_edge.runtime.generation.request import Request, join_steps, split_grid
from mimo_edge.runtime.generation.sampling import Noise

T = TypeVar("T")
HOT = Sampling(temperature=0.9, top_k=50, top_p=0.95)


@dataclass(frozen=True)
class Row:
    """One comparison. `difference` counts unequal numbers where `allowed` is 0."""

    stage: str
    shape: tuple[int, ...]
    difference: float
    allowed: float
    reference_seconds: float
    runtime_seconds: float

    @property
    def passed(self) -> bool:
        return self.difference <= self.allowed


def compare(
    backend: Backend, checkpoint: Path, audio_tokenizer: Path, wav: np.ndarray, prompt: Grid
) -> Iterator[Row]:
    """Yield one row per piece, then one for a greedy and one for a sampled answer to `prompt`.

    Each piece gets the reference's output of the piece before, so that differences do not add up.
    """
    lm = load_language_model(checkpoint, dtype=torch.float32)
    tokenizer = load_audio_tokenizer(audio_tokenizer, torch.float32)
    with torch.inference_mode():
        yield from _audio_rows(backend, tokenizer, wav)
        yield from _language_rows(backend, lm, prompt)
        for name, sampling in (("answer, greedy", Sampling(0.0)), ("answer, sampled", HOT)):
            request = Request(prompt, sampling, sampling, max_new=12, seed=1)
            ours, took = timed(partial(_runtime_answer, backend, request, lm.empty_id))
            theirs, ref_took = timed(partial(_reference_answer, lm, request))
            yield _equal(name, ours, theirs, ref_took, took)


def _audio_rows(backend: Backend, tokenizer: AudioTokenizer, wav: np.ndarray) -> Iterator[Row]:
    n_q = backend.bundle.model.n_q
    mel, ref_took = timed(lambda: log_mel(torch.from_numpy(wav), tokenizer.config).numpy())
    ours, took = timed(lambda: backend.mel(wav))
    relative, _ = tolerances.mel_difference(ours, mel)
    yield Row("mel", ours.shape, relative, tolerances.MEL_RELATIVE, ref_took, took)

    codes, ref_took = timed(lambda: tokenizer.encode_mel(torch.from_numpy(mel)).numpy())
    ours_codes, took = timed(lambda: backend.encode(mel))
    yield _equal("tokenizer_encoder", ours_codes, codes, ref_took, took)

    spoken = codes[:n_q]
    sound, ref_took = timed(lambda: tokenizer.decode(torch.from_numpy(spoken)).numpy())
    ours_sound, took = timed(lambda: codec.decode(backend, spoken))
    gap = tolerances.difference(ours_sound, sound)
    allowed = tolerances.AUDIO.absolute
    yield Row("tokenizer_decoder", ours_sound.shape, gap, allowed, ref_took, took)


def _language_rows(backend: Backend, lm: LanguageModel, prompt: Grid) -> Iterator[Row]:
    model = backend.bundle.model
    text, codes = split_grid(prompt, model.group_size)
    cache = KVCache(lm.config.backbone, 1, len(text))

    def forward() -> tuple[np.ndarray, torch.Tensor]:
        hidden = lm(torch.from_numpy(prompt)[None], cache)[:, -1]
        return lm.backbone.text_logits(hidden)[0].numpy(), hidden

    (logits, hidden), ref_took = timed(forward)
    states = backend.new_rows(1)
    ours, took = timed(lambda: states.extend(0, text, codes))
    gap, allowed = tolerances.difference(ours, logits), tolerances.LM.at(logits)
    yield Row("patch_encoder, backbone", ours.shape, gap, allowed, ref_took, took)

    uniforms = Noise(0)(0, model.group_size * model.n_q).reshape(1, model.group_size, -1)
    sampling = reference.Sampling(HOT.temperature, HOT.top_k, HOT.top_p)

    def patch() -> np.ndarray:
        return reference.draw_patch(lm, hidden, torch.from_numpy(uniforms), sampling).numpy()

    theirs, ref_took = timed(patch)
    settings = (
        np.array([HOT.temperature], np.float32),
        np.array([HOT.top_k], np.int64),
        np.array([HOT.top_p], np.float32),
    )
    drawn, took = timed(lambda: states.draw_codes(0, uniforms, *settings))
    yield _equal("patch_decoder", drawn, theirs, ref_took, took)


def _runtime_answer(backend: Backend, request: Request, empty_id: int) -> Grid:
    model = backend.bundle.model
    steps = list(generate(backend, request, empty_id))
    return join_steps(steps, model.empty_codes, model.group_size)


def _reference_answer(lm: LanguageModel, request: Request) -> np.ndarray:
    config, noise = lm.config, Noise(request.seed)
    draws = 1 + config.group_size * config.audio_channels
    length = request.prompt.shape[1] // config.group_size
    sampling = reference.Sampling(request.text.temperature, request.text.top_k, request.text.top_p)
    patches = reference.generate(
        lm,
        torch.from_numpy(request.prompt),
        reference.Limits(length + (request.max_new or 1)),
        lambda step: torch.from_numpy(noise(step, draws)),
        sampling,
        sampling,
    )
    return torch.cat(list(patches), dim=1).numpy()


def _equal(stage: str, ours: np.ndarray, theirs: np.ndarray, ref_took: float, took: float) -> Row:
    wrong = float((ours != theirs).sum()) if ours.shape == theirs.shape else float("inf")
    return Row(stage, ours.shape, wrong, 0, ref_took, took)


def timed(call: Callable[[], T]) -> tuple[T, float]:
    """What a call returns, and the seconds it took."""
    start = time.perf_counter()
    value = call()
    return value, time.perf_counter() - start


def table(rows: list[Row]) -> str:
    """Rows for people."""
    lines = [
        f"{'stage':26} {'shape':>16} {'difference':>11} {'allowed':>9} {'torch':>9} {'runtime':>9}"
    ]
    for row in rows:
        shape = "x".join(map(str, row.shape))
        allowed = f"{row.allowed:.0e}" if row.allowed else "equal"
        found = f"{row.difference:.1e}" if row.allowed else f"{row.difference:.0f} differ"
        lines.append(
            f"{row.stage:26} {shape:>16} {found:>11} {allowed:>9} "
            f"{1e3 * row.reference_seconds:6.1f} ms {1e3 * row.runtime_seconds:6.1f} ms"
            f"{'' if row.passed else '   FAILED'}"
        )
    return "\n".join(lines)
