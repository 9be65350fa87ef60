"""The part of a sound file that the decoder is shown."""

import os
from typing import BinaryIO

_TAG = 128  # bytes of an ID3v1 tag, which ends a file


class Window:
    """Bytes `[start, stop)` of a seekable stream as a file of their own, with corrected fields.

    What containers have around their sound (tags before it, rubbish behind it) is left out, and a
    length that a header does not know is put in, without copying the file. Reads strictly what is
    asked for; libsndfile reads in blocks.
    """

    def __init__(
        self,
        file: BinaryIO,
        start: int = 0,
        stop: int | None = None,
        fields: tuple[tuple[int, bytes], ...] = (),
        told: int = 0,
    ) -> None:
        """`fields`: (offset in the stream, the bytes that stand there instead).

        `told`: the size that is given out if it is not the window's own, for a decoder that stops
        where a size lets it expect the end. Its last bytes, where a tag might be, are zeros.
        """
        self._file = file
        self._start = start
        self._stop = file.seek(0, os.SEEK_END) if stop is None else stop
        self._fields = fields
        self._told = told
        self._at = 0
        self.error: BaseException | None = None  # kept for `raise_kept`

    @property
    def size(self) -> int:
        return self._told or self._stop - self._start

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = (0, self._at, self.size)[whence]
        self._at = max(0, base + offset)
        return self._at

    def tell(self) -> int:
        return self._at

    def read(self, count: int) -> bytes:
        """Up to `count` bytes from here on; fewer only at the end."""
        first = self._start + self._at
        if first >= self._stop and self._at == self._told - _TAG:
            self._at += count
            return bytes(count)
        count = max(0, min(count, self._stop - first))
        self._file.seek(first)
        data = self._file.read(count)
        for offset, field in self._fields:
            if first - len(field) < offset < first + len(data):
                begin, end = max(offset, first), min(offset + len(field), first + len(data))
                changed = bytearray(data)
                changed[begin - first : end - first] = field[begin - offset : end - offset]
                data = bytes(changed)
        self._at += len(data)
        return data

    def write(self, data: bytes) -> int:
        raise OSError("a window is for reading")
