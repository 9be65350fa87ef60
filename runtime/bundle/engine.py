"""engine.json: what the plans of an engine folder were built from and for.

A plan depends on its own graph, weights and shapes, on the product and its version, on the GPUs it
is for and on the builder's flags, and on nothing else: another piece of the bundle, or a file of
its text tokenizer, may change without it. Where the folders lie is in `engine_folders`.

The hashes in engine.json tell damage, not tampering: whoever can change a plan can change them too.
"""

import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mimo_edge.runtime.bundle.bundle import Bundle
from mimo_edge.runtime.bundle.errors import MALFORMED, EngineError, unreadable
from mimo_edge.runtime.bundle.manifest import PIECES, FileSpec

MODULES = {"trt-rtx": "tensorrt_rtx", "trt": "tensorrt"}  # product -> its Python module
# positions that a prefill hands over at once: each is a shape that TensorRT for RTX has to compile,
# so a prompt is cut and padded to these. Of an engine, those up to the largest of its profile.
PREFILL_LENGTHS = (1, 16, 64, 128, 256, 512)
SCHEMA = 3
_LONGEST = 1e9  # seconds of a build
MANIFEST = "engine.json"
MANIFEST_BYTES = 1 << 22  # more is none: that of the 7B has 100 kB
LARGEST = 1 << 31  # of a size in a shape; TensorRT counts a tensor's elements in 31 bits

# shape -> (min, opt, max)
Range = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]
Profile = Mapping[str, Range]  # input -> the shapes that it may have


@dataclass(frozen=True)
class PieceIdentity:
    """What the plan of one piece was built from."""

    source: str  # sha256 of its graph in the bundle
    weights: str  # sha256 of its weights
    graph: str  # sha256 of the graph as TensorRT got it
    precision: str
    profiles: tuple[Profile, ...]


