"""The runs that a bisection compares: each piece on inputs of the reference."""

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from mimo_edge.mimo_ref.backbone import KVCache
from mimo_edge.mimo_ref.model import LanguageModel
from mimo_edge.parity.job import Job
from mimo_edge.parity.observe import heard
from mimo_edge.parity.recording import Recording
from mimo_edge.parity.reference_side import ReferenceSide, scores_along
from mimo_edge.parity.reference_taps import tapped
from mimo_edge.parity.tap import CODES, HEAD_SCORES, Feed, Values
from mimo_edge.runtime.backends.base import Floats, Ints
from mimo_edge.runtime.bundle.bundle import Bundle
from mimo_edge.runtime.generation.request import split_grid
from numpy.typing import NDArray

# what the first layer of the patch decoder reads: the x of a sub-step
X = "patch_decoder.local_transformer.layers.0.input_layernorm"
_PAST = "past_"


def jobs(
    side: ReferenceSide, bundle: Bundle, led: Recording, longest: int | None = None
) -> Iterator[Job]:
    """The stages in the order of computing, on the first clip and the first greedy answer with
    speech that the recording has. A run of the language model reads `longest` patches at most."""
    if led.clips:
        yield _encoder(side, led)
    spoken = [s for s in led.sequences if led.arrays[f"codes/{s.name}"].size]
    for sequence in (spoken or list(led.sequences))[:1]:
        grid = led.arrays[f"grid/{sequence.name}"]
        text, codes = split_grid(grid, led.layout.group_size)
        language = _Language(side, bundle, text, codes, sequence.prompt, longest)
        yield Job("patch_encoder", "patch_encoder", language.embed, language.feed_embed)
        yield language.along("backbone, prefill", language.prompt_runs)
        if len(text) > sequence.prompt + 1:
            step = slice(sequence.prompt, sequence.prompt + 1)
            yield language.along("backbone, decode step", [*language.prompt_runs, step])
        if language.speech.size:
            yield Job(
                "patch_decoder",
                "patch_decoder",
                language.draw,
                language.feed_draw,
                needs=(X,),
                counts=language.drawn_at,
            )
    if led.clips:
        yield _decoder(side, led)


def _encoder(side: ReferenceSide, led: Recording) -> Job:
    clip = led.clips[0]
    mel = led.arrays[f"mel/{clip}"]
    lengths = np.array([len(mel)])

    def reference(names: Sequence[str]) -> Values:
        model = side.audio_tokenizer()
        with torch.inference_mode(), tapped(model, names) as values:
            model.encoder(torch.from_numpy(mel)[None], torch.from_numpy(lengths))
        return {**values, CODES: [led.arrays[f"heard/{clip}"]]}

    def feeds(_: Values) -> list[Feed]:
        return [{"mel": mel[None], "lengths": lengths}]

    return Job("tokenizer_encoder", "tokenizer_encoder", reference, feeds)


def _decoder(side: ReferenceSide, led: Recording) -> Job:
    codes = heard(led.arrays, led.clips[0], led.layout)
    lengths = np.array([codes.shape[1]])

    def reference(names: Sequence[str]) -> Values:
        model = side.audio_tokenizer()
        with torch.inference_mode(), tapped(model, names) as values:
            states = model.quantizer.decode(torch.from_numpy(codes)[None])
            wav = model.decoder(states, torch.from_numpy(lengths))
        return {**values, "wav": [wav.numpy()]}

    def feeds(_: Values) -> list[Feed]:
        return [{"codes": codes[None], "lengths": lengths}]

    return Job("tokenizer_decoder", "tokenizer_decoder", reference, feeds)


