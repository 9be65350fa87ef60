"""One build in a process of its own, for a program that also runs engines.

There TensorRT would tell the runtime's logger what it says of the build, which nobody reads; a
build that failed would be the last one; and one that is to be stopped could not be (see `builder`).
The process reads a request, writes the plan, and says how far it is on standard output, a line of
JSON each.
"""

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
from mimo_edge.engines.builder import build, load_module
from mimo_edge.engines.target import Target
from mimo_edge.runtime.bundle.engine import Profile
from mimo_edge.runtime.bundle.errors import (
    EngineError,
    EnvironmentProblem,
    MimoError,
    ResourceError,
)
from mimo_edge.runtime.bundle.files import write_bytes, write_text

OnProgress = Callable[[str, int, int], None]  # phase, steps done, steps in all
_ERRORS = {kind.__name__: kind for kind in (EngineError, EnvironmentProblem, ResourceError)}


@dataclass(frozen=True)
class Request:
    """What is to be built, and from which files."""

    target: Target
    graph: Path  # of the bundle; the weights lie beside it
    profiles: Sequence[Profile]
    capacity: int

    def to_json(self, model: Path, plan: Path) -> str:
        return json.dumps(
            {
                "product": self.target.product,
                "capabilities": self.target.capabilities,
                "graph": str(self.graph.resolve()),
                "profiles": self.profiles,
                "capacity": self.capacity,
                "model": str(model),
                "plan": str(plan),
            }
        )


def build_apart(
    request: Request, model: onnx.ModelProto, plan: Path, on_progress: OnProgress = lambda *_: None
) -> None:
    """Build `model` in place of the request's graph, into the file `plan`. Interrupted, the process
    is ended. Raises what `builder.build` raises, and ResourceError if the process was killed."""
    given, asked = plan.with_suffix(".onnx"), plan.with_suffix(".request")
    write_bytes(given, model.SerializeToString())
    write_text(asked, request.to_json(given, plan))
    command = [sys.executable, "-P", "-m", "mimo_edge.engines.apart", str(asked)]
    # -P: what lies in the current folder is no module of ours
    # a session of its own: Ctrl-C is for this process, which then ends that one
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        try:
            _follow(process, request.graph.name, on_progress)
        finally:
            process.kill()
            given.unlink(missing_ok=True)
            asked.unlink(missing_ok=True)


def _follow(process: subprocess.Popen[str], name: str, on_progress: OnProgress) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        try:
            said = json.loads(line)
        except ValueError:  # of a library
            continue
        if not isinstance(said, dict):  # of a library, too: a number is JSON
            continue
        if "error" in said:
            raise _ERRORS.get(said["error"], EngineError)(said["message"])
        if "phase" in said:
            on_progress(said["phase"], said["done"], said["total"])
    code = process.wait()
    if code < 0:
        raise ResourceError(
            f"the build of {name} was killed by signal {-code}: it may have needed more memory "
            "than there is. A smaller precision needs less."
        )
    if code:
        raise EngineError(f"the build of {name} ended with code {code}; its messages are above")


def main(asked: Path) -> None:
    """Build what a request says; the last line says what was wrong, if anything."""

    def tell(**said: Any) -> None:
        print(json.dumps(said), flush=True)

    raw = json.loads(asked.read_text(encoding="utf-8"))
    target = Target(raw["product"], tuple(raw["capabilities"]))
    profiles: list[Any] = [
        {name: tuple(map(tuple, shapes)) for name, shapes in profile.items()}
        for profile in raw["profiles"]
    ]
    try:
        made = build(
            load_module(target),
            target,
            Path(raw["graph"]),
            profiles,
            raw["capacity"],
            lambda phase, done, total: tell(phase=phase, done=done, total=total),
            model=onnx.load(raw["model"], load_external_data=False),
        )
        write_bytes(Path(raw["plan"]), made.plan)
    except MimoError as error:
        tell(error=type(error).__name__, message=str(error))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
