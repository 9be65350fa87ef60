"""Sounds to read and to write, as arrays and as the bytes of a file."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from mimo_edge.runtime.audio.resample import resample

CLIPS = sorted((Path(__file__).parents[1] / "assets" / "clips").glob("*.flac"))
STEP = 1 / 32768  # of 16-bit audio


def speech(rate: int = 24000) -> np.ndarray:
    """A spoken clip as wav, float32 [N]: the lossy encoders are made for speech, not for noise."""
    wav, from_rate = soundfile.read(CLIPS[0], dtype="float32")
    return resample(wav, from_rate, rate)


def encoded(wav: np.ndarray, rate: int = 24000, format: str = "WAV", subtype: Any = None) -> bytes:
    """wav [N] or [N, channels] as a file's content."""
    file = io.BytesIO()
    soundfile.write(file, wav, rate, format=format, subtype=subtype)
    return file.getvalue()


def flac_without_length(wav: np.ndarray) -> bytes:
    """As an encoder that writes to a pipe leaves it: STREAMINFO's sample count is 0."""
    flac = bytearray(encoded(wav, format="FLAC"))
    flac[21] &= 0xF0  # 36 bits, from the middle of this byte
    flac[22:26] = bytes(4)
    return bytes(flac)
