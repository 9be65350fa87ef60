"""What modules put out during a block."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn


@contextmanager
def record_outputs(stages: dict[str, nn.Module]) -> Iterator[dict[str, Tensor]]:
    """Name -> output (the first, of a tuple) of each module's last call inside the block."""
    seen: dict[str, Tensor] = {}

    def hook(name: str):
        return lambda _m, _i, out: seen.update({name: out[0] if isinstance(out, tuple) else out})

    handles = [module.register_forward_hook(hook(name)) for name, module in stages.items()]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()
