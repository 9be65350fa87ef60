"""A bundle led along a recorded sequence: what it would have said and drawn at every position.

The choices that were recorded are what it reads, not its own (teacher forcing), so that two bundles
can be compared at each position and one early difference does not make all later ones.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from mimo_edge.engines.quantized_graph import scales_of
from mimo_edge.engines.weight_file import map_tensor
from mimo_edge.parity.tap import HEAD_SCORES, output_of
from mimo_edge.parity.taps import TappedPiece
from mimo_edge.runtime.backends.base import Floats, Ints
from mimo_edge.runtime.backends.ort import OrtBackend
from mimo_edge.runtime.bundle.bundle import Bundle
from numpy.typing import NDArray

TABLE = "patch_decoder.speech_embeddings.{}.weight"
ADAPTER = "patch_decoder.speech_embeddings_to_local.weight"


@dataclass(frozen=True, eq=False)
class Recorded:
    """A prompt with its answer. Position p chose text id p + 1; from `answer` on the model did."""

    text_ids: Ints  # [P]
    codes: Ints  # [P, K, G]
    answer: int

    def __len__(self) -> int:
        return len(self.text_ids)


@dataclass(frozen=True, eq=False)
class Led:
    """What a bundle computes along recorded sequences."""

    embeddings: list[Floats]  # of each sequence [P, D]
    local_hidden: list[Floats]  # [P, D_local]
    logits: list[Floats]  # [P, V]
    scores: list[list[Floats]]  # of each sequence and codebook [speech patches, G, V_k]


class LedBundle:
    """Runs the language model of a bundle along recorded sequences, on ONNX Runtime's CPU."""

    def __init__(self, bundle: Bundle, threads: int | None = None) -> None:
        self.backend, self.model = OrtBackend(bundle, threads=threads), bundle.model
        heads = TappedPiece(self.backend, "patch_decoder")
        self._heads = heads.session([t for t in heads.taps if t.name.startswith(HEAD_SCORES)])
        self._tables = Tables(bundle)

    def along(self, sequences: Sequence[Recorded], empty_id: int) -> Led:
        """Read the sequences, each alone from its beginning."""
        embeddings = [self.embed(s) for s in sequences]
        hidden, logits = self.backbone(embeddings)
        speech = [_spoken(s, empty_id) for s in sequences]
        scores = [
            self.scores(states[places - 1], sequence.codes[places])
            for states, places, sequence in zip(hidden, speech, sequences, strict=True)
        ]
        return Led(embeddings, hidden, logits, scores)

    def embed(self, sequence: Recorded) -> Floats:
        """[P, D]"""
        feed = {"text_ids": sequence.text_ids[None], "codes": sequence.codes[None]}
        return self.backend.run("patch_encoder", feed)[0]

    def backbone(self, embeddings: Sequence[Floats]) -> tuple[list[Floats], list[Floats]]:
        """Embedded sequences [P, D] -> local_hidden [P, D_local] and logits [P, V] of each.

        They go side by side, a position at a time; a shorter one reads zeros beyond its end.
        """
        batch, longest = len(embeddings), max(map(len, embeddings))
        padded = np.zeros((batch, longest, embeddings[0].shape[1]), embeddings[0].dtype)
        for row, states in zip(padded, embeddings, strict=True):
            row[: len(states)] = states
        session = self.backend.session("backbone")
        names = [port.name for port in session.get_outputs()]
        cache = (batch, self.model.kv_heads, longest, self.model.head_dim)
        past = {
            port.name: np.zeros(cache, self.backend.bundle.manifest.cache_dtype)
            for port in session.get_inputs()
            if port.name.startswith("past_") and port.name != "past_lengths"
        }
        found: dict[str, list[NDArray[Any]]] = {"local_hidden": [], "logits": []}
        for position in range(longest):
            feed = {
                "embeddings": padded[:, position : position + 1],
                "past_lengths": np.full(batch, position),
                "new_lengths": np.ones(batch, np.int64),
                **past,
            }
            outputs = dict(zip(names, session.run(None, feed), strict=True))
            past = {name: outputs[name.replace("past_", "present_")] for name in past}
            for name, values in found.items():
                values.append(outputs[name])
        hidden, logits = (np.stack(values, axis=1) for values in found.values())
        lengths = [len(states) for states in embeddings]
        return (
            [row[:n] for row, n in zip(hidden, lengths, strict=True)],
            [row[:n] for row, n in zip(logits, lengths, strict=True)],
        )

    def scores(self, local_hidden: Floats, codes: Ints) -> list[Floats]:
        """States [N, D_local], the codes [N, K, G] that were drawn -> by codebook [N, G, V_k]."""
        patches, (n_q, group) = len(codes), codes.shape[1:]
        delays = self.model.delays
        found: list[list[Floats]] = [[] for _ in range(n_q)]
        if not patches:
            sizes = self.model.code_vocab
            return [np.zeros((0, group, sizes[k]), np.float32) for k in range(n_q)]
        past = {
            port.name: np.zeros(
                [patches if isinstance(axis, str) else axis for axis in port.shape],
                local_hidden.dtype,
            )
            for port in self._heads.get_inputs()
            if port.name.startswith("past_")
        }
        x = local_hidden
        settings = {
            "uniforms": np.zeros((patches, n_q), np.float32),
            "temperature": np.zeros(patches, np.float32),
            "top_k": np.zeros(patches, np.int64),
            "top_p": np.ones(patches, np.float32),
        }
        for sub_step in range(group + max(delays)):
            feed = {"x": x, "sub_step": np.full(patches, sub_step), **settings, **past}
            names = [port.name for port in self._heads.get_outputs()]
            outputs = dict(zip(names, self._heads.run(None, feed), strict=True))
            past = {name: outputs[name.replace("past_", "present_")] for name in past}
            x = np.zeros_like(local_hidden)
            for k, delay in enumerate(delays):
                if 0 <= sub_step - delay < group:
                    found[k].append(np.asarray(outputs[output_of(f"{HEAD_SCORES}{k}")], np.float32))
                    x = x + self._tables.embed(k, codes[:, k, sub_step - delay]).astype(x.dtype)
        return [np.stack(parts, axis=1) for parts in found]


class Tables:
    """The patch decoder's speech embeddings as a bundle stores them."""

    def __init__(self, bundle: Bundle) -> None:
        path = bundle.path("patch_decoder")
        data = bundle.folder / bundle.piece("patch_decoder").data
        graph = onnx.load(path, load_external_data=False).graph
        stored = {tensor.name: tensor for tensor in graph.initializer}

        def read(name: str, axis: int) -> Floats:
            values = map_tensor(stored[name], data).astype(np.float32)
            scales = scales_of(name)
            if scales not in stored:
                return values
            factors = map_tensor(stored[scales], data).astype(np.float32)
            if factors.ndim > 1 and axis == 0:  # blocks of inputs
                factors = np.repeat(factors, len(values) // len(factors), axis=0)
            return values * factors

        self._tables = [read(TABLE.format(k), 1) for k in range(bundle.model.n_q)]
        self._adapter = read(ADAPTER, 0) if ADAPTER in stored else None

    def embed(self, codebook: int, ids: Ints) -> Floats:
        """ids [N] -> [N, D_local]"""
        rows = self._tables[codebook][ids]
        return rows if self._adapter is None else rows @ self._adapter


def _spoken(sequence: Recorded, empty_id: int) -> Ints:
    """The positions of the answer that hold speech."""
    places = np.arange(max(1, sequence.answer), len(sequence))
    return places[sequence.text_ids[places] == empty_id]
