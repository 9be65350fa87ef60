"""Writing safetensors files of any size with little memory: the header first, then chunk by chunk.

The format is an 8-byte little-endian length, a JSON header of that length, and the tensors' bytes.
`safetensors` itself wants all tensors of a file at once.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np
import torch
from mimo_edge.mimo_ref.tensor_files import INDEX

SHARD_BYTES = 2 << 30
_DTYPES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Layout:
    """Which tensors go into which file of a checkpoint folder; all have one dtype."""

    shapes: Mapping[str, Shape]
    dtype: torch.dtype
    shard_bytes: int = SHARD_BYTES

    def tensor_bytes(self, names: Iterable[str]) -> int:
        """Bytes of the tensors named, without a header."""
        return sum(prod(self.shapes[name]) for name in names) * self.dtype.itemsize

    @property
    def total_bytes(self) -> int:
        """Bytes of all tensors."""
        return self.tensor_bytes(self.shapes)

    def files(self) -> dict[str, list[str]]:
        """File name -> tensors, in order; one file if it fits, numbered shards otherwise."""
        shards: list[list[str]] = [[]]
        for name in self.shapes:
            if shards[-1] and self.tensor_bytes([*shards[-1], name]) > self.shard_bytes:
                shards.append([])
            shards[-1].append(name)
        if len(shards) == 1:
            return {"model.safetensors": shards[0]}
        count = len(shards)
        return {
            f"model-{number:05}-of-{count:05}.safetensors": names
            for number, names in enumerate(shards, start=1)
        }

    def header(self, names: list[str]) -> bytes:
        """What stands before the data of a file with these tensors."""
        entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
        offset = 0
        for name in names:
            end = offset + self.tensor_bytes([name])
            entries[name] = {
                "dtype": _DTYPES[self.dtype],
                "shape": list(self.shapes[name]),
                "data_offsets": [offset, end],
            }
            offset = end
        text = json.dumps(entries).encode()
        text += b" " * (-len(text) % 8)
        return len(text).to_bytes(8, "little") + text


def write_tensors(
    folder: Path,
    layout: Layout,
    chunks: Callable[[str], Iterator[np.ndarray]],
    wrote: Callable[[int], None] = lambda _count: None,
) -> None:
    """Write the files of `layout`; `chunks(name)` gives a tensor's float32 values in order.

    `wrote` is told the number of bytes after every chunk.
    """
    files = layout.files()
    for file_name, names in files.items():
        with (folder / file_name).open("wb") as file:
            file.write(layout.header(names))
            for name in names:
                count = 0
                for values in chunks(name):
                    raw = torch.from_numpy(values).to(layout.dtype).view(torch.uint8).numpy()
                    file.write(raw.data)
                    wrote(raw.nbytes)
                    count += raw.nbytes
                assert count == layout.tensor_bytes([name]), name
    if len(files) > 1:
        index = {
            "metadata": {"total_size": layout.total_bytes},
            "weight_map": {name: file for file, names in files.items() for name in names},
        }
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
