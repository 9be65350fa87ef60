"""Engine folders: where they lie, which of them may be used, and which one is.

<root>/<network>/<name>/engine.json, and <piece>.plan, <piece>.log, <piece>.json of every piece
    root     the cache folder ($XDG_CACHE_HOME or ~/.cache, mimo-edge/engines), or --engines DIR
    network  of the bundle: all its graphs and weights, and no other file of it
    name     <product>-<version>-sm<capabilities>-<recipe>-s<max_seq>-b<max_batch>

An engine is a program: to load one is to run what its maker put into it. So engines do not come
with a bundle, which is data. Those in a bundle's own folder engines/ are used only when asked for.
"""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

from mimo_edge.runtime.bundle.bundle import Bundle
from mimo_edge.runtime.bundle.engine import (
    MANIFEST,
    EngineManifest,
    Identity,
    piece_hashes,
    read,
)
from mimo_edge.runtime.bundle.errors import (
    EngineError,
    EnvironmentProblem,
    InputError,
    unreadable,
)
from mimo_edge.runtime.bundle.files import hash_file
from mimo_edge.runtime.bundle.manifest import PIECES, FileSpec

INSIDE = "engines"  # the folder of a bundle that may hold engines


@dataclass(frozen=True)
class Trust:
    """Which engines the caller lets run here."""

    folder: Path | None = None  # engines from here, instead of the cache folder
    bundle: bool = False  # those in the bundle, too


CACHE_ONLY = Trust()


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


def cache_folder() -> Path:
    """Where engines lie unless another place is named. Raises EnvironmentProblem without a home."""
    given = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(given):  # anything else is to be ignored, says the standard
        return Path(given) / "mimo-edge" / "engines"
    try:
        return Path.home() / ".cache" / "mimo-edge" / "engines"
    except RuntimeError as error:
        raise EnvironmentProblem(
            "there is no home folder for engines. Name a folder: --engines DIR."
        ) from error


def home_of(bundle: Bundle, root: Path | None = None) -> Path:
    """The folder of a bundle's engines, in `root` or in the cache folder.

    Raises EngineError for a bundle without the pieces that speak: engines are built of all.
    """
    if not bundle.speaks:
        raise EngineError(
            f"{bundle.folder} only listens, and engines are built of all pieces. Use a backend of "
            "ONNX Runtime, or export it again with --with-speech."
        )
    digest = hashlib.sha256()
    for piece in PIECES:
        digest.update(" ".join((piece, *piece_hashes(bundle, piece), "\n")).encode())
    return (root or cache_folder()) / digest.hexdigest()[:16]


def name_of(identity: Identity) -> str:
    """The name of an engine folder; recipe and limits in it keep builds apart."""
    sm = "_".join(c.replace(".", "") for c in identity.capabilities)
    name = f"{identity.product}-{identity.version}-sm{sm}-{identity.recipe}"
    return f"{name}-s{identity.max_seq}-b{identity.max_batch}"


def finished(home: Path) -> list[Path]:
    """The engine folders in a home, in the order of their names."""
    return sorted(path.parent for path in home.glob(f"*/{MANIFEST}"))


def find(bundle: Bundle, wanted: Wanted, trust: Trust = CACHE_ONLY) -> tuple[Path, EngineManifest]:
    """The engines to use, checked. Raises EngineError that says why none fits.

    Of several that fit: the ones for most rows, then those with the longest cache, then those for
    the fewest other GPUs, then by name. A bundle that was opened without hashing its files has only
    the sizes of its plans checked.
    """
    fitting, reasons = [], []
    homes = _homes(bundle, trust)
    for folder in _candidates(homes, trust, wanted.product):
        try:
            manifest = read(folder)
            _check_identity(folder, manifest, bundle, wanted)
            fitting.append((folder, manifest))
        except EngineError as error:
            reasons.append(str(error))

    def order(found: tuple[Path, EngineManifest]) -> tuple[int, int, int, str]:
        identity = found[1].identity
        others = len(identity.capabilities)
        return -identity.max_batch, -identity.max_seq, others, str(found[0])

    for folder, manifest in sorted(fitting, key=order):
        try:
            # reads the plans: only of those that will be used
            _check_whole(folder, manifest, bundle.verify)
            return folder, manifest
        except EngineError as error:
            reasons.append(str(error))
    more = f" --engines {trust.folder}" if trust.folder is not None else ""
    remedy = f"Build them: mimo-edge build {bundle.folder} --target {wanted.target}{more}"
    if bundle.pack is not None:  # it has nothing that engines could be built from
        remedy = f"Pack the bundle for this GPU: mimo-edge pack BUNDLE --target {wanted.target} -o "
        remedy += str(bundle.folder)
    if not trust.bundle and finished(bundle.folder / INSIDE):
        remedy += (
            f". {bundle.folder / INSIDE} holds engines. They are programs: if you trust who made "
            "them, say so with --trust-engines"
        )
    if reasons:
        listed = "\n  ".join(reasons)
        raise EngineError(f"no engine of this bundle fits here:\n  {listed}\n{remedy}")
    looked = " or ".join(map(str, homes))
    raise EngineError(
        f"{bundle.folder} has no engines for {wanted.product} {wanted.version} in {looked}. "
        + remedy
    )


