"""Inputs for any piece on ONNX Runtime, where a test compares two graphs of it."""

import numpy as np
import onnxruntime as ort

CAPACITY = 16
FLOATS = {"tensor(float)": np.float32, "tensor(float16)": np.float16}


def feed_of(session: ort.InferenceSession) -> dict[str, np.ndarray]:
    """Some input that a piece takes."""
    rng, sizes = np.random.default_rng(0), {"batch": 1, "time": 5, "patches": 3}
    sizes |= {
        "capacity": CAPACITY,
        "mel_frames": 101,
        "frames": 9,
        "codebooks": 4,
        "samples": 4800,
        "tokens": 8,
    }
    feed: dict[str, np.ndarray] = {}
    for port in session.get_inputs():
        shape = [sizes[a] if isinstance(a, str) else a for a in port.shape]
        if port.name in ("past_lengths", "sub_step"):
            feed[port.name] = np.zeros(shape, np.int64)
        elif port.name == "new_lengths":
            feed[port.name] = np.full(shape, 5)
        elif port.name == "lengths":
            feed[port.name] = np.full(shape, 101 if "mel" in feed else 9)
        elif port.type == "tensor(int64)":
            feed[port.name] = rng.integers(0, 8, shape)
        else:
            feed[port.name] = rng.uniform(0, 1, shape).astype(FLOATS[port.type])
    return feed
