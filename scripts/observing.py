"""The real pipeline on ONNX Runtime, whose graphs tell what their layers read."""

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from mimo_edge.engines.calibration import Statistics
from mimo_edge.engines.observed_graph import STATISTICS, Site, observe, read
from mimo_edge.runtime.audio import codec
from mimo_edge.runtime.backends.base import Ints
from mimo_edge.runtime.backends.ort import OrtBackend
from mimo_edge.runtime.bundle.bundle import Bundle
from mimo_edge.runtime.chat.scripts import script_of
from mimo_edge.runtime.generation.generation import Result
from mimo_edge.runtime.options import Options
from mimo_edge.runtime.tasks import MimoAudio
from numpy.typing import NDArray


class ObservingBackend(OrtBackend):
    """A bundle on the CPU. `take` gives the statistics since the last time."""

    def __init__(self, bundle: Bundle, threads: int | None = None) -> None:
        super().__init__(bundle, "cpu", threads)
        self._sites: dict[str, Sequence[Site]] = {}
        self._found: dict[str, Statistics] = {}
        self._adding = threading.Lock()  # the codec may run beside a step

    def take(self) -> dict[str, Statistics]:
        with self._adding:
            found, self._found = self._found, {}
        return found

    def _load(self, name: str) -> ort.InferenceSession:
        model = onnx.load(self.bundle.path(name), load_external_data=False)
        self._sites[name] = observe(model)
        return self.open_graph(name, model.SerializeToString())

    def outputs(self, name: str, feed: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        found = super().outputs(name, feed)
        return [*found[:-1], self._add(name, found[-1])] if self._sites[name] else found

    def run_bound(self, name: str, binding: Any, options: Any = None) -> None:
        self.session(name)  # says whether there is anything to observe
        if self._sites[name]:
            binding.bind_output(STATISTICS)
        super().run_bound(name, binding, options)
        if self._sites[name]:
            self._add(name, binding.get_outputs()[-1].numpy())

    def _add(self, name: str, values: NDArray[Any]) -> NDArray[Any]:
        found = read(self._sites[name], values)
        with self._adding:
            self._found = merged(self._found, found)
        return values


def merged(
    ours: Mapping[str, Statistics], others: Mapping[str, Statistics]
) -> dict[str, Statistics]:
    """Statistics of both, by weight."""
    return dict(ours) | {n: ours[n] + one if n in ours else one for n, one in others.items()}


@dataclass(frozen=True)
class Done:
    """What was read and made for one recording or text."""

    statistics: Mapping[str, Statistics]
    script: str  # of the text, or of what was heard
    seconds: float  # of the recording
    positions: Mapping[str, int]  # "text" and "speech" patches, of prompts and answers


class Observed:
    """Puts a bundle to its tasks on recordings and texts, and says what its layers read.

    A recording is transcribed, answered with speech, and made again from its codes; a text is
    spoken and answered with text: so there are text and speech on both sides.
    """

    def __init__(self, backend: ObservingBackend, longest: int) -> None:
        self._backend = backend
        self._model = MimoAudio(backend, 1, reuse=False)  # what is known is not read again
        self._options = Options(max_new=longest)

    def recording(self, path: Path, seed: int) -> Done:
        """Raises AudioError for a file that is empty or damaged."""
        model, options = self._model, replace(self._options, seed=seed)
        codes: Ints = model.encode(path)
        heard = model.asr(codes, options).result()
        results = [heard]
        if self._backend.bundle.speaks:
            codec.decode(self._backend, codes[: self._backend.bundle.model.n_q])
            if not model.member.listens_only:
                results.append(model.dialogue(codes, options=options).result())
        spec = self._backend.bundle.model
        seconds = codes.shape[1] * spec.samples_per_frame / spec.sampling_rate
        return self._done(results, script_of(heard.answer), seconds)

    def text(self, text: str, seed: int) -> Done:
        """Raises TextError or ContextError for a text that no prompt can hold, InputError for a
        bundle that does not speak."""
        model, options = self._model, replace(self._options, seed=seed)
        spoken = model.tts(text, options=options).result()
        answered = model.chat(text, options=options).result()
        return self._done([spoken, answered], script_of(text), 0.0)

    def close(self) -> None:
        self._model.__exit__(None, None, None)

    def _done(self, results: list[Result], script: str, seconds: float) -> Done:
        group, empty = self._backend.bundle.model.group_size, self._model.tokenizer.special.empty
        ids = np.concatenate([result.history[0, ::group] for result in results])
        speech = int((ids == empty).sum())
        positions = {"text": len(ids) - speech, "speech": speech}
        return Done(self._backend.take(), script, seconds, positions)
