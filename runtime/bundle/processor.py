"""What the processor here can do, as far as packed weights depend on it."""

import platform
from contextlib import suppress
from pathlib import Path

# of the flags that Linux lists, those by which ONNX Runtime chooses its kernels
_X86 = ("sse4_1", "avx", "avx2", "avx_vnni", "fma", "f16c", "amx_", "avx512")
_ARM = ("asimd", "i8mm", "bf16", "sve", "sme")
_LIST = Path("/proc/cpuinfo")


def processor(listed: Path = _LIST) -> str:
    """Architecture and flags in one line: two machines with the same line pack alike.

    Where the system lists no flags, the processor's name stands for them.
    """
    flags: list[str] = []
    with suppress(OSError):
        for line in listed.read_text(encoding="utf-8", errors="replace").splitlines():
            name, _, value = line.partition(":")
            if name.strip() in ("flags", "Features"):
                flags = sorted(f for f in set(value.split()) if f.startswith((*_X86, *_ARM)))
                break
    return " ".join([platform.machine(), *(flags or [platform.processor()])]).strip()
