"""Which forms of weights a TensorRT target can run: what it cannot is refused before a build."""

from mimo_edge.engines.bundle_recipe import forms_of
from mimo_edge.engines.target import Target
from mimo_edge.runtime.bundle.bundle import Bundle
from mimo_edge.runtime.bundle.errors import RecipeError

FP8_CAPABILITY = 8.9  # of the oldest GPU that multiplies E4M3


def check_runnable(bundle: Bundle, target: Target) -> None:
    """Raises RecipeError, with the alternatives, for a bundle that TensorRT or the GPUs of a target
    cannot run as it is stored. Of a classic target, the GPU is known only where it is."""
    stored = [
        (component, form)
        for piece in bundle.manifest.pieces
        for component, weights in bundle.piece(piece).weights.items()
        for form in forms_of(weights)
    ]
    old = [c for c in target.capabilities if float(c) < FP8_CAPABILITY]
    if old and any(form == "fp8" for _, form in stored):
        raise RecipeError(
            f"{bundle.folder} holds fp8 weights, which compute capability {', '.join(old)} cannot "
            f"multiply: that takes {FP8_CAPABILITY} or newer. For older GPUs quantise with the "
            "recipe int8, int4 or int4-edge."
        )
    blocks = dict.fromkeys(f"{c} ({f})" for c, f in stored if f.startswith("int8/"))
    if blocks:
        raise RecipeError(
            f"{bundle.folder} holds int8 weights in blocks, which TensorRT does not multiply: "
            f'{", ".join(blocks)}. Quantise those by channel (block = "channel"), as the recipe '
            "int8 does, or in int4, which may have blocks. ONNX Runtime runs the bundle as it is."
        )
