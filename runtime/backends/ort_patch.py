"""Patches on ONNX Runtime: the patch decoder's buffers, and its runs one after the other.

Every sub-step has a binding of its own, made once: between two runs the host does nothing. A run
reads the x that the run before has written, from one of two buffers by turns, and the keys and
values stay in place: a run can be repeated, which recording it as a CUDA graph does.
"""

from typing import Any

import numpy as np
from mimo_edge.runtime.backends.base import Floats, Ints
from mimo_edge.runtime.backends.delay import DelayPattern
from mimo_edge.runtime.backends.ort_graphs import Run
from mimo_edge.runtime.backends.ort_memory import Buffer, Rows
from mimo_edge.runtime.backends.ort_sessions import Sessions
from mimo_edge.runtime.bundle.manifest import TensorSpec
from numpy.typing import NDArray

PIECE = "patch_decoder"
SETTINGS = ("temperature", "top_k", "top_p")


class OrtPatchDecoder:
    """Draws patches for some rows. `start` is where their local_hidden [rows, D_local] is, whose
    buffer the caller keeps."""

    def __init__(self, backend: Sessions, start: Rows) -> None:
        self._backend, self._rows = backend, start.shape[0]
        spec, model = backend.bundle.piece(PIECE), backend.bundle.model
        self._ports = {port.name: port for port in (*spec.inputs, *spec.outputs)}
        self._pattern = DelayPattern(model)
        self._settings = {name: self._buffer(name) for name in SETTINGS}
        # the runs' inputs beside the settings, and their codes
        self._uniforms = [self._buffer("uniforms") for _ in range(model.sub_steps)]
        self._codes = [self._buffer("codes") for _ in range(model.sub_steps)]
        self._caches = {n: self._buffer(n) for n in self._ports if n.startswith("past_")}
        # a binding has addresses and keeps nothing alive
        self._turns = [self._buffer("x") for _ in range(2)]
        self._sub_steps = [self._buffer("sub_step") for _ in range(model.sub_steps)]
        each = [buffer.rows(0, self._rows) for buffer in self._turns]
        self._runs = [
            self._bind(step, each[step % 2] if step else start, each[(step + 1) % 2])
            for step in range(model.sub_steps)
        ]

    def draw(self, uniforms: Floats, temperature: Floats, top_k: Ints, top_p: Floats) -> Ints:
        """As `RowStates.draw_codes`."""
        given: tuple[NDArray[Any], ...] = (temperature, top_k, top_p)
        for value, array in zip(self._settings.values(), given, strict=True):
            value.write(array)
        for value, part in zip(self._uniforms, self._pattern.spread(uniforms), strict=True):
            value.write(part)
        for binding, run in self._runs:
            self._backend.run_bound(PIECE, binding, run.options)
        codes = self._pattern.collect(np.stack([value.read() for value in self._codes]))
        if codes.min() < 0:
            self._forget()
        return codes

    def release(self) -> None:
        """Let go of what was recorded."""
        for _, run in self._runs:
            run.release()

    def _forget(self) -> None:
        """Zero the caches: a masked position counts for nothing, unless it is NaN or infinite."""
        for cache in self._caches.values():
            cache.clear()

    def _bind(self, step: int, x: Rows, following: Rows) -> tuple[Any, Run]:
        sub_step = self._sub_steps[step]
        sub_step.write(np.full(self._rows, step, np.int64))
        session = self._backend.session(PIECE)
        binding = session.io_binding()
        x.as_input(binding, "x")
        inputs = {"sub_step": sub_step, "uniforms": self._uniforms[step]}
        for name, buffer in {**inputs, **self._settings, **self._caches}.items():
            buffer.as_input(binding, name)
        self._codes[step].as_output(binding, "codes")
        following.as_output(binding, "next")
        for name, cache in self._caches.items():
            cache.as_output(binding, name.replace("past_", "present_"))
        return binding, self._backend.graphs.new_run(PIECE, session)

    def _buffer(self, name: str) -> Buffer:
        port: TensorSpec = self._ports[name]
        shape = [self._rows if isinstance(axis, str) else axis for axis in port.axes]
        return self._backend.memory.allocate(shape, np.dtype(port.dtype))
