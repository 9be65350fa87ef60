"""From a bundle to one for ONNX Runtime on this machine: graphs lowered, weights packed.

It has the same pieces with the same ports, but that keys and values may be int8 (int8_cache.py) and
rings short (ring.py), and the same text tokenizer.
"""

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path

import onnx
import onnxruntime as ort
from mimo_edge.engines.calibration import Calibration
from mimo_edge.engines.components import MANY_ROWS
from mimo_edge.engines.ort.attention import lower_attention
from mimo_edge.engines.ort.graph import constants
from mimo_edge.engines.ort.int8_cache import (
    PIECE,
    Floats,
    quantize_cache,
    scales_of,
    watch_states,
    with_int8_cache,
)
from mimo_edge.engines.ort.narrow import narrow_scores
from mimo_edge.engines.ort.packed_states import pack_states
from mimo_edge.engines.ort.prepack import ENTRY, PACKED, pack, point_to_packed
from mimo_edge.engines.ort.products import (
    EXACT,
    ROUNDED,
    Product,
    block_products,
    layers,
    lower_products,
)
from mimo_edge.engines.ort.ring import lower_ring, with_short_rings
from mimo_edge.engines.ort.rows import row_products, sums_exactly
from mimo_edge.engines.resumed import write_pieces
from mimo_edge.engines.weight_file import (
    Stored,
    WeightFile,
    is_external,
    map_tensor,
    point_to,
)
from mimo_edge.engines.work import COPY, HASH, LAY_OUT, LOAD, PACK, Work
from mimo_edge.runtime.bundle.built import built_here
from mimo_edge.runtime.bundle.bundle import Bundle
from mimo_edge.runtime.bundle.errors import InputError
from mimo_edge.runtime.bundle.files import hash_file, write_text
from mimo_edge.runtime.bundle.manifest import IN_FILE, MANIFEST, FileSpec, PieceSpec
from mimo_edge.runtime.bundle.processor import processor
from mimo_edge.runtime.bundle.unfinished import (
    finish,
    own_place,
    partial_folder,
)

CHECKING, LOADING = "checking what was written", "loading every piece"


def lower(
    model: onnx.ModelProto,
    bundle: Bundle,
    piece: str,
    cache: Mapping[str, Floats] | None = None,
) -> list[Product]:
    """All steps, in place. Returns the products whose weights are laid out anew.

    `cache` are the scales of the backbone's keys and values, if they are to be int8.
    """
    lengths = {"backbone": bundle.model.context, "patch_decoder": bundle.model.sub_steps}
    if piece in lengths:  # elsewhere a cache is a ring, or nothing is causal
        lower_attention(model, lengths[piece])
    else:
        lower_ring(model)
    if piece == "patch_decoder":
        narrow_scores(model, bundle.model)
    scales = cache if piece == PIECE else None
    if scales is not None:
        quantize_cache(model, scales)
    found = _products(model, piece, bundle.piece(piece).dynamic)
    lower_products(model, found)
    pack_states(model)
    if scales is not None:
        watch_states(model)
    return found


def _products(model: onnx.ModelProto, piece: str, dynamic: bool) -> list[Product]:
    found = layers(model)
    if not dynamic:
        return block_products(found, EXACT)
    if piece not in MANY_ROWS or not sums_exactly(processor()):
        return block_products(found, ROUNDED)
    whole = row_products(found)
    taken = {layer.nodes for product in whole for layer in product.layers}
    return whole + block_products((one for one in found if one.nodes not in taken), ROUNDED)


def build_bundle(
    bundle: Bundle,
    place: Path,
    work: Work | None = None,
    *,
    packed: str = IN_FILE,
    calibration: Calibration | None = None,
) -> Path:
    """Write the build of a bundle, and take over what an interrupted one finished.

    `work` has the stages of `build_costs`, of which the pieces are done here.
    `packed` is one of PACKED. In the file it has twice the size, loads in seconds and is mapped; in
    memory each load packs the weights anew, into as much heap. With a calibration, keys and values
    are int8 by what it says of them. A build that lies at the place is replaced.
    Raises InputError for a bundle that is a build itself, or whose keys and values cannot be int8,
    CalibrationError, ResourceError; finished pieces stay.
    """
    if bundle.manifest.built is not None:
        raise InputError(f"{bundle.folder} is built already. Build the bundle that it was made of.")
    cache = None if calibration is None else scales_of(bundle, calibration)
    digest = "" if calibration is None else calibration.digest
    work = work or Work(build_costs(bundle, packed))
    common = [bundle.identity, ort.__version__, processor(), packed, _code_digest()]
    held = most_bytes(bundle, packed)
    with own_place(place), partial_folder(place, held, resume=True) as folder:

        def key_of(group: list[str]) -> str:
            return json.dumps([*common, digest] if PIECE in group else common)

        def write(piece: str, data: WeightFile) -> tuple[PieceSpec, FileSpec]:
            heard = partial(work.reach, piece, what=f"packing {piece}")
            return _build_piece(bundle, piece, data, packed, heard, cache)

        finished = write_pieces(folder, bundle.manifest.pieces, key_of, write, work)
        pieces = {piece: spec for piece, (spec, _) in finished.items()}
        files = {name: file for _, own in finished.values() for name, file in own.items()}
        taken = {n for spec in bundle.manifest.pieces.values() for n in (spec.file, spec.data)}
        for name in bundle.manifest.files.keys() - taken:
            shutil.copyfile(bundle.folder / name, folder / name)
            files[name] = bundle.manifest.files[name]
        unread = {piece: _unread(folder / spec.file) for piece, spec in pieces.items()}
        made_for = built_here(bundle, ort.__version__, unread, packed, digest)
        manifest = dataclasses.replace(bundle.manifest, pieces=pieces, files=files, built=made_for)
        if cache is not None:
            manifest = with_int8_cache(manifest)
        write_text(folder / MANIFEST, manifest.to_json())
        finish(folder, place)
    return place


