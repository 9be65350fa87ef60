"""Containers of chunks: WAV, RF64, Wave64, AIFF, CAF, and the flat headers of AU and NIST.

libsndfile takes a length that is too large for "to the end", and one of 0 for no sound. Here the
lengths are read and compared with the file.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import BinaryIO

from mimo_edge.runtime.audio.layout import LESS_THAN_HELD, MORE_THAN_ONE, Damaged, Layout, read_at

# From here on a 32-bit length is what a writer puts that does not know it yet (a pipe): 0x7ffff000,
# 0x80000000 and 0xffffffff are common. A true one would be longer than two hours of stereo.
_UNKNOWN = 0x7FFF0000
_BEGINNINGS = (b"RIFF", b"RIFX", b"RF64", b"riff", b"FORM", b".snd", b"caff", b"NIST", b"fLaC")
_MOST_CHUNKS = 10_000  # a file of empty ones would take minutes
_TO_THE_END = (1 << 64) - 1


@dataclass(frozen=True)
class _Chunk:
    name: bytes
    body: int  # offset of its contents
    size: int  # as it says
    field: int  # offset of the size


def wav(file: BinaryIO, start: int, end: int) -> Layout:
    """RIFF and RIFX, as written whole or into a pipe."""
    order = ">" if read_at(file, start, 4) == b"RIFX" else "<"
    layout = Layout("WAV", start, end)
    for chunk in _chunks(file, start + 12, end, order):
        if chunk.name == b"fmt ":
            layout = _with_format(layout, read_at(file, chunk.body, 40), order)
        elif chunk.name == b"data":
            size, room = chunk.size, end - chunk.body
            streamed = size > room and size >= _UNKNOWN
            if streamed or (size == 0 and not _ends_well(file, chunk.body, end, order)):
                return _to_the_end(layout, chunk, end, order)
            riff = int.from_bytes(read_at(file, start + 4, 4), "little" if order == "<" else "big")
            return _measured(file, layout, chunk, order, start + 8 + riff)
    return layout


def rf64(file: BinaryIO, start: int, end: int) -> Layout:
    """WAV with 64-bit lengths in a `ds64` chunk."""
    layout, sizes = Layout("RF64", start, end), None
    for chunk in _chunks(file, start + 12, end, "<"):
        if chunk.name == b"ds64":
            said = read_at(file, chunk.body, 16)
            sizes = struct.unpack("<QQ", said) if len(said) == 16 else None
        elif chunk.name == b"fmt ":
            layout = _with_format(layout, read_at(file, chunk.body, 40), "<")
        elif chunk.name == b"data" and sizes is not None:
            form, size = sizes
            room = end - chunk.body
            if size in (0, _TO_THE_END) and room:  # the writer never came to write it
                length = (start + 28, struct.pack("<Q", room))
                return replace(layout, there=room, fields=(length, (chunk.field, b"\xff" * 4)))
            last = chunk.body + size
            stop = max(min(end, last), min(end, start + 8 + form))
            _check_rest(file, stop, end, size)
            return replace(
                layout, there=min(size, room), announced=size, cut=size > room, stop=stop
            )
    return layout


def w64(file: BinaryIO, start: int, end: int) -> Layout:
    """Sony's Wave64: GUIDs for names, lengths of 64 bits that include the chunk's header."""
    layout, at = Layout("W64", start, end), start + 40
    while at + 24 <= end:
        head = read_at(file, at, 24)
        size = struct.unpack("<Q", head[16:])[0]
        if head[:4] == b"fmt ":
            layout = _with_format(layout, read_at(file, at + 24, 40), "<")
        elif head[:4] == b"data":
            room = end - at - 24
            if size in (0, 24, _TO_THE_END) and room:
                field = (at + 16, struct.pack("<Q", room + 24))
                return replace(layout, there=room, fields=(field,))
            said = max(0, size - 24)
            form = struct.unpack("<Q", read_at(file, start + 16, 8))[0]
            stop = max(min(end, at + max(24, size)), min(end, start + form))
            _check_rest(file, stop, end, said)
            return replace(
                layout, there=min(said, room), announced=said, cut=said > room, stop=stop
            )
        if size < 24:
            break
        at += -(-size // 8) * 8
    return layout


def aiff(file: BinaryIO, start: int, end: int) -> Layout:
    """AIFF and AIFF-C."""
    layout = Layout("AIFF", start, end)
    for chunk in _chunks(file, start + 12, end, ">"):
        if chunk.name == b"COMM":
            layout = replace(layout, byte_rate=_aiff_rate(read_at(file, chunk.body, 18)))
        elif chunk.name == b"SSND":
            size, room = chunk.size, end - chunk.body
            streamed = size > room and size >= _UNKNOWN
            if streamed or (size <= 8 and not _ends_well(file, chunk.body + size, end, ">")):
                return _to_the_end(layout, chunk, end, ">")
            form = struct.unpack(">I", read_at(file, start + 4, 4))[0]
            return _measured(file, layout, chunk, ">", start + 8 + form, extra=8)
    return layout


def caf(file: BinaryIO, start: int, end: int) -> Layout:
    """Apple's Core Audio Format."""
    layout, at, frames, rate = Layout("CAF", start, end), start + 8, 0, 0.0
    while at + 12 <= end:
        name, size = struct.unpack(">4sQ", read_at(file, at, 12))
        room = end - at - 12
        if name == b"desc" and room >= 32:
            rate, _, _, per_packet, each = struct.unpack(">d4sIII", read_at(file, at + 12, 24))
            if 0 < rate < 1e7 and 0 < each <= 1 << 16 and 0 < per_packet <= 1 << 16:
                layout = replace(layout, byte_rate=int(rate / each * per_packet) + 1)
        elif name == b"pakt" and room >= 16:  # of a compressed format; packets are nearly even
            frames = struct.unpack(">Q", read_at(file, at + 20, 8))[0]
        elif name == b"data":
            if size in (0, _TO_THE_END):
                field = (at + 4, struct.pack(">Q", room))
                return replace(layout, there=max(0, room - 4), fields=(field,))
            if size > room:  # libsndfile only says "malformed"
                field = (at + 4, struct.pack(">Q", room))
                layout = replace(layout, cut=True, fields=(field,))
                if frames and 1 <= rate < 1e7:
                    part = frames * room // size
                    return replace(layout, there=part, announced=frames, rate=int(rate))
                return replace(layout, there=max(0, room - 4), announced=size - 4)
            layout = replace(layout, there=max(0, size - 4), announced=max(0, size - 4))
        elif size > room:
            if name in (b"pakt", b"kuki"):  # what a compressed format is decoded with
                return replace(layout, cut=True)
            break
        at += 12 + size
    if layout.announced is not None:
        _check_rest(file, at, end, layout.announced)
        layout = replace(layout, stop=at)
    return layout


