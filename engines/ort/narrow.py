"""Where only small codebooks are drawn, the sampler looks at no more scores than these have.

In the stored graph scores are filled up to the largest codebook, at every sub-step: the released
model has codebooks of 1,025 and of 129 ids, and from the sixth of its eleven sub-steps on only the
latter are drawn. Here the width is that of the largest codebook which some row's sub-step draws,
found by the number of the sub-step; all that is made of the constant 0, 1, 2, ... is as wide.
"""

from collections.abc import Iterator

import numpy as np
import onnx
from mimo_edge.engines.ort.graph import constants, producers, rewrite
from mimo_edge.engines.weight_file import is_external
from mimo_edge.runtime.bundle.manifest import ModelSpec
from numpy.typing import NDArray
from onnx import helper, numpy_helper

NUMBER, CODES = "sub_step", "codes"  # ports
# constants and values of this step
_WIDTHS, _EACH, _WIDTH, _ONE, _START = (
    f"drawn_{name}" for name in ("widths", "each", "width", "width_number", "start")
)


def narrow_scores(model: onnx.ModelProto, spec: ModelSpec) -> bool:
    """Rewrite a patch decoder's sampler in place, and say whether it was: not where all codebooks
    are of one size, nor where something as wide is no constant that is known here: as wide by its
    shape or, where it is a shape, by what it holds."""
    widths, whole = widths_of(spec), max(spec.code_vocab)
    inner = list(_sampler(model))
    held = {
        name: numpy_helper.to_array(tensor)
        for name, tensor in constants(model).items()
        if not is_external(tensor) and any(name in node.input for node in inner)
    }
    narrowed: dict[tuple[int, int], str] = {}  # node and place of its input -> new input
    cut: set[str] = set()
    shapes: dict[str, NDArray[np.int64]] = {}
    for index, node in enumerate(inner):
        for place, name in enumerate(node.input):
            if name not in held:
                continue
            if node.op_type == "Reshape" and place == 1 and held[name][-1] % whole == 0:
                if whole in held[name][:-1]:
                    return False
                shapes[f"{name}_drawn"] = np.array([0, *held[name][1:-1], -1])
                narrowed[index, place] = f"{name}_drawn"
            elif _is_number(held[name], whole):
                narrowed[index, place] = _ONE if held[name].ndim == 0 else _WIDTH
            elif np.array_equal(held[name], np.arange(whole)):
                cut.add(name)
                narrowed[index, place] = f"{name}_drawn"
            elif whole in held[name].shape or (_is_shape(held[name]) and whole in held[name]):
                return False
    if not cut or all(width == whole for width in widths):
        return False
    for (index, place), name in narrowed.items():
        node = inner[index]
        node.input[place] = name
        if node.op_type == "Reshape":  # 0 is as many as there are
            del node.attribute[:]
    nodes = [
        helper.make_node("Gather", [_WIDTHS, NUMBER], [_EACH], name=_EACH),
        helper.make_node("ReduceMax", [_EACH], [_WIDTH], name=_WIDTH, keepdims=1),
        helper.make_node("Squeeze", [_WIDTH], [_ONE], name=_ONE),
    ]
    nodes += [
        helper.make_node("Slice", [name, _START, _WIDTH], [f"{name}_drawn"], name=f"{name}_drawn")
        for name in sorted(cut)
    ]
    values = {_WIDTHS: np.array(widths), _START: np.array([0])} | shapes
    tensors = [numpy_helper.from_array(value, name) for name, value in values.items()]
    rewrite(model, {0: nodes}, set(), tensors)
    return True


def widths_of(spec: ModelSpec) -> list[int]:
    """Of the largest codebook that each sub-step draws."""
    return [
        max(
            (
                size
                for size, delay in zip(spec.code_vocab, spec.delays, strict=True)
                if 0 <= step - delay < spec.group_size
            ),
            default=min(spec.code_vocab),
        )
        for step in range(spec.sub_steps)
    ]


def _sampler(model: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    """The nodes that make codes of the scores, which are products, and of the ports."""
    made, wanted, seen = producers(model), [CODES], set[str]()
    while wanted:
        node = made.get(wanted.pop())
        if node is None or node.op_type == "MatMul" or node.output[0] in seen:
            continue
        seen.add(node.output[0])
        wanted.extend(node.input)
        yield node


def _is_number(value: NDArray, number: int) -> bool:
    return value.dtype == np.int64 and value.size == 1 and value.item() == number


def _is_shape(value: NDArray) -> bool:
    """Whether it may be one: a table of ids has another rank."""
    return value.dtype == np.int64 and value.ndim == 1
