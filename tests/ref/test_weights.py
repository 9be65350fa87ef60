"""Loading of checkpoints: what is wrong is said, what is right is not copied."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from mimo_edge.mimo_ref.backbone import KVCache
from mimo_edge.mimo_ref.errors import CheckpointError, ConfigError
from mimo_edge.mimo_ref.model import LanguageModel
from mimo_edge.mimo_ref.tensor_files import INDEX
from mimo_edge.mimo_ref.weights import load_audio_tokenizer, load_language_model
from mimo_edge.parity import tolerances
from mimo_edge.scripts.checkpoint.presets import PRESETS
from mimo_edge.scripts.checkpoint.random_weights import RandomWeights
from mimo_edge.scripts.checkpoint.safetensors_stream import Layout, write_tensors
from mimo_edge.scripts.make_checkpoint import language_model, make_checkpoint, shapes_of
from safetensors.torch import load_file, save_file

from tests.golden import Golden

ROOT = Path(__file__).parents[2]
FILE = "model.safetensors"
Weights = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("checkpoint") / "tiny"
    make_checkpoint(out, PRESETS["tiny"].cut(1))
    return out


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    """A language model's folder that a test may damage."""
    return Path(shutil.copytree(whole / "language_model", tmp_path / "lm"))


def rewrite(folder: Path, change: Callable[[Weights], object]) -> None:
    tensors = load_file(folder / FILE)
    change(tensors)
    save_file(tensors, folder / FILE)


def rewrite_json(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def refusal(folder: Path, kind: type[Exception] = CheckpointError) -> str:
    with pytest.raises(kind) as error:
        load_language_model(folder)
    return str(error.value)


def test_missing_tensors(folder: Path) -> None:
    rewrite(folder, lambda t: [t.pop(n) for n in list(t) if n.startswith("local_transformer_lm")])
    text = refusal(folder)
    assert "8 missing: local_transformer_lm_heads.0.weight, " in text and str(folder) in text


def test_only_ten_names_and_the_count(folder: Path) -> None:
    gone: list[str] = []
    rewrite(folder, lambda t: gone.extend(n for n in list(t) if t.pop(n) is not None and "lm" in n))
    text = refusal(folder)
    assert len(re.findall(r"weight|bias", text)) == 10 and re.search(r"\d\d missing: ", text)


def test_unexpected_tensors(folder: Path) -> None:
    rewrite(folder, lambda t: t.update({f"extra.{i}": torch.zeros(1) for i in range(12)}))
    text = refusal(folder)
    assert "12 unexpected: extra.0, " in text and text.count("extra.") == 10


def test_what_upstream_stores_unused_is_no_surprise(folder: Path) -> None:
    rewrite(folder, lambda t: t.update({"model.rotary_emb.inv_freq": torch.zeros(1)}))
    load_language_model(folder)


def test_wrong_shape(folder: Path) -> None:
    rewrite(folder, lambda t: t.update({"lm_head.weight": t["lm_head.weight"][:-1].clone()}))
    text = refusal(folder)
    assert "1 wrong shape: lm_head.weight is [511, 96], config.json implies [512, 96]" in text


def test_config_contradicts_the_weights(folder: Path) -> None:
    rewrite_json(folder / "config.json", num_hidden_layers=2, vocab_size=500)
    text = refusal(folder)
    assert "12 missing: model.layers.1." in text and "2 wrong shape: " in text


def test_truncated_file(folder: Path) -> None:
    content = (folder / FILE).read_bytes()
    for length in (len(content) - 1, 1000, 4, 0):
        (folder / FILE).write_bytes(content[:length])
        text = refusal(folder)
        assert FILE in text and "Download it again" in text


def test_no_weights_at_all(folder: Path) -> None:
    (folder / FILE).unlink()
    assert "any *.safetensors" in refusal(folder)


def test_missing_config(folder: Path) -> None:
    (folder / "config.json").unlink()
    assert "config.json is missing" in refusal(folder)


def test_config_is_no_json(folder: Path) -> None:
    (folder / "config.json").write_text("<html>not found</html>")
    assert "config.json cannot be read" in refusal(folder)


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("hidden_size", 64.5, "hidden_size is 64.5; it must be a positive whole number"),
        ("hidden_size", "64", "hidden_size is '64'; it must be a positive whole number"),
        ("num_hidden_layers", True, "num_hidden_layers is True"),
        ("rope_theta", -1, "rope_theta is -1; it must be a positive number"),
        ("delay_pattern", [[0]] * 8, "delay_pattern is"),
    ],
)
def test_wrong_sizes_of_a_language_model(folder: Path, name: str, value: Any, says: str) -> None:
    rewrite_json(folder / "config.json", **{name: value})
    assert f"config.json: {says}" in refusal(folder, ConfigError)


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("codebook_size", 1024, "codebook_size is 1024; it must be a list of whole numbers"),
        ("codebook_size", ["64"], r"codebook_size is \['64'\]; it must be a list"),
        ("codebook_size", [], r"codebook_size is \[\]"),
        ("codebook_size", [0], "every codebook must have entries"),
        ("vocoder_attn_window_size", [40], r"it must be \[left, right\]"),
        ("vocoder_attn_window_size", 40, "must be a list of whole numbers"),
        ("encoder_skip_layer_id", 1.5, "encoder_skip_layer_id is 1.5"),
    ],
)
def test_wrong_sizes_of_an_audio_tokenizer(
    whole: Path, name: str, value: Any, says: str, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(whole / "audio_tokenizer", tmp_path / "audio_tokenizer"))
    rewrite_json(folder / "config.json", **{name: value})
    with pytest.raises(ConfigError, match=f"config.json: .*{says}"):
        load_audio_tokenizer(folder)


