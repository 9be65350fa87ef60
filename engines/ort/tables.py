"""Rows of several tables, as rows of one: ids go to their tables' places in it.

    Split of ids [B, K] -> for each its own Gather -> Concat [B, K, D]      becomes
    ids + where each table begins -> Gather

and the same of int8 tables, whose codes and scales are gathered, and then multiplied: by Cast and
Mul, because ONNX Runtime's DequantizeLinear takes several times as long, 2 ns a number. The tables
are stored one below the other, and stay mapped.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx
from mimo_edge.engines.ort.graph import axis_of, constants, producers, rewrite, users
from mimo_edge.engines.weight_file import is_external
from onnx import TensorProto, helper, numpy_helper


@dataclass(frozen=True)
class Whole:
    """Tensors of the stored graph as one, which has no data yet."""

    parts: tuple[TensorProto, ...]

    @property
    def name(self) -> str:
        return f"{self.parts[0].name}_whole"

    @property
    def tensor(self) -> TensorProto:
        first = self.parts[0]
        dims = [sum(part.dims[0] for part in self.parts), *first.dims[1:]]
        return TensorProto(name=self.name, data_type=first.data_type, dims=dims)


@dataclass(frozen=True)
class LookUp:
    """What follows a Split of ids up to the Concat, by the names of its values."""

    ids: str
    output: str
    tables: tuple[Whole, ...]  # rows, or codes and scales
    nodes: tuple[int, ...]


def lower_tables(model: onnx.ModelProto) -> list[Whole]:
    """Rewrite every such look-up in place. Returns the tables whose data is to be written."""
    found = list(_look_ups(model))
    at: dict[int, list[onnx.NodeProto]] = {}
    tensors: list[TensorProto] = []
    for one in found:
        at[one.nodes[-1]], offsets = _rewritten(one)
        tensors += [offsets, *(whole.tensor for whole in one.tables)]
    rewrite(model, at, {index for one in found for index in one.nodes}, tensors)
    return [whole for one in found for whole in one.tables]


def _look_ups(model: onnx.ModelProto) -> Iterator[LookUp]:
    graph, held, made, readers = model.graph, constants(model), producers(model), users(model)
    places = {id(node): index for index, node in enumerate(graph.node)}
    for node in graph.node:
        each = [made.get(name) for name in node.input] if node.op_type == "Concat" else []
        rows = [_gathers(last, made, held) for last in each if last is not None]
        if len(rows) < max(2, len(each)) or not all(rows) or axis_of(node) != 1:
            continue
        ids = [row[0].input[1] for row in rows]
        split = made.get(ids[0])
        if split is None or split.op_type != "Split" or axis_of(split) != 1:
            continue
        tables = [Whole(tuple(held[g.input[0]] for g in kind)) for kind in zip(*rows, strict=False)]
        nodes = [split, *(g for row in rows for g in row), *(e for e in each if e), node]
        inner = {name for one in nodes[:-1] for name in one.output}
        gone = sorted({places[id(one)] for one in nodes})
        if (
            list(split.output) == ids
            and len({len(row) for row in rows}) == 1
            and all(_alike(whole) for whole in tables)
            and (len(tables) == 1 or tables[0].tensor.data_type == TensorProto.INT8)
            and all(set(readers[name]) <= set(gone) for name in inner)
        ):
            yield LookUp(split.input[0], node.output[0], tuple(tables), tuple(gone))


def _gathers(
    last: onnx.NodeProto, made: dict[str, onnx.NodeProto], held: dict[str, TensorProto]
) -> list[onnx.NodeProto]:
    """Those of one table's rows: one, or two if its codes are multiplied; none if it is neither."""
    found = [last]
    if last.op_type == "DequantizeLinear":
        found = [made[name] for name in last.input if name in made]
    fit = all(
        node.op_type == "Gather"
        and axis_of(node) == 0
        and node.input[0] in held
        and is_external(held[node.input[0]])
        for node in found
    )
    return found if fit else []


def _alike(whole: Whole) -> bool:
    """Whether rows are of one kind and width."""
    return len({(part.data_type, tuple(part.dims[1:])) for part in whole.parts}) == 1


def _rewritten(one: LookUp) -> tuple[list[onnx.NodeProto], TensorProto]:
    starts = np.cumsum([0, *(part.dims[0] for part in one.tables[0].parts[:-1])], dtype=np.int64)
    offsets = numpy_helper.from_array(starts, f"{one.output}_offsets")  # [K]
    rows, codes, floats, scales = (
        f"{one.output}_{name}" for name in ("rows", "codes", "floats", "scales")
    )
    table, *others = one.tables
    gathered = codes if others else one.output
    nodes = [
        helper.make_node("Add", [one.ids, offsets.name], [rows], name=rows),
        helper.make_node("Gather", [table.name, rows], [gathered], name=gathered, axis=0),
    ]
    for whole in others:
        kind = whole.tensor.data_type
        nodes += [
            helper.make_node("Gather", [whole.name, rows], [scales], name=scales, axis=0),
            helper.make_node("Cast", [codes], [floats], name=floats, to=kind),
            helper.make_node("Mul", [floats, scales], [one.output], name=one.output),
        ]
    return nodes, offsets
