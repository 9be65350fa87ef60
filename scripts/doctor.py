"""`mimo-edge doctor`: what this machine can do, and how to get the rest."""

import argparse
import importlib.metadata
import importlib.util
import json
import os
import platform
import shutil
import subprocess
from dataclasses import asdict, dataclass
from pathlib import Path

from mimo_edge.runtime.bundle.bundle import Bundle
from mimo_edge.runtime.bundle.engine import MODULES, read
from mimo_edge.runtime.bundle.engine_folders import INSIDE, finished
from mimo_edge.runtime.bundle.errors import InputError
from mimo_edge.runtime.bundle.requirements import install, onnxruntime_choice
from mimo_edge.scripts.machine import memory_bytes

# Its variants put their files into one folder: first none of them, then the one that is wanted.
ORT_GPU = f"pip uninstall --yes onnxruntime onnxruntime-gpu; {install('gpu')}"
CUDA = "CUDAExecutionProvider"
GPU_SECONDS = 20  # nvidia-smi wakes a sleeping driver, which takes some


@dataclass(frozen=True)
class Finding:
    what: str
    works: bool
    found: str
    remedy: str = ""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument(
        "pack",
        metavar="PACK",
        type=Path,
        nargs="?",
        help="what `mimo-edge pack` made: does it run here?",
    )
    parser.add_argument("--json", action="store_true")


def run(args: argparse.Namespace) -> int:
    """Print the findings. Returns the exit code: 0 if the CPU runtime works, or the pack that is
    asked about, else 3."""
    findings = examine()
    decides = findings[1]
    if args.pack is not None:
        decides = examine_pack(args.pack)
        findings.append(decides)
    if args.json:
        print(json.dumps([asdict(f) for f in findings], ensure_ascii=False))
    else:
        for f in findings:
            print(f"{'ok ' if f.works else '-- '} {f.what:28} {f.found}")
            if not f.works and f.remedy:
                print(f"    {'':28} {f.remedy}")
    return 0 if decides.works else 3


def examine() -> list[Finding]:
    """Look at packages, providers, GPU, memory and disk; nothing is loaded that is heavy."""
    return [
        Finding("python", True, f"{platform.python_version()} on {platform.machine()}"),
        _runtime(),
        *_variants(),
        _provider(CUDA, "run on the GPU (ort-cuda)"),
        _package("torch", "export a checkpoint", "export"),
        _package("onnx", "write ONNX graphs", "export"),
        _package("tensorrt_rtx", "build RTX engines", "trt", "tensorrt-rtx"),
        _package("tensorrt", "build classic engines", None),
        _package("cuda", "run on the GPU and run engines", "gpu", "cuda-python"),
        _package("flash_attn", "the reference on upstream's kernels", "flash", "flash-attn"),
        _gpu(),
        _memory(),
        Finding("disk here", True, f"{shutil.disk_usage('.').free / 1e9:.0f} GB free"),
    ]


def examine_pack(folder: Path) -> Finding:
    """Whether what a pack was made for is here. No file is hashed, no engine is loaded."""
    bundle = Bundle.open(folder, verify=False)
    if bundle.pack is None:
        raise InputError(
            f"{folder} is a bundle, which is made for no device. Name what `mimo-edge pack` made."
        )
    backend, target = bundle.pack.backend, bundle.pack.target
    what, options = f"run {folder.name}", f"--backend {backend}"
    if backend not in MODULES:
        needed = _runtime() if backend == "ort-cpu" else _provider(CUDA, "")
        found = f"made for {target}; {needed.found}"
        return Finding(what, needed.works, found, needed.remedy or f"run it with {options}")
    engines = finished(folder / INSIDE)
    if len(engines) != 1:
        lacks = f"made for {target}; it has {len(engines)} folders of engines"
        return Finding(what, False, lacks, "copy the whole folder again, or pack the bundle again")
    identity = read(engines[0]).identity
    made = f"made for {target}, {identity.product} {identity.version}"
    again = f"pack the bundle for what is here: mimo-edge pack BUNDLE --target {backend} -o OUT"
    module = _package(MODULES[backend], "", "trt" if backend == "trt-rtx" else None)
    if not module.works:
        return Finding(what, False, f"{made}; {module.found}", module.remedy)
    here = importlib.import_module(MODULES[backend]).__version__
    if here != identity.version:
        return Finding(what, False, f"{made}; here is {here}", again)
    gpus = _capabilities()
    if not set(gpus) & set(identity.capabilities):
        seen = f"compute capability {', '.join(gpus)}" if gpus else "no GPU that answers"
        return Finding(what, False, f"{made}; here is {seen}", again)
    return Finding(what, True, f"{made}: {options} --trust-engines")