def build_costs(bundle: Bundle, packed: str) -> dict[str, float]:
    """Of the stages of a build: its pieces, and what is done with it afterwards."""
    found = {}
    for piece in bundle.manifest.pieces:
        found[piece] = _cost(onnx.load(bundle.path(piece), load_external_data=False), packed)
    found[CHECKING] = HASH * most_bytes(bundle, packed)
    found[LOADING] = LOAD * bundle.data_bytes()
    return found


def _cost(model: onnx.ModelProto, packed: str) -> float:
    """Of a stored graph: its products are laid out anew, the rest is copied."""
    found = layers(model)
    own = {name for one in found for name in (one.codes.name, one.scales.name, one.bias)}
    others = (t for t in constants(model).values() if is_external(t) and t.name not in own)
    copied = sum(int(e.value) for t in others for e in t.external_data if e.key == "length")
    return _each(packed) * sum(layer.bytes for layer in found) + COPY * copied


def _each(packed: str) -> float:
    """Of a byte of codes."""
    return LAY_OUT + (PACK if packed == IN_FILE else 0.0)


def most_bytes(bundle: Bundle, packed: str) -> int:
    """What the weights of a build can take on the disk. Codes of MANY_ROWS can become int8."""
    wider = bundle.data_bytes(*(MANY_ROWS & bundle.manifest.pieces.keys()))
    once = bundle.data_bytes() + wider
    return 2 * once if packed == IN_FILE else once


def _build_piece(
    bundle: Bundle,
    piece: str,
    written: WeightFile,
    packed: str,
    on_progress: Callable[[float], None],
    cache: Mapping[str, Floats] | None,
) -> tuple[PieceSpec, FileSpec]:
    """Write the weights of a piece, and its graph beside them; returns the graph's file.

    `on_progress` is told how much of the work is done, of 1.
    """
    spec, data = bundle.piece(piece), bundle.folder / bundle.piece(piece).data
    model = onnx.load(bundle.path(piece), load_external_data=False)
    before, total = constants(model), _cost(model, packed)
    found = lower(model, bundle, piece, cache)
    after = constants(model)
    nodes = {node.input[1]: node for node in model.graph.node if node.op_type in PACKED}
    keys: dict[str, str] = {}
    folder = written.path.parent

    def tensors() -> Iterator[Stored]:
        done = 0.0
        new: set[str] = set()
        for product in found:
            parts = product.stored(before, data)
            new.update(parts)
            yield from (Stored(name, arrays) for name, arrays in parts.items())
            if packed == IN_FILE:
                node = nodes[product.name]
                own = {name: after[name] for name in node.input if name in after}
                made = pack(node, own, parts, folder)
                if made is not None:
                    keys[product.name] = made.key
                    yield Stored(_packed(product.name), [made.data])
            done += _each(packed) * sum(layer.bytes for layer in product.layers)
            on_progress(done / total)
        for name, tensor in after.items():
            if is_external(tensor) and name not in new:
                values = map_tensor(tensor, data)
                yield Stored(name, [values])
                done += COPY * values.nbytes
                on_progress(done / total)

    places = written.write(tensors())
    point_to(model, written.path.name, places)
    for tensor in model.graph.initializer:
        if tensor.name in keys:
            point_to_packed(tensor, keys[tensor.name], places[_packed(tensor.name)])
    path = folder / f"{piece}.onnx"
    path.write_bytes(model.SerializeToString(deterministic=True))
    spec = with_short_rings(spec, model)
    return dataclasses.replace(spec, data=written.path.name, file=path.name), hash_file(path)


def _unread(path: Path) -> int:
    """Bytes of weights that are there packed, too: they are read while a session is made, and
    never again."""
    model = onnx.load(path, load_external_data=False)
    entries = [{e.key: e.value for e in t.external_data} for t in model.graph.initializer]
    return sum(int(entry["length"]) for entry in entries if ENTRY in entry)


def _packed(weight: str) -> str:
    """What the data file calls the packed form of a weight."""
    return f"{weight}_packed"


def _code_digest() -> str:
    """Over the code that makes a piece."""
    digest, folder = hashlib.sha256(), Path(__file__).parent
    for path in sorted(folder.glob("*.py")):
        digest.update(f"{path.name} {hash_file(path).sha256}\n".encode())
    return digest.hexdigest()