def au(file: BinaryIO, start: int, end: int) -> Layout:
    """Sun's and NeXT's AU, in both byte orders."""
    order = "<" if read_at(file, start, 4) == b"dns." else ">"
    head = read_at(file, start + 4, 20)
    if len(head) < 20:
        return Layout("AU", start, end)
    offset, size, coding, rate, channels = struct.unpack(f"{order}5I", head)
    width = {1: 1, 2: 1, 3: 2, 4: 3, 5: 4, 6: 4, 7: 8, 27: 1}.get(coding, 1)
    room = max(0, end - start - offset)
    layout = Layout("AU", start, end, byte_rate=_bounded(rate * channels * width))
    if (size == 0 and room) or (size > room and size >= _UNKNOWN):
        field = (start + 8, struct.pack(f"{order}I", min(room, 0xFFFFFFFF)))
        return replace(layout, there=room, fields=(field,))
    stop = min(end, start + offset + size)
    layout = replace(layout, there=min(size, room), announced=size, cut=size > room, stop=stop)
    _check_rest(file, stop, end, size)
    return layout


def nist(file: BinaryIO, start: int, end: int) -> Layout:
    """NIST SPHERE: a header of text, usually of 1,024 bytes."""
    head = read_at(file, start, 1024).decode("latin-1").split("\n")
    said = {}
    for line in head[2:]:
        words = line.split()
        # some write a number as text: sample_n_bytes -s1 1
        if len(words) == 3 and words[1][:2] in ("-i", "-s") and words[2].isdecimal():
            said[words[0]] = min(int(words[2]), 1 << 40)
    size = int(head[1]) if len(head) > 1 and head[1].strip().isdigit() else 1024
    wide = said.get("channel_count", 1) * said.get("sample_n_bytes", 2)
    room = max(0, end - start - size)
    layout = Layout("NIST", start, end, byte_rate=_bounded(said.get("sample_rate", 0) * wide))
    if not said.get("sample_count"):
        return replace(layout, there=room)
    whole = said["sample_count"] * wide
    stop = min(end, start + size + whole)
    layout = replace(layout, there=min(whole, room), announced=whole, cut=whole > room, stop=stop)
    _check_rest(file, stop, end, whole)
    return layout


