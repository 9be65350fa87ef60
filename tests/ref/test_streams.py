"""The stateful decode in the reference: what it equals, and that it is one and the same however
codes arrive, whoever shares its rows, and however long it runs."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from mimo_edge.mimo_ref import rotary
from mimo_edge.mimo_ref.mel_stream import MelStream
from mimo_edge.mimo_ref.model import AudioTokenizer
from mimo_edge.parity import tolerances
from mimo_edge.runtime.audio import stateful
from mimo_edge.runtime.audio.stateful import StreamRows
from mimo_edge.runtime.backends.base import Floats, Ints
from mimo_edge.runtime.bundle.manifest import ModelSpec

from tests import check
from tests.golden import Golden
from tests.reference_codec import ReferenceStates, model_spec

NO_END = 1 << 24  # statistics of so many frames do not move


@pytest.fixture
def spec(tokenizer: AudioTokenizer) -> ModelSpec:
    return model_spec(tokenizer)


@pytest.fixture
def codes(golden: Golden) -> Ints:
    found: Ints = golden.npz("decoder.npz")["long.codes"].astype(np.int64)
    return found


def pieces(codes: Ints, rng: np.random.Generator, most: int) -> Iterator[Ints]:
    """Cut anywhere, nothing among the pieces."""
    while codes.shape[1]:
        count = int(rng.integers(0, most + 1))
        yield codes[:, :count]
        codes = codes[:, count:]


def run(rows: StreamRows, parts: Iterator[Ints], row: int = 0) -> Floats:
    return np.concatenate([*(rows.push({row: part})[row] for part in parts), rows.finish(row)])


def whole_statistics(tokenizer: AudioTokenizer, codes: Ints) -> Floats:
    """What both norms of a whole decode are taken over: [4]."""
    decoder, lengths = tokenizer.decoder, torch.tensor([codes.shape[1]])
    with torch.no_grad():
        states = tokenizer.quantizer.decode(torch.from_numpy(codes)[None])
        first = decoder.dconv1.conv(states.transpose(1, 2))
        x, lengths = decoder.dconv1(states, lengths, False)
        second = decoder.dconv2.conv(decoder.transform(x, lengths).transpose(1, 2))
    return np.array([f(x) for x in (first, second) for f in (torch.mean, _square)], np.float32)


def _square(x: torch.Tensor) -> torch.Tensor:
    return x.square().mean()


@pytest.mark.parametrize("block", [1, 4, 24])
def test_only_the_statistics_differ(
    tokenizer: AudioTokenizer,
    spec: ModelSpec,
    codes: Ints,
    block: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With the statistics of the whole and all of the lookahead it is the whole decode."""
    monkeypatch.setattr(stateful, "MOST_WEIGHT", 2 * NO_END)
    config = tokenizer.config
    reach = config.vocoder_num_layers * config.vocoder_attn_window_size[1]
    rows = StreamRows(
        ReferenceStates(tokenizer, 1), spec, lookahead=-(-reach // mel_per_frame(spec)), block=block
    )
    rows.begin(0, statistics=whole_statistics(tokenizer, codes), weight=NO_END)
    wav = run(rows, pieces(codes, np.random.default_rng(0), 9))
    with torch.no_grad():
        whole = tokenizer.decode(torch.from_numpy(codes)).numpy()
    check.close(wav, whole, tolerances.AUDIO, "wav")


def mel_per_frame(spec: ModelSpec) -> int:
    return spec.samples_per_frame // spec.hop_length


@pytest.mark.parametrize(("lookahead", "block"), [(0, 1), (2, 3), (4, 4), (8, 24)])
def test_cuts_do_not_matter(
    tokenizer: AudioTokenizer, spec: ModelSpec, codes: Ints, lookahead: int, block: int
) -> None:
    def stream(seed: int, most: int) -> Floats:
        rows = StreamRows(ReferenceStates(tokenizer, 1), spec, lookahead, block)
        return run(rows, pieces(codes, np.random.default_rng(seed), most))

    once = stream(0, codes.shape[1])
    assert len(once) == codes.shape[1] * spec.samples_per_frame
    for seed in range(1, 5):
        check.close(stream(seed, 3 * seed), once, tolerances.AUDIO, f"cuts {seed}")


def test_rows_join_and_leave(tokenizer: AudioTokenizer, spec: ModelSpec, codes: Ints) -> None:
    """Streams that share rows, begin late and end early: each as if alone."""
    rng = np.random.default_rng(3)
    streams = [codes, codes[:, 20:45], np.flip(codes, 1)[:, :31], codes[:, 5:6]]
    alone = [run(StreamRows(ReferenceStates(tokenizer, 1), spec), iter([c])) for c in streams]
    rows = StreamRows(ReferenceStates(tokenizer, 2), spec)
    waiting, busy = list(enumerate(streams)), {}
    heard: dict[int, list[Floats]] = {index: [] for index in range(len(streams))}
    while waiting or busy:
        for row in range(2):
            if row not in busy and waiting:
                index, given = waiting.pop(0)
                busy[row] = index, pieces(given, rng, 7)
        given_now = {row: next(parts, None) for row, (_, parts) in busy.items()}
        wavs = rows.push({row: part for row, part in given_now.items() if part is not None})
        for row, part in given_now.items():
            wav = rows.finish(row) if part is None else wavs[row]
            heard[busy[row][0]].append(wav)
            if part is None:
                del busy[row]
    for index, expected in enumerate(alone):
        check.close(np.concatenate(heard[index]), expected, tolerances.AUDIO, f"stream {index}")


def test_a_ring_is_as_good_as_room_for_all(tokenizer: AudioTokenizer) -> None:
    """Frames that went around the ring equal those of a cache that never wraps."""
    window, most, ring = 12, 4, 17
    rng, frames = np.random.default_rng(4), 60
    sizes = tokenizer.config.codebook_size
    codes = np.stack([rng.integers(0, size, frames) for size in sizes])
    states = tokenizer.quantizer.decode(torch.from_numpy(codes)[None])
    mels = []
    for size in (ring, 200):
        stream = MelStream(tokenizer.decoder, window, size, most)
        statistics, last, caches = stream.empty(1)
        parts, position = [], 0
        while position < frames:
            count = min(int(rng.integers(1, most + 1)), frames - position, size - position % size)
            given = torch.zeros(1, most, states.shape[2])  # what is beyond the length is garbage
            given[:, :count] = states[:, position : position + count]
            numbers = (torch.tensor([n]) for n in (count, position, position))
            with torch.no_grad():
                mel, statistics, last, *caches = stream(given, *numbers, statistics, last, *caches)
            parts.append(mel[0, : count * mel.shape[1] // most])
            position += count
        mels.append(torch.cat(parts).numpy())
    check.close(mels[0], mels[1], tolerances.DECODER, "mel")


def test_a_day_later_it_is_the_same(
    tokenizer: AudioTokenizer, spec: ModelSpec, codes: Ints
) -> None:
    """Angles do not blur as positions grow: float32 ones would be off by a tenth of a turn."""

    def after(frames: int) -> Floats:
        rows = StreamRows(ReferenceStates(tokenizer, 1), spec)
        rows.begin(0, position=frames)  # of silence, in the keys and values: zeros
        return run(rows, iter([codes]))

    check.close(after(24 * 3600 * 25), after(1000), tolerances.AUDIO, "wav")


def test_statistics_fade(tokenizer: AudioTokenizer, spec: ModelSpec, codes: Ints) -> None:
    """They stand for a minute at most; where they fade does not depend on the cuts either."""
    wavs = []
    for seed in (1, 2):
        rows = StreamRows(ReferenceStates(tokenizer, 1), spec)
        start = whole_statistics(tokenizer, codes)
        rows.begin(0, statistics=start, weight=stateful.MOST_WEIGHT - 17)
        parts = pieces(codes, np.random.default_rng(seed), 30)
        wavs.append(np.concatenate([rows.push({0: part})[0] for part in parts]))
        assert rows.weight(0) == stateful.MOST_WEIGHT // 2 + codes.shape[1] - 17
    check.close(wavs[0], wavs[1], tolerances.AUDIO, "wav")


def test_angles_of_small_positions_are_the_models(tokenizer: AudioTokenizer) -> None:
    positions = torch.arange(2000)[None]
    theta = tokenizer.config.rope_theta
    for dim in (16, 64):
        ours = rotary.wrapped_tables(positions, dim, theta, torch.float32)
        usual = rotary.tables(positions, dim, theta, torch.float32)
        for a, b in zip(ours, usual, strict=True):
            # the usual angle is a float32 product: off by 2000 * 2 ** -24
            assert (a - b).abs().max() < 3e-4
