"""Plans: what they count, against counts of their own, measurements, and published systems."""

import dataclasses
import json
import subprocess
import sys
from collections.abc import Iterator

import pytest
from mimo_edge.engines import recipe
from mimo_edge.engines.components import COMPONENTS, MANY_ROWS
from mimo_edge.engines.plan import devices, workload
from mimo_edge.engines.plan.devices import GB, Device, this_machine
from mimo_edge.engines.plan.memory import need
from mimo_edge.engines.plan.on_device import Load, on_device
from mimo_edge.engines.plan.prediction import loaded_bytes, predict
from mimo_edge.engines.plan.workload import Workload, of_bundle, of_shapes
from mimo_edge.engines.quantized_graph import scales_of
from mimo_edge.engines.target import RTX_CAPABILITIES
from mimo_edge.engines.weigh import FLOAT_BYTES, as_parts, weigh
from mimo_edge.runtime.bundle.bundle import Bundle
from mimo_edge.runtime.bundle.errors import InputError
from mimo_edge.scripts.checkpoint.shapes import (
    configs_of,
    graph_tensors,
    preset_configs,
    sizes_of,
)
from mimo_edge.scripts.cli import main

from tests.bundles import exported, hollow
from tests.golden import Golden

LOAD = Load(positions=1024, rows=1, audio_seconds=60.0)
SHAPES = list(graph_tensors(*preset_configs("real")))


def real(name: str, dtype: str = "fp16") -> Workload:
    sizes = sizes_of(preset_configs("real"), FLOAT_BYTES[dtype])
    return of_shapes(SHAPES, sizes, recipe.load(name), dtype)


# the machine of docs/performance.md when it was quiet: 50 GB/s with two threads
QUIET = this_machine(50e9, 205e9, 24 * GB, 2)


def test_bytes_of_a_patch() -> None:
    """Counted from the sizes of the released model, a layer at a time."""

    def layer(width: int, kv: int, ffn: int) -> int:
        products = 2 * width * width + 2 * width * kv + 3 * width * ffn
        return products + 2 * width + width + 2 * kv  # with norms, and biases of q, k, v

    backbone = 36 * layer(4096, 1024, 11008) + 4096 + 4096 * 151680
    encoder = 6 * layer(1024, 1024, 4096) + 4 * 1024 * 4096
    decoder = 16 * layer(1024, 1024, 4096) + 4096 * 1024 + 1024 * (2 * 1025 + 6 * 129)
    cache = 2 * 36 * 1024 * LOAD.positions
    counted = 2 * (backbone + encoder + 11 * decoder + cache)
    told = predict(real("fp16"), devices.device("l4"), LOAD.positions).patch_bytes
    assert told == pytest.approx(counted, rel=2e-4)


@pytest.mark.parametrize("name", ["fp16", "int8", "int4", "int4-edge"])
def test_components_are_those_of_the_recipe(name: str) -> None:
    shares = weigh(recipe.load(name), as_parts(SHAPES), "fp16")
    told = real(name).components()
    assert told == {share.component: share.bytes for share in shares if share.bytes}
    assert set(told) == set(COMPONENTS)


def test_a_bundle_and_its_config_say_the_same(golden: Golden) -> None:
    lm = golden.lm_names[0]
    bundle = Bundle.open(exported(golden, lm), verify=False)
    stored = of_bundle(bundle)
    configs = configs_of(golden.folder / lm, golden.folder / "audio_tokenizer")
    made = of_shapes(graph_tensors(*configs), sizes_of(configs, 4), recipe.load("fp32"), "fp32")
    assert stored.layers == made.layers and stored.codec_width == made.codec_width
    # the manifest does not count the backbone's heads
    assert stored.sizes == dataclasses.replace(
        made.sizes, query_width=made.sizes.hidden_size, context=bundle.model.context
    )
    for key in (("backbone", "backbone"), ("patch_decoder", "patch_decoder")):
        # but for constants, which no checkpoint has
        assert stored.held[key].numbers == pytest.approx(made.held[key].numbers, rel=0.05)
    assert stored.held["backbone", "lm_head"] == made.held["backbone", "lm_head"]
    assert scales_of("x").endswith(workload.SCALES)


def test_measured_here() -> None:
    """Prototypes of the 7B in int4 on the quiet machine: 73 ms a step in blocks of 128 and 90 in
    blocks of 32, of which the recipe has both, 52 ms a patch decoder. Of the codec's own weights,
    0.67 s to encode 4 s, and 0.19 s for a second of a stream in chunks of six patches."""
    told = predict(real("int4-edge", "fp32"), QUIET, 256)
    assert told.step == pytest.approx((0.073 + 0.090) / 2, rel=0.3)
    assert told.patch_decoder == pytest.approx(0.052, rel=0.3)
    assert told.patch == pytest.approx(0.125, rel=0.3)
    assert told.encode == pytest.approx(0.67, rel=0.3)
    assert told.decode == pytest.approx(0.19 * told.patch_seconds, rel=0.3)


