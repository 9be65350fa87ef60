"""What a request may be, and how many there may be."""

from dataclasses import dataclass
from pathlib import Path

from mimo_edge.runtime.server.errors import RequestError

_CGROUP = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class Limits:
    """All that bounds what a client can use up."""

    queue: int = 32  # requests that wait while every slot is taken
    sessions: int = 64  # realtime connections
    requests: int = 256  # HTTP requests that are open at once, those that are refused included
    upload_bytes: int = 25 << 20  # of a file, as OpenAI has it
    body_seconds: float = 60.0  # until a request's body is there
    audio_seconds: float = 600.0  # of one recording
    voice_seconds: float = 30.0
    voices: int = 100
    text: int = 4096  # characters that are read aloud, as OpenAI has it
    prompt: int = 100_000  # characters of a conversation
    patches: int = 4096  # of an answer
    seconds: float = 600.0  # for one request
    free_memory: int = 256 << 20  # bytes; new work is refused below
    idle_seconds: float = 3600.0  # of a realtime connection on which nothing comes

    @property
    def body_bytes(self) -> int:
        """Of a request, in which a file may lie as base64."""
        return self.upload_bytes * 4 // 3 + (1 << 20)


def check_text(text: str, most: int, param: str) -> str:
    """`text`, if it is not too long and not blank."""
    if len(text) > most:
        raise RequestError(
            f"{param} has {len(text)} characters and may have {most}; send it in parts.",
            code="string_above_max_length",
            param=param,
        )
    if not text.strip():
        raise RequestError(f"{param} is blank; say what it should be.", param=param)
    return text


def free_memory() -> int | None:
    """Bytes that this process can still have, or None where the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        free = next(int(n.split()[1]) << 10 for n in lines if n.startswith("MemAvailable:"))
    except (OSError, ValueError, StopIteration):
        return None
    try:  # of the container
        most = int((_CGROUP / "memory.max").read_text())
        used = int((_CGROUP / "memory.current").read_text())
        stat = dict(n.split() for n in (_CGROUP / "memory.stat").read_text().splitlines())
        return min(free, most - used + int(stat["inactive_file"]))
    except (OSError, ValueError, KeyError):  # "max", or no container
        return free
