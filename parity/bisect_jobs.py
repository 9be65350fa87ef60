"""The runs that a bisection compares: each piece on inputs of the reference."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from mimo_edge.mimo_ref.backbone import KVCache
from mimo_edge.mimo_ref.model import LanguageModel
from mimo_edge.parity.observe import heard
from mimo_edge.parity.recording import Recording
from mimo_edge.parity.reference_side import ReferenceSide, scores_along
from mimo_edge.parity.reference_taps import tapped
from mimo_edge.parity.taps import HEAD_SCORES, Feed, Tap, TappedPiece
from mimo_edge.runtime.backends.base import Floats, Ints
from mimo_edge.runtime.backends.ort import OrtBackend
from mimo_edge.runtime.bundle.bundle import Bundle
from mimo_edge.runtime.generation.request import split_grid
from numpy.typing import NDArray

Values = dict[str, list[Floats]]  # tap -> its value in every run of the piece


@dataclass(frozen=True, eq=False)
class Job:
    """One stage. `reference` computes taps by name. `run` computes them on the bundle, given the
    reference's values, and also returns what the first run of the piece was fed."""

    stage: str
    piece: str
    reference: Callable[[Sequence[str]], Values]
    run: Callable[[TappedPiece, Sequence[Tap], Values], tuple[Values, Feed]]


def jobs(side: ReferenceSide, backend: OrtBackend, led: Recording) -> Iterator[Job]:
    """The stages in the order of computing, on the first clip and the first greedy answer with
    speech that the recording has."""
    if led.clips:
        yield _encoder(side, led)
    spoken = [s for s in led.sequences if led.arrays[f"codes/{s.name}"].size]
    for sequence in (spoken or list(led.sequences))[:1]:
        grid = led.arrays[f"grid/{sequence.name}"]
        text, codes = split_grid(grid, led.layout.group_size)
        language = _Language(side, backend.bundle, text, codes, sequence.prompt)
        yield Job("patch_encoder", "patch_encoder", language.embed, language.run_embed)
        yield Job("backbone, prefill", "backbone", language.prefill, language.run_prefill)
        if len(text) > sequence.prompt + 1:
            yield Job("backbone, decode step", "backbone", language.step, language.run_step)
        if language.speech.size:
            yield Job("patch_decoder", "patch_decoder", language.draw, language.run_draw)
    if led.clips:
        yield _decoder(side, led)


def _encoder(side: ReferenceSide, led: Recording) -> Job:
    mel = led.arrays[f"mel/{led.clips[0]}"]
    lengths = np.array([len(mel)])

    def reference(names: Sequence[str]) -> Values:
        model = side.audio_tokenizer()
        with torch.inference_mode(), tapped(model, names) as values:
            model.encoder(torch.from_numpy(mel)[None], torch.from_numpy(lengths))
        return values

    def run(piece: TappedPiece, taps: Sequence[Tap], _: Values) -> tuple[Values, Feed]:
        feed: Feed = {"mel": mel[None], "lengths": lengths}
        return _once(piece, taps, feed)

    return Job("tokenizer_encoder", "tokenizer_encoder", reference, run)


def _decoder(side: ReferenceSide, led: Recording) -> Job:
    codes = heard(led.arrays, led.clips[0], led.layout)
    lengths = np.array([codes.shape[1]])

    def reference(names: Sequence[str]) -> Values:
        model = side.audio_tokenizer()
        with torch.inference_mode(), tapped(model, names) as values:
            states = model.quantizer.decode(torch.from_numpy(codes)[None])
            wav = model.decoder(states, torch.from_numpy(lengths))
        values["wav"] = [wav.numpy()]
        return values

    def run(piece: TappedPiece, taps: Sequence[Tap], _: Values) -> tuple[Values, Feed]:
        return _once(piece, taps, {"codes": codes[None], "lengths": lengths})

    return Job("tokenizer_decoder", "tokenizer_decoder", reference, run)