def test_published() -> None:
    """vLLM-Omni, L40S, bf16: RTF 0.54 is 27 percent of the card's bandwidth."""
    told = predict(real("bf16", "bf16"), devices.device("l40s"), 256)
    assert told.bound / (0.54 * told.patch_seconds) == pytest.approx(0.27, abs=0.01)


def faster(device: Device, **changes: float) -> Device:
    return dataclasses.replace(device, **changes)


def test_what_makes_it_slower() -> None:
    model, card = real("int4-edge"), devices.device("rtx-4060")
    usual = predict(model, card, 1024)
    assert usual.bound < usual.patch
    assert predict(model, faster(card, bandwidth_gb_s=1000.0), 1024).patch < usual.patch
    assert predict(model, faster(card, fp16=300.0), 1024).prefill < usual.prefill
    assert predict(model, card, 4096).step > usual.step
    two = predict(model, card, 1024, rows=2)
    assert usual.patch <= two.patch < 2 * usual.patch, "rows share the weights"
    floats = predict(real("int8", "fp32"), QUIET, 256).patch
    assert floats > 3 * predict(real("int4-edge", "fp32"), QUIET, 256).patch


def test_what_needs_memory() -> None:
    model, card = real("int4-edge"), devices.device("rtx-4060")
    one, two = (need(model, card, 1024, rows) for rows in (1, 2))
    assert two.cache == 2 * one.cache == 2 * 2 * 36 * 1024 * 1024 * 2
    assert need(model, QUIET, 1024).cache == one.cache
    assert need(model, QUIET, 1025).cache == 2 * one.cache, "ONNX Runtime's cache doubles"
    assert need(model, QUIET, 1024, audio_seconds=10).activations < 0.1 * (
        need(model, QUIET, 1024).activations
    )
    exact = faster(card, memory_gb=card.reserved_gb + one.total / GB)
    assert need(model, exact, 1024).fits and need(model, exact, 1024).most_positions == 1024
    assert not need(model, faster(exact, memory_gb=exact.memory_gb - 1e-3), 1024).fits


def test_a_processor_widens_what_is_in_16_bits() -> None:
    """And packs quantised weights, and leaves tables as they are."""
    model = real("fp16")
    once = [(key, held) for key, held in model.held.items() if key[0] != "tokenizer_decoder"]
    floats = sum(held.bytes * 4 / held.float_bytes for _, held in once)
    assert need(model, QUIET, 256).weights == floats


def test_what_a_processor_multiplies_row_by_row() -> None:
    """The codec in int8, whatever it is stored in, as the build has it: a byte for a weight. Not
    what is multiplied with floats, nor by a GPU, nor what runs one row at a time."""
    int4, int8 = real("int4-edge", "fp32"), real("int8", "fp32")
    for key, held in int4.held.items():
        assert held.by_rows == (key[0] in MANY_ROWS and held.codes > 0), key
        assert held.codes == int8.held[key].codes or not held.by_rows
        on_cpu, on_gpu = (loaded_bytes(held, cpu) for cpu in (True, False))
        assert on_gpu == held.bytes
        # int8 of the other recipe differs by its scales alone
        assert on_cpu == pytest.approx(int8.held[key].bytes if held.by_rows else held.bytes, 2e-2)
    without = faster(QUIET, int8=0.0)  # a processor whose rate in int8 is not known
    assert predict(int4, without, 256).encode > predict(int4, QUIET, 256).encode
    assert not any(held.by_rows for held in int8.held.values()), "it is not rounded"
    assert not any(held.by_rows for held in real("int4-edge").held.values()), "floats of 16 bits"


