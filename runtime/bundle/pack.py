"""pack.json: a folder with no more than one device needs of a bundle.

bundle.json          as the bundle has it: what the pieces are, and from what they were made
pack.json            for which target, of which bundle, and the sha256 of every file that is here
the text tokenizer's files
<piece>.onnx ...     of a pack for ONNX Runtime: graphs and weights in the form that it loads
engines/NAME/        of a pack for TensorRT: engine.json and the plans, and no weights beside them

It is opened like a bundle. What its bundle has and its target does not need is not here.
"""

import dataclasses
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mimo_edge.runtime.bundle.errors import MALFORMED, BundleError
from mimo_edge.runtime.bundle.files import read_text
from mimo_edge.runtime.bundle.manifest import MANIFEST, FileSpec
from mimo_edge.runtime.bundle.names import plain_name

PACK = "pack.json"
SCHEMA = 1
_TARGET = r"ort-cpu|ort-cuda|trt|trt-rtx:[0-9]+\.[0-9]+(,[0-9]+\.[0-9]+)*"
_SHA = "[0-9a-f]{64}"


@dataclass(frozen=True)
class Pack:
    """The content of pack.json."""

    target: str  # as `mimo-edge pack --target` names it
    packed_from: str  # the identity of the bundle
    tools: Mapping[str, str]  # by which it was packed
    files: Mapping[str, FileSpec]

    @property
    def backend(self) -> str:
        """The backend that runs it."""
        return self.target.partition(":")[0]

    def to_json(self) -> str:
        raw = {"schema": SCHEMA} | dataclasses.asdict(self)
        return json.dumps(raw, indent=1, ensure_ascii=False) + "\n"


def read_pack(folder: Path) -> Pack | None:
    """What pack.json of a folder says; None for a bundle, which has none. Raises BundleError."""
    path = folder / PACK
    if not path.is_file():
        return None
    try:
        return _pack(json.loads(read_text(path)))
    except MALFORMED as error:
        raise BundleError(
            f"{path} is damaged ({type(error).__name__}: {error!s:.200}). Copy the whole folder "
            "again, or pack the bundle again."
        ) from error


def _pack(raw: Any) -> Pack:
    if raw["schema"] != SCHEMA:
        raise ValueError(f"schema {raw['schema']!r}, this program reads {SCHEMA}")
    files = {name: FileSpec(**spec) for name, spec in raw["files"].items()}
    for name, spec in files.items():
        if not plain_name(name):
            raise ValueError(f"{name!r} is not the name of a file in the folder")
        if type(spec.bytes) is not int or spec.bytes < 0 or not re.fullmatch(_SHA, spec.sha256):
            raise ValueError(f"size and sha256 of {name} are {spec.bytes!r}, {spec.sha256!r}")
    if MANIFEST not in files:
        raise ValueError(f"{MANIFEST} is not among its files")
    if not re.fullmatch(_TARGET, raw["target"]) or not re.fullmatch(_SHA, raw["packed_from"]):
        raise ValueError(f"target {raw['target']!r} of bundle {raw['packed_from']!r}")
    if not isinstance(raw["tools"], dict):
        raise ValueError(f"tools is {raw['tools']!r}")
    return Pack(raw["target"], raw["packed_from"], raw["tools"], files)