class _Language:
    """The language model's stages along one grid."""

    def __init__(
        self,
        side: ReferenceSide,
        bundle: Bundle,
        text: Ints,
        codes: Ints,
        prompt: int,
        longest: int | None,
    ) -> None:
        self._side, self._model = side, bundle.model
        self._given = [torch.from_numpy(array[None]) for array in (text, codes)]
        self._embedded = slice(longest)  # of the grid, by the patch encoder
        ends = [*range(0, prompt, longest or prompt), prompt]
        self.prompt_runs = [slice(*pair) for pair in itertools.pairwise(ends)]
        self.speech = prompt + np.flatnonzero(text[prompt:] == side.layout.empty_id)
        self._codes = torch.from_numpy(codes[self.speech]).transpose(1, 2)  # [S, G, K]
        ports = {p.name: p for p in bundle.piece("backbone").inputs}
        self._caches = [n for n in ports if n.startswith(("past_keys", "past_values"))]
        self._dtype = np.dtype(ports["embeddings"].dtype)
        self._cache_dtype = np.dtype(bundle.manifest.cache_dtype)
        self._patch_ports = bundle.piece("patch_decoder").inputs if bundle.speaks else ()

    def embed(self, names: Sequence[str]) -> Values:
        lm = self._side.language_model()
        with torch.inference_mode(), tapped(lm, names) as values:
            given = (array[:, self._embedded] for array in self._given)
            values["embeddings"] = [lm.patch_encoder(*given).numpy()]
        return values

    def feed_embed(self, _: Values) -> list[Feed]:
        text, codes = (array[:, self._embedded].numpy() for array in self._given)
        return [{"text_ids": text, "codes": codes}]

    def along(self, stage: str, runs: list[slice]) -> Job:
        """The backbone along parts of the grid, one after the other; the last is looked at."""

        def reference(names: Sequence[str]) -> Values:
            lm = self._side.language_model()
            with torch.inference_mode():
                embeddings = self._embeddings(lm)
                cache = KVCache(lm.config.backbone, 1, embeddings.shape[1])
                *before, last = (embeddings[:, run] for run in runs)
                for part in before:
                    lm.backbone(part, cache)
                with tapped(lm, names) as values:
                    hidden = lm.backbone(last, cache)[:, -1]
                values["logits"] = [lm.backbone.text_logits(hidden).numpy()]
            return values

        def feeds(_: Values) -> list[Feed]:
            with torch.inference_mode():
                embeddings = self._embeddings(self._side.language_model()).numpy()
            room = embeddings.shape[1]
            shape = (1, self._model.kv_heads, room, self._model.head_dim)
            parts: list[Feed] = [
                {
                    "embeddings": embeddings[:, run].astype(self._dtype),
                    "past_lengths": np.array([run.start]),
                    "new_lengths": np.array([run.stop - run.start]),
                }
                for run in runs
            ]
            caches = {name: np.zeros(shape, self._cache_dtype) for name in self._caches}
            return [{**parts[0], **caches}, *parts[1:]]

        return Job(stage, "backbone", reference, feeds, warm=len(runs) - 1)

    def _embeddings(self, lm: LanguageModel) -> torch.Tensor:
        return lm.patch_encoder(*self._given)

    def draw(self, names: Sequence[str]) -> Values:
        lm = self._side.language_model()
        with torch.inference_mode():
            embeddings = self._embeddings(lm)
            cache = KVCache(lm.config.backbone, 1, embeddings.shape[1])
            hidden = lm.backbone(embeddings, cache)[0, torch.from_numpy(self.speech - 1)]
            with tapped(lm, names) as values:
                scores = scores_along(lm, hidden, self._codes)
        for k, each in enumerate(scores):
            values[f"{HEAD_SCORES}{k}"] = list(each.swapaxes(0, 1))  # by frame
        return {**values, CODES: self._greedy(scores)}

    def feed_draw(self, theirs: Values) -> list[Feed]:
        """Sub-step by sub-step, each on the reference's own x; greedily."""
        rows = len(self.speech)
        given: dict[str, NDArray[Any]] = {
            port.name: np.zeros(
                [rows if isinstance(axis, str) else axis for axis in port.axes], port.dtype
            )
            for port in self._patch_ports
        }
        settings = {n: a for n, a in given.items() if not n.startswith(_PAST)}
        return [
            {
                **(given if sub_step == 0 else settings),
                "x": x[:, 0].astype(given["x"].dtype),
                "sub_step": np.full(rows, sub_step),
            }
            for sub_step, x in enumerate(theirs[X])
        ]

    def drawn_at(self, name: str, sub_step: int) -> bool:
        """Whether a head gives scores of a frame at this sub-step; all else shows at each."""
        if not name.startswith(HEAD_SCORES):
            return True
        frame = sub_step - self._model.delays[int(name.removeprefix(HEAD_SCORES))]
        return 0 <= frame < self._model.group_size

    def _greedy(self, scores: list[Floats]) -> list[Ints]:
        """The codes [S, K] of every sub-step, by scores [S, G, V_k] of each codebook; 0 where none
        is drawn."""
        model = self._model
        found = [np.zeros((len(self.speech), model.n_q), np.int64) for _ in range(model.sub_steps)]
        for k, (each, delay) in enumerate(zip(scores, model.delays, strict=True)):
            allowed = each.copy()
            allowed[..., model.empty_codes[k]] = -np.inf
            for frame, best in enumerate(allowed.argmax(-1).T):
                found[delay + frame][:, k] = best
        return found