def test_other_folder(whole: Path, folder: Path) -> None:
    """The two folders of the release, exchanged."""
    with pytest.raises(ConfigError, match="not the config of a MiMo-Audio audio tokenizer"):
        load_audio_tokenizer(folder)
    assert "language model: missing vocab_size" in refusal(whole / "audio_tokenizer", ConfigError)


def test_plain_qwen2(folder: Path) -> None:
    """A Qwen2 model without MiMo-Audio's parts, with its own text tokenizer."""
    config = json.loads((folder / "config.json").read_text())
    ours = ("speech", "local", "input_", "audio", "delay", "group")
    kept = {name: value for name, value in config.items() if not name.startswith(ours)}
    (folder / "config.json").write_text(json.dumps(kept | {"architectures": ["Qwen2ForCausalLM"]}))
    rewrite(folder, lambda t: [t.pop(n) for n in list(t) if not n.startswith(("model.", "lm_"))])
    text = str(refusal(folder, ValueError))
    assert "not the config of a MiMo-Audio language model" in text and "local_layers" in text


def test_tokenizer_files_name_the_empty_token(folder: Path) -> None:
    assert load_language_model(folder).empty_id == PRESETS["tiny"].specials["<|empty|>"]
    (folder / "tokenizer.json").unlink()
    assert load_language_model(folder).empty_id == PRESETS["tiny"].specials["<|empty|>"]
    (folder / "added_tokens.json").unlink()
    assert "Copy the text tokenizer's files" in refusal(folder)


@pytest.fixture
def sharded(folder: Path) -> Path:
    """The same weights in several files, with an index."""
    tensors = load_file(folder / FILE)
    (folder / FILE).unlink()
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    layout = Layout(shapes, torch.float32, shard_bytes=2 * 10**5)
    write_tensors(folder, layout, lambda name: iter([tensors[name].numpy()]))
    assert len(layout.files()) > 2
    return folder


def test_shards_equal_one_file(whole: Path, sharded: Path) -> None:
    single = load_language_model(whole / "language_model").state_dict()
    for name, tensor in load_language_model(sharded).state_dict().items():
        assert torch.equal(tensor, single[name]), name


def test_missing_shard(sharded: Path) -> None:
    shard = sorted(sharded.glob("*.safetensors"))[1]
    shard.unlink()
    assert f"has not {shard.name}" in refusal(sharded)


