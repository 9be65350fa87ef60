import torch
from mimo_edge.mimo_ref.model import AudioTokenizer
from mimo_edge.mimo_ref.streaming import StreamState, streaming_decode
from mimo_edge.parity import tolerances

from tests import check
from tests.golden import Golden


def run(golden: Golden, tokenizer: AudioTokenizer, case: str, upstream: bool) -> list[torch.Tensor]:
    """Feed a case call by call, comparing the bookkeeping; returns the audio of each stream."""
    arrays = golden.npz("stream.npz")
    chunk_lens = arrays[f"{case}.chunk_lens"]
    left, right = arrays[f"{case}.left_right"].tolist()
    streams = [torch.tensor(arrays[f"{case}.codes{i}"]) for i in range(chunk_lens.shape[1])]
    state, heard = StreamState(), [[] for _ in streams]
    position = [0] * len(streams)
    for call, lens in enumerate(chunk_lens.tolist()):
        chunks = [s[:, p : p + n] for s, p, n in zip(streams, position, lens, strict=True)]
        position = [p + n for p, n in zip(position, lens, strict=True)]
        last = call == len(chunk_lens) - 1
        outputs = streaming_decode(tokenizer, chunks, state, last, left, right, upstream)
        if upstream:
            out_len = [-1 if o is None else len(o) for o in outputs]
            check.equal(out_len, arrays[f"{case}.out_len"][call], f"out_len of call {call}")
        check.equal(state.sounded, arrays[f"{case}.processed_lengths"][call], "processed_lengths")
        check.equal(
            [len(s) for s in state.states], arrays[f"{case}.cached_len"][call], "cached_len"
        )
        for parts, output in zip(heard, outputs, strict=True):
            parts += [] if output is None else [output]
    return [torch.cat(parts) for parts in heard]


def test_streaming(golden: Golden, tokenizer: AudioTokenizer, stream_case: str) -> None:
    arrays = golden.npz("stream.npz")
    for i, wav in enumerate(run(golden, tokenizer, stream_case, upstream=True)):
        check.close(wav, arrays[f"{stream_case}.wav{i}"], tolerances.AUDIO, f"wav{i}")


def test_each_stream_as_alone(golden: Golden, tokenizer: AudioTokenizer, stream_case: str) -> None:
    """By default several streams do not change one another, and none ends in rubbish."""
    arrays = golden.npz("stream.npz")
    chunk_lens = arrays[f"{stream_case}.chunk_lens"]
    left, right = arrays[f"{stream_case}.left_right"].tolist()
    for i, wav in enumerate(run(golden, tokenizer, stream_case, upstream=False)):
        codes, state, parts, position = arrays[f"{stream_case}.codes{i}"], StreamState(), [], 0
        for call, n in enumerate(chunk_lens[:, i].tolist()):
            chunk = torch.tensor(codes[:, position : position + n])
            position, last = position + n, call == len(chunk_lens) - 1
            parts += streaming_decode(tokenizer, [chunk], state, last, left, right)
        alone = torch.cat([p for p in parts if p is not None])
        assert len(alone) == codes.shape[1] * tokenizer.config.samples_per_frame
        check.close(wav, alone.numpy(), tolerances.AUDIO, f"stream {i}")
