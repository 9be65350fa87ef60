"""Small, named rewrites of a traced graph that do not need its weights."""

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as passes
from onnxscript.optimizer import optimize


def simplify(model: ir.Model) -> None:
    """Fold constants, merge equal nodes, drop what is unused. Weights have no data and stay."""
    optimize(model, num_iterations=1, onnx_shape_inference=False, input_size_limit=4096)
    passes.IdentityEliminationPass()(model)
    drop_transposes_of_one(model)
    passes.CommonSubexpressionEliminationPass()(model)
    passes.RemoveUnusedNodesPass()(model)
    passes.RemoveUnusedOpsetsPass()(model)


def drop_transposes_of_one(model: ir.Model) -> None:
    """Heads and time change places by a reshape alone where time is one position.

    `Reshape -> Transpose` becomes one Reshape, `Transpose -> Reshape` its Reshape: the numbers lie
    in the same order before and after.
    """
    for node in list(model.graph):
        if node.op_type != "Transpose" or tuple(node.attributes["perm"].as_ints()) != (0, 2, 1, 3):
            continue
        given, output = node.inputs[0], node.outputs[0]
        assert given is not None
        shape, source = given.shape, given.producer()
        users = [user for user, _ in output.uses()]
        if shape is None or output.is_graph_output():
            continue
        if shape[2] == 1 and all(user.op_type == "Reshape" for user in users):
            output.replace_all_uses_with(given)
        elif shape[1] == 1 and source is not None and source.op_type == "Reshape":
            sizes = np.array([0, shape[2], 1, shape[3]], np.int64)  # 0: as it is
            name = f"{node.name}_shape"
            model.graph.initializers.add(
                ir.Value(name=name, const_value=ir.tensor(sizes, name=name))
            )
            target = model.graph.initializers[name]
            reshape = ir.node("Reshape", [source.inputs[0], target], name=node.name)
            new = reshape.outputs[0]
            new.name, new.shape, new.type = output.name, output.shape, output.type
            model.graph.insert_before(node, reshape)
            output.replace_all_uses_with(new)
        else:
            continue
        model.graph.remove(node, safe=True)
    passes.RemoveUnusedNodesPass()(model)


def lay_out_weights(model: ir.Model) -> set[str]:
    """Turn `x @ W.T` on a stored W into `x @ W` on a transposed one; returns the transposed names.

    A quantiser or a backend then finds every linear layer as MatMul with a constant [in, out].
    """
    transposed: set[str] = set()
    for name, weight in model.graph.initializers.items():
        uses = [node for node, _ in weight.uses()]
        if not uses or not all(_is_transpose(n) or _is_plain_linear(n) for n in uses):
            continue  # a codebook, for one, is used both ways
        assert weight.shape is not None
        weight.shape = ir.Shape(reversed(list(weight.shape)))
        transposed.add(name)
        for node in uses:
            output = node.outputs[0]
            if node.op_type == "Transpose":
                output.replace_all_uses_with(weight)
            else:
                product = ir.node("MatMul", [node.inputs[0], weight], name=node.name)
                new = product.outputs[0]
                new.name, new.shape, new.type = output.name, output.shape, output.type
                model.graph.insert_before(node, product)
                output.replace_all_uses_with(new, replace_graph_outputs=True)
            model.graph.remove(node, safe=True)
    return transposed


def count_axes_from_the_front(model: ir.Model) -> None:
    """Write axis -1 as its number where evaluators stumble over it: onnx.reference does."""
    for node in model.graph.all_nodes():
        if node.op_type == "GatherElements" and node.attributes["axis"].as_int() < 0:
            data = node.inputs[0]
            assert data is not None and data.shape is not None
            axis = node.attributes["axis"].as_int() + len(data.shape)
            node.attributes["axis"] = ir.AttrInt64("axis", axis)


def _is_transpose(node: ir.Node) -> bool:
    return node.op_type == "Transpose" and tuple(node.attributes["perm"].as_ints()) == (1, 0)


def _is_plain_linear(node: ir.Node) -> bool:
    if node.op_type != "Gemm":
        return False

    def number(name: str, default: float) -> float:
        return node.attributes[name].value if name in node.attributes else default

    no_bias = len(node.inputs) < 3 or node.inputs[2] is None
    scales = number("alpha", 1.0) == 1.0 and number("beta", 1.0) == 1.0
    return no_bias and scales and number("transB", 0) == 1 and number("transA", 0) == 0
