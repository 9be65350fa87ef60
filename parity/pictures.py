"""Pictures of arrays as PNG, and sounds as FLAC, both inside the page."""

import base64
import io
import struct
import zlib

import numpy as np
import soundfile
from mimo_edge.runtime.backends.base import Floats
from numpy.typing import NDArray

# dark blue over green to yellow: even in lightness, so that it also reads in grey and to those
# who see few colours
_SEQUENTIAL = ((68, 1, 84), (59, 82, 139), (33, 145, 140), (94, 201, 98), (253, 231, 37))
# below, none, above: blue and orange differ for everyone
_DIVERGING = ((0, 75, 140), (120, 170, 215), (245, 245, 245), (240, 170, 90), (165, 70, 0))


def heat(values: Floats, low: float, high: float, *, diverging: bool = False) -> str:
    """values [rows, columns], the first row at the bottom -> a PNG as a data URI."""
    colours = np.array(_DIVERGING if diverging else _SEQUENTIAL, float)
    place = np.nan_to_num((values[::-1] - low) / (high - low)).clip(0, 1) * (len(colours) - 1)
    below = np.minimum(place.astype(int), len(colours) - 2)
    part = (place - below)[..., None]
    pixels = colours[below] * (1 - part) + colours[below + 1] * part
    return "data:image/png;base64," + _base64(png(pixels.round().astype(np.uint8)))


def png(pixels: NDArray[np.uint8]) -> bytes:
    """pixels [rows, columns, 3] -> a PNG file."""
    rows, columns, _ = pixels.shape
    filtered = np.concatenate((np.zeros((rows, 1), np.uint8), pixels.reshape(rows, -1)), axis=1)
    header = struct.pack(">IIBBBBB", columns, rows, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(filtered.tobytes(), 9)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in chunks
    )


def flac(wav: Floats, rate: int) -> str:
    """wav [N] -> a FLAC file as a data URI."""
    file = io.BytesIO()
    soundfile.write(file, np.nan_to_num(wav).clip(-1, 1), rate, format="FLAC")
    return "data:audio/flac;base64," + _base64(file.getvalue())


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode("ascii")
