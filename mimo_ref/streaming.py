"""Upstream's windowed streaming decode: audio comes out while codes still arrive.

Every call decodes what is remembered plus what is new, and returns all but the last `right_overlap`
frames, whose audio still depends on the future; `left_overlap` frames are remembered as context.
"""

from dataclasses import dataclass, field

import torch
from mimo_edge.mimo_ref.model import AudioTokenizer
from torch import Tensor


@dataclass
class StreamState:
    """What one call leaves for the next: states [T, D], and how many of them have sounded.

    Upstream keeps this in a default argument that all streams of a process share; here each stream
    has its own.
    """

    states: list[Tensor] = field(default_factory=list)
    sounded: list[int] = field(default_factory=list)


def streaming_decode(
    tokenizer: AudioTokenizer,
    chunks: list[Tensor],
    state: StreamState,
    last: bool = False,
    left_overlap: int = 250,
    right_overlap: int = 40,
    upstream_batch: bool = False,
) -> list[Tensor | None]:
    """Feed one chunk of codes [n_q, T_i] per stream; returns wav [N_i] each, None while waiting.

    T_i may be 0. With several streams, each sounds as it would alone; upstream normalises over the
    padding of the batch and ends shorter streams in rubbish (`upstream_batch`).
    """
    states = [tokenizer.quantizer.decode(chunk[None])[0] for chunk in chunks]
    if state.states:
        states = [torch.cat(pair) for pair in zip(state.states, states, strict=True)]
    sounded = state.sounded or [0] * len(chunks)
    lengths = torch.tensor([len(s) for s in states])
    batch = torch.nn.utils.rnn.pad_sequence(states, batch_first=True)
    wavs = tokenizer.decoder(batch, lengths, upstream_batch)

    samples, outputs = tokenizer.config.samples_per_frame, []
    for i, (wav, length) in enumerate(zip(wavs, lengths.tolist(), strict=True)):
        start, end = sounded[i], length - right_overlap
        if last:
            # upstream returns the padding of the batch as well
            outputs.append(wav[start * samples : None if upstream_batch else length * samples])
            sounded[i] = length
        elif end <= 0:
            outputs.append(None)
            sounded[i] = 0
        else:
            outputs.append(wav[start * samples : end * samples])
            forgotten = max(0, length - left_overlap)
            states[i] = states[i][forgotten:]
            sounded[i] = end - forgotten
    state.states, state.sounded = states, sounded
    return outputs
