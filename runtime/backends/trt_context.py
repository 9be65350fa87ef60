"""What the TensorRT backend needs of the TensorRT module: engines, and contexts that run them.

Both products have one Python API. What only TensorRT for RTX has, it has because it compiles its
kernels on the device when shapes arrive; classic TensorRT has them in the plan.
"""

import importlib
import math
import mmap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from mimo_edge.runtime.backends.cuda import CudaDevice
from mimo_edge.runtime.bundle.dtypes import DTYPES
from mimo_edge.runtime.bundle.engine import MODULES
from mimo_edge.runtime.bundle.errors import (
    EngineError,
    EnvironmentProblem,
    InputError,
    ResourceError,
)
from mimo_edge.runtime.bundle.manifest import PieceSpec, TensorSpec
from mimo_edge.runtime.bundle.requirements import install
from numpy.typing import NDArray

ALIGNMENT = 256  # bytes; what cudaMalloc gives at least, and kernels may count on
_AGAIN = "Build it again: mimo-edge build BUNDLE --target ..."


def load_module(product: str) -> Any:
    """The Python module of a product. Raises EnvironmentProblem with how to install it."""
    try:
        return importlib.import_module(MODULES[product])
    except ImportError as error:
        raise EnvironmentProblem(
            f"{MODULES[product]} is not installed: {install('trt')} for TensorRT for RTX; classic "
            "TensorRT comes with JetPack or from NVIDIA's own index."
        ) from error


class Engine:
    """A loaded plan: one set of weights, for any number of contexts."""

    def __init__(self, trt: Any, runtime: Any, path: Path, spec: PieceSpec) -> None:
        self._trt, self._name = trt, path.stem
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as plan:
            self._check_fits(runtime, plan)
            self._engine = runtime.deserialize_cuda_engine(plan)
        if self._engine is None:
            raise EngineError(f"TensorRT does not load {path}. {_AGAIN}")
        self._check_ports(spec)

    @property
    def scratch_bytes(self) -> int:
        """Device memory that a context needs while it runs."""
        return int(self._engine.device_memory_size_v2)

    def context(self, device: CudaDevice, scratch: int, *, captured: bool = False) -> "Context":
        """A context that works in the scratch memory at this address.

        `captured`: its shapes stay, and it will become part of a CUDA graph. TensorRT for RTX then
        has to compile the kernels for them at once: lazily, which is the default, it runs others
        first and changes kernels when the real ones are ready, which makes a graph stale.
        """
        strategy = self._trt.ExecutionContextAllocationStrategy.USER_MANAGED
        lazy_or_eager = getattr(self._trt, "DynamicShapesKernelSpecializationStrategy", None)
        if captured and lazy_or_eager is not None:
            config = self._engine.create_runtime_config()
            config.set_execution_context_allocation_strategy(strategy)
            config.dynamic_shapes_kernel_specialization_strategy = lazy_or_eager.EAGER
            made = self._engine.create_execution_context(config)
        else:
            made = self._engine.create_execution_context(strategy)
        if made is None:
            raise ResourceError(
                f"there is no memory for a context of {self._name}. Use fewer rows or a smaller "
                "--max-seq when building."
            )
        if self.scratch_bytes:
            made.set_device_memory(scratch, self.scratch_bytes)
        if not made.set_optimization_profile_async(0, device.stream):
            raise EngineError(f"the engine of {self._name} has no profile. {_AGAIN}")
        return Context(made, device)

    def _check_fits(self, runtime: Any, plan: Any) -> None:
        """TensorRT for RTX can say why a plan does not fit before it tries to load it."""
        if not hasattr(runtime, "get_engine_validity"):
            return
        validity, reasons = runtime.get_engine_validity(plan)
        if validity == self._trt.EngineValidity.INVALID:
            raise EngineError(
                f"TensorRT says that the engine of {self._name} is not valid here: {reasons}. "
                f"{_AGAIN}"
            )

    def _check_ports(self, spec: PieceSpec) -> None:
        """Names, directions and dtypes must be the bundle's: buffers are sized by them."""
        modes = self._trt.TensorIOMode
        found = {}
        for index in range(self._engine.num_io_tensors):
            name = self._engine.get_tensor_name(index)
            mode, dtype = self._engine.get_tensor_mode(name), self._engine.get_tensor_dtype(name)
            found[name] = ("input" if mode == modes.INPUT else "output", dtype.name)
        wanted = {p.name: ("input", DTYPES[p.dtype].tensorrt) for p in spec.inputs}
        wanted |= {p.name: ("output", DTYPES[p.dtype].tensorrt) for p in spec.outputs}
        if found != wanted:
            differ = sorted(n for n in {*found, *wanted} if found.get(n) != wanted.get(n))
            raise EngineError(
                f"the engine of {self._name} does not have the bundle's ports: "
                + ", ".join(f"{n} is {found.get(n)}, not {wanted.get(n)}" for n in differ[:4])
                + f". {_AGAIN}"
            )


class Context:
    """One execution context."""

    def __init__(self, context: Any, device: CudaDevice) -> None:
        self._context, self._device = context, device

    def bind(self, name: str, address: int, shape: Sequence[int] | None = None) -> None:
        """Give a tensor its memory and, for inputs, its shape."""
        if shape is not None:
            self.reshape(name, shape)
        if not self._context.set_tensor_address(name, address):
            raise EngineError(f"the engine has no tensor {name}. {_AGAIN}")

    def reshape(self, name: str, shape: Sequence[int]) -> None:
        """Give an input its shape."""
        if not self._context.set_input_shape(name, tuple(shape)):
            raise InputError(f"{name} {list(shape)} is outside what the engine was built for")

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of an output, once the inputs have theirs."""
        return tuple(self._context.get_tensor_shape(name))

    def enqueue(self) -> None:
        """Put one run on the stream."""
        if not self._context.execute_async_v3(self._device.stream):
            raise EngineError("TensorRT could not run the engine; its messages above say why")

    def capturable(self) -> bool:
        """Whether a run can become part of a CUDA graph."""
        asked = getattr(self._context, "is_stream_capturable", None)  # TensorRT for RTX only
        return asked is None or bool(asked(self._device.stream))


def size_of(port: TensorSpec, shape: Sequence[int]) -> int:
    """Bytes of a tensor of this shape."""
    return math.prod(shape) * DTYPES[port.dtype].bytes


def fitted(port: TensorSpec, array: NDArray[Any], shape: Sequence[int]) -> NDArray[Any]:
    """An array as a tensor takes it: the device gets bytes, and would read others as numbers too.

    What loses nothing is cast, such as int32 to int64. Raises InputError for the rest, and for
    another number of elements.
    """
    # numpy has no bfloat16, and no tensor that crosses this line is
    if port.dtype == "bfloat16" or not np.can_cast(array.dtype, port.dtype, "safe"):
        raise InputError(f"{port.name} is {array.dtype}, and must be {port.dtype}")
    if array.size != math.prod(shape):
        raise InputError(f"{port.name} is {list(array.shape)}, and must be {list(shape)}")
    return array.astype(port.dtype, copy=False).reshape(shape)
