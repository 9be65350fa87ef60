"""Patches on ONNX Runtime: the patch decoder's buffers, and its runs one after the other.

Every sub-step has a binding of its own, made once: between two runs the host does nothing. A run
reads the x that the run before has written, and the keys and values stay in place.
"""

from typing import Any

import numpy as np
from mimo_edge.runtime.backends.base import Floats, Ints
from mimo_edge.runtime.backends.delay import DelayPattern
from mimo_edge.runtime.backends.ort_sessions import Sessions
from mimo_edge.runtime.bundle.manifest import TensorSpec

PIECE = "patch_decoder"
SETTINGS = ("temperature", "top_k", "top_p")


class OrtPatchDecoder:
    """Draws patches for `rows` rows. `start` is where their local_hidden [rows, D_local] is."""

    def __init__(self, backend: Sessions, rows: int, start: Any) -> None:
        self._backend, self._rows = backend, rows
        spec, model = backend.bundle.piece(PIECE), backend.bundle.model
        self._ports = {port.name: port for port in (*spec.inputs, *spec.outputs)}
        self._pattern = DelayPattern(model)
        self._settings = {name: self._value(name) for name in SETTINGS}
        # the runs' inputs beside the settings, and their codes
        self._uniforms = [self._value("uniforms") for _ in range(model.sub_steps)]
        self._codes = [self._value("codes") for _ in range(model.sub_steps)]
        self._caches = {n: self._value(n) for n in self._ports if n.startswith("past_")}
        x = self._value("x")
        self._runs = [self._bind(0, start, x)]
        self._runs += [self._bind(step, x, x) for step in range(1, model.sub_steps)]

    def draw(self, uniforms: Floats, temperature: Floats, top_k: Ints, top_p: Floats) -> Ints:
        """As `RowStates.draw_codes`."""
        given = (temperature, top_k, top_p)
        for value, array in zip(self._settings.values(), given, strict=True):
            value.update_inplace(np.ascontiguousarray(array))
        for value, part in zip(self._uniforms, self._pattern.spread(uniforms), strict=True):
            value.update_inplace(part)
        for binding in self._runs:
            self._backend.run_bound(PIECE, binding)
        codes = self._pattern.collect(np.stack([value.numpy() for value in self._codes]))
        if codes.min() < 0:
            self._forget()
        return codes

    def _forget(self) -> None:
        """Zero the caches: a masked position counts for nothing, unless it is NaN or infinite."""
        for cache in self._caches.values():
            cache.update_inplace(np.zeros_like(cache.numpy()))

    def _bind(self, step: int, x: Any, following: Any) -> Any:
        sub_step = self._value("sub_step")
        sub_step.update_inplace(np.full(self._rows, step, np.int64))
        binding = self._backend.session(PIECE).io_binding()
        inputs = {"x": x, "sub_step": sub_step, "uniforms": self._uniforms[step]}
        for name, value in {**inputs, **self._settings, **self._caches}.items():
            binding.bind_ortvalue_input(name, value)
        binding.bind_ortvalue_output("codes", self._codes[step])
        binding.bind_ortvalue_output("next", following)
        for name, cache in self._caches.items():
            binding.bind_ortvalue_output(name.replace("past_", "present_"), cache)
        return binding

    def _value(self, name: str) -> Any:
        port: TensorSpec = self._ports[name]
        shape = [self._rows if isinstance(axis, str) else axis for axis in port.axes]
        return self._backend.value(shape, np.dtype(port.dtype))
