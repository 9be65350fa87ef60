"""A model computed in float32 whose weights stay on disk as they are.

A checkpoint of 16 bits is mapped, not read; a product widens the weight that it needs, a part of it
at a time, and forgets it again. That gives the numbers of a model that was widened as a whole, in
the memory of its largest layer.
"""

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._pytree import tree_map

PART = 1 << 26  # elements that are widened at once: 256 MB

# what is asked of a weight without its numbers
_DESCRIBE = {"__get__", "__set__", "detach", "requires_grad_", "size", "dim", "numel", "__len__"}
Model = TypeVar("Model", bound=nn.Module)


class Widened(Tensor):
    """A mapped weight of 16 bits that takes part in every operation as float32."""

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func == Tensor.dtype.__get__:  # type: ignore[attr-defined]
            return torch.float32
        if func.__name__ in _DESCRIBE:
            return super().__torch_function__(func, types, args, kwargs)
        with torch._C.DisableTorchFunctionSubclass():
            if func in (functional.embedding, Tensor.__getitem__):  # rows are chosen, then widened
                return func(*tree_map(_plain, args), **tree_map(_plain, kwargs)).float()
            if func is functional.linear and len(args) == 2 and isinstance(args[1], cls):
                x, weight = args[0], _plain(args[1])
                rows = max(1, PART // weight.shape[1])
                return torch.cat([functional.linear(x, w.float()) for w in weight.split(rows)], -1)
            return func(*tree_map(_wide, args), **tree_map(_wide, kwargs))


def widened(model: Model) -> Model:
    """The same model, each of whose weights of 16 bits is widened where it is used."""
    for module in model.modules():
        stores: list[dict[str, Any]] = [module._parameters, module._buffers]
        for held in stores:
            for name, tensor in held.items():
                if tensor is not None and tensor.dtype in (torch.bfloat16, torch.float16):
                    held[name] = tensor.data.as_subclass(Widened)
    return model


def _plain(value: Any) -> Any:
    return value.as_subclass(Tensor) if isinstance(value, Widened) else value


def _wide(value: Any) -> Any:
    return value.as_subclass(Tensor).float() if isinstance(value, Widened) else value
