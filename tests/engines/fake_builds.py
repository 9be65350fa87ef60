"""Builds of hollow bundles: nothing is traced, no TensorRT builds, and a plan is a few bytes."""

import gc
import hashlib
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from mimo_edge.engines.build import build_engines
from mimo_edge.engines.build_log import BuildLog
from mimo_edge.engines.builder import Built
from mimo_edge.engines.lowering import lower
from mimo_edge.engines.ports import graph_ports
from mimo_edge.engines.profiles import Limits, profiles
from mimo_edge.engines.target import Target
from mimo_edge.runtime.bundle.bundle import Bundle
from mimo_edge.runtime.bundle.engine import (
    EngineManifest,
    Identity,
    PieceIdentity,
    piece_hashes,
)
from mimo_edge.runtime.bundle.engine_folders import Wanted, home_of
from mimo_edge.runtime.bundle.manifest import PIECES

LIMITS = Limits(max_seq=32)
CLASSIC = Target("trt", ("8.9",))
VERSION = "11.4.1.1"
WANTED = Wanted("trt", VERSION, "8.9")


def identity_of(bundle: Bundle, max_seq: int = LIMITS.max_seq) -> Identity:
    """As `build.identity_of` has it: only of the language model do graphs depend on max_seq."""

    def piece_identity(piece: str) -> PieceIdentity:
        source, weights = piece_hashes(bundle, piece)
        length = max_seq if piece == "backbone" else 0
        lowered = hashlib.sha256(f"{source} {length}".encode()).hexdigest()
        limits = Limits(length or LIMITS.max_seq)
        return PieceIdentity(source, weights, lowered, "fp32", profiles(bundle, piece, limits))

    return Identity(
        product=CLASSIC.product,
        version=VERSION,
        capabilities=CLASSIC.capabilities,
        flags=(),
        recipe="fp32",
        max_seq=max_seq,
        max_batch=1,
        pieces={piece: piece_identity(piece) for piece in PIECES},
    )


def built(bundle: Bundle, max_seq: int = LIMITS.max_seq, **how: Any) -> tuple[Path, EngineManifest]:
    identity = identity_of(bundle, max_seq)
    return build_engines(bundle, identity, CLASSIC, None, LIMITS, home_of(bundle), **how)


class Builds:
    """Stands in for `engines.builder.build`; `given` is what each build was given as a cache."""

    def __init__(self) -> None:
        self.given: list[bytes] = []
        self.graphs: list[str] = []
        self.warnings: list[str] = []
        self.plans: list[weakref.ref[np.ndarray]] = []

    def __call__(self, trt: Any, target: Target, graph: Path, *rest: Any) -> Built:
        if any(plan() is not None for plan in self.plans):
            gc.collect()  # it takes a while where all tests run in one process
        assert all(plan() is None for plan in self.plans), "a finished plan is still in memory"
        self.graphs.append(graph.stem)
        self.given.append(rest[3])
        plan = np.frombuffer(graph.stem.encode(), np.uint8).copy()
        self.plans.append(weakref.ref(plan))
        log = BuildLog(warnings=list(self.warnings))
        lowered = lower(onnx.load(graph, load_external_data=False), rest[1]).graph
        ports = graph_ports(lowered.input), graph_ports(lowered.output)
        return Built(memoryview(plan), log, 0.0, *ports, f"after {graph.stem}".encode())