def test_damaged_index(sharded: Path) -> None:
    (sharded / INDEX).write_text("{")
    assert f"{INDEX} cannot be read" in refusal(sharded)


ANONYMOUS_GROWTH = """
import sys, torch
from mimo_edge.mimo_ref.weights import load_language_model
def anonymous():
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))
load_language_model(sys.argv[1])  # the first use of the meta device alone takes 70 MB
before = anonymous()
model = load_language_model(sys.argv[1])
loaded = anonymous()
for parameter in model.parameters():
    parameter.sum()  # touches every page
loaded = max(loaded, anonymous())
weight = model.backbone.lm_head.weight
start = weight.untyped_storage().data_ptr()
ranges = [line.split() for line in open("/proc/self/maps")]
homes = [r[5] for r in ranges if int(r[0].split("-")[0], 16) <= start < int(r[0].split("-")[1], 16)
         and len(r) > 5]
print(loaded - before, homes[0])
"""


def test_memory_mapped_without_a_copy(whole: Path, folder: Path) -> None:
    """300 MB of weights take next to no memory of the process itself."""
    preset = PRESETS["tiny"].cut(1)
    config = preset.language_model | {"vocab_size": 390_000}
    shapes = shapes_of(language_model(replace(preset, language_model=config)))
    layout = Layout(shapes, torch.float32)
    write_tensors(folder, layout, RandomWeights(shapes, {}, seed=0).chunks)
    rewrite_json(folder / "config.json", vocab_size=390_000)
    command = [sys.executable, "-c", ANONYMOUS_GROWTH, str(folder)]
    run = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    printed = run.stdout.split()
    kilobytes, home = int(printed[0]), printed[1]
    assert (folder / FILE).stat().st_size > 300e6
    assert kilobytes < 3_000, "loading made a second copy"
    assert home == str(folder / FILE)


def prefill(golden: Golden, model: LanguageModel) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """States of the golden prefill, and the expected ones."""
    arrays = golden.npz(f"{golden.lm_names[0]}.forward.npz")
    patches = int(arrays["prefill_groups"])
    grid = torch.tensor(arrays["ids"])[None, :, : patches * model.config.group_size]
    dtype = model.backbone.lm_head.weight.dtype
    return model(grid, KVCache(model.config.backbone, 1, patches, dtype)).float(), arrays


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision(golden: Golden, dtype: torch.dtype) -> None:
    """Both models run as loaded, no further from float32 than upstream's own bfloat16."""
    name = golden.lm_names[0]
    model = load_language_model(golden.folder / name, golden.empty_id, dtype)
    assert {p.dtype for p in model.parameters()} == {dtype}
    hidden, arrays = prefill(golden, model)
    gap = tolerances.relative_difference(hidden, arrays["prefill.hidden"])
    assert gap < tolerances.HALF_STATES_RELATIVE
    logits = model.backbone.text_logits(hidden[:, -1:].to(dtype)).float()
    gap = tolerances.relative_difference(logits, arrays["prefill.text_logits"])
    assert gap < tolerances.HALF_STATES_RELATIVE

    tokenizer = load_audio_tokenizer(golden.folder / "audio_tokenizer", dtype)
    arrays = golden.npz("decoder.npz")
    for case in golden.decoder_cases:
        wav = tokenizer.decode(torch.tensor(arrays[f"{case}.codes"]))
        assert tolerances.snr(wav, arrays[f"{case}.wav"][0, 0]) > tolerances.HALF_AUDIO_SNR
    arrays = golden.npz("encoder.npz")
    for case in (names[0] for names in golden.info["encoder_cases"].values() if len(names) == 1):
        mel = torch.tensor(arrays[f"{case}.mel"])
        states = tokenizer.encoder(mel[None], torch.tensor([len(mel)])).float()[0]
        gap = tolerances.relative_difference(states, arrays[f"{case}.hidden_packed"])
        assert gap < tolerances.HALF_STATES_RELATIVE, case
