"""What a recipe comes to: bytes of each component, before anything is written."""

from collections.abc import Iterable
from dataclasses import dataclass

from mimo_edge.engines.components import COMPONENTS, Matrix, component_of, matrix
from mimo_edge.engines.recipe import FLOAT, Form, Recipe, compute_of
from mimo_edge.engines.schemes import CHANNEL, SCHEMES

FLOAT_BYTES = {"fp32": 4, "fp16": 2, "bf16": 2}


@dataclass(frozen=True)
class Part:
    """A tensor of a component: a matrix, or anything else of so many numbers."""

    component: str
    numbers: int
    matrix: Matrix | None = None


@dataclass(frozen=True)
class Share:
    """A component's part of a bundle. `stored` counts its matrices by their form."""

    component: str
    compute: str
    stored: dict[str, int]
    numbers: int
    bytes: int


def form_bytes(matrix: Matrix, form: Form | None, float_bytes: int) -> int:
    """Bytes of a matrix, scales included."""
    numbers = matrix.outputs * matrix.inputs
    if form is None:
        return numbers * float_bytes
    scales = numbers // (form.block or matrix.inputs)
    return (numbers * SCHEMES[form.scheme].bits + 7) // 8 + scales * float_bytes


def stored_bytes(recipe: Recipe, part: Part, float_bytes: int) -> int:
    """Bytes of a tensor by a recipe. Raises RecipeError for one that it does not fit."""
    if part.matrix is None:
        return part.numbers * float_bytes
    return form_bytes(part.matrix, recipe.form(part.matrix), float_bytes)


def spell(form: Form | None) -> str:
    """A form for people: int4/128."""
    if form is None:
        return FLOAT
    return form.scheme if form.block == CHANNEL else f"{form.scheme}/{form.block}"


def weigh(recipe: Recipe, parts: Iterable[Part], default_compute: str) -> list[Share]:
    """The share of every component. Raises RecipeError for a recipe that does not fit."""
    compute = compute_of(recipe, default_compute)
    stored: dict[str, dict[str, int]] = {component: {} for component in COMPONENTS}
    numbers, sizes = dict.fromkeys(COMPONENTS, 0), dict.fromkeys(COMPONENTS, 0)
    for part in parts:
        name, width = part.component, FLOAT_BYTES[compute[part.component]]
        numbers[name] += part.numbers
        sizes[name] += stored_bytes(recipe, part, width)
        if part.matrix is not None:
            form = spell(recipe.form(part.matrix))
            stored[name][form] = stored[name].get(form, 0) + 1
    return [Share(c, compute[c], stored[c], numbers[c], sizes[c]) for c in COMPONENTS]


def as_parts(tensors: Iterable[tuple[str, tuple[int, ...]]]) -> list[Part]:
    """Parts from names in the graph and shapes as the checkpoint has them, [outputs, inputs].

    Constants that no checkpoint has are left out.
    """
    parts = []
    for name, shape in tensors:
        component, numbers = component_of(name), 1
        for size in shape:
            numbers *= size
        if component is not None:
            found = matrix(name, *shape) if len(shape) == 2 else None
            parts.append(Part(component, numbers, found))
    return parts
