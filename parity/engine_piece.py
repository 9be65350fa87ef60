"""One engine of TensorRT as a piece that is fed arrays, and tells its inner states.

It is not fast: every run has buffers of its own. Feeds are those of a graph on ONNX Runtime; what
an engine wants otherwise is done here: the cache gets the length that it was built for, and more
rows than it holds go in several runs.
"""

import importlib
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import numpy as np
from mimo_edge.parity.tap import Feed, Tap, output_of
from mimo_edge.runtime.backends.base import Floats
from mimo_edge.runtime.backends.trt import TrtBackend
from mimo_edge.runtime.backends.trt_context import Engine, size_of
from mimo_edge.runtime.bundle.engine import Profile
from mimo_edge.runtime.bundle.errors import EnvironmentProblem, InputError
from mimo_edge.runtime.bundle.manifest import PieceSpec, TensorSpec
from numpy.typing import NDArray

_PAST, _PRESENT = "past_", "present_"


class EnginePiece:
    """An engine whose ports are those of `spec`, built for `profile`."""

    def __init__(
        self, backend: TrtBackend, engine: Engine, spec: PieceSpec, profile: Profile
    ) -> None:
        self._backend, self._device, self._engine = backend, backend.device, engine
        self._spec, self._profile = spec, profile

    def run(self, taps: Sequence[Tap], feed: Feed) -> tuple[dict[str, Floats], Feed]:
        """See `Runs`. Raises InputError for a tap that is no output of this engine."""
        missing = [t.name for t in taps if output_of(t.name) not in self._outputs()]
        if missing:
            raise InputError(f"this engine does not show {', '.join(missing)}")
        by_rows = [port for port in self._spec.inputs if port.axes[:1] == ("batch",)]
        parts = [feed]
        if by_rows:
            rows = len(feed[by_rows[0].name])
            most = self._profile[by_rows[0].name][2][0]
            parts = [
                {port.name: feed[port.name][at : at + most] for port in by_rows}
                for at in range(0, rows, most)
            ]
        ran = [self._run({**feed, **part}) for part in parts]
        outputs = {name: np.concatenate([each[name] for each in ran]) for name in ran[0]}
        return {t.name: outputs[output_of(t.name)].astype(np.float32) for t in taps}, outputs

    def _outputs(self) -> set[str]:
        return {port.name for port in self._spec.outputs}

    def _run(self, feed: Feed) -> dict[str, NDArray[Any]]:
        """All of it in buffers of this run, which go with it."""
        given = {port.name: self._fitted(port, feed[port.name]) for port in self._spec.inputs}
        scratch = max(1, self._engine.scratch_bytes)
        held: list[int] = []

        def taken(count: int) -> int:
            self._backend.need(count, f"a run of {self._spec.file}")
            held.append(self._device.allocate(max(1, count)))
            return held[-1]

        try:
            context = self._engine.context(self._device, taken(scratch))
            address: dict[str, int] = {}
            for name, array in given.items():
                address[name] = taken(array.nbytes)
                context.bind(name, address[name], array.shape)
                self._device.upload(address[name], array)
            shapes = {port.name: context.shape(port.name) for port in self._spec.outputs}
            for port in self._spec.outputs:
                past = port.name.replace(_PRESENT, _PAST)  # a cache is updated in place
                at = address.get(past) or taken(size_of(port, shapes[port.name]))
                address[port.name] = at
                context.bind(port.name, at)
            context.enqueue()
            found = {}
            for port in self._spec.outputs:
                array = np.zeros(shapes[port.name], _host_dtype(port))
                self._device.download(array, address[port.name])
                past = port.name.replace(_PRESENT, _PAST)
                found[port.name] = _cut(array, feed[past].shape) if past in given else array
            return found
        finally:
            self._device.release(held, ())

    def _fitted(self, port: TensorSpec, array: NDArray[Any]) -> NDArray[Any]:
        """A cache as long as the engine wants it; what it does not hold yet is zero."""
        if "capacity" not in port.axes:
            return np.ascontiguousarray(array, _host_dtype(port))
        axis = port.axes.index("capacity")
        missing = self._profile[port.name][2][axis] - array.shape[axis]
        held = np.asarray(array, _host_dtype(port))
        return np.pad(held, [(0, missing if i == axis else 0) for i in range(array.ndim)])


def _host_dtype(port: TensorSpec) -> np.dtype[Any]:
    """bfloat16 is a type of numpy's only where the package ml_dtypes was imported."""
    with suppress(ImportError):
        importlib.import_module("ml_dtypes")
    try:
        return np.dtype(port.dtype)
    except TypeError as error:
        raise EnvironmentProblem(
            f"{port.name} is {port.dtype}, which numpy does not know here: pip install ml_dtypes"
        ) from error


def _cut(array: NDArray[Any], shape: tuple[int, ...]) -> NDArray[Any]:
    return array[tuple(slice(size) for size in shape)]
