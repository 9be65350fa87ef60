"""The same inner states in the reference, by hooks on the modules of the same names."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from mimo_edge.runtime.backends.base import Floats
from torch import nn


@contextmanager
def tapped(root: nn.Module, names: Iterable[str]) -> Iterator[dict[str, list[Floats]]]:
    """What the modules of these names read inside the block, every call of them.

    A name without a dot is no module's: it is that of an output, which the caller has.
    """
    found: dict[str, list[Floats]] = {}
    handles = []

    def listen(name: str) -> Any:
        def hook(_: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            found.setdefault(name, []).append(inputs[0].float().numpy().astype(np.float32))

        return hook

    for name in {name for name in names if "." in name}:
        module = root.get_submodule(name)
        handles.append(module.register_forward_pre_hook(listen(name)))
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()
