"""Streams of the codec on ONNX Runtime: the reference's numbers, states, and choices."""

import gc
import weakref

import numpy as np
import pytest
from mimo_edge.mimo_ref.weights import load_audio_tokenizer
from mimo_edge.parity import tolerances
from mimo_edge.parity.stream_quality import Quality, Setting, seam_error, stream
from mimo_edge.runtime.audio import codec
from mimo_edge.runtime.audio.stateful import MOST_TOKENS, StatefulStream, StreamRows
from mimo_edge.runtime.backends.base import Feed, Floats, Ints
from mimo_edge.runtime.backends.ort import OrtBackend
from mimo_edge.runtime.bundle.errors import BundleError, InputError
from mimo_edge.runtime.bundle.stream_sizes import RING_FRAMES, WINDOW_FRAMES

from tests import check
from tests.golden import Golden
from tests.reference_codec import ReferenceStates


@pytest.fixture
def codes(golden: Golden) -> Ints:
    found: Ints = golden.npz("decoder.npz")["long.codes"].astype(np.int64)
    return found


def by(step: int, decoder: codec.CodecStream, codes: Ints) -> Floats:
    parts = [decoder.push(codes[:, t : t + step]) for t in range(0, codes.shape[1], step)]
    return np.concatenate([*parts, decoder.finish()])


@pytest.mark.parametrize(("lookahead", "block"), [(0, 1), (4, 4), (8, 24)])
def test_the_references_sound(
    golden: Golden, backend: OrtBackend, codes: Ints, lookahead: int, block: int
) -> None:
    tokenizer = load_audio_tokenizer(golden.folder / "audio_tokenizer")
    model = backend.bundle.model
    reference = StreamRows(ReferenceStates(tokenizer, 1), model, lookahead, block)
    expected = np.concatenate((reference.push({0: codes})[0], reference.finish(0)))
    assert len(expected) == codes.shape[1] * model.samples_per_frame
    decoder = StatefulStream(backend, lookahead, block)
    for step in (1, 7, 40):  # the same stream, used again
        check.close(by(step, decoder, codes), expected, tolerances.AUDIO, f"by {step}")


def test_rows_share_their_calls(backend: OrtBackend, codes: Ints) -> None:
    streams = [codes, codes[:, 7:30]]
    alone = [by(4, codec.open_stream(backend), given) for given in streams]
    rows = StreamRows(backend.new_codec_rows(3), backend.bundle.model)
    heard: list[list[Floats]] = [[], []]
    for start in range(0, codes.shape[1], 5):
        given = {row: c[:, start : start + 5] for row, c in enumerate(streams)}
        for row, wav in rows.push(given).items():
            heard[row].append(wav)
    for row, expected in enumerate(alone):
        wav = np.concatenate([*heard[row], rows.finish(row)])
        check.close(wav, expected, tolerances.AUDIO, f"row {row}")


def test_a_row_that_was_not_a_number_is_clean_again(backend: OrtBackend, codes: Ints) -> None:
    """It is an error that names the piece. What is masked counts for nothing only while it is
    finite: an emptied row is zeroed."""
    expected = by(4, codec.open_stream(backend), codes)
    states = backend.new_codec_rows(2)
    rows = StreamRows(states, backend.bundle.model)
    rows.begin(1, statistics=np.full(4, np.nan, np.float32), weight=1)
    with pytest.raises(BundleError, match=r"piece mel_stream computed NaN or infinity: .*--dtype"):
        rows.push({1: codes})
    rows.clear(1)
    parts = [rows.push({1: codes})[1], rows.finish(1)]
    check.close(np.concatenate(parts), expected, tolerances.AUDIO, "row")


def test_a_vocoder_that_overflows_is_named(
    backend: OrtBackend, codes: Ints, monkeypatch: pytest.MonkeyPatch
) -> None:
    states = backend.new_codec_rows(2)
    rows, compute = StreamRows(states, backend.bundle.model), states.frames

    def overflowed(feed: Feed) -> tuple[Floats, Floats]:
        frames, weight = compute(feed)
        frames[1] = np.inf
        return frames, weight

    monkeypatch.setattr(states, "frames", overflowed)
    assert np.isfinite(rows.push({0: codes})[0]).all(), "another row is nobody's sound"
    with pytest.raises(BundleError, match="piece vocoder_stream computed NaN or infinity"):
        rows.push({1: codes})


