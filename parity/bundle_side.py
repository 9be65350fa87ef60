"""A bundle on a backend as a side. Needs the runtime only."""

import platform
import random
import sys
import time
from typing import Any

import numpy as np
from mimo_edge.parity.recording import Layout, Sequence
from mimo_edge.parity.side import Answered, Encoded, Forced, Streamed
from mimo_edge.runtime.audio import codec
from mimo_edge.runtime.backends.base import Backend, Floats, Ints
from mimo_edge.runtime.backends.ort import OrtBackend
from mimo_edge.runtime.bundle.bundle import Bundle
from mimo_edge.runtime.chat.presets import PRESETS, Sampling
from mimo_edge.runtime.chat.prompts import PromptBuilder
from mimo_edge.runtime.chat.segments import Grid, PromptLayout
from mimo_edge.runtime.chat.text_tokenizer import TextTokenizer
from mimo_edge.runtime.generation.loop import Loop
from mimo_edge.runtime.generation.request import Failure, Request, Step, join_steps, split_grid
from mimo_edge.runtime.generation.sampling import Noise


class Prompts:
    """Prompts and texts by the text tokenizer's files, the same for a bundle and a checkpoint."""

    def __init__(self, tokenizer: TextTokenizer, layout: PromptLayout) -> None:
        self.tokenizer, self._builder = tokenizer, PromptBuilder(tokenizer, layout)

    def build(self, task: str, source: str | Ints) -> tuple[Grid, tuple[int, ...]]:
        """As `Side.prompt`."""
        rng = random.Random(0)
        if isinstance(source, str):
            grid = self._builder.tts(source, rng=rng)
        else:
            grid = self._builder.asr(source, rng=rng)
        return grid, PRESETS[task].stop_ids(self.tokenizer.special)

    def spoken(self, text_ids: list[int]) -> str:
        """Text ids as text."""
        return self.tokenizer.decode(text_ids)


class BundleSide:
    """See `Side`. The language model is driven as the runtime drives it: prefill, then steps."""

    def __init__(self, backend: Backend) -> None:
        self._backend, self._model = backend, backend.bundle.model
        backend.bundle.piece("patch_decoder")  # a bundle that only listens is refused at once
        model = self._model
        tokenizer = TextTokenizer.of_bundle(backend.bundle)
        self._prompts = Prompts(
            tokenizer, PromptLayout(model.group_size, model.n_q, model.empty_codes)
        )
        self.layout = Layout(
            model.group_size,
            model.n_q,
            tokenizer.special.empty,
            model.empty_codes,
            model.delays,
            model.vocab_size,
            model.sampling_rate,
        )
        self.identity = identity(backend.bundle) | {"runs_on": backend.describe()} | machine()

    def prompt(self, task: str, source: str | Ints) -> tuple[Grid, tuple[int, ...]]:
        return self._prompts.build(task, source)

    def spoken(self, text_ids: list[int]) -> str:
        return self._prompts.spoken(text_ids)

    def mel(self, wav: Floats) -> Floats:
        return self._backend.mel(wav)

    def encode(self, mel: Floats) -> Encoded:
        return Encoded(self._backend.encode(mel))

    def forced(self, grid: Grid, sequence: Sequence) -> Forced:
        text_ids, codes = split_grid(grid, self.layout.group_size)
        noise, settings = Noise(sequence.seed), _settings(sequence.audio)
        embeddings = None
        if isinstance(self._backend, OrtBackend):
            feed = {"text_ids": text_ids[None], "codes": codes[None]}
            embeddings = self._backend.run("patch_encoder", feed)[0].astype(np.float32)
        states = self._backend.new_rows(1)
        drawn = []
        try:
            read = slice(0, sequence.prompt)
            logits = [states.extend(0, text_ids[read], codes[read]).copy()]
            for step, place in enumerate(range(sequence.prompt, len(text_ids))):
                if text_ids[place] == self.layout.empty_id:
                    uniforms = self._uniforms(noise, step)
                    drawn.append(states.draw_codes(0, uniforms, *settings)[0])
                if place + 1 < len(text_ids):
                    new = slice(place, place + 1)
                    logits.append(
                        states.step(0, text_ids[new], codes[new], np.array([True]))[0].copy()
                    )
        finally:
            states.close()
        shape = (-1, self.layout.group_size, self.layout.n_q)
        return Forced(embeddings, np.stack(logits), np.array(drawn, np.int64).reshape(shape), None)

    def answer(self, prompt: Grid, sequence: Sequence) -> Answered:
        begin = time.perf_counter()
        ((grid, stopped),) = self._run([(prompt, sequence)], slots=1)
        return Answered(grid, stopped, time.perf_counter() - begin)

    def answer_together(self, prompts: list[tuple[Grid, Sequence]]) -> list[Grid] | None:
        if not prompts:
            return None
        return [grid for grid, _ in self._run(prompts, slots=len(prompts))]

    def decode(self, codes: Ints) -> Floats:
        return codec.decode(self._backend, codes)

    def stream(self, codes: Ints) -> Streamed:
        stream = codec.StreamDecoder(self._backend)
        group = self.layout.group_size
        parts = [stream.push(codes[:, at : at + group]) for at in range(0, codes.shape[1], group)]
        return Streamed.of([*parts, stream.finish()])

    def measured(self) -> dict[str, Any]:
        return {"bytes": self._backend.bundle.bytes, "peak_bytes": peak_bytes()}

    def _run(self, prompts: list[tuple[Grid, Sequence]], slots: int) -> list[tuple[Grid, bool]]:
        loop = Loop(self._backend, self.layout.empty_id, slots)
        try:
            ids = [loop.add(request_of(prompt, sequence)) for prompt, sequence in prompts]
            steps: dict[int, list[Step]] = {request_id: [] for request_id in ids}
            while outcomes := loop.step():
                for outcome in outcomes:
                    if isinstance(outcome, Failure):
                        raise outcome.error
                    steps[outcome.request_id].append(outcome)
        finally:
            loop.close()
        return [
            (
                join_steps(steps[i], self.layout.empty_codes, self.layout.group_size),
                steps[i][-1].stopped,
            )
            for i in ids
        ]

    def _uniforms(self, noise: Noise, step: int) -> Floats:
        """[1, G, K], as the loop draws them."""
        group, n_q = self.layout.group_size, self.layout.n_q
        return noise(step, 1 + group * n_q)[1:].reshape(1, group, n_q)


