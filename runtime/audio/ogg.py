"""Ogg pages: is one stream there, whole?

libsndfile plays the first stream up to wherever it ends, passes over pages that are damaged, takes
a file without its last page for a shorter one, and believes the last page's position.
"""

import struct
import zlib
from dataclasses import replace
from typing import BinaryIO

from mimo_edge.runtime.audio.layout import MORE_THAN_ONE, Damaged, Layout, read_at

_PAGE = "<4sBBqIIIB"  # mark, version, flags, position, serial, number, checksum, segments
_BEGIN, _END = 2, 4  # flags of the first and the last page of a stream
_BYTE_RATE = 128_000  # at most, of Vorbis, Opus; beyond every encoder's
_MIRRORED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


def ogg(file: BinaryIO, start: int, end: int) -> Layout:
    """Ogg Vorbis, Opus, FLAC. Damaged if it holds two streams or a page that is not what it was."""
    at, number, serial, ended = start, 0, None, False
    layout = Layout("Ogg", start, end, byte_rate=_BYTE_RATE)
    while at < end:
        head = read_at(file, at, 27)
        if head[:4] != b"OggS"[: len(head)]:
            break
        if len(head) < 27:
            return replace(layout, cut=not ended)
        _, version, flags, position, own, sequence, said, segments = struct.unpack(_PAGE, head)
        table = file.read(segments)
        body = file.read(sum(table))
        stop = at + 27 + segments + sum(table)
        if stop > end or len(table) < segments:
            return replace(layout, cut=True)
        if serial is None:
            serial, layout = own, replace(layout, rate=_rate(body))
        elif own != serial or flags & _BEGIN or ended:
            raise Damaged(MORE_THAN_ONE)
        if version != 0 or said != _checksum(head[:22] + bytes(4) + head[26:] + table + body):
            raise Damaged(f"is damaged (Ogg page {number}); fetch or export it again")
        if sequence != number:
            raise Damaged(f"is damaged (Ogg page {number} is missing); fetch or export it again")
        number += 1
        if any(length < 255 for length in table):  # a packet ends here, and the position is its end
            if position < layout.there:  # the decoder would stop there, or leave a part out
                what = f"Ogg page {number - 1} goes back in time"
                raise Damaged(f"is damaged ({what}); fetch or export it again")
            layout = replace(layout, there=position)
        ended = bool(flags & _END)
        at = stop
    if b"OggS" in read_at(file, at, min(end - at, 1 << 20)):
        what = "another stream behind its end" if ended else f"rubbish behind page {number - 1}"
        raise Damaged(f"is damaged or holds more than one stream ({what}); export it again")
    return replace(layout, stop=at, cut=not ended)


def _rate(packet: bytes) -> int:
    """Hz of the positions that pages carry, by the stream's first packet; 0 if it is unknown."""
    if packet[:7] == b"\x01vorbis" and len(packet) >= 16:
        return int.from_bytes(packet[12:16], "little")
    return 48_000 if packet[:8] == b"OpusHead" else 0


def _checksum(data: bytes) -> int:
    """Ogg's CRC-32: zlib's, with the bits of every byte and of the result in the other order."""
    mirrored = zlib.crc32(data.translate(_MIRRORED), 0xFFFFFFFF) ^ 0xFFFFFFFF
    return int.from_bytes(mirrored.to_bytes(4, "little").translate(_MIRRORED), "big")