class _Language:
    """The language model's stages along one grid."""

    def __init__(
        self, side: ReferenceSide, bundle: Bundle, text: Ints, codes: Ints, prompt: int
    ) -> None:
        self._side, self._model, self._prompt = side, bundle.model, prompt
        self._feed: Feed = {"text_ids": text[None], "codes": codes[None]}
        self._given = [torch.from_numpy(a) for a in self._feed.values()]
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
            values["embeddings"] = [lm.patch_encoder(*self._given).numpy()]
        return values

    def run_embed(self, piece: TappedPiece, taps: Sequence[Tap], _: Values) -> tuple[Values, Feed]:
        return _once(piece, taps, self._feed)

    def prefill(self, names: Sequence[str]) -> Values:
        return self._backbone(names, step=False)

    def step(self, names: Sequence[str]) -> Values:
        return self._backbone(names, step=True)

    def _backbone(self, names: Sequence[str], step: bool) -> Values:
        """After the prompt, or at the step after it."""
        lm = self._side.language_model()
        with torch.inference_mode():
            embeddings = self._embeddings(lm)
            cache = KVCache(lm.config.backbone, 1, embeddings.shape[1])
            parts = [embeddings[:, : self._prompt]]
            if step:
                lm.backbone(parts[0], cache)
                parts = [embeddings[:, self._prompt : self._prompt + 1]]
            with tapped(lm, names) as values:
                hidden = lm.backbone(parts[0], cache)[:, -1]
            values["logits"] = [lm.backbone.text_logits(hidden).numpy()]
        return values

    def run_prefill(
        self, piece: TappedPiece, taps: Sequence[Tap], _: Values
    ) -> tuple[Values, Feed]:
        return _once(piece, taps, self._prompt_feed())

    def run_step(self, piece: TappedPiece, taps: Sequence[Tap], _: Values) -> tuple[Values, Feed]:
        outputs = piece.run([], self._prompt_feed())[1]
        with torch.inference_mode():
            embeddings = self._embeddings(self._side.language_model())
        new = embeddings[:, self._prompt : self._prompt + 1].numpy()
        feed: dict[str, NDArray[Any]] = {
            "embeddings": new.astype(self._dtype),
            "past_lengths": np.array([self._prompt]),
            "new_lengths": np.array([1]),
        }
        feed |= {n: outputs[n.replace("past_", "present_")] for n in self._caches}
        return _once(piece, taps, feed)

    def _prompt_feed(self) -> Feed:
        with torch.inference_mode():
            embeddings = self._embeddings(self._side.language_model())
        model, room = self._model, embeddings.shape[1]
        cache = np.zeros((1, model.kv_heads, room, model.head_dim), self._cache_dtype)
        return {
            "embeddings": embeddings[:, : self._prompt].numpy().astype(self._dtype),
            "past_lengths": np.array([0]),
            "new_lengths": np.array([self._prompt]),
            **{name: cache.copy() for name in self._caches},
        }

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
        return values

    def run_draw(
        self, piece: TappedPiece, taps: Sequence[Tap], theirs: Values
    ) -> tuple[Values, Feed]:
        """Sub-step by sub-step, each on the reference's own x."""
        rows, model = len(self.speech), self._model
        feed: dict[str, NDArray[Any]] = {
            port.name: np.zeros(
                [rows if isinstance(axis, str) else axis for axis in port.axes], port.dtype
            )
            for port in self._patch_ports
        }
        found: Values = {tap.name: [] for tap in taps}
        first: Feed | None = None
        states = theirs[piece.taps[0].name]  # what sub-step by sub-step the first layer reads
        for sub_step in range(model.sub_steps):
            feed["x"] = states[sub_step][:, 0].astype(feed["x"].dtype)
            feed["sub_step"] = np.full(rows, sub_step)
            first = dict(feed) if first is None else first
            values, outputs = piece.run(taps, feed)
            for name, value in values.items():
                frame = 0
                if name.startswith(HEAD_SCORES):
                    frame = sub_step - model.delays[int(name.removeprefix(HEAD_SCORES))]
                if 0 <= frame < model.group_size:
                    found[name].append(value)
            for name in feed:
                if name.startswith("past_"):
                    feed[name] = outputs[name.replace("past_", "present_")]
        assert first is not None
        return found, first


def _once(piece: TappedPiece, taps: Sequence[Tap], feed: Feed) -> tuple[Values, Feed]:
    values, _ = piece.run(taps, feed)
    return {name: [value] for name, value in values.items()}, feed
