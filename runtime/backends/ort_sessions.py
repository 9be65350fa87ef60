"""What decode state on ONNX Runtime needs of the backend that made it."""

from collections.abc import Sequence
from typing import Any, Protocol

from mimo_edge.runtime.bundle.bundle import Bundle
from numpy.typing import DTypeLike, NDArray


class Sessions(Protocol):
    """The backend's sessions, and tensors on its device."""

    bundle: Bundle

    def session(self, name: str) -> Any: ...

    def run(self, name: str, feed: Any) -> NDArray[Any]: ...

    def run_bound(self, name: str, binding: Any) -> None: ...

    def value(self, shape: Sequence[int], dtype: DTypeLike) -> Any: ...
