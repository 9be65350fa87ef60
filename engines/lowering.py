"""What the bundle's graphs need before TensorRT takes them. Each step is named, small and tested.

The weights stay where they are: a lowered graph points into the bundle's data files.
"""

import onnx

CAPACITY = "capacity"


def lower(model: onnx.ModelProto, capacity: int) -> onnx.ModelProto:
    """All steps, in place."""
    fix_capacity(model, capacity)
    return model


def fix_capacity(model: onnx.ModelProto, capacity: int) -> None:
    """Give the key-value cache a static length.

    TensorRT updates a cache in place only if its sequence axis is static (KVCacheUpdate refuses
    anything else), and the cache must be an input and an output of the network, as it is here.
    """
    graph = model.graph
    for value in (*graph.input, *graph.output, *graph.value_info):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param == CAPACITY:
                dim.dim_value = capacity  # setting the value clears the name