def test_remedies() -> None:
    def said(name: str, device: Device, load: Load = LOAD, *others: str) -> str:
        found = on_device(real(name), device, load, lambda: [real(other) for other in others])
        return found.remedy or ""

    card = devices.device("rtx-4060")
    assert said("int4-edge", card) == ""
    assert said("fp16", card, LOAD, "int8", "int4-edge").endswith("take --recipe int4-edge")
    assert said("fp16", card, LOAD, "int8").endswith("nothing smaller is known")
    long = dataclasses.replace(LOAD, positions=8192, rows=4)
    assert "take --positions" in said("int4-edge", card, long)
    small = faster(QUIET, memory_gb=8.2)
    assert "take --audio-seconds" in said("int4-edge", small)
    for recipe_name, device, words in (
        ("fp8", devices.device("agx-orin-64"), "8.9, this GPU has 8.7"),
        ("fp8", QUIET, "no processor multiplies fp8"),
    ):
        assert words in said(recipe_name, device)
    assert "no bf16" in (on_device(real("bf16", "bf16"), QUIET, LOAD).remedy or "")
    assert said("fp8", devices.device("l4")) == ""
    note = on_device(real("int8", "fp32"), QUIET, LOAD).note or ""
    assert "recipe int8 multiplies quantised weights with floats" in note
    assert on_device(real("int4-edge", "fp32"), QUIET, LOAD).note is None


def test_the_table_of_devices() -> None:
    for name in devices.names():
        device = devices.device(name)
        assert "https://" in device.source or device.source.startswith("computed")
        assert device.efficiency.source and 0 < device.reserved_gb < device.memory_gb
        if device.backend == "trt-rtx":
            assert device.compute_capability in RTX_CAPABILITIES, name
        elif device.backend == "trt":
            assert device.compute_capability not in RTX_CAPABILITIES, name
    with pytest.raises(InputError, match="there is no device 'toaster'"):
        devices.device("toaster")


def planned(capsys: pytest.CaptureFixture[str], *words: str) -> Iterator[dict]:
    assert main(["plan", *words, "--json"]) == 0
    yield from json.loads(capsys.readouterr().out)["devices"]


def test_command(golden: Golden, capsys: pytest.CaptureFixture[str]) -> None:
    lm, tokenizer = golden.folder / golden.lm_names[0], golden.folder / "audio_tokenizer"
    bundle = str(exported(golden, golden.lm_names[0]))
    (stored,) = planned(capsys, bundle, "--device", "l4", "--positions", "64")
    pair = ("--checkpoint", str(lm), "--audio-tokenizer", str(tokenizer))
    (made,) = planned(
        capsys, *pair, "--recipe", "fp32", "--dtype", "fp32", "--device", "l4", "--positions", "64"
    )
    for key, near in (("step", 0.02), ("patch_decoder", 0.02), ("decode", 0.15)):
        # a graph also has constants, which no checkpoint has: the inverse STFT
        assert stored["seconds"][key] == pytest.approx(made["seconds"][key], rel=near)
    assert main(["plan", bundle, "--device", "l4", "--positions", "1000000"]) == 2
    assert "--positions 1000000: choose 2 to" in capsys.readouterr().err
    words = ("--device", "orin-nano", "--device", "l4", "--positions", "64")
    assert main(["plan", bundle, *words]) == 0
    out = capsys.readouterr().out
    assert "orin-nano" in out and "1 row of 64 patches" in out
    words = (bundle, "--device", "l4", "--device", "ddr5-desktop", "--positions", "64")
    floats, int8 = (list(planned(capsys, *words, *kept)) for kept in ((), ("--kv-cache", "int8")))
    for one, other, ratio in zip(floats, int8, (1, 4), strict=True):  # only the CPU can
        assert one["need"]["cache"] == ratio * other["need"]["cache"] > 0
    assert int8[1]["seconds"]["step"] < floats[1]["seconds"]["step"]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ((), "name one of a bundle, --checkpoint DIR and --preset real"),
        (("BUNDLE", "--preset", "real"), "name one of a bundle"),
        (("BUNDLE", "--recipe", "int4"), "--recipe is of a checkpoint"),
        (("--preset", "real", "--rows", "0"), "--rows 0: choose 1 or more"),
        (("--preset", "real", "--positions", "1"), "--positions 1: choose 2 to 8192"),
        (("--preset", "real", "--audio-seconds", "nan"), "--audio-seconds nan"),
        (("--preset", "real", "--recipe", "none"), "there is no recipe"),
        (("--preset", "real", "--device", "toaster"), "there is no device"),
    ],
)
def test_bad_words(
    words: tuple[str, ...],
    says: str,
    tmp_path_factory: pytest.TempPathFactory,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path_factory.mktemp("plan") / "bundle"
    if "BUNDLE" in words:
        hollow(folder)
    given = [str(folder) if word == "BUNDLE" else word for word in words]
    if "--device" not in given:
        given += ["--device", "l4"]
    assert main(["plan", *given]) == 2
    assert says in capsys.readouterr().err


def test_a_bundle_is_planned_without_torch() -> None:
    code = "import sys, mimo_edge.scripts.plan; print({'torch', 'onnx'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
