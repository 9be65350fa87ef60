"""One piece of a bundle on its way to fewer bits: what is to be done, and what comes of it.

The exporter and `quantize` share it: they differ in where the float numbers come from.
"""

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator, Mapping

import numpy as np
import onnx
from mimo_edge.engines.components import Matrix
from mimo_edge.engines.quantized_graph import matrices, scales_of
from mimo_edge.engines.recipe import Form, Recipe
from mimo_edge.engines.schemes import CHANNEL, SCHEMES, Read, pack_int4, quantize
from mimo_edge.engines.weigh import form_bytes, spell
from mimo_edge.engines.weight_file import Stored, is_external
from mimo_edge.runtime.bundle.manifest import WeightScheme
from numpy.typing import DTypeLike, NDArray

_PART = 1 << 24  # codes that are laid out for the file at a time


@dataclasses.dataclass(frozen=True)
class Plan:
    """One piece: its float graph, and the form of each matrix that is quantised."""

    model: onnx.ModelProto
    weights: Mapping[str, Matrix]
    forms: Mapping[str, Form]

    @classmethod
    def of(cls, model: onnx.ModelProto, recipe: Recipe) -> "Plan":
        """Raises RecipeError for a recipe that does not fit."""
        weights = matrices(model)
        found = {name: recipe.form(weight) for name, weight in weights.items()}
        return cls(model, weights, {name: form for name, form in found.items() if form})

    @property
    def bytes(self) -> int:
        """Of the data file that will come, give or take what aligns it."""
        total = 0
        for tensor in self.model.graph.initializer:
            width = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
            if tensor.name in self.forms:
                weight = self.weights[tensor.name]
                total += form_bytes(weight, self.forms[tensor.name], width)
            elif is_external(tensor):
                total += int(np.prod(tensor.dims)) * width
        return total


def recorded(plan: Plan, floats: Mapping[str, WeightScheme]) -> dict[str, WeightScheme]:
    """How each component of a piece is stored: the form that most of its numbers have, and others.

    `floats` is how they were before.
    """
    counts: dict[str, Counter[Form]] = {}
    for name, form in plan.forms.items():
        weight = plan.weights[name]
        found = counts.setdefault(weight.component, Counter())
        found[form] += weight.outputs * weight.inputs
    made = dict(floats)
    for component, found in counts.items():
        (most, _), *others = found.most_common()
        also = tuple(spell(form) for form, _ in others)
        made[component] = WeightScheme(most.scheme, most.block or None, most.method, also)
    return made


def is_dynamic(plan: Plan, recipe: Recipe) -> bool:
    """Whether all quantised layers of a piece may see what they read rounded as it comes."""
    found = {weight.component for weight in plan.weights.values() if not weight.table}
    kinds = {recipe.components[component].activations for component in found}
    return bool(plan.forms) and kinds == {"dynamic"}


def quantized(
    weight: Matrix,
    form: Form,
    read: Read,
    scale_dtype: DTypeLike,
    on_progress: Callable[[int], None] = lambda _: None,
) -> Iterator[Stored]:
    """Quantise a matrix, and give its codes and scales as the file holds them."""
    shape = (weight.outputs, weight.inputs)
    scheme = SCHEMES[form.scheme]
    found = quantize(
        weight.name, shape, read, scheme, form.block, form.method, scale_dtype, on_progress
    )
    yield Stored(weight.name, _code_parts(found.codes, weight.table, scheme.bits == 4))
    scales = found.scales if weight.table or form.block == CHANNEL else found.scales.T
    yield Stored(scales_of(weight.name), [scales])


def _code_parts(codes: NDArray, table: bool, packed: bool) -> Iterator[NDArray]:
    """Codes [outputs, inputs] in memory order: a table as it is, a layer as [inputs, outputs]."""
    if table:
        yield codes
        return
    step = max(2, _PART // len(codes) // 2 * 2)  # even: a byte of int4 is not cut in two
    for start in range(0, codes.shape[1], step):
        part = np.ascontiguousarray(codes[:, start : start + step].T)
        yield pack_int4(part) if packed else part