def _homes(bundle: Bundle, trust: Trust) -> list[Path]:
    if trust.folder is not None and not trust.folder.is_dir():
        raise InputError(f"{trust.folder} is no folder with engines. Name another, or none.")
    homes = [home_of(bundle, trust.folder)]
    if trust.bundle:
        homes.append(bundle.folder / INSIDE)
    return homes


def _candidates(homes: list[Path], trust: Trust, product: str) -> list[Path]:
    """Folders of the product's engines, finished or not. One may be named itself, and so may the
    folder that it lies in."""
    if trust.folder is not None:
        if (trust.folder / MANIFEST).exists():
            return [trust.folder]
        homes = [*homes, trust.folder]
    found = [path for home in homes for path in sorted(home.glob(f"{product}-[0-9]*"))]
    return [path for path in found if path.is_dir()]


def _check_identity(folder: Path, manifest: EngineManifest, bundle: Bundle, wanted: Wanted) -> None:
    identity = manifest.identity
    for what, built, here in (
        ("product", identity.product, wanted.product),
        ("version", identity.version, wanted.version),
    ):
        if built != here:
            raise EngineError(f"{folder} was built for {what} {built}, here is {here}.")
    if wanted.capability not in identity.capabilities:
        raise EngineError(
            f"{folder} was built for compute capability {', '.join(identity.capabilities)}, this "
            f"GPU has {wanted.capability}."
        )
    for piece in PIECES:
        if piece not in manifest.plans:
            raise EngineError(f"{folder} lacks {piece}.")
        own = identity.pieces[piece]
        for what, built, here in zip(
            ("graph", "weights"),
            (own.source, own.weights),
            piece_hashes(bundle, piece),
            strict=True,
        ):
            if built != here:
                raise EngineError(
                    f"{folder} was built from {what} {built[:16]} of {piece}, the bundle has "
                    f"{here[:16]}."
                )
        _check_profile(folder, bundle, piece, identity)


def _check_profile(folder: Path, bundle: Bundle, piece: str, identity: Identity) -> None:
    """Memory is taken by these numbers."""
    sizes, ports = {"capacity": identity.max_seq}, bundle.piece(piece).inputs
    profiles = identity.pieces[piece].profiles
    fits = len(profiles) == 1 and set(profiles[0]) == {port.name for port in ports}
    for port in ports if fits else ():
        for shape in profiles[0][port.name]:
            fits &= len(shape) == len(port.axes) and all(
                size == sizes.get(axis, size) if isinstance(axis, str) else size == axis
                for size, axis in zip(shape, port.axes, strict=True)
            )
    if not fits or not 2 <= identity.max_seq <= bundle.model.context or identity.max_batch < 1:
        raise EngineError(f"{folder} was built for other shapes of {piece} than the bundle has.")


def _check_whole(folder: Path, manifest: EngineManifest, verify: bool) -> None:
    for piece, plan in manifest.plans.items():
        check_plan(folder / f"{piece}.plan", plan.file, verify)


def check_plan(path: Path, spec: FileSpec, verify: bool = True) -> None:
    """Raises EngineError for a plan that is missing, or not the one that was written down: by its
    size, and by its hash if `verify`."""
    try:
        if not path.is_file():
            raise EngineError(f"{path} is missing.")
        whole = path.stat().st_size == spec.bytes
        whole = whole and (not verify or hash_file(path) == spec)
    except OSError as error:
        raise EngineError(unreadable(path, error, "Build it again.")) from error
    if not whole:
        raise EngineError(f"{path} is truncated or altered.")