def test_memory_stays_and_goes(backend: OrtBackend, codes: Ints) -> None:
    """What a stream holds does not grow around the ring, and goes when the stream is dropped."""
    decoder = StatefulStream(backend)
    wanted = WINDOW_FRAMES + 2 * RING_FRAMES
    sounded = 0
    for _ in range(-(-wanted // codes.shape[1])):
        sounded += len(decoder.push(codes))
        row = decoder._rows._rows[0]
        assert len(row.mel) <= 2 * 4 * backend.bundle.model.group_size
    assert sounded > (wanted - 12) * backend.bundle.model.samples_per_frame
    states = weakref.ref(decoder._states)
    cache = weakref.ref(next(iter(decoder._states._ring.values())))  # type: ignore[attr-defined]
    del decoder
    gc.collect()
    assert states() is None and cache() is None
    closed = codec.open_stream(backend)
    closed.push(codes)
    closed.close()
    closed.close()


def test_choices(backend: OrtBackend) -> None:
    assert isinstance(codec.open_stream(backend), StatefulStream)
    assert isinstance(codec.open_stream(backend, right=8), codec.StreamDecoder)
    upstream = codec.open_stream(backend, codec.WINDOWED)
    assert isinstance(upstream, codec.StreamDecoder)
    assert (upstream.left, upstream.right) == (codec.LEFT_OVERLAP, codec.RIGHT_OVERLAP)
    most = MOST_TOKENS * backend.bundle.model.hop_length // backend.bundle.model.samples_per_frame
    for given, said in (
        ({"kind": "other"}, "choose one of windowed, stateful"),
        ({"kind": codec.STATEFUL, "right": 4}, "it has a lookahead"),
        ({"kind": codec.WINDOWED, "lookahead": 4}, "it has a right overlap"),
        ({"lookahead": -1}, "lookahead of 0 or more"),
        ({"lookahead": most}, f"at most {most} frames together"),
    ):
        with pytest.raises(InputError, match=said):
            codec.open_stream(backend, **given)


def test_nothing_to_say(backend: OrtBackend) -> None:
    for kind in codec.STREAMS:
        decoder = codec.open_stream(backend, kind)
        assert len(decoder.push(np.zeros((backend.bundle.model.n_q, 0), np.int64))) == 0
        assert len(decoder.finish()) == 0


def test_quality_of_a_stream(backend: OrtBackend, codes: Ints) -> None:
    """Nothing is lost where nothing can be, and losses are found where they are."""
    everything = codes.shape[1]
    same = Quality(Setting(codec.WINDOWED, everything, everything))
    less = Quality(Setting(codec.STATEFUL, 0, 1))
    for quality in (same, less):
        quality.add(backend, "two words", codes, lambda wav: "two")
        assert (quality.words.edits, quality.words.words) == (1, 2)
    assert same.snr[0] > 100 > 40 > less.snr[0] and not same.seam
    assert same.mel_distance[0] < 1e-4 < less.mel_distance[0]
    wav, seams = stream(less.setting, backend, codes)
    group = backend.bundle.model.group_size * backend.bundle.model.samples_per_frame
    assert len(seams) == len(wav) // group - 1 or len(seams) == len(wav) // group
    assert all((seam + 360) % group == 0 for seam in seams)


@pytest.mark.parametrize(("ahead", "chunk"), [(0, 1), (2, 1), (4, 1), (4, 2), (8, 6), (40, 6)])
@pytest.mark.parametrize("kind", codec.STREAMS)
def test_first_sound(backend: OrtBackend, codes: Ints, kind: str, ahead: int, chunk: int) -> None:
    """As many frames as a setting says, and with one patch fewer there is silence."""
    setting, group = Setting(kind, ahead, chunk), backend.bundle.model.group_size
    decoder, said = setting.open(backend), setting.first_sound(group)
    step = group if kind == codec.STATEFUL else chunk * group
    for start in range(0, codes.shape[1] - step, step):
        if len(decoder.push(codes[:, start : start + step])):
            assert start + step == said
            return
    assert said > codes.shape[1] - step


def test_seam_error() -> None:
    whole, rate = np.zeros(24000, np.float32), 24000
    noise = np.random.default_rng(0).normal(0, 0.1, 24000).astype(np.float32)
    assert seam_error(whole + noise, whole, [6000, 18000], rate) == pytest.approx(0, abs=1)
    loud = noise.copy()
    loud[5900:6100] *= 10
    found = seam_error(whole + loud, whole, [6000], rate)
    assert found is not None and found > 15
    assert seam_error(whole, whole, [6000], rate) is None
    assert seam_error(whole + noise, whole, [], rate) is None
