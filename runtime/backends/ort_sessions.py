"""What decode state on ONNX Runtime needs of the backend that made it."""

from typing import Any, Protocol

from mimo_edge.runtime.backends.ort_graphs import CudaGraphs
from mimo_edge.runtime.backends.ort_memory import Memory
from mimo_edge.runtime.bundle.bundle import Bundle
from numpy.typing import NDArray


class Sessions(Protocol):
    """The backend's sessions, and memory on its device."""

    bundle: Bundle
    memory: Memory
    graphs: CudaGraphs

    def session(self, name: str) -> Any: ...

    def run(self, name: str, feed: Any) -> NDArray[Any]: ...

    def run_bound(self, name: str, binding: Any, options: Any = None) -> None: ...
