"""Rows on ONNX Runtime: their buffers, and the state of several answers in them.

The key-value cache is bound as input and output of one buffer, so it is updated in place. On the
CPU it starts small and doubles, because attention computes over the whole capacity.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from mimo_edge.runtime.backends.base import Floats, Ints
from mimo_edge.runtime.backends.ort_patch import OrtPatchDecoder
from mimo_edge.runtime.backends.ort_sessions import Sessions
from mimo_edge.runtime.bundle.errors import ContextError
from mimo_edge.runtime.bundle.manifest import PieceSpec
from numpy.typing import NDArray

FIRST_CAPACITY = 256  # positions
PREFILL_CHUNK = 512  # positions at a time: bounds the mask and the attention scores


class OrtRowStates:
    """Decode state of several rows; see `mimo_edge.runtime.backends.base.RowStates`."""

    def __init__(self, backend: Sessions, rows: int, capacity: int = FIRST_CAPACITY) -> None:
        self.rows = rows
        self.lengths = np.zeros(rows, np.int64)
        self._backend, model = backend, backend.bundle.model
        self._model = model
        self._spec: PieceSpec = backend.bundle.piece("backbone")
        self._dtype = np.dtype(_port(self._spec.inputs, "embeddings").dtype)
        self.capacity = model.context
        self._capacity = min(capacity, self.capacity)
        value = backend.value
        local_width = _port(self._spec.outputs, "local_hidden").axes[-1]
        self._local_hidden = value((rows, local_width), self._dtype)
        self._logits = value((rows, model.vocab_size), np.float32)
        self._past = value((rows,), np.int64)
        self._new = value((rows,), np.int64)
        self._new.update_inplace(np.ones(rows, np.int64))
        self._caches = self._new_caches(self._capacity)
        self._stale = False  # whether an earlier answer may have left something in them
        # the newest patch, embedded
        self._text_ids = value((rows, 1), np.int64)
        self._codes = value((rows, 1, model.n_q, model.group_size), np.int64)
        self._embeddings = value((rows, 1, model.hidden_size), self._dtype)
        self._embed = self._bind_embed()
        self._backbone = self._bind_backbone()
        self._patch_decoder: OrtPatchDecoder | None = None  # made at the first speech patch

    def prefill(self, row: int, text_ids: Ints, codes: Ints) -> Floats:
        if self.rows > 1:  # the other rows must not pay for the prompt
            alone = OrtRowStates(self._backend, 1, self._capacity_for(len(text_ids)))
            logits = alone.prefill(0, text_ids, codes)
            self._adopt(row, alone)
            return logits
        self._reserve(len(text_ids))
        if self._stale:
            self._forget()
        self.lengths[:], self._stale = 0, True
        for start in range(0, len(text_ids), PREFILL_CHUNK):
            part = slice(start, start + PREFILL_CHUNK)
            feed = {"text_ids": text_ids[None, part], "codes": codes[None, part]}
            self._run_chunk(self._backend.run("patch_encoder", feed))
        return self._logits.numpy()[0]

    def step(self, text_ids: Ints, codes: Ints, active: NDArray[np.bool_]) -> Floats:
        self._reserve(int(self.lengths.max()) + 1)
        self._text_ids.update_inplace(text_ids[:, None])
        self._codes.update_inplace(np.ascontiguousarray(codes[:, None]))
        self._past.update_inplace(self.lengths)
        self._backend.run_bound("patch_encoder", self._embed)
        self._backend.run_bound("backbone", self._backbone)
        self.lengths += active
        return self._logits.numpy()

    def draw_codes(self, uniforms: Floats, temperature: Floats, top_k: Ints, top_p: Floats) -> Ints:
        if self._patch_decoder is None:
            self._patch_decoder = OrtPatchDecoder(self._backend, self.rows, self._local_hidden)
        return self._patch_decoder.draw(uniforms, temperature, top_k, top_p)

    def clear(self, row: int) -> None:
        self.lengths[row] = 0

    def _run_chunk(self, embeddings: NDArray[Any]) -> None:
        """Append embedded positions [1, T, D] to the only row."""
        binding = self._backend.session("backbone").io_binding()
        binding.bind_cpu_input("embeddings", embeddings)
        self._past.update_inplace(self.lengths)
        binding.bind_ortvalue_input("past_lengths", self._past)
        binding.bind_cpu_input("new_lengths", np.array([embeddings.shape[1]], np.int64))
        self._bind_state(binding)
        self._backend.run_bound("backbone", binding)
        self.lengths += embeddings.shape[1]

    def _adopt(self, row: int, other: "OrtRowStates") -> None:
        """Take over the only row of another state."""
        length = int(other.lengths[0])
        self._reserve(length)
        for mine, theirs in zip(self._caches, other._caches, strict=True):
            content = mine.numpy()
            content[row, :, :length] = theirs.numpy()[0, :, :length]
            content[row, :, length:] = 0
            mine.update_inplace(content)
        local_hidden = self._local_hidden.numpy()
        local_hidden[row] = other._local_hidden.numpy()[0]
        self._local_hidden.update_inplace(local_hidden)
        self.lengths[row] = length

    def _capacity_for(self, positions: int) -> int:
        if positions > self.capacity:
            raise ContextError(
                f"{positions} positions do not fit the context of {self.capacity}. "
                "Shorten the prompt, drop old turns, or ask for a shorter answer."
            )
        capacity = FIRST_CAPACITY
        while capacity < positions:
            capacity *= 2
        return min(capacity, self.capacity)

    def _reserve(self, positions: int) -> None:
        """Room for this many positions in every row."""
        if positions <= self._capacity:
            return
        capacity = self._capacity_for(positions)
        # all before any is replaced: should memory not suffice, the rows are as they were
        caches = self._new_caches(capacity)
        for new, old in zip(caches, self._caches, strict=True):
            grown = new.numpy()
            grown[:, :, : self._capacity] = old.numpy()
            new.update_inplace(grown)
        self._caches = caches
        self._capacity = capacity
        self._backbone = self._bind_backbone()

    def _forget(self) -> None:
        """Zero the caches: a masked position counts for nothing, unless it is NaN or infinite."""
        for cache in self._caches:
            cache.update_inplace(np.zeros(cache.shape(), self._dtype))

    def _new_caches(self, capacity: int) -> list[Any]:
        model = self._model
        shape = (self.rows, model.kv_heads, capacity, model.head_dim)
        return [self._backend.value(shape, self._dtype) for _ in range(2 * model.layers)]

    def _bind_embed(self) -> Any:
        binding = self._backend.session("patch_encoder").io_binding()
        binding.bind_ortvalue_input("text_ids", self._text_ids)
        binding.bind_ortvalue_input("codes", self._codes)
        binding.bind_ortvalue_output("embeddings", self._embeddings)
        return binding

    def _bind_backbone(self) -> Any:
        binding = self._backend.session("backbone").io_binding()
        binding.bind_ortvalue_input("embeddings", self._embeddings)
        binding.bind_ortvalue_input("past_lengths", self._past)
        binding.bind_ortvalue_input("new_lengths", self._new)
        self._bind_state(binding)
        return binding

    def _bind_state(self, binding: Any) -> None:
        """Outputs, and the caches as input and output of one buffer each."""
        binding.bind_ortvalue_output("local_hidden", self._local_hidden)
        binding.bind_ortvalue_output("logits", self._logits)
        names = [port.name for port in self._spec.inputs if port.name.startswith("past_")][1:]
        for name, cache in zip(names, self._caches, strict=True):
            binding.bind_ortvalue_input(name, cache)
            binding.bind_ortvalue_output(name.replace("past_", "present_"), cache)


def _port(ports: Sequence[Any], name: str) -> Any:
    return next(port for port in ports if port.name == name)
