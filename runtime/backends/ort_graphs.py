"""CUDA graphs of ONNX Runtime: a bound run is recorded once and then replayed as a whole.

ONNX Runtime records a run by its number the first time it is asked for, and to do so runs it more
than once. Whatever is recorded must therefore give the same when it is repeated: no output may be
an input of the same run, but for a cache, which is written to the same positions again. A recorded
run is bound to addresses and shapes; every binding has a number of its own. A piece takes part only
if all its nodes are on the GPU, which ONNX Runtime checks when it loads it.

Elsewhere than on CUDA the numbers say nothing, and the runs are plain ones.
"""

from collections.abc import Collection
from dataclasses import dataclass
from itertools import count
from typing import Any

import onnxruntime as ort
from mimo_edge.runtime.bundle.errors import EnvironmentProblem, InputError

GRAPH_PIECES = ("patch_encoder", "backbone", "patch_decoder")  # those whose bindings are kept
NUMBER = "gpu_graph_id"  # ONNX Runtime's name of a recorded run
NOT_RECORDED = "-1"


class CudaGraphs:
    """Which pieces of a backend are recorded, and the numbers of their runs."""

    def __init__(self, pieces: Collection[str] = ()) -> None:
        """Raises InputError for a piece whose runs have no fixed shapes."""
        for piece in pieces:
            if piece not in GRAPH_PIECES:
                raise InputError(
                    f"runs of {piece!r} cannot be recorded as CUDA graphs; choose of "
                    f"{', '.join(GRAPH_PIECES)}"
                )
        if pieces and not hasattr(ort.InferenceSession, "release_captured_graph"):
            raise EnvironmentProblem(
                f"ONNX Runtime {ort.__version__} cannot let go of CUDA graphs; 1.31 is the first "
                "that can. Install a newer one, or record none."
            )
        self.pieces = frozenset(pieces)
        self._numbers = count(1)

    def provider_options(self, piece: str, provider: str) -> dict[str, str]:
        """What a session of a piece needs on a provider, so that its runs can be recorded."""
        wanted = piece in self.pieces and provider == "CUDAExecutionProvider"
        return {"enable_cuda_graph": "1"} if wanted else {}

    def new_run(self, piece: str, session: Any) -> "Run":
        """For a binding that is run again and again."""
        recorded = piece in self.pieces
        return Run(session, _numbered(str(next(self._numbers))) if recorded else None)

    def plain_run(self, piece: str) -> Any:
        """Options of a run that is not recorded, on a session that records others."""
        return _numbered(NOT_RECORDED) if piece in self.pieces else None


@dataclass(frozen=True, eq=False)
class Run:
    """How a binding of a session is run: with `options`, None where nothing is recorded."""

    session: Any
    options: Any

    def release(self) -> None:
        """Let go of what was recorded."""
        if self.options is not None:
            self.session.release_captured_graph(int(self.options.get_run_config_entry(NUMBER)))


def _numbered(number: str) -> Any:
    options = ort.RunOptions()
    options.add_run_config_entry(NUMBER, number)
    return options
