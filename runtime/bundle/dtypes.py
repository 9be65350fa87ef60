"""The number types of ports and weights: one table of what each is called, and how large it is.

Tables for torch and onnx are made from it where those may be imported: torch calls a type as numpy
does, and `onnx` is a name in its `TensorProto`.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Dtype:
    """One number type. `name` is the bundle's name, which is numpy's and torch's too."""

    name: str
    bytes: int  # of one number
    onnx: str
    tensorrt: str
    safetensors: str


DTYPES = {
    dtype.name: dtype
    for dtype in (
        Dtype("float32", 4, "FLOAT", "FLOAT", "F32"),
        Dtype("float16", 2, "FLOAT16", "HALF", "F16"),
        Dtype("bfloat16", 2, "BFLOAT16", "BF16", "BF16"),
        Dtype("int64", 8, "INT64", "INT64", "I64"),
        Dtype("int8", 1, "INT8", "INT8", "I8"),
        Dtype("bool", 1, "BOOL", "BOOL", "BOOL"),
    )
}
# what a component may compute in, as recipes and `--dtype` call it
PRECISIONS = {
    "fp32": DTYPES["float32"],
    "fp16": DTYPES["float16"],
    "bf16": DTYPES["bfloat16"],
}
