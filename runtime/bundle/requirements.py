"""How to get what is not installed, in a form that works wherever this package came from.

The package is on no index, so `pip install "mimo-edge[trt]"` finds nothing; what its extras name is
there.
"""

import importlib.metadata

# of ONNX Runtime any variant will do, and only one of them may be installed
ONNXRUNTIME_EXTRAS = ("cpu", "gpu")


def install(extra: str) -> str:
    """The command that installs what one of this package's extras names."""
    words = " ".join(f'"{requirement}"' for requirement in of_extra(extra))
    return f"pip install {words}"


def of_extra(extra: str) -> list[str]:
    """The requirements of an extra, as this package's own metadata has them."""
    found = []
    for line in importlib.metadata.requires("mimo-edge") or ():
        requirement, _, condition = line.partition(";")
        if condition.replace(" ", "").replace("'", '"') == f'extra=="{extra}"':
            found.append(requirement.strip())
    assert found, f"there is no extra {extra!r}"
    return found


def onnxruntime_choice() -> str:
    """What to install where no ONNX Runtime is there."""
    cpu, gpu = (install(extra) for extra in ONNXRUNTIME_EXTRAS)
    return f"{cpu} for the CPU, or {gpu} for CUDA: one of them, not both"
