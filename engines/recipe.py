"""Recipes: which component is computed and stored in what. They are data, `engines/recipes/*.toml`
or a file of the user's own:

    name = "mine"
    about = "one line for people"
    float_inputs = ["*.down_proj.*"]  # layers whose inputs get no fixed scale; left out: none

    [default]                       # of every component that is not named below
    compute = "fp32"                # fp32, fp16, bf16; left out: that of the export or the bundle
    weights = { scheme = "int8", block = "channel", method = "nearest" }
    activations = "float"

    [components.backbone]           # what is left out is the default's
    weights = { scheme = "int4", block = [128, 64, 32], method = "awq" }
    activations = "dynamic"

    [[exceptions]]                  # by name in the graph; the last that fits wins
    tensors = "backbone.model.layers.0.*"
    weights = { scheme = "int8", block = "channel" }

A list of blocks means the first that divides the inputs of a layer; scheme "float" leaves weights
as they are computed. Activations are "float"; "dynamic": a backend may round them to int8 as it
runs; or "int8" and "fp8": with scales that calibration has found. Methods are those of
`schemes.py`; inputs of layers in "awq" are scaled by what calibration has found (`scaling.py`).
"""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from mimo_edge.engines.calibration import HOW, Calibration
from mimo_edge.engines.components import COMPONENTS, EXACT, TABLES, Matrix, bare
from mimo_edge.engines.schemes import ACTIVATION_AWARE, CHANNEL, METHODS, SCHEMES
from mimo_edge.engines.toml_values import TomlValues
from mimo_edge.runtime.bundle.dtypes import PRECISIONS
from mimo_edge.runtime.bundle.errors import MALFORMED, RecipeError
from mimo_edge.runtime.bundle.files import read_text

FOLDER = Path(__file__).parent / "recipes"
FLOAT = "float"
ACTIVATIONS = (FLOAT, "dynamic", "int8", "fp8")
CALIBRATED = ("int8", "fp8")  # activations whose scales are found before
KV_CACHE = "kv_cache"  # is none of the components


@dataclass(frozen=True)
class Weights:
    """How weights are stored: `blocks` are tried in order, CHANNEL is a row of any length."""

    scheme: str = FLOAT
    blocks: tuple[int, ...] = ()
    method: str = "nearest"

    def __str__(self) -> str:
        if self.scheme == FLOAT:
            return FLOAT
        blocks = " or ".join("channel" if b == CHANNEL else f"block {b}" for b in self.blocks)
        return f"{self.scheme} {blocks}, {self.method}"


@dataclass(frozen=True)
class Component:
    """`compute` None is that of the export or of the bundle."""

    compute: str | None
    weights: Weights
    activations: str


@dataclass(frozen=True)
class Form:
    """How one matrix is stored."""

    scheme: str
    block: int  # CHANNEL, or so many inputs
    method: str


@dataclass(frozen=True)
class Recipe:
    """`exceptions` are pairs of a glob and what is so for the tensors whose names it fits.

    `float_inputs` are globs of weights: what their layers read gets no scale of calibration,
    whatever the activations of their components are.
    """

    name: str
    about: str
    components: Mapping[str, Component]
    exceptions: tuple[tuple[str, Weights], ...] = ()
    float_inputs: tuple[str, ...] = ()

    @property
    def quantizes(self) -> bool:
        used = [*(c.weights for c in self.components.values()), *(w for _, w in self.exceptions)]
        return any(weights.scheme != FLOAT for weights in used)

    @property
    def calibrated(self) -> bool:
        """Whether calibration must have found what layers read."""
        parts = self.components.values()
        used = [*(part.weights for part in parts), *(w for _, w in self.exceptions)]
        return any(part.activations in CALIBRATED for part in parts) or any(
            weights.method == ACTIVATION_AWARE for weights in used
        )

    @property
    def slow_on_cpus(self) -> tuple[str, ...]:
        """The components whose products ONNX Runtime's CPU makes in floats: of whole channels, or
        of E4M3, it makes float weights first, at each product."""
        found = []
        for name, part in self.components.items():
            weights = part.weights
            widened = CHANNEL in weights.blocks and part.activations == FLOAT
            if name not in TABLES and (widened or weights.scheme == "fp8"):
                found.append(name)
        return tuple(found)

    def rounding(self, matrix: Matrix) -> str | None:
        """What the input of a layer is rounded to, by a scale of calibration; None for nothing."""
        kind = self.components[matrix.component].activations
        spared = any(fnmatchcase(bare(matrix.name), g) for g in self.float_inputs)
        return kind if kind in CALIBRATED and not matrix.table and not spared else None

    def form(self, matrix: Matrix) -> Form | None:
        """How a matrix is stored; None leaves it as it is computed. Raises RecipeError."""
        weights = self.components[matrix.component].weights
        for glob, exception in self.exceptions:
            if fnmatchcase(matrix.name, glob):
                weights = exception
        if weights.scheme == FLOAT:
            return None
        if matrix.table:
            weights = _of_table(weights)
            _check_table(self.name, matrix.name, weights)
        for block in weights.blocks:
            if block == CHANNEL or matrix.inputs % block == 0:
                form = Form(weights.scheme, block, weights.method)
                self._check_sides(matrix, form)
                return form
        scheme = SCHEMES[weights.scheme]
        fitting = [_spell(b) for b in scheme.blocks if b == CHANNEL or matrix.inputs % b == 0]
        others = ["int8 by channel"] if CHANNEL not in scheme.blocks else []
        raise RecipeError(
            f"recipe {self.name}: {_list(weights.blocks)} divides not the {matrix.inputs} inputs "
            f"of {matrix.name}. Of {scheme.name} it can take: {', '.join(fitting) or 'no block'}; "
            f"else {' or '.join([*others, FLOAT])}, by an exception."
        )

    def _check_sides(self, matrix: Matrix, form: Form) -> None:
        kind = self.rounding(matrix)
        if kind is not None and (form.scheme, form.block) != (kind, CHANNEL):
            raise RecipeError(
                f"recipe {self.name}: {matrix.name} has {kind} activations and {form.scheme} "
                f"weights in the block {_spell(form.block)!r}. Such a product takes {kind} on both "
                "sides, weights by channel; or name it in float_inputs."
            )


