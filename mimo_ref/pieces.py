"""MiMo-V2.5-ASR's way from audio to codes: pieces of 30 s that know nothing of each other."""

import torch
import torch.nn.functional as F
from mimo_edge.mimo_ref.model import AudioTokenizer
from torch import Tensor

PIECE_SECONDS = 30


def wav_pieces(wav: Tensor, length: int, n_fft: int) -> list[Tensor]:
    """wav [N] -> pieces of `length` samples; a tail shorter than n_fft belongs to the piece before.

    A wav that is itself shorter than n_fft is filled with zeros.
    """
    missing = n_fft - wav.shape[-1]
    if missing > 0:
        return [F.pad(wav, (0, missing))]
    pieces = list(wav.split(length))
    if len(pieces) > 1 and pieces[-1].shape[-1] < n_fft:
        pieces[-2:] = [torch.cat(pieces[-2:])]
    return pieces


def encode_pieces(tokenizer: AudioTokenizer, wav: Tensor, n_q: int, group_size: int) -> Tensor:
    """wav [N] at the model's rate -> codes [n_q, T], T a multiple of group_size.

    Each piece has a mel of its own, with reflected edges. The last frame is repeated to fill its
    patch.
    """
    config = tokenizer.config
    pieces = wav_pieces(wav, PIECE_SECONDS * config.sampling_rate, config.nfft)
    codes = torch.cat([tokenizer.encode(piece, n_q) for piece in pieces], dim=-1)
    return F.pad(codes[None].float(), (0, -codes.shape[-1] % group_size), mode="replicate")[
        0
    ].long()
