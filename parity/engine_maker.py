"""Engines that are built to be looked at: one at a time, in a folder that goes with them."""

import math
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import onnx
from mimo_edge.engines.apart import Request, build_apart
from mimo_edge.engines.planner import estimate_piece
from mimo_edge.engines.target import Target
from mimo_edge.parity.engine_piece import EnginePiece
from mimo_edge.runtime.backends.trt import TrtBackend
from mimo_edge.runtime.bundle.engine import Profile
from mimo_edge.runtime.bundle.errors import ResourceError
from mimo_edge.runtime.bundle.lock import beside
from mimo_edge.runtime.bundle.manifest import PieceSpec

Report = Callable[..., None]
_FOLDER, _PLAN = ".engines", "engine.plan"


@contextmanager
def passing_folder(output: Path) -> Iterator[Path]:
    """A hidden folder beside an output, for the user alone, which goes however the block ends.
    What a killed program left there goes, too."""
    folder = beside(output, _FOLDER)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(mode=0o700)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class EngineMaker:
    """Builds for what the engines of a backend were built for: product, GPUs, limits, flags."""

    def __init__(self, backend: TrtBackend, folder: Path, on_progress: Report) -> None:
        self.backend, self._folder, self._on_progress = backend, folder, on_progress
        identity = backend.identity
        self._target = Target(identity.product, identity.capabilities)
        self._stage, self._made, self._most = "", 0, 0

    def begin(self, stage: str, most: int) -> None:
        """A search of a stage begins, which builds so many engines at most."""
        self._stage, self._made, self._most = stage, 0, most

    @contextmanager
    def engine(
        self, piece: str, model: onnx.ModelProto, spec: PieceSpec, profile: Profile
    ) -> Iterator[EnginePiece]:
        """The engine of a changed graph of a piece, for as long as the block runs. Raises
        EngineError, ResourceError, EnvironmentProblem."""
        bundle, plan = self.backend.bundle, self._folder / _PLAN
        weights = bundle.weight_bytes(piece)
        free = shutil.disk_usage(self._folder).free
        if free < weights:
            raise ResourceError(
                f"{self._folder.parent} has {free / 1e9:.1f} GB free, an engine of {piece} needs "
                f"about {weights / 1e9:.1f} GB. Free some, or name another place for the report."
            )
        seconds = math.ceil(estimate_piece(piece, weights, len(model.graph.node)).seconds)
        said = f"bisecting {self._stage}: building engine {self._made + 1}, about {seconds} s each"
        self._on_progress(said, self._made, self._most, "engines at most")
        capacity = self.backend.identity.max_seq
        request = Request(self._target, bundle.path(piece), (profile,), capacity)
        try:
            build_apart(request, model, plan)
            opened = self.backend.open_engine(plan, spec)
            self._made += 1
            yield EnginePiece(self.backend, opened, spec, profile)
        finally:
            plan.unlink(missing_ok=True)
