"""A piece of the model as the exporter sees it: a traceable module, and the ports of its graph."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
import torch
from mimo_edge.mimo_ref.weights import upstream_name
from torch import Tensor, nn

Module = TypeVar("Module", bound=nn.Module)

# Sizes used while tracing; all different, so that no two axes are taken for one.
EXAMPLE_SIZES = {
    "batch": 2,
    "time": 5,
    "patches": 3,
    "capacity": 16,
    "samples": 2400,
    "mel_frames": 101,
    "codebooks": 4,
    "frames": 13,
    "tokens": 11,
}


@dataclass(frozen=True)
class Port:
    """One input or output: axes are names (symbolic) or sizes (fixed)."""

    name: str
    dtype: torch.dtype
    axes: tuple[str | int, ...]

    def example(self) -> Tensor:
        shape = [axis if isinstance(axis, int) else EXAMPLE_SIZES[axis] for axis in self.axes]
        return torch.ones(shape, dtype=self.dtype)


@dataclass(frozen=True)
class Piece:
    """`owners` maps a submodule of `module` to the reference piece whose tensors it holds.

    `constants` are the buffers that no checkpoint has, computed when they are written.
    """

    name: str
    module: nn.Module
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    owners: dict[str, nn.Module]
    constants: dict[str, Callable[[], np.ndarray]] = field(default_factory=dict)

    def source(self, initializer: str) -> str:
        """The checkpoint's name of an initializer."""
        owner = max((o for o in self.owners if initializer.startswith(f"{o}.")), key=len)
        return upstream_name(self.owners[owner], initializer.removeprefix(f"{owner}."))


def cast(module: Module, dtype: torch.dtype) -> Module:
    """Parameters in dtype, buffers as they are. (`Module.to` cannot replace fake parameters.)"""
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None:
                part._parameters[name] = nn.Parameter(parameter.to(dtype), requires_grad=False)
    return module
