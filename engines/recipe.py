"""Recipes: which component is built in which precision. They are data: `engines/recipes/*.toml`."""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mimo_edge.runtime.bundle.bundle import Bundle
from mimo_edge.runtime.bundle.dtypes import PRECISIONS
from mimo_edge.runtime.bundle.errors import InputError
from mimo_edge.runtime.bundle.manifest import PIECES

FOLDER = Path(__file__).parent / "recipes"


@dataclass(frozen=True)
class Recipe:
    name: str
    precision: Mapping[str, str]  # piece -> precision


def names() -> list[str]:
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def load(name: str) -> Recipe:
    """Read a recipe by name. Raises InputError."""
    path = FOLDER / f"{name}.toml"
    if not path.is_file():
        raise InputError(f"there is no recipe {name!r}; choose one of {', '.join(names())}")
    raw = tomllib.loads(path.read_text(encoding="utf-8"))
    precision = raw["precision"]
    missing = [piece for piece in PIECES if piece not in precision]
    if missing or raw["name"] != name:
        raise InputError(f"{path} is no recipe: it must name itself and every one of {PIECES}")
    for piece in PIECES:
        if precision[piece] not in PRECISIONS:
            raise InputError(
                f"{path} wants {piece} in {precision[piece]!r}, which nothing here can build; "
                f"choose one of {', '.join(PRECISIONS)}"
            )
    return Recipe(name, precision)


def for_bundle(bundle: Bundle, name: str | None) -> Recipe:
    """The named recipe, or the one of the bundle's own precision; raises InputError if it does not
    fit the bundle."""
    recipe = load(name or bundle.piece("backbone").compute)
    for piece in PIECES:
        wanted, found = recipe.precision[piece], bundle.piece(piece).compute
        if wanted != found:
            raise InputError(
                f"recipe {recipe.name} wants {piece} in {wanted}, the bundle has it in {found}. "
                f"Export the checkpoint with --dtype {wanted}, or choose another recipe."
            )
    return recipe
