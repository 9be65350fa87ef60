"""engine.json: what an engine folder was built from and for, and whether it fits.

<bundle>/engines/<product>-<version>-sm<capabilities>-<recipe>-s<max_seq>-b<max_batch>/
    engine.json, and <piece>.plan, <piece>.log, <piece>.json of every piece
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mimo_edge.runtime.bundle.bundle import Bundle
from mimo_edge.runtime.bundle.errors import MALFORMED, EngineError
from mimo_edge.runtime.bundle.files import hash_file
from mimo_edge.runtime.bundle.manifest import PIECES, FileSpec

MODULES = {"trt-rtx": "tensorrt_rtx", "trt": "tensorrt"}  # product -> its Python module
SCHEMA = 2
MANIFEST = "engine.json"


@dataclass(frozen=True)
class Identity:
    """Everything that an engine depends on. Two builds with equal identities are the same build."""

    bundle: str  # sha256 over all files of the bundle
    graphs: Mapping[str, str]  # piece -> sha256 of the graph that TensorRT got and of its weights
    recipe: str
    precision: Mapping[str, str]
    product: str  # of MODULES
    version: str  # full version of the product
    capabilities: tuple[str, ...]  # compute capabilities that it runs on
    max_seq: int
    max_batch: int
    profiles: Mapping[str, Any]  # piece -> its profiles
    flags: tuple[str, ...]  # builder flags

    @property
    def key(self) -> str:
        return hashlib.sha256(_canonical(dataclasses.asdict(self)).encode()).hexdigest()


@dataclass(frozen=True)
class EngineManifest:
    """The content of engine.json."""

    identity: Identity
    plans: Mapping[str, FileSpec]  # piece -> its plan
    log_sha256: str
    seconds: Mapping[str, float]  # piece -> build time

    def to_json(self) -> str:
        return json.dumps({"schema": SCHEMA} | dataclasses.asdict(self), indent=1) + "\n"


def folder_of(bundle: Bundle, identity: Identity) -> Path:
    """Where engines of this identity lie; recipe and limits in the name keep builds apart."""
    sm = "_".join(c.replace(".", "") for c in identity.capabilities)
    name = f"{identity.product}-{identity.version}-sm{sm}-{identity.recipe}"
    return bundle.folder / "engines" / f"{name}-s{identity.max_seq}-b{identity.max_batch}"


def read(folder: Path) -> EngineManifest:
    """Read engine.json. Raises EngineError if it is missing, damaged, or cannot be read."""
    path = folder / MANIFEST
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        if raw["schema"] != SCHEMA:
            raise EngineError(
                f"{path} has schema {raw['schema']}, this program reads {SCHEMA}. "
                + _rebuild(folder)
            )
        identity = raw["identity"]
        for name in ("capabilities", "flags"):
            identity[name] = tuple(identity[name])
        plans = {name: FileSpec(**spec) for name, spec in raw["plans"].items()}
        return EngineManifest(Identity(**identity), plans, raw["log_sha256"], raw["seconds"])
    except FileNotFoundError as error:
        raise EngineError(
            f"{folder} is no finished engine: no {MANIFEST}. {_rebuild(folder)}"
        ) from error
    except OSError as error:
        said = f"{path} cannot be read ({error.strerror})"
        raise EngineError(f"{said}. {_rebuild(folder)}") from error
    except MALFORMED as error:
        raise EngineError(f"{path} is damaged ({error}). {_rebuild(folder)}") from error


@dataclass(frozen=True)
class Wanted:
    """What an engine must be for: the product and the GPU that are here."""

    product: str
    version: str
    capability: str

    @property
    def target(self) -> str:
        """As the build command names it."""
        return f"{self.product}:{self.capability}" if self.product == "trt-rtx" else self.product


def find(bundle: Bundle, wanted: Wanted) -> tuple[Path, EngineManifest]:
    """The bundle's engines that fit, checked. Raises EngineError that says why none does.

    Of several, the ones for most rows, and among those the ones with the longest cache. A bundle
    that was opened without hashing its files has only the sizes of its engines checked.
    """
    fitting, reasons = [], []
    for folder in sorted((bundle.folder / "engines").glob(f"{wanted.product}-[0-9]*")):
        if not folder.is_dir():  # earlier versions kept the timing cache of classic TensorRT here
            continue
        try:
            manifest = read(folder)
            _check_identity(folder, manifest, bundle, wanted)
            fitting.append((folder, manifest))
        except EngineError as error:
            reasons.append(str(error))

    def limits(found: tuple[Path, EngineManifest]) -> tuple[int, int]:
        return found[1].identity.max_batch, found[1].identity.max_seq

    for folder, manifest in sorted(fitting, key=limits, reverse=True):
        try:
            # reads the plans: only of those that will be used
            _check_whole(folder, manifest, bundle.verify)
            return folder, manifest
        except EngineError as error:
            reasons.append(str(error))
    if reasons:
        raise EngineError("no engine of this bundle fits here:\n  " + "\n  ".join(reasons))
    raise EngineError(
        f"{bundle.folder} has no engines for {wanted.product} {wanted.version}. Build them: "
        f"mimo-edge build {bundle.folder} --target {wanted.target}"
    )


def _check_identity(folder: Path, manifest: EngineManifest, bundle: Bundle, wanted: Wanted) -> None:
    identity = manifest.identity
    for what, built, here in (
        ("bundle", identity.bundle[:16], bundle.identity[:16]),
        ("product", identity.product, wanted.product),
        ("version", identity.version, wanted.version),
    ):
        if built != here:
            raise EngineError(
                f"{folder} was built for {what} {built}, here is {here}. {_rebuild(folder, wanted)}"
            )
    if wanted.capability not in identity.capabilities:
        raise EngineError(
            f"{folder} was built for compute capability {', '.join(identity.capabilities)}, this "
            f"GPU has {wanted.capability}. {_rebuild(folder, wanted)}"
        )
    missing = [piece for piece in PIECES if piece not in manifest.plans]
    if missing:
        raise EngineError(f"{folder} lacks {', '.join(missing)}. {_rebuild(folder)}")


def _check_whole(folder: Path, manifest: EngineManifest, verify: bool) -> None:
    for piece, spec in manifest.plans.items():
        path = folder / f"{piece}.plan"
        if not path.is_file():
            raise EngineError(f"{path} is missing. {_rebuild(folder)}")
        try:
            whole = path.stat().st_size == spec.bytes and (not verify or hash_file(path) == spec)
        except OSError as error:
            raise EngineError(
                f"{path} cannot be read ({error.strerror}). {_rebuild(folder)}"
            ) from error
        if not whole:
            raise EngineError(f"{path} is truncated or altered. {_rebuild(folder)}")


def _rebuild(folder: Path, wanted: Wanted | None = None) -> str:
    target = "..." if wanted is None else wanted.target
    return f"Build it again: mimo-edge build {folder.parent.parent} --target {target}"


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"))
