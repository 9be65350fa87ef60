"""ONNX Runtime CUDA against the golden vectors, and against itself: `pytest -m gpu tests/gpu`.

float32 is computed as float32 (TF32 is off), so the tolerances are those of the CPU; audio alone
gets more, since another device sums in another order.
"""

import numpy as np
import pytest
from mimo_edge.parity import tolerances
from mimo_edge.runtime.audio import codec
from mimo_edge.runtime.backends.ort import OrtBackend
from mimo_edge.runtime.backends.ort_graphs import GRAPH_PIECES
from mimo_edge.runtime.backends.ort_rows import OrtRowStates
from mimo_edge.runtime.bundle.bundle import Bundle
from mimo_edge.runtime.chat.presets import Sampling

from tests import check
from tests.golden import Golden
from tests.grids import check_greedy

pytestmark = pytest.mark.gpu
GREEDY = Sampling(0.0)
AUDIO = 10 * tolerances.AUDIO.absolute


def answers(golden: Golden, backend: OrtBackend) -> None:
    """Every greedy answer of the golden set."""
    lm = golden.lm_names[0]
    for case in golden.generate_cases(lm):
        check_greedy(golden, backend, lm, case)


def test_generate(golden: Golden, backend: OrtBackend) -> None:
    answers(golden, backend)


@pytest.mark.parametrize("pieces", [GRAPH_PIECES[2:], GRAPH_PIECES[:2], GRAPH_PIECES], ids="+".join)
def test_generate_with_graphs(
    golden: Golden, bundle: Bundle, device: str, pieces: tuple[str, ...]
) -> None:
    """Recorded steps are the steps."""
    with OrtBackend(bundle, device, cuda_graphs=pieces) as backend:
        answers(golden, backend)


def test_audio_to_codes(golden: Golden, backend: OrtBackend) -> None:
    arrays = golden.npz("pipeline.npz")
    encoded = codec.encode(backend, arrays["wav24k"])
    check.equal(encoded.T.flatten(), arrays["audio_tokenized"], "audio_tokenized")


def test_codes_to_audio(golden: Golden, backend: OrtBackend) -> None:
    arrays = golden.npz("decoder.npz")
    wav = codec.decode(backend, arrays["long.codes"])
    assert np.abs(wav - arrays["long.wav"][0, 0]).max() <= AUDIO


def test_a_stream_in_parts_is_the_stream(golden: Golden, backend: OrtBackend) -> None:
    """Keys and values of the codec stay on the device between calls."""
    codes = golden.npz("decoder.npz")["long.codes"]
    whole, parts = codec.open_stream(backend), codec.open_stream(backend)
    expected = np.concatenate([whole.push(codes), whole.finish()])
    cut = np.array_split(codes, 5, axis=1)
    found = np.concatenate([*(parts.push(part) for part in cut), parts.finish()])
    assert found.shape == expected.shape and np.abs(found - expected).max() <= AUDIO
    assert np.abs(expected).max() > 100 * AUDIO, "silence is equal to all"
    whole.close()
    parts.close()


def test_rows_that_are_moved(golden: Golden, backend: OrtBackend) -> None:
    """A row that was copied, cut, and carried over to larger buffers is the row read alone."""
    model, rng = backend.bundle.model, np.random.default_rng(0)
    shape = 40, model.n_q, model.group_size
    codes = rng.integers(0, min(model.empty_codes), shape)
    ids = np.full(40, golden.empty_id)
    alone = OrtRowStates(backend, 1)
    expected = alone.extend(0, ids, codes).copy()
    states = OrtRowStates(backend, 3, capacity=16)
    states.extend(0, ids[:12], codes[:12])
    states.extend(2, ids[:16], codes[::-1][:16].copy())
    states.copy(0, 2, 9)
    check.close(states.extend(2, ids[9:], codes[9:]), expected, tolerances.LM, "copied and grown")
    states.truncate(0, 5)
    check.close(states.extend(0, ids[5:], codes[5:]), expected, tolerances.LM, "cut")
    one = ids[:2], codes[:2], np.ones(2, bool)
    alone_after = alone.step(0, ids[:1], codes[:1], np.ones(1, bool)).copy()
    states.copy(0, 1, 40)
    after = states.step(0, one[0], codes[[0, 0]], one[2])
    for row in range(2):
        check.close(after[row : row + 1], alone_after, tolerances.LM, f"step of row {row}")
