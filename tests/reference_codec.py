"""The two stream graphs as the reference computes them, in the place of a backend's."""

import dataclasses

import torch
from mimo_edge.mimo_ref.mel_stream import MelStream
from mimo_edge.mimo_ref.model import AudioTokenizer
from mimo_edge.mimo_ref.vocoder_stream import VocoderStream
from mimo_edge.runtime.backends.base import Feed, Floats
from mimo_edge.runtime.bundle.manifest import ModelSpec
from mimo_edge.runtime.bundle.stream_sizes import (
    MOST_FRAMES,
    RING_FRAMES,
    UNLIMITED,
    WINDOW_FRAMES,
)

from tests.bundles import SPEC


def model_spec(tokenizer: AudioTokenizer) -> ModelSpec:
    """What a bundle would say of this tokenizer; of the language model nothing that is true."""
    config = tokenizer.config
    return dataclasses.replace(
        SPEC,
        sampling_rate=config.sampling_rate,
        n_fft=config.nfft,
        hop_length=config.hop_length,
        n_mels=config.n_mels,
        samples_per_frame=config.samples_per_frame,
    )


class ReferenceStates:
    """`CodecStates` in PyTorch."""

    def __init__(self, tokenizer: AudioTokenizer, rows: int, window: int = WINDOW_FRAMES) -> None:
        self.rows, self._tokenizer = rows, tokenizer
        self.mel_stream = MelStream(tokenizer.decoder, window, RING_FRAMES, MOST_FRAMES)
        self.vocoder_stream = VocoderStream(tokenizer.decoder, UNLIMITED)
        _, last, self.caches = self.mel_stream.empty(rows)
        self.last_shape = tuple(last.shape[1:])
        self.remembered = self.vocoder_stream.left
        shape = (rows, self.vocoder_stream.heads, self.remembered, self.vocoder_stream.head_dim)
        layers = len(tokenizer.decoder.vocoder.layers)
        self.vocoder_caches = [torch.zeros(shape) for _ in range(2 * layers)]

    @torch.no_grad()
    def mel(self, feed: Feed) -> tuple[Floats, Floats, Floats]:
        states = self._tokenizer.quantizer.decode(torch.from_numpy(feed["codes"]))
        names = ("lengths", "positions", "weights", "past_statistics", "past_last")
        given = (torch.from_numpy(feed[name]) for name in names)
        found = self.mel_stream(states, *given, *self.caches)
        self.caches = list(found[3:])
        mel, statistics, last = (x.numpy() for x in found[:3])
        return mel, statistics, last

    @torch.no_grad()
    def frames(self, feed: Feed) -> tuple[Floats, Floats]:
        names = ("mel", "positions", "blocks", "until", "past_positions", "kept")
        given = (torch.from_numpy(feed[name]) for name in names)
        frames, weight, *caches = self.vocoder_stream(*given, *self.vocoder_caches)
        self.vocoder_caches = caches
        return frames.numpy(), weight.numpy()

    def clear(self, row: int) -> None:
        for cache in (*self.caches, *self.vocoder_caches):
            cache[row] = 0

    def close(self) -> None:
        self.caches, self.vocoder_caches = [], []
