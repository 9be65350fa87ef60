"""Weight schemes against plain rounding, exact values, and ONNX's own definition."""

import ml_dtypes
import numpy as np
import onnx
import pytest
from mimo_edge.engines import schemes
from mimo_edge.engines.quantized_graph import CODE_TYPES
from mimo_edge.engines.schemes import CHANNEL, METHODS, SCHEMES, Quantized, quantize
from mimo_edge.runtime.bundle.errors import InputError
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

FORMS = [(s.name, block) for s in SCHEMES.values() for block in s.blocks]


def made(weights: np.ndarray, scheme: str, block: int, method: str = "search", **kw) -> Quantized:
    read = lambda start, stop: weights[start:stop]  # noqa: E731
    squares = np.linspace(0, 3, weights.shape[1], dtype=np.float32)  # of what comes in, for awq
    kw = {"squares": squares} | kw
    return quantize("w", weights.shape, read, SCHEMES[scheme], block, method, **kw)


def heavy(rows: int = 37, width: int = 256) -> np.ndarray:
    """Weights with outliers."""
    return np.random.default_rng(1).standard_t(3, (rows, width)).astype(np.float32)


@pytest.mark.parametrize(("scheme", "block"), FORMS)
def test_searched_scales_are_better_than_plain_rounding_in_every_block(
    scheme: str, block: int
) -> None:
    weights, size = heavy(), block or 256

    def errors(method: str) -> np.ndarray:
        gap = schemes.dequantize(made(weights, scheme, block, method)) - weights
        return np.square(gap.astype(np.float64)).reshape(-1, size).sum(1)

    plain, searched = errors("nearest"), errors("search")
    assert (searched <= plain * (1 + 1e-5)).all()
    assert searched.sum() < plain.sum()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("scheme", "block"), FORMS)
def test_numbers_that_the_scheme_can_hold_come_back_as_they_were(
    scheme: str, block: int, method: str
) -> None:
    rng, size = np.random.default_rng(2), block or 64
    kind = SCHEMES[scheme]
    if scheme == "fp8":
        codes = np.arange(256, dtype=np.uint8).view(kind.dtype).astype(np.float32)
        codes = rng.choice(codes[np.isfinite(codes)], (40, size))
    else:
        codes = rng.integers(-kind.largest, kind.largest, (40, size)).astype(np.float32)
    codes[:, 0] = kind.largest
    scales = rng.uniform(1e-3, 1, (40, 1)).astype(np.float16).astype(np.float32)
    found = made(codes * scales, scheme, block, method)
    np.testing.assert_array_equal(schemes.dequantize(found), codes * scales)


def test_fp8_is_rounded_as_a_cast_does() -> None:
    codes = np.arange(256, dtype=np.uint8).view(ml_dtypes.float8_e4m3fn).astype(np.float32)
    held = np.sort(codes[np.isfinite(codes)])
    ties = (held[1:] + held[:-1]) / 2
    rng = np.random.default_rng(3)
    some = rng.standard_normal(100_000) * np.exp2(rng.integers(-20, 9, 100_000))
    near = [np.nextafter(ties, np.float32(end)) for end in (-np.inf, np.inf)]
    numbers = np.concatenate([held, ties, *near, some, [1e-44, -1e-44]]).astype(np.float32)
    numbers = np.clip(numbers, -448, 448)
    cast = numbers.astype(ml_dtypes.float8_e4m3fn).astype(np.float32)
    np.testing.assert_array_equal(SCHEMES["fp8"].codes(numbers), cast)


def test_the_lowest_int4_code_is_used_where_it_fits() -> None:
    codes = np.tile(np.arange(-8, 8, dtype=np.float32), (3, 2))
    weights = codes * np.float32(0.25)
    weights[:, weights[0] == weights.max()] = 0
    np.testing.assert_array_equal(schemes.dequantize(made(weights, "int4", 32)), weights)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("scheme", "block"), FORMS)
def test_scales_are_never_zero_or_infinite(
    scheme: str, block: int, method: str, dtype: type
) -> None:
    weights = np.zeros((4, 128), np.float32)
    weights[1], weights[2, 5], weights[3] = 1e-44, 1e-30, 6e4
    found = made(weights, scheme, block, method, scale_dtype=dtype)
    assert (found.scales > 0).all() and np.isfinite(found.scales).all()
    assert np.isfinite(schemes.dequantize(found)).all()
    assert not schemes.dequantize(found)[0].any()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_weights_that_are_nan_or_infinite_are_refused_by_name(bad: float) -> None:
    weights = heavy()
    weights[3, 7] = bad
    with pytest.raises(InputError, match=r"^w holds weights that are NaN or infinite"):
        made(weights, "int4", 32)


def test_a_scale_that_the_dtype_cannot_hold_is_refused() -> None:
    with pytest.raises(InputError, match="w holds weights up to 1e\\+08, whose scale float16"):
        made(np.full((2, 32), 1e8, np.float32), "int8", CHANNEL, scale_dtype=np.float16)


@pytest.mark.parametrize("count", [6, 7])
def test_int4_is_packed_low_half_first(count: int) -> None:
    codes = np.array([1, -2, 7, -8, 0, 3, -1], np.int8)[:count]
    packed = schemes.pack_int4(codes)
    tensor = helper.make_tensor("x", TensorProto.INT4, [count], packed.tobytes(), raw=True)
    np.testing.assert_array_equal(numpy_helper.to_array(tensor).astype(np.int8), codes)
    assert packed[0] == 0xE1


@pytest.mark.parametrize(("scheme", "block"), FORMS)
def test_dequantize_is_what_onnx_says(scheme: str, block: int) -> None:
    found = made(heavy(), scheme, block)
    codes = np.ascontiguousarray(found.codes.T)
    raw = schemes.pack_int4(codes) if scheme == "int4" else codes
    kind = CODE_TYPES[scheme]
    scales = found.scales[:, 0] if block == CHANNEL else found.scales.T
    where = {"axis": 1} if block == CHANNEL else {"axis": 0, "block_size": block}
    graph = helper.make_graph(
        [helper.make_node("DequantizeLinear", ["codes", "scales"], ["y"], **where)],
        "dequantize",
        [],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, list(codes.shape))],
        [
            helper.make_tensor("codes", kind, codes.shape, raw.tobytes(), raw=True),
            numpy_helper.from_array(np.ascontiguousarray(scales), "scales"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 24)], ir_version=11)
    onnx.checker.check_model(model)
    expected = ReferenceEvaluator(model).run(None, {})[0]
    np.testing.assert_array_equal(schemes.dequantize(found).T, expected)


def test_a_large_matrix_is_the_same_in_any_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    weights = heavy(300, 128)
    whole, heard = made(weights, "int4", 64), []
    monkeypatch.setattr(schemes, "_SLICE", 128 * 7)
    monkeypatch.setattr(schemes, "_TILE", 128 * 3)
    sliced = made(weights, "int4", 64, on_progress=heard.append)
    np.testing.assert_array_equal(whole.codes, sliced.codes)
    np.testing.assert_array_equal(whole.scales, sliced.scales)
    assert sum(heard) == weights.size
