"""What the processor here can do, as far as packed weights depend on it."""

import platform
from contextlib import suppress
from pathlib import Path

# of the flags that Linux lists, those by which ONNX Runtime chooses its kernels
_KNOWN = {"sse4_1", "avx", "avx2", "avx_vnni", "fma", "f16c"}  # of x86
_KNOWN |= {"asimd", "asimddp", "i8mm", "bf16", "sve", "sve2", "sme", "sme2"}  # of Arm
_FAMILIES = ("avx512", "amx_")
_LIST = Path("/proc/cpuinfo")


def processor(cpuinfo: Path = _LIST) -> str:
    """Architecture and flags in one line: two machines with the same line pack alike.

    Where the system lists no flags, the processor's name stands for them.
    """
    flags: list[str] = []
    with suppress(OSError):
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            name, _, value = line.partition(":")
            if name.strip() in ("flags", "Features"):
                listed = set(value.split())
                flags = sorted(f for f in listed if f in _KNOWN or f.startswith(_FAMILIES))
                break
    return " ".join([platform.machine(), *(flags or [platform.processor()])]).strip()
