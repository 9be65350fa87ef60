"""What `build --target ort-cpu` makes of the patch decoder's sampler: the same codes, and the same
next x to the last bit, whatever rows are together."""

import dataclasses

import numpy as np
import onnx
import pytest
from mimo_edge.engines import recipe
from mimo_edge.engines.ort.build import build_bundle
from mimo_edge.engines.ort.narrow import narrow_scores, widths_of
from mimo_edge.engines.quantize import quantize_bundle
from mimo_edge.engines.weight_file import is_external
from mimo_edge.runtime.backends.ort import OrtBackend
from mimo_edge.runtime.bundle.bundle import Bundle
from onnx import numpy_helper

from tests.bundles import exported
from tests.golden import Golden
from tests.onnx.test_patch_decoder import GREEDY, HOT, patch_of

PIECE = "patch_decoder"
COLD = (0.4, 3, 1.0)  # temperature, top_k, top_p
EDGE = (1.0, 0, 1e-6)  # no probability reaches this top_p: the best is drawn
ROWS = 3


@pytest.fixture(scope="module", params=["fp32", "int8"])
def pair(
    request: pytest.FixtureRequest, golden: Golden, tmp_path_factory: pytest.TempPathFactory
) -> tuple[OrtBackend, OrtBackend]:
    """A bundle as it is stored, and its build: in floats of the model whose embeddings go through
    a product before they are added."""
    folder = tmp_path_factory.mktemp(request.param)
    stored = Bundle.open(exported(golden, golden.lm_names[request.param == "fp32"]))
    if request.param != "fp32":
        quantize_bundle(stored, recipe.load(request.param), folder / "bundle")
        stored = Bundle.open(folder / "bundle")
    built = Bundle.open(build_bundle(stored, folder / "built"))
    return OrtBackend(stored), OrtBackend(built)


def starts(golden: Golden) -> np.ndarray:
    """[ROWS, D_local], of which both models have as many."""
    hidden: np.ndarray = golden.npz(f"{golden.lm_names[0]}.local.npz")["hidden"][:ROWS]
    return hidden


@pytest.mark.parametrize("settings", [GREEDY, HOT, COLD, EDGE])
def test_codes_are_the_same(
    pair: tuple[OrtBackend, OrtBackend], golden: Golden, settings: tuple[float, int, float]
) -> None:
    """Over all sub-steps; from the same codes the embeddings are equal bit for bit. A row alone
    draws what it draws among others."""
    stored, built = (patch_of(backend, ROWS, settings) for backend in pair)
    x = starts(golden)
    alone = patch_of(pair[1], 1, settings)
    alone.uniforms = built.uniforms[:, 1:2]
    for step in range(len(built.uniforms)):
        expected, following = stored.run(step, x)
        codes, found = built.run(step, x)
        np.testing.assert_array_equal(codes, expected)
        np.testing.assert_array_equal(found, following)
        one, next_of_one = alone.run(step, x[1:2])
        np.testing.assert_array_equal(one[0], codes[1])
        np.testing.assert_array_equal(next_of_one[0], found[1])
        x = following


def test_rows_at_sub_steps_of_different_width(
    pair: tuple[OrtBackend, OrtBackend], golden: Golden
) -> None:
    """One draws a large codebook while another draws none."""
    backend = pair[1]
    widths = widths_of(backend.bundle.model)
    steps = np.array([widths.index(max(widths)), len(widths) - 1])
    assert widths[steps[1]] == min(widths) < max(widths)
    patch, x = patch_of(backend, 2, HOT), starts(golden)[:2]
    names = [port.name for port in backend.bundle.piece(PIECE).inputs]

    def drawn(rows: slice) -> np.ndarray:
        count = len(steps[rows])
        settings = [np.full(count, value) for value in HOT]
        settings = [settings[0].astype(np.float32), settings[1], settings[2].astype(np.float32)]
        noise = patch.uniforms[steps[rows], np.arange(2)[rows]]
        caches = [cache[rows] for cache in patch.caches]
        feed = dict(zip(names, [x[rows], steps[rows], noise, *settings, *caches], strict=True))
        codes: np.ndarray = backend.outputs(PIECE, feed)[0]
        return codes

    together = drawn(slice(0, 2))
    np.testing.assert_array_equal(together[:1], drawn(slice(0, 1)))
    np.testing.assert_array_equal(together[1:], drawn(slice(1, 2)))
    assert together[0].any() and together[1].any()


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_scores_that_are_no_numbers(
    pair: tuple[OrtBackend, OrtBackend], golden: Golden, wrong: float
) -> None:
    start = starts(golden).copy()
    expected = patch_of(pair[1], ROWS, HOT).whole(start)
    start[1, 5] = wrong
    codes = patch_of(pair[1], ROWS, HOT).whole(start)
    assert (codes[1] == -1).all() and (expected >= 0).all()
    np.testing.assert_array_equal(codes[[0, 2]], expected[[0, 2]])


def test_what_is_lowered(pair: tuple[OrtBackend, OrtBackend]) -> None:
    """All that is made of 0, 1, 2, ... has a width that is found anew at each sub-step."""
    stored, built = (graph_of(backend.bundle).graph for backend in pair)
    cut = {n.input[0]: n.output[0] for n in built.node if n.name.endswith("_drawn")}
    before = [name for node in stored.node for name in node.input if name in cut]
    after = [name for node in built.node for name in node.input if name in cut.values()]
    assert len(cut) == 2 and len(after) == len(before)
    assert [n.input[1] for n in built.node if n.op_type == "TopK"] == ["drawn_width"]


def test_what_stays_as_it_is(pair: tuple[OrtBackend, OrtBackend]) -> None:
    """Codebooks of one size, and a constant as wide as the largest that is not known."""
    bundle = pair[0].bundle
    model, stored = bundle.model, graph_of(bundle)
    one_size = dataclasses.replace(model, code_vocab=(max(model.code_vocab),) * model.n_q)
    assert not narrow_scores(stored, one_size) and stored == graph_of(bundle)
    ids = np.arange(max(model.code_vocab))
    for tensor in stored.graph.initializer:
        if not is_external(tensor) and np.array_equal(numpy_helper.to_array(tensor), ids):
            tensor.CopyFrom(
                numpy_helper.from_array(numpy_helper.to_array(tensor)[::-1], tensor.name)
            )
            other = onnx.ModelProto()
            other.CopyFrom(stored)
            assert not narrow_scores(stored, model) and stored == other


@pytest.mark.parametrize("place", ["the shape of a Reshape", "of an Expand"])
def test_a_shape_that_is_as_wide(pair: tuple[OrtBackend, OrtBackend], place: str) -> None:
    """What has a fixed width in it does not fit what has another at each sub-step."""
    bundle = pair[0].bundle
    whole = max(bundle.model.code_vocab)
    stored = graph_of(bundle)
    nodes = stored.graph.node
    made = next(i for i, node in enumerate(nodes) if node.op_type == "TopK")
    scores = nodes[made].input[0]
    operator = "Expand" if place == "of an Expand" else "Reshape"
    shape = [1, 1, whole] if operator == "Expand" else [-1, whole, 1]
    stored.graph.initializer.append(numpy_helper.from_array(np.array(shape), "wide"))
    nodes.insert(made, onnx.helper.make_node(operator, [scores, "wide"], ["widened"]))
    nodes[made + 1].input[0] = "widened"
    before = onnx.ModelProto()
    before.CopyFrom(stored)
    assert not narrow_scores(stored, bundle.model) and stored == before


def graph_of(bundle: Bundle) -> onnx.ModelProto:
    return onnx.load(bundle.path(PIECE), load_external_data=False)