def _chunks(file: BinaryIO, at: int, end: int, order: str) -> Iterator[_Chunk]:
    for _ in range(_MOST_CHUNKS):
        if at + 8 > end:
            return
        name, size = struct.unpack(f"{order}4sI", read_at(file, at, 8))
        if not _is_name(name):
            return
        yield _Chunk(name, at + 8, size, at + 4)
        at += 8 + size + size % 2


def _is_name(name: bytes) -> bool:
    return len(name) == 4 and all(32 <= byte < 127 for byte in name)


def _ends_well(file: BinaryIO, at: int, end: int, order: str) -> bool:
    """Nothing from here on, or chunks that fit; if not, it is sound that no length announces."""
    for _ in range(_MOST_CHUNKS):
        if at + 8 > end:
            return True
        name, size = struct.unpack(f"{order}4sI", read_at(file, at, 8))
        if not _is_name(name) or name in _BEGINNINGS or size > end - at - 8:
            return False
        at += 8 + size + size % 2
    return False


def _measured(
    file: BinaryIO, layout: Layout, chunk: _Chunk, order: str, said_end: int, extra: int = 0
) -> Layout:
    """The sound chunk against the file. `extra`: bytes of the chunk that are not sound."""
    size, end = chunk.size, layout.stop
    room = end - chunk.body
    if size > room:
        field = (chunk.field, struct.pack(f"{order}I", room))
        there = max(0, room - extra)
        return replace(layout, there=there, announced=size - extra, cut=True, fields=(field,))
    last = chunk.body + size
    layout = replace(layout, there=max(0, size - extra), announced=max(0, size - extra))
    if any(_ends_well(file, at, end, order) for at in (last + size % 2, last)):
        return layout  # whatever the form's own length is
    inside = min(end, said_end) if said_end > last else last
    # some writers leave out the byte that makes a length even
    if not any(_ends_well(file, at, inside, order) for at in (last + size % 2, last)):
        _check_rest(file, last, inside, 0)
    _check_rest(file, max(inside, min(end, last + size % 2)), end, size)
    return replace(layout, stop=max(inside, min(end, last + size % 2)))


def _check_rest(file: BinaryIO, at: int, end: int, size: int) -> None:
    """Bytes behind the sound that nothing announces.

    A little is rubbish that some program left and is passed over. Much of it, or what begins a
    sound file of its own, would be sound that nobody hears.
    """
    head = read_at(file, at, 16)
    if head[:4] in _BEGINNINGS:
        raise Damaged(MORE_THAN_ONE)
    if end - at > max(4096, size // 8):
        raise Damaged(LESS_THAN_HELD)


def _to_the_end(layout: Layout, chunk: _Chunk, end: int, order: str) -> Layout:
    """A length that was not known when the header was written: all that follows is sound."""
    room = min(end - chunk.body, 0xFFFFFFFE)
    field = (chunk.field, struct.pack(f"{order}I", room))
    return replace(layout, there=room, fields=(field,))


def _with_format(layout: Layout, body: bytes, order: str) -> Layout:
    """The `fmt ` chunk's byte rate and speakers."""
    if len(body) < 16:
        return layout
    tag, channels, rate, _, align, _ = struct.unpack(f"{order}HHIIHH", body[:16])
    mask = 0
    if tag == 0xFFFE and len(body) >= 24:
        mask = struct.unpack(f"{order}I", body[20:24])[0]
    # A block of a compressed format holds many samples, of two bytes at most each.
    wide = align if tag in (1, 3, 6, 7, 0xFFFE) else 2 * channels
    return replace(layout, byte_rate=_bounded(rate * wide), mask=mask)


def _aiff_rate(body: bytes) -> int:
    if len(body) < 18:
        return Layout.byte_rate
    channels, _, bits, exponent, mantissa = struct.unpack(">HIHHQ", body)
    if not 16383 <= exponent < 16383 + 31:
        return Layout.byte_rate
    rate = mantissa >> (63 - (exponent - 16383))
    return _bounded(rate * channels * -(-bits // 8))


def _bounded(byte_rate: int) -> int:
    """A believable byte rate: what a header says bounds how much is read from a pipe."""
    return min(byte_rate, 20_000_000) or Layout.byte_rate
