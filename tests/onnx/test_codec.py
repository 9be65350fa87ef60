"""Level 3: audio to codes and back through the runtime, whole and streamed."""

import numpy as np
import pytest
from mimo_edge.parity import tolerances
from mimo_edge.runtime.audio import codec
from mimo_edge.runtime.backends.ort import OrtBackend

from tests import check
from tests.golden import Golden


def test_stream(golden: Golden, backend: OrtBackend, stream_case: str) -> None:
    """Every stream of a case as it sounds alone: lengths, bookkeeping and audio of each call."""
    arrays = golden.npz("stream.npz")
    chunk_lens = arrays[f"{stream_case}.chunk_lens"]
    left, right = arrays[f"{stream_case}.left_right"].tolist()
    samples = backend.bundle.model.samples_per_frame
    single = chunk_lens.shape[1] == 1
    for i in range(chunk_lens.shape[1]):
        codes, position, parts = arrays[f"{stream_case}.codes{i}"], 0, []
        decoder = codec.StreamDecoder(backend, left, right)
        for call, count in enumerate(chunk_lens[:, i].tolist()):
            feed = decoder.finish if call == len(chunk_lens) - 1 else decoder.push
            parts.append(feed(codes[:, position : position + count]))
            position += count
            if single:
                expected = max(0, arrays[f"{stream_case}.out_len"][call, i])
                assert len(parts[-1]) == expected, f"call {call}"
        wav = np.concatenate(parts)
        assert len(wav) == codes.shape[1] * samples
        if single:  # upstream's several streams change one another
            check.close(wav, arrays[f"{stream_case}.wav{i}"], tolerances.AUDIO, f"wav{i}")


def test_stream_by_frame_equals_its_definition(golden: Golden, backend: OrtBackend) -> None:
    """With the whole as context, a stream fed frame by frame is the whole decode."""
    codes = golden.npz("decoder.npz")["long.codes"]
    decoder = codec.StreamDecoder(backend, left=2 * codes.shape[1], right=codes.shape[1])
    parts = [decoder.push(codes[:, t : t + 1]) for t in range(codes.shape[1])]
    assert not any(len(p) for p in parts)
    check.close(decoder.finish(), codec.decode(backend, codes), tolerances.AUDIO, "whole")


def test_encode(golden: Golden, backend: OrtBackend) -> None:
    arrays = golden.npz("pipeline.npz")
    codes = codec.encode(backend, arrays["wav24k"])
    check.equal(codes.T.flatten(), arrays["audio_tokenized"], "audio_tokenized")


@pytest.mark.parametrize("tail", [0, 1, 239, 240, 481])
def test_long_audio_in_segments(
    backend: OrtBackend, monkeypatch: pytest.MonkeyPatch, tail: int
) -> None:
    """Mel of a segment equals the same frames of the whole: the cuts do not show."""
    model = backend.bundle.model
    wav = np.random.default_rng(0).normal(0, 0.1, 3 * model.sampling_rate + tail)
    wav = wav.astype(np.float32)
    whole = backend.mel(wav)
    pieces = list(codec._mel_segments(backend, wav, model.sampling_rate // model.hop_length))
    check.mel_close(np.concatenate(pieces), whole, "mel")
    monkeypatch.setattr(codec, "AUDIO_SECONDS", 1)
    codes = codec.encode(backend, wav)
    frames = sum(-(-len(p) // model.mel_per_frame) for p in pieces)
    assert codes.shape == (model.n_q, -(-frames // model.group_size) * model.group_size)


def test_long_answer_in_pieces(
    golden: Golden, backend: OrtBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    codes = golden.npz("decoder.npz")["long.codes"]
    frames = codes.shape[1]
    pieces = (0, 2 * frames // 3), (2 * frames // 3, frames)
    monkeypatch.setattr(codec, "decode_pieces", lambda n: pieces)
    wav = codec.decode(backend, codes)
    parts = [backend.decode(codes[None, :, a:b], np.array([b - a]))[0] for a, b in pieces]
    check.equal(wav, np.concatenate(parts), "pieces")
