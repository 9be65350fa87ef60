"""The recipe that a bundle was made by."""

from collections.abc import Mapping
from dataclasses import dataclass

from mimo_edge.engines.recipe import load
from mimo_edge.runtime.bundle.bundle import Bundle
from mimo_edge.runtime.bundle.dtypes import PRECISIONS
from mimo_edge.runtime.bundle.errors import RecipeError
from mimo_edge.runtime.bundle.manifest import WeightScheme


@dataclass(frozen=True)
class BundleRecipe:
    """What a bundle is made by: the recipe's name, and the precision of each piece in words."""

    name: str
    precision: Mapping[str, str]


def for_bundle(bundle: Bundle, name: str | None) -> BundleRecipe:
    """The recipe that a bundle was made by. Raises RecipeError if another is asked for."""
    own = bundle.manifest.recipe
    wanted = own if name is None else load(name).name
    if wanted != own:
        raise RecipeError(
            f"{bundle.folder} was made by recipe {own}, not {wanted}. Make one by that: "
            f"mimo-edge export ... --recipe {wanted}, or of a float bundle mimo-edge quantize."
        )
    precision = {}
    for piece in bundle.manifest.pieces:
        spec = bundle.piece(piece)
        stored = [w for w in spec.weights.values() if w.scheme not in PRECISIONS]
        forms = {"+".join(forms_of(weights)) for weights in stored}
        precision[piece] = " ".join([spec.compute, *sorted(forms)])
    return BundleRecipe(own, precision)


def forms_of(weights: WeightScheme) -> list[str]:
    """How a component of a bundle is stored, most of it first: int4/128, int4/32."""
    block = "" if weights.block is None else f"/{weights.block}"
    return [f"{weights.scheme}{block}", *weights.also]
