"""Encoding in pieces that know nothing of each other, as MiMo-V2.5-ASR was trained to hear.

Each piece of wav gets a mel of its own, with reflected edges, and is encoded alone.
"""

import numpy as np
from mimo_edge.runtime.backends.base import AudioPieces, Floats, Ints
from mimo_edge.runtime.chat.segments import pad_codes


def wav_pieces(wav: Floats, length: int, n_fft: int) -> list[Floats]:
    """wav [N] -> pieces of `length` samples; a tail shorter than n_fft belongs to the piece before.

    A wav that is itself shorter than n_fft is filled with zeros.
    """
    if len(wav) < n_fft:
        return [np.pad(wav, (0, n_fft - len(wav)))]
    starts = list(range(0, len(wav), length))
    if len(starts) > 1 and len(wav) - starts[-1] < n_fft:
        starts.pop()
    return np.split(wav, starts[1:])


def encode_pieces(backend: AudioPieces, wav: Floats, seconds: int) -> Ints:
    """wav [N] at the model's rate -> codes [n_q, T], T a multiple of group_size.

    The last frame is repeated to fill its patch.
    """
    model = backend.bundle.model
    codes = [
        backend.encode(backend.mel(piece))[: model.n_q]
        for piece in wav_pieces(wav, seconds * model.sampling_rate, model.n_fft)
    ]
    return pad_codes(np.concatenate(codes, axis=1), model.group_size)
