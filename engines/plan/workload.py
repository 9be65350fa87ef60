"""What a model is, as far as memory and speed go: the bytes and numbers of each component in each
piece, and the few sizes that decide the rest.

It comes from a bundle's graphs, or from names and shapes and a recipe alone; no weight is read.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

from mimo_edge.engines.components import EXACT, MANY_ROWS, TABLES, component_of
from mimo_edge.engines.recipe import FLOAT, Recipe, compute_of
from mimo_edge.engines.weigh import FLOAT_BYTES, Part, as_parts, stored_bytes
from mimo_edge.runtime.bundle.bundle import Bundle
from mimo_edge.runtime.bundle.dtypes import DTYPES
from mimo_edge.runtime.bundle.graph_file import stored_tensors
from mimo_edge.runtime.bundle.manifest import PIECES, ModelSpec

# the beginning of a tensor's name -> the piece whose graph holds it
_OWNERS = {
    "patch_encoder": "patch_encoder",
    "backbone": "backbone",
    "patch_decoder": "patch_decoder",
    "encoder": "tokenizer_encoder",
    "decoder": "tokenizer_decoder",
}
# pieces that stream hold again what the whole decode has: piece -> components
_STREAMS = {"mel_stream": (EXACT, "tokenizer_decoder"), "vocoder_stream": ("vocoder",)}
SCALES = "_scales"  # how the name of scales ends
_LAYER = re.compile(r"layers\.\d+\.")
_CODEC_QUERIES = "encoder.layers.0.self_attn.q_proj.weight"


@dataclass(frozen=True)
class Sizes:
    """Sizes that weights do not tell. Widths are numbers of one position in one layer."""

    group_size: int  # frames of a patch
    sub_steps: int  # runs of the patch decoder for one patch
    context: int  # patches
    vocab_size: int
    hidden_size: int
    query_width: int  # of all heads of the backbone
    kv_width: int  # of keys, or of values
    cache_bytes: int  # of a number in the cache
    frame_seconds: float

    @property
    def patch_seconds(self) -> float:
        return self.group_size * self.frame_seconds


@dataclass(frozen=True)
class Held:
    """A component in a piece. `computes` is fp32, fp16, bf16; or int8 or fp8 of calibrated
    activations; `dynamic` lets a backend round to int8 what products read, and `many_rows` says
    that each run has many rows of it. `codes` of its numbers are quantised."""

    numbers: int
    codes: int
    bytes: int
    float_bytes: int  # of a number that is not quantised
    computes: str
    dynamic: bool
    many_rows: bool

    @property
    def quantized(self) -> bool:
        return self.bytes < self.numbers * self.float_bytes

    @property
    def by_rows(self) -> bool:
        """Whether the build for ONNX Runtime has it in int8 with a scale a channel, whatever it is
        stored in (engines/ort/rows.py). Processors whose sums saturate keep what is stored."""
        return self.many_rows and self.dynamic and self.quantized and self.computes == "fp32"

    @property
    def row_bytes(self) -> int:
        """In that form; the few scales are not counted."""
        return self.codes + (self.numbers - self.codes) * self.float_bytes


@dataclass(frozen=True)
class Tensor:
    """One stored tensor. Scales are tensors of their own, or in the bytes of what they scale."""

    piece: str
    component: str
    name: str
    numbers: int
    bytes: int


@dataclass(frozen=True)
class Workload:
    """A model in one precision. `held` has each component of each piece, `layers` the transformer
    layers of each component, `schemes` the forms in which weights are stored."""

    recipe: str
    compute: str
    sizes: Sizes
    held: Mapping[tuple[str, str], Held]
    layers: Mapping[str, int]
    schemes: frozenset[str]
    codec_width: int = 0  # of the audio tokenizer's layers
    speaks: bool = field(default=True)

    def of(self, *pieces: str, without: Iterable[str] = ()) -> Iterator[Held]:
        """The components of pieces, but for some."""
        left_out = frozenset(without)
        for (piece, component), held in self.held.items():
            if piece in pieces and component not in left_out:
                yield held

    def bytes_of(self, *pieces: str, without: Iterable[str] = ()) -> int:
        """Bytes of the weights of pieces as they are stored."""
        return sum(held.bytes for held in self.of(*pieces, without=without))

    def keeping(self, cache_bytes: int) -> "Workload":
        """The same with so many bytes for each number in the cache."""
        return replace(self, sizes=replace(self.sizes, cache_bytes=cache_bytes))

    def components(self) -> dict[str, int]:
        """Component -> bytes in all pieces that make up a whole decode, in the order of pieces."""
        found: dict[str, int] = defaultdict(int)
        for (piece, component), held in self.held.items():
            if piece not in _STREAMS:
                found[component] += held.bytes
        return dict(found)


def of_bundle(bundle: Bundle) -> Workload:
    """Of a bundle as it is stored. Graph files are read, weights are not."""
    manifest, model = bundle.manifest, bundle.model
    tensors, computes, dynamic = [], {}, {}
    shapes: dict[str, tuple[int, ...]] = {}
    for piece in PIECES:
        if piece not in manifest.pieces:
            continue
        spec = bundle.piece(piece)
        for stored in stored_tensors(bundle.path(piece)):
            component = component_of(stored.name) or piece
            shapes.setdefault(stored.name, stored.shape)
            numbers = 0 if stored.name.endswith(SCALES) else stored.numbers
            tensors.append(Tensor(piece, component, stored.name, numbers, stored.bytes))
            computes[component] = "fp32" if component == EXACT else spec.compute
            dynamic[component] = spec.dynamic
    schemes = {w.scheme for spec in manifest.pieces.values() for w in spec.weights.values()}
    also = {w for s in manifest.pieces.values() for own in s.weights.values() for w in own.also}
    schemes |= {form.partition("/")[0] for form in also}
    return Workload(
        recipe=manifest.recipe,
        compute=bundle.piece("backbone").compute,
        sizes=_sizes(model, DTYPES[manifest.cache_dtype].bytes),
        held=_held(tensors, computes, dynamic),
        layers=_layers(tensors),
        schemes=frozenset(schemes),
        codec_width=_width(shapes),
        speaks=bundle.speaks,
    )


def of_shapes(
    shapes: Iterable[tuple[str, tuple[int, ...]]], sizes: Sizes, recipe: Recipe, default: str
) -> Workload:
    """Of names and shapes as `export.shapes` has them, made by a recipe that leaves what it does
    not say to `default`. Raises RecipeError for a recipe that does not fit."""
    compute = compute_of(recipe, default)
    tensors, schemes = [], set()
    known: dict[str, tuple[int, ...]] = {}
    for name, shape in shapes:
        twice = name in known  # codebooks: in the graph that encodes, then in the one that decodes
        known[name] = shape
        piece = _OWNERS.get(name.partition(".")[0])
        piece = piece or ("tokenizer_decoder" if twice else "tokenizer_encoder")
        for part in as_parts([(name, shape)]):
            size = stored_bytes(recipe, part, FLOAT_BYTES[compute[part.component]])
            tensors.append(Tensor(piece, part.component, name, part.numbers, size))
            schemes.add(_scheme(recipe, part))
    for stream, components in _STREAMS.items():
        tensors += [
            Tensor(stream, tensor.component, tensor.name, tensor.numbers, tensor.bytes)
            for tensor in tensors
            if tensor.piece == "tokenizer_decoder" and tensor.component in components
        ]
    parts = recipe.components
    arithmetic = {
        name: part.activations if part.activations in ("int8", "fp8") else compute[name]
        for name, part in parts.items()
    }
    dynamic = {name: part.activations == "dynamic" for name, part in parts.items()}
    return Workload(
        recipe=recipe.name,
        compute=compute["backbone"],
        sizes=sizes,
        held=_held(tensors, arithmetic, dynamic),
        layers=_layers(tensors),
        schemes=frozenset(schemes),
        codec_width=_width(known),
        speaks=any(tensor.piece == "patch_decoder" for tensor in tensors),
    )


def _scheme(recipe: Recipe, part: Part) -> str:
    form = None if part.matrix is None else recipe.form(part.matrix)
    return FLOAT if form is None else form.scheme


def _sizes(model: ModelSpec, cache_bytes: int) -> Sizes:
    return Sizes(
        group_size=model.group_size,
        sub_steps=model.sub_steps,
        context=model.context,
        vocab_size=model.vocab_size,
        hidden_size=model.hidden_size,
        query_width=model.hidden_size,  # the manifest does not count heads; in Qwen2 it is
        kv_width=model.kv_heads * model.head_dim,
        cache_bytes=cache_bytes,
        frame_seconds=model.samples_per_frame / model.sampling_rate,
    )


def _held(
    tensors: Iterable[Tensor], computes: Mapping[str, str], dynamic: Mapping[str, bool]
) -> dict[tuple[str, str], Held]:
    # calibrated parts have float16 beside them
    widths = {component: FLOAT_BYTES.get(kind, 2) for component, kind in computes.items()}
    numbers: dict[tuple[str, str], int] = defaultdict(int)
    codes: dict[tuple[str, str], int] = defaultdict(int)
    sizes: dict[tuple[str, str], int] = defaultdict(int)
    for tensor in tensors:
        key = tensor.piece, tensor.component
        numbers[key] += tensor.numbers
        sizes[key] += tensor.bytes
        if tensor.bytes < tensor.numbers * widths[tensor.component]:
            codes[key] += tensor.numbers
    return {
        key: Held(
            numbers[key],
            codes[key],
            sizes[key],
            widths[key[1]],
            computes[key[1]],
            dynamic[key[1]],
            key[0] in MANY_ROWS,
        )
        for key in numbers
    }


def _layers(tensors: Iterable[Tensor]) -> dict[str, int]:
    """Component -> its transformer layers."""
    found: dict[str, set[str]] = defaultdict(set)
    for tensor in tensors:
        if tensor.component not in TABLES and (match := _LAYER.search(tensor.name)):
            found[tensor.component].add(match.group())
    return {component: len(layers) for component, layers in found.items()}


def _width(shapes: Mapping[str, tuple[int, ...]]) -> int:
    return shapes[_CODEC_QUERIES][0] if _CODEC_QUERIES in shapes else 0
