"""Streams of the codec on TensorRT: the real backend on a fake GPU, against ONNX Runtime."""

import gc

import numpy as np
import pytest
from mimo_edge.parity import tolerances
from mimo_edge.runtime.audio.stateful import StreamRows
from mimo_edge.runtime.backends.ort import OrtBackend
from mimo_edge.runtime.bundle.errors import InputError, ResourceError

from tests import check
from tests.engines.conftest import Open
from tests.golden import Golden


@pytest.mark.parametrize("product", ["trt-rtx", "trt"])
def test_streams(golden: Golden, open_fake: Open, product: str) -> None:
    """Two rows, one of which begins late, sound as they do on ONNX Runtime; all is given back."""
    codes = golden.npz("decoder.npz")["long.codes"].astype(np.int64)[:, :40]
    backend, cuda = open_fake(golden.lm_names[0], product)
    with backend:
        heard = []
        for made in (backend, OrtBackend(backend.bundle)):
            states = made.new_codec_rows(2)
            rows = StreamRows(states, made.bundle.model)
            parts: list[list[np.ndarray]] = [[], []]
            for start in range(0, codes.shape[1], 9):
                given = {0: codes[:, start : start + 9]}
                if start >= 18:
                    given[1] = codes[:, start - 18 : start - 9]
                for row, wav in rows.push(given).items():
                    parts[row].append(wav)
            heard.append([np.concatenate([*parts[row], rows.finish(row)]) for row in (0, 1)])
            states.close()
        for row, (ours, theirs) in enumerate(zip(*heard, strict=True)):
            check.close(ours, theirs, tolerances.AUDIO, f"row {row}")
    assert not cuda.leaks()


def test_memory_of_streams(golden: Golden, open_fake: Open) -> None:
    """It is asked for at once, and given back when the states are closed or dropped."""
    backend, _ = open_fake(golden.lm_names[0])
    with backend:
        before = backend.device.allocated
        states = backend.new_codec_rows(1)
        held = backend.device.allocated - before
        states.close()
        states.close()
        assert held > 0 and backend.device.allocated == before
        backend.new_codec_rows(1)
        gc.collect()
        assert backend.device.allocated == before
        with pytest.raises(InputError, match="--max-batch 3"):
            backend.new_codec_rows(3)
        backend.device.free_bytes = lambda: held - 1  # type: ignore[method-assign]
        with pytest.raises(ResourceError, match="1 streams of the codec need"):
            backend.new_codec_rows(1)
        assert backend.device.allocated == before