def names() -> list[str]:
    """The presets."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def load(name: str) -> Recipe:
    """A preset by name, or the recipe in a TOML file. Raises RecipeError."""
    path = FOLDER / f"{name}.toml" if name in names() else Path(name)
    if path.suffix != ".toml" or not path.is_file():
        raise RecipeError(
            f"there is no recipe {name!r}; choose one of {', '.join(names())}, or give the path of "
            "a .toml file"
        )
    try:
        raw = tomllib.loads(read_text(path))
    except (OSError, *MALFORMED) as error:
        raise RecipeError(f"{path} cannot be read as TOML: {error}") from error
    return parse(raw, path)


_KEYS = ("name", "about", "float_inputs", "default", "components", "exceptions")


def parse(raw: Mapping[str, Any], path: Path) -> Recipe:
    """A recipe from its file's content. Raises RecipeError that names the file and the value."""
    reader = _Reader(path)
    reader.keys(raw, "the recipe", _KEYS)
    name = reader.text(raw, "name")
    if name != path.stem:
        raise RecipeError(f"{path} names itself {name!r}; the name must be that of the file")
    given = reader.table(raw, "components")
    if KV_CACHE in given:
        raise RecipeError(
            f"{path}: a component is {KV_CACHE!r}, which a bundle does not store: how keys and "
            "values are kept is chosen where one is built, mimo-edge build --target ort-cpu "
            "--kv-cache int8. Leave it out."
        )
    for component in given:
        reader.choice(component, COMPONENTS, "a component")
    default = reader.table(raw, "default")
    components = {}
    for component in COMPONENTS:
        values: Mapping[str, Any] = {} if component == EXACT else default
        if component in given:
            values = {**values, **reader.table(given, component)}
        components[component] = reader.component(component, values)
    exceptions = []
    for entry in reader.tables(raw, "exceptions"):
        reader.keys(entry, "an exception", ("tensors", "weights"))
        weights = reader.weights("an exception", reader.table(entry, "weights"))
        exceptions.append((reader.text(entry, "tensors"), weights))
    about, spared = reader.text(raw, "about"), reader.texts(raw, "float_inputs")
    recipe = Recipe(name, about, components, tuple(exceptions), spared)
    compute_of(recipe, "fp32", path)
    return recipe


# components whose states go from one to the next without a cast, and so are computed alike
_ALIKE = (
    (
        *("text_embedding", "speech_embeddings", "patch_encoder"),
        *("backbone", "lm_head", "patch_decoder", "speech_heads"),
    ),
    ("tokenizer_encoder",),
    ("tokenizer_decoder", "vocoder"),
)


def compute_of(recipe: Recipe, default: str, path: Path | None = None) -> dict[str, str]:
    """Component -> what it is computed in, where a recipe leaves it open `default`.

    Raises RecipeError if components disagree that hand their states to one another.
    """
    found = {}
    for group in _ALIKE:
        named = {c: recipe.components[c].compute or default for c in group}
        if len(set(named.values())) > 1:
            raise RecipeError(
                f"{path or f'recipe {recipe.name}'}: {', '.join(group)} hand their states to one "
                "another and must be computed in one precision, not in "
                + ", ".join(f"{p} ({c})" for c, p in named.items())
                + ". Weights may differ."
            )
        found.update(named)
    return found | {EXACT: "fp32"}