@dataclass(frozen=True)
class Identity:
    """What the engines of a bundle were built from and for."""

    product: str  # of MODULES
    version: str  # full version of the product
    capabilities: tuple[str, ...]  # compute capabilities that they run on
    flags: tuple[str, ...]  # builder flags
    recipe: str
    max_seq: int
    max_batch: int
    pieces: Mapping[str, PieceIdentity]

    def key(self, piece: str) -> str:
        """Of one plan: two builds with equal keys are the same build."""
        own = self.pieces[piece]
        depends = (
            own.graph,
            own.weights,
            own.profiles,
            self.product,
            self.version,
            self.capabilities,
            self.flags,
        )
        return hashlib.sha256(json.dumps(depends, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class PlanSpec:
    """One plan of the folder."""

    key: str  # `Identity.key` of its build
    file: FileSpec
    seconds: float  # that the build took
    warnings: int  # of TensorRT, that nobody has looked into; they are in <piece>.log

    def to_raw(self) -> dict[str, Any]:
        """As it stands in JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_raw(cls, raw: Any) -> "PlanSpec":
        """Raises one of MALFORMED."""
        values = _fields(raw, cls, "plan")
        file = _fields(values["file"], FileSpec, "file")
        seconds = values["seconds"]
        if type(seconds) not in (int, float) or not 0 <= seconds <= _LONGEST:
            raise ValueError(f"seconds is {seconds!r}")
        return cls(
            key=_sha(values["key"], "key"),
            file=FileSpec(_sha(file["sha256"], "sha256"), _size(file["bytes"], "bytes", 1 << 50)),
            seconds=float(seconds),
            warnings=_size(values["warnings"], "warnings"),
        )


@dataclass(frozen=True)
class EngineManifest:
    """The content of engine.json."""

    identity: Identity
    plans: Mapping[str, PlanSpec]
    log_sha256: str  # over the logs of all pieces

    def to_json(self) -> str:
        return json.dumps({"schema": SCHEMA} | dataclasses.asdict(self), indent=1) + "\n"


def piece_hashes(bundle: Bundle, piece: str) -> tuple[str, str]:
    """sha256 of a piece's graph and of its weights, as the bundle's manifest has them."""
    return bundle.manifest.files[bundle.piece(piece).file].sha256, bundle.weights(piece).sha256


def read(folder: Path) -> EngineManifest:
    """Read engine.json. Raises EngineError if it is missing, damaged, or cannot be read."""
    path = folder / MANIFEST
    again = "Build it again: mimo-edge build BUNDLE --target ..."
    try:
        if path.stat().st_size > MANIFEST_BYTES or not path.is_file():
            raise ValueError(f"no file of at most {MANIFEST_BYTES >> 20} MB")
        raw = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(raw, dict):
            raise ValueError("it holds no object")
        if _size(raw["schema"], "schema") != SCHEMA:
            raise EngineError(
                f"{path} has schema {raw['schema']}, this program reads {SCHEMA}. {again}"
            )
        return _manifest(raw)
    except FileNotFoundError as error:
        raise EngineError(f"{folder} is no finished engine: no {MANIFEST}. {again}") from error
    except OSError as error:
        raise EngineError(unreadable(path, error, again)) from error
    except MALFORMED as error:
        raise EngineError(f"{path} is damaged ({error!s:.200}). {again}") from error


def _manifest(raw: dict[str, Any]) -> EngineManifest:
    values = _fields({k: v for k, v in raw.items() if k != "schema"}, EngineManifest, MANIFEST)
    plans = {
        _piece(name): PlanSpec.from_raw(spec)
        for name, spec in _typed(values["plans"], dict, "plans").items()
    }
    identity = _identity(values["identity"])
    for piece, plan in plans.items():
        if piece not in identity.pieces or plan.key != identity.key(piece):
            raise ValueError(f"the plan of {piece} is of another build than the identity says")
    return EngineManifest(identity, plans, _sha(values["log_sha256"], "log_sha256"))


def _identity(raw: Any) -> Identity:
    values = _fields(raw, Identity, "identity")
    pieces = _typed(values["pieces"], dict, "pieces")
    return Identity(
        product=_text(values["product"], "product", "|".join(MODULES)),
        version=_text(values["version"], "version", r"[0-9][\w.+-]{0,63}"),
        capabilities=_texts(values["capabilities"], "capabilities", r"[0-9]{1,3}\.[0-9]{1,3}"),
        flags=_texts(values["flags"], "flags", r"[A-Z0-9_]{1,64}"),
        recipe=_text(values["recipe"], "recipe", r"[\w.-]{1,64}"),
        max_seq=_size(values["max_seq"], "max_seq"),
        max_batch=_size(values["max_batch"], "max_batch"),
        pieces={_piece(name): _piece_identity(spec) for name, spec in pieces.items()},
    )


def _piece_identity(raw: Any) -> PieceIdentity:
    values = _fields(raw, PieceIdentity, "piece")
    return PieceIdentity(
        source=_sha(values["source"], "source"),
        weights=_sha(values["weights"], "weights"),
        graph=_sha(values["graph"], "graph"),
        # compute, and the forms of quantised weights: "fp32 int4/128+int4/32 int8"
        precision=_text(values["precision"], "precision", r"[\w.+/ -]{1,256}"),
        profiles=tuple(_profile(p) for p in _typed(values["profiles"], list, "profiles")),
    )


def _profile(raw: Any) -> Profile:
    return {name: _range(shapes) for name, shapes in _typed(raw, dict, "profile").items()}


def _range(raw: Any) -> Range:
    shapes = [
        tuple(_size(size, "size") for size in _typed(shape, list, "shape"))
        for shape in _typed(raw, list, "range")
    ]
    if len(shapes) != 3 or any(
        not 1 <= low <= typical <= high for low, typical, high in zip(*shapes, strict=True)
    ):
        raise ValueError(f"the range {raw!r:.80} is none")
    return shapes[0], shapes[1], shapes[2]


def _fields(raw: Any, kind: type, what: str) -> dict[str, Any]:
    """The values of a dataclass, exactly those."""
    names = {field.name for field in dataclasses.fields(kind)}
    given = _typed(raw, dict, what)
    if set(given) != names:
        raise ValueError(f"{what} has the keys {sorted(given)!r:.120}")
    return given


def _typed(raw: Any, kind: type, what: str) -> Any:
    if type(raw) is not kind:
        raise ValueError(f"{what} is {raw!r:.80}")
    return raw


def _size(raw: Any, what: str, limit: int = LARGEST) -> int:
    if type(raw) is not int or not 0 <= raw < limit:
        raise ValueError(f"{what} is {raw!r:.80}")
    return raw


def _text(raw: Any, what: str, pattern: str) -> str:
    """A short word: these are shown to people, and some name folders."""
    if type(raw) is not str or not re.fullmatch(pattern, raw, re.ASCII):
        raise ValueError(f"{what} is {raw!r:.80}")
    return raw


def _texts(raw: Any, what: str, pattern: str) -> tuple[str, ...]:
    return tuple(_text(item, what, pattern) for item in _typed(raw, list, what))


def _sha(raw: Any, what: str) -> str:
    return _text(raw, what, "[0-9a-f]{64}")


def _piece(name: str) -> str:
    """It becomes the name of a file."""
    if name not in PIECES:
        raise ValueError(f"there is no piece {name!r:.40}")
    return name
