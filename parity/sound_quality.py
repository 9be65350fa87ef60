"""How good speech sounds and whose voice it is, apart from words: two published networks.

`Opinion` is DNSMOS P.835, trained on listeners' marks; `Voice` is the GE2E encoder of Resemblyzer.
Their weights come with packages (the extra `quality`), of which nothing else is used.
"""

import importlib.util
from functools import cached_property
from pathlib import Path

import numpy as np
import onnxruntime as ort
from mimo_edge.runtime.audio.resample import resample
from mimo_edge.runtime.backends.base import Floats
from mimo_edge.runtime.bundle.errors import EnvironmentProblem
from mimo_edge.runtime.bundle.requirements import install
from numpy.typing import NDArray

RATE = 16_000  # of both networks
_HEARD = 144_160  # samples that DNSMOS hears at once
# its authors' fit of the network's overall mark to those of listeners
_FIT = np.poly1d([-0.06766283, 1.11546468, 0.04602535])
_WINDOW, _HOP, _MELS, _FRAMES = 400, 160, 40, 160
_LEVEL = 10 ** (-30 / 20)  # RMS that quieter speech is brought to
_WIDTH = 256


OPINION_WEIGHTS = ("speechmos", "dnsmos_models/sig_bak_ovr.onnx")  # package, file
VOICE_WEIGHTS = ("resemblyzer", "pretrained.pt")


class Opinion:
    """What listeners would say of speech, from 1 (bad) to 5 (excellent)."""

    @cached_property
    def _session(self) -> ort.InferenceSession:
        options = ort.SessionOptions()
        options.log_severity_level = 3
        path = _weights(*OPINION_WEIGHTS)
        return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def of(self, wav: Floats, rate: int) -> float:
        """wav [N]; one that is too short is heard again and again, of a longer one all parts."""
        heard = resample(wav, rate, RATE)
        heard = np.clip(np.tile(heard, -(-_HEARD // len(heard))), -1, 1)
        starts = range(0, len(heard) - _HEARD + 1, RATE)
        parts = np.stack([heard[start : start + _HEARD] for start in starts])
        # speech, background, overall
        marks = np.concatenate([self._session.run(None, {"input_1": p[None]})[0] for p in parts])
        return float(_FIT(marks[:, 2]).mean())


class Voice:
    """Who speaks, as a vector of length 1: the product of two is their likeness, up to 1."""

    @cached_property
    def _network(self):  # type: ignore[no-untyped-def]  # torch is not needed for all else
        import torch
        from torch import nn

        path = _weights(*VOICE_WEIGHTS)
        stored = torch.load(path, map_location="cpu", weights_only=True)["model_state"]
        layers = {"lstm": nn.LSTM(_MELS, _WIDTH, 3, batch_first=True)}
        network = nn.ModuleDict({**layers, "linear": nn.Linear(_WIDTH, _WIDTH)}).eval()
        network.load_state_dict(stored, strict=False)  # it holds what training needed, too
        return network

    def of(self, wav: Floats, rate: int) -> Floats:
        """wav [N] -> [256]"""
        import torch

        heard = resample(wav, rate, RATE)
        loudness = float(np.sqrt(np.mean(heard**2)))
        heard = (heard * max(1.0, _LEVEL / max(loudness, 1e-9))).astype(np.float32)
        frames = _mel(heard)
        missing = max(0, _FRAMES - len(frames))
        frames = np.pad(frames, ((0, missing), (0, 0)))
        starts = sorted({*range(0, len(frames) - _FRAMES + 1, _FRAMES // 2), len(frames) - _FRAMES})
        parts = np.stack([frames[start : start + _FRAMES] for start in starts])
        with torch.no_grad():
            _, (hidden, _) = self._network["lstm"](torch.from_numpy(parts))
            vectors = torch.relu(self._network["linear"](hidden[-1])).numpy()
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        mean: Floats = vectors.mean(axis=0)
        return mean / np.linalg.norm(mean)


def check_installed() -> None:
    """Raises EnvironmentProblem if the weights of a network are not there."""
    for package, file in (OPINION_WEIGHTS, VOICE_WEIGHTS):
        _weights(package, file)


def _mel(wav: Floats) -> Floats:
    """Powers of mel bands [T, 40], no logarithm."""
    padded = np.pad(wav, _WINDOW // 2)
    windows = np.lib.stride_tricks.sliding_window_view(padded, _WINDOW)[::_HOP]
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(_WINDOW) / _WINDOW)
    powers = np.abs(np.fft.rfft(windows * hann)) ** 2
    return (powers @ _filters()).astype(np.float32)


def _filters() -> NDArray[np.float64]:
    """Triangles [bins, 40] of equal area, on Slaney's scale: even to 1 kHz, then logarithmic."""
    step, knee = 200 / 3, 15.0  # Hz of a mel below 1 kHz, and where that ends
    growth = np.log(6.4) / 27
    top = knee + np.log(RATE / 2 / 1000) / growth
    mels = np.linspace(0, top, _MELS + 2)
    edges = np.where(mels < knee, mels * step, 1000 * np.exp(growth * (mels - knee)))
    bins = np.linspace(0, RATE / 2, _WINDOW // 2 + 1)[:, None]
    left, middle, right = edges[:-2], edges[1:-1], edges[2:]
    rising, falling = (bins - left) / (middle - left), (right - bins) / (right - middle)
    return np.maximum(0, np.minimum(rising, falling)) * 2 / (right - left)


def _weights(package: str, file: str) -> Path:
    """A file of a package that is not imported. Raises EnvironmentProblem if it is not there."""
    found = importlib.util.find_spec(package)
    for folder in (found.submodule_search_locations or ()) if found else ():
        path = Path(folder) / file
        if path.is_file():
            return path
    raise EnvironmentProblem(
        f"sound quality is judged with the weights of the package {package}, which is not there. "
        f"Install it: {install('quality')}"
    )
