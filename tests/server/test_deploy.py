"""What deploy/ says is what the command and the project know: container files and the unit."""

import argparse
import json
import re
import shlex
from pathlib import Path

import pytest
from mimo_edge.scripts import serve

from tests.bundles import ROOT
from tests.test_remedies import EXTRAS

CONTAINERS = sorted((ROOT / "deploy").glob("Containerfile*"))
UNIT = ROOT / "deploy" / "mimo-edge.service"


def parsed(words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(exit_on_error=False)
    serve.add_arguments(parser)
    return parser.parse_args(words)


def instructions(path: Path) -> list[tuple[str, str]]:
    """Of a container file: comments gone, continued lines joined."""
    lines = [n for n in path.read_text(encoding="utf-8").splitlines() if not n.startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    return [
        (word.upper(), rest.strip())
        for word, _, rest in (line.partition(" ") for line in joined.splitlines() if line.strip())
    ]


@pytest.mark.parametrize("path", CONTAINERS, ids=lambda path: path.name)
def test_a_container(path: Path) -> None:
    said = instructions(path)
    known = {"FROM", "WORKDIR", "COPY", "RUN", "ENV", "USER", "EXPOSE", "VOLUME"}
    assert {word for word, _ in said} <= known | {"HEALTHCHECK", "STOPSIGNAL", "ENTRYPOINT", "CMD"}
    last = {word: rest for word, rest in said}
    assert last["USER"].split(":")[0] not in ("", "0", "root")
    (extras,) = re.findall(r"\.whl\)\[([\w,]+)\]", path.read_text(encoding="utf-8"))
    assert set(extras.split(",")) <= set(EXTRAS)
    assert json.loads(last["ENTRYPOINT"]) == ["mimo-edge", "serve"]
    args = parsed(json.loads(last["CMD"]))
    assert args.host == "0.0.0.0" and str(args.port) == last["EXPOSE"]
    assert str(args.voices) == json.loads(f'"{last["VOLUME"]}"')
    assert last["STOPSIGNAL"] == "SIGTERM"
    check = json.loads(last["HEALTHCHECK"].partition(" CMD ")[2].strip())
    compile(check[2], path.name, "exec")
    assert f":{args.port}/health" in check[2]
    kept = (ROOT / ".containerignore").read_text(encoding="utf-8").splitlines()
    for name in (line[1:] for line in kept if line.startswith("!")):
        assert (ROOT / name).exists(), name


def test_the_unit() -> None:
    """Its command is one, it has time to drain, and it has no rights that it does not need."""
    text = UNIT.read_text(encoding="utf-8")
    lines = [n for n in text.splitlines() if n and not n.startswith(("#", "["))]
    assert all(re.fullmatch(r"[A-Z]\w+=.*", line) for line in lines)
    assert re.findall(r"^\[(\w+)\]$", text, re.M) == ["Unit", "Service", "Install"]
    said = dict(line.split("=", 1) for line in lines)
    program, command, *words = shlex.split(said["ExecStart"])
    assert program.endswith("/mimo-edge") and command == "serve"
    assert float(said["TimeoutStopSec"]) > parsed(words).drain
    assert said["DynamicUser"] == said["NoNewPrivileges"] == "yes"
    assert said["ProtectSystem"] == "strict" and said["CapabilityBoundingSet"] == ""
