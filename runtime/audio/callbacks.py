"""libsndfile reading and writing a Python object, without losing what goes wrong in it."""

from collections.abc import Callable
from typing import Any, Protocol

import soundfile


class Bytes(Protocol):
    """What libsndfile is given for a file."""

    error: BaseException | None  # the first that came up while libsndfile was calling

    @property
    def size(self) -> int: ...
    def seek(self, offset: int, whence: int = 0) -> int: ...
    def tell(self) -> int: ...
    def read(self, count: int) -> bytes: ...
    def write(self, data: bytes) -> int: ...


class SoundFile(soundfile.SoundFile):  # type: ignore[misc]  # untyped
    """`soundfile.SoundFile` over `Bytes`, reading strictly forwards.

    An exception cannot pass through libsndfile. soundfile's callbacks print it to stderr and go on,
    so that a full disk becomes a short file, and Ctrl-C, which Python raises wherever it is just
    then, is lost. Here it is kept, and `raise_kept` raises it after the call.

    soundfile seeks after every read of a seekable file. That doubles the time of an MP3, and fails
    for a FLAC without a length in its header: hence `seekable`.
    """

    def seekable(self) -> bool:
        return False

    def _init_virtual_io(self, file: Bytes) -> Any:
        ffi = soundfile._ffi

        def keep(_: object, error: BaseException, __: object) -> None:
            file.error = file.error or error

        def callback(name: str) -> Callable[[Callable[..., int]], Any]:
            made: Callable[[Callable[..., int]], Any] = ffi.callback(name, error=0, onerror=keep)
            return made

        @callback("sf_vio_get_filelen")
        def size(_: object) -> int:
            return file.size

        @callback("sf_vio_seek")
        def seek(offset: int, whence: int, _: object) -> int:
            return file.seek(offset, whence)

        @callback("sf_vio_read")
        def read(target: Any, count: int, _: object) -> int:
            data = file.read(count)
            ffi.memmove(target, data, len(data))
            return len(data)

        @callback("sf_vio_write")
        def write(source: Any, count: int, _: object) -> int:
            return file.write(ffi.buffer(source, count)[:])

        @callback("sf_vio_tell")
        def tell(_: object) -> int:
            return file.tell()

        self._virtual_io = {  # they must live as long as the file
            "get_filelen": size,
            "seek": seek,
            "read": read,
            "write": write,
            "tell": tell,
        }
        return ffi.new("SF_VIRTUAL_IO*", self._virtual_io)


def raise_kept(file: Bytes) -> None:
    """Raise what libsndfile could not."""
    if file.error is not None:
        raise file.error
