"""MPEG audio frames (MP3, layers I to III): are all there that the first one announces?

libmpg123 plays what it finds, trims what a first header announces from files that were joined, and
complains on stderr about sizes that do not fit. Where nothing announces a number of frames, it
guesses one from the size of the first, and libsndfile stops there: of a variable bit rate it gives
a part. So they are counted here.
"""

import re
import struct
from dataclasses import dataclass, replace
from typing import BinaryIO

from mimo_edge.runtime.audio.layout import Damaged, Layout, read_at

_KBITS = {  # (MPEG 1, layer) -> kbit/s of the indices 1 to 14
    (True, 1): tuple(range(32, 449, 32)),
    (True, 2): (32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (True, 3): (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (False, 1): (32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (False, 2): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (False, 3): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
_RATES = {3: (44100, 48000, 32000), 2: (22050, 24000, 16000), 0: (11025, 12000, 8000)}
_BYTE_RATE = 80_000  # free formats go up to 640 kbit/s
_SEARCH = 1 << 17  # bytes in which a frame is looked for


@dataclass(frozen=True)
class Frame:
    """One frame's header."""

    kind: tuple[int, int, int]  # version, layer, sampling rate: the same in all frames of a file
    length: int  # bytes
    samples: int
    side: int  # bytes before the main data: where layer III keeps its table of contents


def frame(head: bytes) -> Frame | None:
    """The frame that begins with these four bytes; None if none does, or one of free format."""
    if len(head) < 4 or head[0] != 0xFF or head[1] & 0xE0 != 0xE0:
        return None
    version, layer = head[1] >> 3 & 3, 4 - (head[1] >> 1 & 3)
    bits, rate, padding = head[2] >> 4, head[2] >> 2 & 3, head[2] >> 1 & 1
    if version == 1 or layer == 4 or not 0 < bits < 15 or rate == 3:
        return None
    first = version == 3
    rate_hz = _RATES[version][rate]
    samples = 384 if layer == 1 else 1152 if layer == 2 or first else 576
    slots = samples // 8 * _KBITS[first, layer][bits - 1] * 1000 // rate_hz
    length = (slots // 4 + padding) * 4 if layer == 1 else slots + padding
    mono = head[3] >> 6 == 3
    side = (17 if mono else 32) if first else (9 if mono else 17)
    return Frame((version, layer, rate_hz), length, samples, 4 + side)


def mpeg(file: BinaryIO, start: int, end: int) -> Layout | None:
    """The frames from the first one found on; None if there is none."""
    at = start = _find(file, start, end, None)
    if at < 0:
        return None
    first = frame(read_at(file, at, 4))
    assert first is not None
    announced, told = _announced(file, at, first)
    count = longest = 0
    while at < end:
        head = read_at(file, at, 4)
        now = frame(head)
        if now is not None and now.kind == first.kind:
            if at + now.length > end:
                return _cut(Layout("MP3", start, end), first, count, announced)
            at += now.length
            count, longest = count + 1, max(longest, now.length)
            continue
        tag = _tag(file, at, head, end)
        if tag:
            at += tag
            continue
        again = _find(file, at, end, first)
        if again >= 0:
            seconds = count * first.samples / first.kind[2]
            raise Damaged(f"is damaged after {seconds:.2f} s; fetch or export it again")
        break
    if announced is None:
        return _counted(start, at, first, count, longest)
    if count - 1 < announced:  # the announcing frame itself is silent, and usually not counted
        return _cut(Layout("MP3", start, end), first, count, announced)
    if count - 1 > announced + 1:  # joined files: what the first says would trim the others
        return _counted(start + first.length, at, first, count - 1, longest)
    fields = ((told, struct.pack(">I", at - start)),) if told else ()
    return Layout("MP3", start, at, byte_rate=_BYTE_RATE, fields=fields)


def _counted(start: int, stop: int, first: Frame, count: int, longest: int) -> Layout:
    """All frames in [start, stop), which were counted here."""
    samples = count * first.samples
    layout = Layout("MP3", start, stop, there=samples, announced=samples, rate=first.kind[2])
    return replace(layout, told=(count + 2) * longest, byte_rate=_BYTE_RATE)


def _cut(layout: Layout, first: Frame, count: int, announced: int | None) -> Layout:
    there = count if announced is None else max(0, count - 1)
    whole = None if announced is None else announced * first.samples
    rate = first.kind[2]
    return replace(layout, there=there * first.samples, announced=whole, rate=rate, cut=True)


def _announced(file: BinaryIO, at: int, first: Frame) -> tuple[int | None, int]:
    """Frames by the first one's Xing, Info or VBRI header, and where that says the bytes."""
    data = read_at(file, at, max(first.length, 60))
    xing = data[first.side : first.side + 16]
    if xing[:4] in (b"Xing", b"Info") and len(xing) == 16:
        flags, frames = struct.unpack(">II", xing[4:12])
        told = at + first.side + (12 if flags & 1 else 8) if flags & 2 else 0
        return (frames if flags & 1 else None), told
    if data[36:40] == b"VBRI" and len(data) >= 54:
        return struct.unpack(">I", data[50:54])[0], 0
    return None, 0


def _tag(file: BinaryIO, at: int, head: bytes, end: int) -> int:
    """The length of a tag that may stand between frames, 0 if none does."""
    if head[:3] == b"ID3":
        return id3_length(read_at(file, at, 10))
    if head[:3] == b"TAG":
        return min(128, end - at)
    if head == b"APET" and (ape := read_at(file, at, 16))[:8] == b"APETAGEX":
        return 32 + int.from_bytes(ape[12:16], "little")
    return 0


def id3_length(head: bytes) -> int:
    """Bytes of the ID3v2 tag that begins with these ten; 0 if none does."""
    if len(head) < 10 or head[:3] != b"ID3" or any(byte & 0x80 for byte in head[6:10]):
        return 0
    size = head[6] << 21 | head[7] << 14 | head[8] << 7 | head[9]
    return 10 + size + (10 if head[5] & 0x10 else 0)


def _find(file: BinaryIO, at: int, end: int, like: Frame | None) -> int:
    """Where the next frame begins that another one, or the end, follows; -1 if none does.

    Without `like`, only zeros may come before it.
    """
    data = read_at(file, at, min(end - at, _SEARCH))
    for match in re.finditer(rb"\xff[\xe2-\xff]", data):
        offset = match.start()
        found = frame(data[offset : offset + 4])
        if like is None and data[:offset].strip(b"\0"):
            return -1
        if found is None or (like is not None and found.kind != like.kind):
            continue
        following = read_at(file, at + offset + found.length, 4)
        nextone = frame(following)
        if nextone is not None and nextone.kind == found.kind:
            return at + offset
        if like is None and (len(following) < 4 or following[:3] in (b"TAG", b"ID3", b"APE")):
            return at + offset
    return -1
