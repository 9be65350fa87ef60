"""Opinion and voice: what the networks are given, with networks whose answer is known."""

import importlib.util
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from mimo_edge.parity import sound_quality
from mimo_edge.parity.sound_quality import RATE, Opinion, Voice
from mimo_edge.runtime.bundle.errors import EnvironmentProblem
from onnx import TensorProto, helper

HEARD = 144_160


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Both packages, with weights of our own."""
    for name in ("speechmos/dnsmos_models", "resemblyzer"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name.split("/")[0] / "__init__.py").write_text("raise ImportError('unwanted')")
    nodes = [
        helper.make_node("ReduceMax", ["input_1"], ["largest"], keepdims=1),
        helper.make_node("Concat", ["largest"] * 3, ["marks"], axis=1),
    ]
    graph = helper.make_graph(
        nodes,
        "marks",
        [helper.make_tensor_value_info("input_1", TensorProto.FLOAT, [1, HEARD])],
        [helper.make_tensor_value_info("marks", TensorProto.FLOAT, [1, 3])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.save(model, tmp_path / "speechmos/dnsmos_models/sig_bak_ovr.onnx")
    torch.manual_seed(0)
    lstm, linear = torch.nn.LSTM(40, 256, 3), torch.nn.Linear(256, 256)
    state = {f"lstm.{n}": v for n, v in lstm.state_dict().items()}
    state |= {f"linear.{n}": v for n, v in linear.state_dict().items()}
    state["lstm.weight_ih_l0"] *= 1000  # powers are small, and this network was not trained on them
    state["similarity_weight"] = torch.ones(1)  # of training
    torch.save({"model_state": state}, tmp_path / "resemblyzer/pretrained.pt")
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    return tmp_path


def marked(value: float) -> float:
    return -0.06766283 * value**2 + 1.11546468 * value + 0.04602535


def test_opinion_hears_all_parts_of_a_long_sound_and_a_short_one_again(packages: Path) -> None:
    opinion = Opinion()
    short = np.full(RATE, 0.5, np.float32)
    assert opinion.of(short, RATE) == pytest.approx(marked(0.5))
    long = np.full(HEARD + 2 * RATE, 0.25, np.float32)
    long[-1] = 1.0  # in the last of three parts
    assert opinion.of(long, RATE) == pytest.approx((2 * marked(0.25) + marked(1.0)) / 3)


def test_a_voice_is_a_vector_that_loudness_below_speech_does_not_change(packages: Path) -> None:
    rng, voice = np.random.default_rng(0), Voice()
    quiet = rng.normal(0, 0.001, 2 * 24_000).astype(np.float32)
    found, louder = voice.of(quiet, 24_000), voice.of(quiet * 8, 24_000)
    assert found.shape == (256,) and np.linalg.norm(found) == pytest.approx(1)
    np.testing.assert_allclose(found, louder, atol=1e-4)
    other = voice.of(np.sin(np.arange(9_000)).astype(np.float32), 24_000)  # shorter than a part
    assert found @ other < 0.9999


def test_bands_are_even_to_1_khz_and_have_equal_areas() -> None:
    """The 40 bands of 16 kHz as the field's usual tool gives them: by their places."""
    filters = sound_quality._filters()
    assert filters.shape == (201, 40)
    hertz = RATE / 2 / 200
    np.testing.assert_allclose(filters[:, 20:].sum(axis=0) * hertz, 1, rtol=0.03)
    places = filters.argmax(axis=0) * hertz
    top = 15 + np.log(8) / (np.log(6.4) / 27)  # mels of 8 kHz
    even = np.arange(1, 41) * top / 41 * 200 / 3
    np.testing.assert_allclose(places[:12], even[:12], atol=hertz)
    assert 6_800 < places[-1] < 7_700


def test_what_is_not_installed_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    for judge, package in ((Opinion(), "speechmos"), (Voice(), "resemblyzer")):
        with pytest.raises(
            EnvironmentProblem, match=rf"package {package}.* pip install .*{package}"
        ):
            judge.of(np.zeros(RATE, np.float32), RATE)