def check_calibration(recipe: Recipe, calibration: Calibration | None) -> None:
    """Raises RecipeError for a recipe that needs a calibration and has none, or the reverse."""
    if recipe.calibrated and calibration is None:
        raise RecipeError(
            f"recipe {recipe.name} needs to know what layers read. Find it on a bundle of the same "
            f"checkpoint, in floats or int8: {HOW}. Recipes without: int8, int4, int4-edge."
        )
    if calibration is not None and not recipe.calibrated:
        raise RecipeError(
            f"recipe {recipe.name} makes no use of a calibration. Leave --calibration out, or "
            f'choose a recipe with calibrated activations or method = "{ACTIVATION_AWARE}".'
        )


def check_export(recipe: Recipe, compute: str) -> None:
    """Raises RecipeError for a recipe that an export in this precision cannot follow."""
    for name, component in recipe.components.items():
        if name != EXACT and component.compute not in (None, compute):
            raise RecipeError(
                f"recipe {recipe.name} computes {name} in {component.compute}, the export all in "
                f"{compute}. Give --dtype {component.compute}, or leave compute out of the recipe."
            )


class _Reader(TomlValues):
    """Components and weights out of a recipe's file."""

    def component(self, name: str, raw: Mapping[str, Any]) -> Component:
        self.keys(raw, name, ("compute", "weights", "activations"))
        compute = raw.get("compute")
        if compute is not None:
            self.choice(compute, tuple(PRECISIONS), f"compute of {name}")
        activations = raw.get("activations", FLOAT)
        self.choice(activations, ACTIVATIONS, f"activations of {name}")
        weights = self.weights(name, self.table(raw, "weights"))
        if name == EXACT and (compute not in (None, "fp32") or weights.scheme != FLOAT):
            raise RecipeError(
                f"{self.path}: {EXACT} stay in fp32 and {FLOAT}: a code is the nearest of their "
                "rows. Leave them out."
            )
        if activations in CALIBRATED and name not in TABLES and weights.scheme != activations:
            raise RecipeError(
                f"{self.path}: {name} has {activations} activations and {weights.scheme} weights. "
                f"Such a product takes {activations} on both sides, by channel; or choose "
                f"activations {FLOAT} or dynamic."
            )
        if name in TABLES:
            weights = _of_table(weights)
            _check_table(str(self.path), name, weights)
            activations = FLOAT  # rows are looked up, nothing goes in
        return Component(compute, weights, activations)

    def weights(self, owner: str, raw: Mapping[str, Any]) -> Weights:
        self.keys(raw, f"weights of {owner}", ("scheme", "block", "method"))
        scheme = raw.get("scheme", FLOAT)
        self.choice(scheme, (FLOAT, *SCHEMES), f"scheme of {owner}")
        if scheme == FLOAT:
            if raw.keys() & {"block", "method"}:
                raise RecipeError(f"{self.path}: {FLOAT} weights of {owner} have no block, method")
            return Weights()
        method = raw.get("method", "nearest")
        self.choice(method, METHODS, f"method of {owner}")
        allowed = SCHEMES[scheme].blocks
        block = raw.get("block", "channel" if CHANNEL in allowed else None)
        blocks = []
        for value in block if isinstance(block, list) and block else [block]:
            number = CHANNEL if value == "channel" else value
            if type(number) is not int or number not in allowed or value == CHANNEL:
                raise RecipeError(
                    f"{self.path}: {scheme} weights of {owner} in the block {value!r}; choose of "
                    + _list(allowed)
                )
            blocks.append(number)
        return Weights(scheme, tuple(blocks), method)


def _of_table(weights: Weights) -> Weights:
    """Rows that are looked up read nothing that could be known."""
    aware = weights.method == ACTIVATION_AWARE
    return replace(weights, method="search") if aware else weights


def _check_table(where: str, name: str, weights: Weights) -> None:
    if weights.scheme not in (FLOAT, "int8") or weights.blocks not in ((), (CHANNEL,)):
        raise RecipeError(
            f"{where}: {name} is a table whose rows are looked up; it can be int8 by channel, or "
            f"{FLOAT}, not {weights}"
        )


def _spell(block: int) -> str:
    return "channel" if block == CHANNEL else str(block)


def _list(blocks: tuple[int, ...]) -> str:
    return ", ".join(map(_spell, blocks))
