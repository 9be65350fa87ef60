"""From a bundle to one for ONNX Runtime on this machine: graphs lowered, weights packed.

It has the same pieces with the same ports, and the same text tokenizer.
"""

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import onnx
import onnxruntime as ort
from mimo_edge.engines.ort.attention import lower_attention
from mimo_edge.engines.ort.graph import constants
from mimo_edge.engines.ort.norms import lower_norms
from mimo_edge.engines.ort.packed_states import pack_states
from mimo_edge.engines.ort.prepack import ENTRY, pack, point_to_packed
from mimo_edge.engines.ort.products import (
    EXACT,
    ROUNDED,
    Product,
    lower_products,
    products,
    stored,
)
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
from mimo_edge.runtime.bundle.data_files import by_data_file, data_file
from mimo_edge.runtime.bundle.errors import InputError
from mimo_edge.runtime.bundle.files import hash_file, write_text
from mimo_edge.runtime.bundle.manifest import IN_FILE, MANIFEST, FileSpec, PieceSpec
from mimo_edge.runtime.bundle.processor import processor
from mimo_edge.runtime.bundle.unfinished import (
    finish,
    own_place,
    partial_folder,
    read_markers,
    write_markers,
)

CHECKING, LOADING = "checking what was written", "loading every piece"


def lower(model: onnx.ModelProto, bundle: Bundle, piece: str) -> list[Product]:
    """All steps, in place. Returns the products whose weights are laid out anew."""
    lengths = {"backbone": bundle.model.context, "patch_decoder": bundle.model.sub_steps}
    if piece in lengths:  # elsewhere a cache is a ring, or nothing is causal
        lower_attention(model, lengths[piece])
    found = products(model)
    lower_products(model, found, ROUNDED if bundle.piece(piece).dynamic else EXACT)
    pack_states(model)
    lower_norms(model)
    return found


def build_bundle(
    bundle: Bundle,
    place: Path,
    work: Work | None = None,
    *,
    packed: str = IN_FILE,
) -> Path:
    """Write the build of a bundle, and take over what an interrupted one finished.

    `work` has the stages of `build_costs`, of which the pieces are done here.
    `packed` is one of PACKED. In the file it has twice the size, loads in seconds and is mapped; in
    memory each load packs the weights anew, into as much heap. A build that lies at the place is
    replaced.
    Raises InputError for a bundle that is a build itself, ResourceError; finished pieces stay.
    """
    if bundle.manifest.built is not None:
        raise InputError(f"{bundle.folder} is built already. Build the bundle that it was made of.")
    work = work or Work(build_costs(bundle, packed))
    key = json.dumps([bundle.identity, ort.__version__, processor(), packed, _code_digest()])
    held = most_bytes(bundle, packed)
    with own_place(place), partial_folder(place, held, resume=True) as folder:
        pieces: dict[str, PieceSpec] = {}
        files: dict[str, FileSpec] = {}
        groups = by_data_file(bundle.manifest.pieces)
        kept = {group[0]: read_markers(folder, group, key) for group in groups}
        for group in groups:
            if kept[group[0]] is not None:
                for piece in group:
                    work.drop(piece)
                work.say(f"kept {', '.join(group)}")
        for group in groups:
            finished = kept[group[0]]
            if finished is None:
                made: dict[str, tuple[PieceSpec, FileSpec]] = {}
                with WeightFile(folder / data_file(group[0])) as data:
                    for piece in group:
                        heard = partial(work.reach, piece, what=f"packing {piece}")
                        made[piece] = _build_piece(bundle, piece, data, packed, heard)
                finished = write_markers(folder, key, made, data.spec)
            for piece in group:
                pieces[piece] = finished[piece][0]
                files.update(finished[piece][1])
        taken = {n for spec in bundle.manifest.pieces.values() for n in (spec.file, spec.data)}
        for name in bundle.manifest.files.keys() - taken:
            shutil.copyfile(bundle.folder / name, folder / name)
            files[name] = bundle.manifest.files[name]
        unread = {piece: _unread(folder / spec.file) for piece, spec in pieces.items()}
        made_for = built_here(bundle, ort.__version__, unread, packed)
        manifest = dataclasses.replace(bundle.manifest, pieces=pieces, files=files, built=made_for)
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
    layers = [layer for product in products(model) for layer in product.layers]
    own = {n for each in layers for n in (each.codes.name, each.scales.name, each.bias)}
    others = (t for t in constants(model).values() if is_external(t) and t.name not in own)
    copied = sum(int(e.value) for t in others for e in t.external_data if e.key == "length")
    return _each(packed) * sum(layer.bytes for layer in layers) + COPY * copied


def _each(packed: str) -> float:
    """Of a byte of codes."""
    return LAY_OUT + (PACK if packed == IN_FILE else 0.0)


def most_bytes(bundle: Bundle, packed: str) -> int:
    """What the weights of a build can take on the disk."""
    return (2 if packed == IN_FILE else 1) * bundle.data_bytes()


def _build_piece(
    bundle: Bundle,
    piece: str,
    written: WeightFile,
    packed: str,
    on_progress: Callable[[float], None],
) -> tuple[PieceSpec, FileSpec]:
    """Write the weights of a piece, and its graph beside them; returns the graph's file.

    `on_progress` is told how much of the work is done, of 1.
    """
    spec, data = bundle.piece(piece), bundle.folder / bundle.piece(piece).data
    model = onnx.load(bundle.path(piece), load_external_data=False)
    before, total = constants(model), _cost(model, packed)
    found = lower(model, bundle, piece)
    after = constants(model)
    nodes = {node.input[1]: node for node in model.graph.node if node.op_type == "MatMulNBits"}
    keys: dict[str, str] = {}
    folder = written.path.parent

    def tensors() -> Iterator[Stored]:
        done = 0.0
        new: set[str] = set()
        for product in found:
            parts = stored(product, before, data)
            new.update(parts)
            yield from (Stored(name, arrays) for name, arrays in parts.items())
            if packed == IN_FILE:
                own = {name: after[name] for name in parts}
                made = pack(nodes[product.name], own, parts, folder)
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
