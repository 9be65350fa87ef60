"""Rings that are short in a stream's first lap: what they give, how they grow, and where."""

from typing import Any

import numpy as np
import onnx
import pytest
from mimo_edge.engines.ort.build import build_bundle
from mimo_edge.engines.ort.ring import lower_ring
from mimo_edge.parity import tolerances
from mimo_edge.runtime.audio.stateful import StatefulStream, StreamRows
from mimo_edge.runtime.backends.base import Floats, Ints
from mimo_edge.runtime.backends.ort import OrtBackend
from mimo_edge.runtime.backends.ort_codec import ALL_FRAMES, FIRST_FRAMES, OrtCodecStates
from mimo_edge.runtime.bundle.bundle import Bundle
from mimo_edge.runtime.bundle.errors import ResourceError
from mimo_edge.runtime.bundle.stream_sizes import RING_FRAMES, most_slots, slots_axis

from tests import check
from tests.bundles import exported
from tests.golden import Golden

FRAMES = RING_FRAMES + 40  # of a stream that goes around


@pytest.fixture(scope="module")
def stored(golden: Golden) -> Bundle:
    return Bundle.open(exported(golden, golden.lm_names[0]))


@pytest.fixture(scope="module")
def built(stored: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return Bundle.open(build_bundle(stored, tmp_path_factory.mktemp("built") / "bundle"))


@pytest.fixture
def codes(stored: Bundle) -> Ints:
    rng = np.random.default_rng(0)
    return np.stack([rng.integers(0, empty, FRAMES) for empty in stored.model.empty_codes])


def heard(stream: StatefulStream, codes: Ints, step: int) -> Floats:
    parts = [stream.push(codes[:, t : t + step]) for t in range(0, codes.shape[1], step)]
    return np.concatenate((*parts, stream.finish()))


def slots(states: Any) -> set[int]:
    """Of all caches of a state, in frames."""
    assert isinstance(states, OrtCodecStates)
    most = {most_slots(p.axes[2]) for p in states._mel.inputs if p.name in states._ring}
    (whole,) = most
    assert whole is not None
    return {cache.shape[2] * ALL_FRAMES // whole for cache in states._ring.values()}


def test_ports_say_it(stored: Bundle, built: Bundle) -> None:
    before, after = (
        {p.name: p for p in (*b.piece("mel_stream").inputs, *b.piece("mel_stream").outputs)}
        for b in (stored, built)
    )
    for name, port in after.items():
        axes = list(before[name].axes)
        if "_keys_" in name or "_values_" in name:
            axes[2] = slots_axis(int(axes[2]))
        assert port.axes == tuple(axes), name
    assert most_slots("batch") is None and most_slots(640) is None
    assert most_slots(slots_axis(640)) == 640


def test_other_caches_stay(stored: Bundle) -> None:
    """Of a vocoder, whose caches move up, and of a ring whose layers have masks of their own."""
    model = onnx.load(stored.path("vocoder_stream"), load_external_data=False)
    assert lower_ring(model) == 0
    model = onnx.load(stored.path("mel_stream"), load_external_data=False)
    attention = [node for node in model.graph.node if node.op_type == "Attention"]
    attention[0].input[3] = "another"
    before = model.SerializeToString(deterministic=True)
    assert lower_ring(model) == 0
    assert model.SerializeToString(deterministic=True) == before


@pytest.mark.parametrize("step", [4, 30])
def test_a_stream_sounds_the_same(stored: Bundle, built: Bundle, codes: Ints, step: int) -> None:
    """While its ring grows, and when it goes around."""
    stream = StatefulStream(OrtBackend(built))
    expected = heard(StatefulStream(OrtBackend(stored)), codes, step)
    check.close(heard(stream, codes, step), expected, tolerances.AUDIO, f"by {step}")
    assert slots(stream._states) == {RING_FRAMES + (4 if step == 4 else ALL_FRAMES - RING_FRAMES)}
    check.close(heard(stream, codes, 30), expected, tolerances.AUDIO, "again, in other chunks")
    assert slots(stream._states) == {ALL_FRAMES}


def test_it_grows_with_the_stream(built: Bundle, codes: Ints) -> None:
    """With the row that is furthest on; the others keep what they hold."""
    backend = OrtBackend(built)
    rows = StreamRows(states := backend.new_codec_rows(2), built.model)
    alone = heard(StatefulStream(backend), codes[:, :70], 5)
    parts = [rows.push({0: codes[:, : FIRST_FRAMES - 4], 1: codes[:, :4]})[1]]
    assert slots(states) == {FIRST_FRAMES}
    rows.push({0: codes[:, :4]})
    assert slots(states) == {FIRST_FRAMES}, "that is how many it has room for"
    rows.push({0: codes[:, :1]})
    assert slots(states) == {2 * FIRST_FRAMES}
    rows.begin(0, position=RING_FRAMES * 1000 - 2)
    rows.push({0: codes[:, :2]})
    assert slots(states) == {RING_FRAMES + 4}
    parts += [rows.push({1: codes[:, 4:70]})[1], rows.finish(1)]
    check.close(np.concatenate(parts), alone, tolerances.AUDIO, "the other row")


def test_a_ring_that_cannot_grow_is_as_it_was(
    built: Bundle, codes: Ints, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = OrtBackend(built)
    stream, left, allocate = StatefulStream(backend), [1, 2], backend.memory.allocate
    expected = heard(StatefulStream(backend), codes[:, :100], 4)

    def until_memory_ends(*given: Any) -> Any:
        if not left:
            raise ResourceError("cannot allocate")
        left.pop()
        return allocate(*given)

    parts = [stream.push(codes[:, :FIRST_FRAMES])]
    with monkeypatch.context() as patch:
        patch.setattr(backend.memory, "allocate", until_memory_ends)
        with pytest.raises(ResourceError):
            stream.push(codes[:, FIRST_FRAMES:100])
    assert slots(stream._states) == {FIRST_FRAMES}
    parts += [stream.push(codes[:, FIRST_FRAMES:100]), stream.finish()]
    check.close(np.concatenate(parts), expected, tolerances.AUDIO, "the stream, tried again")


def test_any_length_gives_the_same(stored: Bundle, built: Bundle) -> None:
    """A call of two rows, on caches of some lengths and on those of before."""
    rng = np.random.default_rng(0)
    spec, backend, model = stored.piece("mel_stream"), OrtBackend(built), stored.model
    feed: dict[str, Any] = {
        "codes": np.stack([rng.integers(0, empty, (2, 4)) for empty in model.empty_codes], axis=1),
        "lengths": np.array([4, 3]),
        "positions": np.array([40, 9]),
        "weights": np.array([40, 9]),
    }
    per_frame = next(int(p.axes[2]) for p in spec.inputs if "_keys_" in p.name) // ALL_FRAMES
    for port in spec.inputs:
        if port.name not in feed:
            shape = [2 if isinstance(axis, str) else axis for axis in port.axes]
            feed[port.name] = rng.uniform(0.1, 0.9, shape).astype(np.float32)
    found = []
    for frames in (44, FIRST_FRAMES, ALL_FRAMES):
        cut = {
            name: array[:, :, : frames * per_frame]
            if "_keys_" in name or "_values_" in name
            else array
            for name, array in feed.items()
        }
        found.append(backend.outputs("mel_stream", cut)[0])
    found.append(OrtBackend(stored).outputs("mel_stream", feed)[0])
    for other in found[1:]:
        np.testing.assert_allclose(found[0], other, rtol=0, atol=2e-6)