def request_of(prompt: Grid, sequence: Sequence) -> Request:
    """The request that answers a prompt as the sequence says."""
    return Request(
        prompt,
        sequence.text,
        sequence.audio,
        stop_ids=sequence.stop_ids,
        max_new=sequence.max_new,
        seed=sequence.seed,
    )


def identity(bundle: Bundle) -> dict[str, Any]:
    """What a bundle is, for the report."""
    manifest = bundle.manifest
    return {
        "id": bundle.identity,
        "name": bundle.folder.resolve().name,
        "kind": "bundle",
        "precision": precision(bundle),
        "architecture": manifest.architecture,
        "recipe": manifest.recipe,
        "source": manifest.source,
        "tools": dict(manifest.tools),
        "weights": _weights(bundle),
    }


def _weights(bundle: Bundle) -> dict[str, str]:
    """How each component is stored; one that is in two pieces may be so in two ways."""
    found: dict[str, list[str]] = {}
    for piece in bundle.manifest.pieces.values():
        for component, scheme in piece.weights.items():
            block = "" if scheme.block is None else f"/{scheme.block}"
            found.setdefault(component, []).append(f"{scheme.scheme}{block}")
    return {name: " and ".join(dict.fromkeys(forms)) for name, forms in found.items()}


def precision(bundle: Bundle) -> str:
    """The coarsest that any component has: by it the thresholds are chosen."""
    pieces = bundle.manifest.pieces.values()
    schemes = {scheme.scheme for piece in pieces for scheme in piece.weights.values()}
    schemes |= {piece.compute for name, piece in bundle.manifest.pieces.items() if name != "mel"}
    for coarse in ("int4", "fp8", "int8", "bf16", "fp16"):
        if any(scheme.startswith(coarse) for scheme in schemes):
            return coarse
    return "fp32"


def machine() -> dict[str, Any]:
    """Where a side ran."""
    return {
        "machine": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "python": platform.python_version(),
    }


def peak_bytes() -> int | None:
    """The most memory that this process has held, or None where the system does not say."""
    if sys.platform == "win32":
        return None
    import resource

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most << 10


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor()


def _settings(sampling: Sampling) -> tuple[Floats, Ints, Floats]:
    return (
        np.array([sampling.temperature], np.float32),
        np.array([sampling.top_k], np.int64),
        np.array([sampling.top_p], np.float32),
    )
