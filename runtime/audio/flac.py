"""FLAC's headers: the announced length, and whether frames follow where decoding stopped."""

import re
from typing import BinaryIO

from mimo_edge.runtime.audio.layout import MORE_THAN_ONE, Damaged, Layout, read_at

_SCAN = 1 << 20  # bytes looked through at once
_SEARCH = 1 << 16  # bytes looked through for a frame's header; frames are smaller


def flac(file: BinaryIO, start: int, end: int) -> Layout:
    """What STREAMINFO says, which every FLAC file begins with."""
    info = read_at(file, start + 8, 34)
    if len(info) < 34:
        return Layout("FLAC", start, end)
    packed = int.from_bytes(info[10:18], "big")
    rate, channels, bits = packed >> 44, (packed >> 41 & 7) + 1, (packed >> 36 & 31) + 1
    frames = packed & ((1 << 36) - 1)
    if _holds_another(file, start + 42, end):
        raise Damaged(MORE_THAN_ONE)
    byte_rate = rate * channels * -(-bits // 8) + 10_000  # stored as it is, at worst
    # libsndfile stops where the announced length ends; without one, what follows is seen
    fields = ((start + 21, bytes([info[13] & 0xF0])), (start + 22, bytes(4)))
    return Layout("FLAC", start, end, announced=frames or None, byte_rate=byte_rate, fields=fields)


def _holds_another(file: BinaryIO, at: int, end: int) -> bool:
    """Whether the mark and the first block of a further FLAC file stand behind the beginning."""
    while at < end:
        if b"fLaC\0\0\0\x22" in read_at(file, at, _SCAN + 7):
            return True
        at += _SCAN
    return False


def is_cut(file: BinaryIO, start: int, end: int, done: int) -> bool:
    """Whether decoding stopped after `done` samples for want of data: no frame follows.

    A frame's header carries its number or first sample, and a checksum.
    """
    sizes = read_at(file, start + 8, 4)
    fixed = int.from_bytes(sizes[2:4], "big")  # the largest block, in samples
    lowest = max(start, end - 8 * _SEARCH)  # a file made to look like headers takes no longer
    at = end
    last = -1
    while at > lowest and last < 0:
        first = max(start, at - _SEARCH)
        data = read_at(file, first, at - first + 16)
        for match in re.finditer(rb"\xff[\xf8\xf9]", data):
            last = max(last, _position(data[match.start() : match.start() + 16], fixed))
        at = first
    return 0 <= last <= done


def _position(head: bytes, fixed: int) -> int:
    """The first sample of the frame with this header; -1 if it is none."""
    if len(head) < 6 or head[2] >> 4 == 0 or head[2] & 15 == 15 or head[3] & 1:
        return -1
    length = 1 if head[4] < 0x80 else 8 - (head[4] ^ 0xFF).bit_length()
    if length > 7 or (length == 1 and head[4] >= 0x80):
        return -1
    number = head[4] if length == 1 else head[4] & (0x7F >> length)
    for byte in head[5 : 4 + length]:
        number = number << 6 | byte & 0x3F
    block, rate = head[2] >> 4, head[2] & 15
    stop = 4 + length + {6: 1, 7: 2}.get(block, 0) + {12: 1, 13: 2, 14: 2}.get(rate, 0)
    if len(head) <= stop or _crc8(head[:stop]) != head[stop]:
        return -1
    return number if head[1] & 1 else number * fixed


def _crc8(data: bytes) -> int:
    value = 0
    for byte in data:
        value ^= byte
        for _ in range(8):
            value = (value << 1 ^ 0x07) & 0xFF if value & 0x80 else value << 1
    return value
