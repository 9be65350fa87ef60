"""From a bundle to one for ONNX Runtime on this machine: graphs lowered, weights packed.

It has the same pieces with the same ports, and the same text tokenizer.
"""

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import onnx
import onnxruntime as ort
from mimo_edge.engines.ort.attention import lower_attention
from mimo_edge.engines.ort.graph import constants
from mimo_edge.engines.ort.norms import lower_norms
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
from mimo_edge.engines.ort.rows import row_products, sums_exactly
from mimo_edge.engines.weight_file import (
    Stored,
    is_external,
    map_tensor,
    point_to,
    write_weights,
)
from mimo_edge.runtime.bundle.built import built_here
from mimo_edge.runtime.bundle.bundle import Bundle
from mimo_edge.runtime.bundle.errors import InputError
from mimo_edge.runtime.bundle.files import hash_file, write_text
from mimo_edge.runtime.bundle.manifest import MANIFEST, FileSpec, PieceSpec
from mimo_edge.runtime.bundle.processor import processor
from mimo_edge.runtime.bundle.unfinished import (
    Finished,
    finish,
    own_place,
    partial_folder,
    read_marker,
    write_marker,
)

# (what is being done, bytes of the bundle's weights done, bytes in all)
OnProgress = Callable[[str, int, int], None]

# pieces of which each run has many rows: products are bound by arithmetic, not by what they read
MANY_ROWS = {"tokenizer_encoder", "tokenizer_decoder", "mel_stream", "vocoder_stream"}


def lower(model: onnx.ModelProto, bundle: Bundle, piece: str) -> list[Product]:
    """All steps, in place. Returns the products whose weights are laid out anew."""
    lengths = {"backbone": bundle.model.context, "patch_decoder": bundle.model.sub_steps}
    if piece in lengths:  # elsewhere a cache is a ring, or nothing is causal
        lower_attention(model, lengths[piece])
    found = _products(model, piece, bundle.piece(piece).dynamic)
    lower_products(model, found)
    pack_states(model)
    lower_norms(model)
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


def build_bundle(bundle: Bundle, place: Path, on_progress: OnProgress = lambda *_: None) -> Path:
    """Write the build of a bundle, and take over what an interrupted one finished.

    Raises InputError for a bundle that is a build itself, ResourceError; finished pieces stay.
    """
    if bundle.manifest.built is not None:
        raise InputError(f"{bundle.folder} is built already. Build the bundle that it was made of.")
    total = sum(bundle.weights(piece).bytes for piece in bundle.manifest.pieces)
    done = 0
    key = json.dumps([bundle.identity, ort.__version__, processor(), _code_digest()])
    with own_place(place), partial_folder(place, 2 * total, resume=True) as folder:
        pieces: dict[str, PieceSpec] = {}
        files: dict[str, FileSpec] = {}
        for piece in bundle.manifest.pieces:
            size = bundle.weights(piece).bytes
            finished = read_marker(folder, piece, key)
            if finished is None:

                def heard(count: int, piece: str = piece, before: int = done) -> None:
                    on_progress(f"packing {piece}", before + count, total)

                finished = _build_piece(bundle, piece, folder, heard)
                write_marker(folder, piece, key, finished)
            done += size
            on_progress(f"packed {piece}", done, total)
            pieces[piece] = finished[0]
            files.update(finished[1])
        taken = {n for spec in bundle.manifest.pieces.values() for n in (spec.file, spec.data)}
        for name in bundle.manifest.files.keys() - taken:
            shutil.copyfile(bundle.folder / name, folder / name)
            files[name] = bundle.manifest.files[name]
        unread = {piece: _unread(folder / spec.file) for piece, spec in pieces.items()}
        made_for = built_here(bundle, ort.__version__, unread)
        manifest = dataclasses.replace(bundle.manifest, pieces=pieces, files=files, built=made_for)
        write_text(folder / MANIFEST, manifest.to_json())
        finish(folder, place)
    return place


def _build_piece(
    bundle: Bundle, piece: str, folder: Path, on_progress: Callable[[int], None]
) -> Finished:
    spec, data = bundle.piece(piece), bundle.folder / bundle.piece(piece).data
    model = onnx.load(bundle.path(piece), load_external_data=False)
    before = constants(model)
    found = lower(model, bundle, piece)
    after = constants(model)
    nodes = {node.input[1]: node for node in model.graph.node if node.op_type in PACKED}
    keys: dict[str, str] = {}
    names = f"{piece}.onnx.data", f"{piece}.onnx"

    def tensors() -> Iterator[Stored]:
        done = 0
        new: set[str] = set()
        for product in found:
            parts = product.stored(before, data)
            new.update(parts)
            yield from (Stored(name, arrays) for name, arrays in parts.items())
            node = nodes[product.name]
            own = {name: after[name] for name in node.input if name in after}
            packed = pack(node, own, parts, folder)
            if packed is not None:
                keys[product.name] = packed.key
                yield Stored(_packed(product.name), [packed.data])
            done += sum(layer.bytes for layer in product.layers)
            on_progress(done)
        for name, tensor in after.items():
            if is_external(tensor) and name not in new:
                values = map_tensor(tensor, data)
                yield Stored(name, [values])
                done += values.nbytes
                on_progress(done)

    written, places = write_weights(folder / names[0], tensors())
    point_to(model, names[0], places)
    for tensor in model.graph.initializer:
        if tensor.name in keys:
            point_to_packed(tensor, keys[tensor.name], places[_packed(tensor.name)])
    path = folder / names[1]
    path.write_bytes(model.SerializeToString(deterministic=True))
    made = dataclasses.replace(spec, data=names[0], file=names[1])
    return made, {names[0]: written, names[1]: hash_file(path)}


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