def _capabilities() -> list[str]:
    """Of the GPUs that the driver names."""
    return [fields[1] for line in _gpu().found.split("; ") if len(fields := line.split(", ")) == 4]


def _runtime() -> Finding:
    what, variants = "run on the CPU (ort-cpu)", _onnxruntimes()
    try:
        import onnxruntime
    except ImportError as error:
        if not variants:
            return Finding(what, False, "no ONNX Runtime", onnxruntime_choice())
        return Finding(what, False, str(error), f"pip install --force-reinstall {variants[0]}")
    return Finding(what, True, f"{' and '.join(variants)} {onnxruntime.__version__}")


def _onnxruntimes() -> list[str]:
    """The packages that are installed and bring the module onnxruntime; more than one is wrong."""
    named = importlib.metadata.packages_distributions().get("onnxruntime", [])
    return sorted(set(named))


def _variants() -> list[Finding]:
    """Two variants in one environment: the files are those of whichever came last."""
    found = _onnxruntimes()
    if len(found) < 2:
        return []
    remedy = f"pip uninstall --yes {' '.join(found)}, then the one that is wanted: "
    remedy += onnxruntime_choice()
    return [
        Finding("one ONNX Runtime", False, f"{' and '.join(found)} overwrite each other", remedy)
    ]


def _provider(name: str, what: str) -> Finding:
    try:
        import onnxruntime

        there = name in onnxruntime.get_available_providers()
        built = getattr(onnxruntime, "cuda_version", "")  # only a package for CUDA says it
    except ImportError:
        there, built = False, ""
    made_for = f", made for CUDA {built} and cuDNN 9" if built else ""
    return Finding(what, there, name + made_for if there else f"no {name}", ORT_GPU)


def _package(module: str, what: str, extra: str | None, name: str | None = None) -> Finding:
    name = name or module
    if importlib.util.find_spec(module) is None:
        remedy = install(extra) if extra else "comes with JetPack or NVIDIA's index"
        return Finding(what, False, f"no {name}", remedy)
    try:
        return Finding(what, True, f"{name} {importlib.metadata.version(name)}")
    except importlib.metadata.PackageNotFoundError:
        return Finding(what, True, f"{name} (version unknown)")


def _gpu() -> Finding:
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return Finding("GPU", False, "no nvidia-smi", "install NVIDIA's driver if there is a GPU")
    query = "--query-gpu=name,compute_cap,memory.total,driver_version"
    remedy = "run nvidia-smi by itself; restart, or install NVIDIA's driver again"
    command = [tool, query, "--format=csv,noheader"]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=GPU_SECONDS
        )
    except subprocess.TimeoutExpired:
        return Finding("GPU", False, f"nvidia-smi says nothing for {GPU_SECONDS} s", remedy)
    except OSError as error:
        return Finding("GPU", False, f"nvidia-smi does not start ({error.strerror})", remedy)
    lines = "; ".join(done.stdout.split("\n")).strip("; ")
    found = lines or done.stderr.strip() or "none answers"
    return Finding("GPU", done.returncode == 0, found, remedy)


def _memory() -> Finding:
    total = memory_bytes()
    if total is not None:
        return Finding("memory", True, f"{total / 1e9:.0f} GB, {os.cpu_count()} cores")
    return Finding("memory", True, f"{os.cpu_count()} cores")
