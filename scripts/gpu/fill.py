"""A hollow bundle with random weights: of the real size, and made where it is measured.

The weights are those under which a random model behaves (`checkpoint.random_weights`), and codes of
quantised ones are even. What is measured is speed: a weight's value does not change what it costs.
Needs neither onnx nor torch's exporter; 18.6 GB in float16 take numpy about 25 s on 16 cores, and
what the disk takes.
"""

import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from mimo_edge.runtime.bundle.errors import InputError
from mimo_edge.runtime.bundle.files import read_text
from mimo_edge.runtime.bundle.manifest import MANIFEST, Manifest
from mimo_edge.scripts.checkpoint.random_weights import RandomWeights
from mimo_edge.scripts.gpu.places import CODES, CONSTANTS, Place, read_places
from numpy.typing import NDArray

PART_BYTES = 1 << 24


def fill(hollowed: Path, folder: Path, seed: int = 0) -> int:
    """Make a bundle with random weights in a new folder; returns their bytes.

    Its data files are not those that the manifest has the hashes of: open it with `verify=False`.
    """
    folder.mkdir(parents=True)
    manifest = Manifest.from_json(read_text(hollowed / MANIFEST))
    data = {spec.data for spec in manifest.pieces.values()}
    for name in (manifest.files.keys() - data) | {MANIFEST}:
        shutil.copyfile(hollowed / name, folder / name)
    places = read_places(hollowed)
    constants = np.load(hollowed / CONSTANTS)
    kept = {name: constants[name] for name in constants.files}
    weights = RandomWeights({place.name: place.shape for place in places}, {}, seed)
    files: dict[str, int] = {}

    def write(place: Place) -> int:
        constant = kept.get(f"{place.piece}/{place.name}")
        at = place.offset
        for part in _parts(place, weights) if constant is None else [constant]:
            content = np.ascontiguousarray(part).reshape(-1).view(np.uint8)
            os.pwrite(files[place.piece], content.data, at)
            at += len(content)
        assert at == place.offset + place.bytes, place
        return place.bytes

    try:
        for piece, spec in manifest.pieces.items():
            files[piece] = os.open(folder / spec.data, os.O_WRONLY | os.O_CREAT)
            os.ftruncate(files[piece], manifest.files[spec.data].bytes)
        largest_first = sorted(places, key=lambda place: -place.bytes)
        with ThreadPoolExecutor(os.cpu_count()) as threads:  # numpy draws without Python's lock
            return sum(threads.map(write, largest_first))
    finally:
        for file in files.values():
            os.close(file)


def _parts(place: Place, weights: RandomWeights) -> Iterator[NDArray]:
    """The data of a tensor, in order."""
    if place.dtype in CODES:
        yield from _codes(place, weights.seed)
    elif place.spread is not None:
        yield np.full(place.shape, place.spread, place.dtype)
    elif place.dtype in ("float32", "float16"):
        for rows in weights.chunks(place.name):
            yield rows.astype(place.dtype)
    else:
        raise InputError(
            f"{place.piece} holds {place.name} in {place.dtype}, which cannot be drawn here. Take "
            "a bundle in fp32 or fp16, or one that is quantised to int4 or int8."
        )


def _codes(place: Place, seed: int) -> Iterator[NDArray]:
    rng, left = np.random.default_rng([seed, place.offset]), place.bytes
    while left:
        count = min(left, PART_BYTES)
        yield rng.integers(0, 256, count, np.uint8)
        left -= count
