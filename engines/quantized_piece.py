"""One piece of a bundle on its way to fewer bits: what is to be done, and what comes of it.

The exporter and `quantize` share it: they differ in where the float numbers come from.
"""

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator, Mapping

import numpy as np
import onnx
from mimo_edge.engines import scaling
from mimo_edge.engines.calibration import Calibration
from mimo_edge.engines.components import Matrix
from mimo_edge.engines.quantized_graph import Rounding, matrices, scales_of
from mimo_edge.engines.recipe import Form, Recipe
from mimo_edge.engines.scaling import ReadOf, Scaling, tried_on
from mimo_edge.engines.schemes import CHANNEL, SCHEMES, Read, pack_int4, quantize
from mimo_edge.engines.weigh import form_bytes, spell
from mimo_edge.engines.weight_file import Stored, is_external
from mimo_edge.engines.work import scaling_cost
from mimo_edge.runtime.bundle.manifest import WeightScheme
from numpy.typing import DTypeLike, NDArray

_PART = 1 << 24  # codes that are laid out for the file at a time


@dataclasses.dataclass(frozen=True)
class Plan:
    """One piece: its float graph, the form of each matrix that is quantised, and what calibration
    does to it."""

    model: onnx.ModelProto
    weights: Mapping[str, Matrix]
    forms: Mapping[str, Form]
    activations: Mapping[str, str]  # what the input of a layer is rounded to, of those that it is
    scaling: Scaling = dataclasses.field(default_factory=Scaling)

    @classmethod
    def of(cls, model: onnx.ModelProto, recipe: Recipe) -> "Plan":
        """Raises RecipeError for a recipe that does not fit."""
        weights = matrices(model)
        found = {name: recipe.form(weight) for name, weight in weights.items()}
        forms = {name: form for name, form in found.items() if form}
        kinds = {name: recipe.rounding(weights[name]) for name in forms}
        rounded = {name: kind for name, kind in kinds.items() if kind is not None}
        return cls(model, weights, forms, rounded)

    def calibrated(
        self,
        calibration: Calibration | None,
        read_of: ReadOf,
        head_dim: int,
        on_progress: Callable[[float], None] = lambda _: None,
    ) -> "Plan":
        """With what calibration finds of it: `read_of` gives the float numbers of a matrix,
        `head_dim` is that of the heads that share values. Raises CalibrationError."""
        if calibration is None:
            return self
        vectors = [t.name for t in self.model.graph.initializer if len(t.dims) == 1]
        return dataclasses.replace(
            self,
            scaling=scaling.find(
                self.weights,
                self.forms,
                vectors,
                calibration,
                self.activations,
                read_of,
                head_dim,
                on_progress,
            ),
        )

    @property
    def scaling_cost(self) -> float:
        """Of `calibrated`, as in `work`."""
        return sum(
            scaling_cost(form, tried_on(self.weights[name]))
            for name, form in self.forms.items()
            if not self.weights[name].table
        )

    @property
    def rounding(self) -> dict[str, Rounding]:
        """By weight, how what its product reads is rounded."""
        steps = self.scaling.steps
        return {name: Rounding(self.activations[name], step) for name, step in steps.items()}

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
        layers = [name for name in plan.forms if plan.weights[name].component == component]
        reads = next((plan.activations[name] for name in layers if name in plan.activations), None)
        made[component] = WeightScheme(most.scheme, most.block or None, most.method, also, reads)
    return made


def is_dynamic(plan: Plan, recipe: Recipe) -> bool:
    """Whether all quantised layers of a piece may see what they read rounded to int8: those that
    have no scale for it, as it comes."""
    found = {weight.component for weight in plan.weights.values() if not weight.table}
    kinds = {recipe.components[component].activations for component in found}
    return bool(plan.forms) and bool(kinds) and kinds <= {"dynamic", "int8"}


def quantized(
    plan: Plan,
    name: str,
    read: Read,
    scale_dtype: DTypeLike,
    on_progress: Callable[[int], None] = lambda _: None,
) -> Iterator[Stored]:
    """Quantise a matrix of a plan, and give its codes and scales as the file holds them."""
    weight, form = plan.weights[name], plan.forms[name]
    shape = (weight.outputs, weight.inputs)
    scheme = SCHEMES[form.scheme]
    found = quantize(
        weight.name,
        shape,
        plan.scaling.read(name, read),
        scheme,
        form.block,
        form.method,
        scale_dtype,
        on_progress,
        plan.scaling.squares.get(name),
    )
    yield Stored(weight.name, _code_parts(found.codes, weight.table, scheme.bits == 4))
    scales = found.scales if weight.table or form.block == CHANNEL else found.scales.T
    yield Stored(scales_of(weight.name), [scales])


def scaled(plan: Plan, name: str, values: NDArray) -> NDArray:
    """A vector that stays in floats, with its factors: powers of two, which round nothing."""
    factors = plan.scaling.factors.get(name)
    if factors is None or factors.outputs is None:
        return values
    return (values.astype(np.float32) * factors.outputs).astype(values.dtype)


def _code_parts(codes: NDArray, table: bool, packed: bool) -> Iterator[NDArray]:
    """Codes [outputs, inputs] in memory order: a table as it is, a layer as [inputs, outputs]."""
    if table:
        yield codes
        return
    step = max(2, _PART // len(codes) // 2 * 2)  # even: a byte of int4 is not cut in two
    for start in range(0, codes.shape[1], step):
        part = np.ascontiguousarray(codes[:, start : start + step].T)
        yield pack_int4(part) if packed else part
