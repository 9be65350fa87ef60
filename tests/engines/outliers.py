"""Models of which some channels carry far more than others, and what rounding does to them."""

import shutil
from pathlib import Path

import numpy as np
import onnx
from mimo_edge.engines.calibration import About, Calibration
from mimo_edge.engines.weight_file import map_tensor
from mimo_edge.parity.forced import LedBundle, Recorded
from mimo_edge.parity.precision import compare
from mimo_edge.runtime.bundle.bundle import Bundle
from mimo_edge.runtime.bundle.manifest import ModelSpec
from mimo_edge.scripts.observing import ObservingBackend

NONE = 0  # the empty id of sequences in which all is text


def plant(source: Path, folder: Path, channels: int, times: float) -> Bundle:
    """A copy of a bundle in whose backbone so many channels of each norm are larger, and the rest
    smaller, so that layers read as much as before. No weight says so."""
    folder.mkdir(parents=True, exist_ok=True)
    data = folder / Bundle.open(source, verify=False).piece("backbone").data
    for path in source.iterdir():
        if path.name == data.name:
            shutil.copy(path, data)
        elif path.is_file():
            (folder / path.name).hardlink_to(path)
    bundle, rng = Bundle.open(folder, verify=False), np.random.default_rng(0)
    model = onnx.load(bundle.path("backbone"), load_external_data=False)
    with data.open("r+b") as file:
        for tensor in model.graph.initializer:
            if ".layers." in tensor.name and tensor.name.endswith("layernorm.weight"):
                values = np.array(map_tensor(tensor, data))
                before = np.linalg.norm(values)
                values[rng.choice(len(values), channels, replace=False)] *= times
                values *= before / np.linalg.norm(values)
                file.seek(next(int(e.value) for e in tensor.external_data if e.key == "offset"))
                file.write(values.tobytes())
    return Bundle.open(folder, verify=False)


def texts(model: ModelSpec, count: int, length: int, seed: int) -> list[Recorded]:
    """Sequences of random text."""
    rng = np.random.default_rng(seed)
    codes = np.tile(np.array(model.empty_codes)[:, None], (length, 1, model.group_size))
    codes = codes.reshape(length, model.n_q, model.group_size)
    ids = (rng.integers(NONE + 1, model.vocab_size, length) for _ in range(count))
    return [Recorded(text, codes, 1) for text in ids]


def observed(bundle: Bundle, sequences: list[Recorded]) -> Calibration:
    """What the layers of the backbone read of some sequences, one after the other."""
    led, spec = LedBundle(bundle, 1), bundle.model
    embeddings = np.concatenate([led.embed(s) for s in sequences])
    cache = (1, spec.kv_heads, len(embeddings), spec.head_dim)
    feed = {
        "embeddings": embeddings[None],
        "past_lengths": np.zeros(1, np.int64),
        "new_lengths": np.array([len(embeddings)]),
    }
    for port in bundle.piece("backbone").inputs:
        if port.name.startswith(("past_k", "past_v")):
            feed[port.name] = np.zeros(cache, np.float32)
    with ObservingBackend(bundle, 1) as backend:
        backend.outputs("backbone", feed)
        return Calibration(About(bundle.manifest.source, "fp32", 0), backend.take())


def divergence(bundle: Bundle, others: list[Path], sequences: list[Recorded]) -> list[float]:
    """KL of the text choices of other bundles from a bundle's."""
    own = LedBundle(bundle, 1).along(sequences, NONE)
    found = []
    for other in others:
        led = LedBundle(Bundle.open(other), 1).along(sequences, NONE)
        found.append(compare(led, own, sequences, NONE, bundle.model.empty_codes).text.kl)
    return found
