"""What one piece hands to another must be what the other takes: checked before anything runs."""

from collections.abc import Iterator

from mimo_edge.runtime.bundle.manifest import Manifest, TensorSpec

# (piece, its output, the piece that takes it, its input)
HANDED_ON = (
    ("mel", "mel", "tokenizer_encoder", "mel"),
    ("patch_encoder", "embeddings", "backbone", "embeddings"),
    ("backbone", "local_hidden", "patch_decoder", "x"),
    ("patch_decoder", "next", "patch_decoder", "x"),
)


def disagreements(manifest: Manifest) -> list[str]:
    """What does not fit: two pieces, or a piece and the sizes of the model. Empty if all does."""
    return [*_between_pieces(manifest), *_with_the_model(manifest), *_of_the_cache(manifest)]


def _between_pieces(manifest: Manifest) -> Iterator[str]:
    """A state has one dtype and one width; codes have one dtype everywhere."""
    for source, leaves, target, enters in HANDED_ON:
        if not {source, target} <= manifest.pieces.keys():
            continue  # of a model that only listens
        given = _port(manifest.pieces[source].outputs, leaves)
        taken = _port(manifest.pieces[target].inputs, enters)
        if given is None or taken is None:
            yield f"{source} gives no {leaves}" if given is None else f"{target} takes no {enters}"
        elif (given.dtype, given.axes[-1:]) != (taken.dtype, taken.axes[-1:]):
            yield f"{source} gives {_said(given)}, {target} takes {_said(taken)}"
    dtypes = {
        port.dtype: f"{name} has codes in {port.dtype}"
        for name, piece in manifest.pieces.items()
        for port in (*piece.inputs, *piece.outputs)
        if port.name == "codes"
    }
    if len(dtypes) > 1:
        yield ", ".join(dtypes.values())


def _with_the_model(manifest: Manifest) -> Iterator[str]:
    """Sizes are used to allocate memory, so they are held to the graphs first."""
    model = manifest.model
    for piece, name, dtype, size in (
        ("mel", "mel", "float32", model.n_mels),
        ("backbone", "embeddings", manifest.activation_dtype, model.hidden_size),
        ("backbone", "local_hidden", manifest.activation_dtype, None),
        ("patch_decoder", "uniforms", "float32", model.n_q),
        ("backbone", "logits", "float32", model.vocab_size),
        ("patch_encoder", "codes", "int64", model.group_size),
    ):
        if piece not in manifest.pieces:
            continue
        spec = manifest.pieces[piece]
        port = _port((*spec.inputs, *spec.outputs), name)
        if port is None:
            yield f"{piece} has no {name}"
        elif port.dtype != dtype or (size is not None and port.axes[-1:] != (size,)):
            yield f"{piece} has {_said(port)}, the model says {dtype} of {size}"
    books = _port(manifest.pieces["tokenizer_encoder"].outputs, "codes")
    if books is not None and isinstance(books.axes[1], int) and books.axes[1] < model.n_q:
        yield f"tokenizer_encoder makes {books.axes[1]} codebooks, the model reads {model.n_q}"
    codes = _port(manifest.pieces["patch_encoder"].inputs, "codes")
    if codes is not None and codes.axes[-2:-1] != (model.n_q,):
        yield f"patch_encoder has {_said(codes)}, the model says {model.n_q} codebooks"


def _of_the_cache(manifest: Manifest) -> Iterator[str]:
    """Keys and values go in and come out alike: they are one buffer."""
    model, backbone = manifest.model, manifest.pieces["backbone"]
    axes = ("batch", model.kv_heads, "capacity", model.head_dim)
    for prefix, ports in (("past_", backbone.inputs), ("present_", backbone.outputs)):
        found = [
            (port.name.removeprefix(prefix), port.dtype, port.axes)
            for port in ports
            if port.name.startswith((f"{prefix}keys_", f"{prefix}values_"))
        ]
        if len(found) != 2 * model.layers:
            yield f"backbone has {len(found)} {prefix}* ports, the model {model.layers} layers"
            continue
        names = [f"{kind}_{n}" for kind in ("keys", "values") for n in range(model.layers)]
        for port, name in zip(found, names, strict=True):
            if port != (name, manifest.cache_dtype, axes):
                yield (
                    f"backbone has {prefix}{port[0]} {port[1]} {list(port[2])} in place of "
                    f"{prefix}{name} {manifest.cache_dtype} {list(axes)}"
                )


def _port(ports: tuple[TensorSpec, ...], name: str) -> TensorSpec | None:
    return next((port for port in ports if port.name == name), None)


def _said(port: TensorSpec) -> str:
    return f"{port.name} {port.dtype} {list(port.axes)}"
