"""The three inputs of an export: what does not belong together is refused at once."""

import dataclasses
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mimo_edge.engines import recipe
from mimo_edge.engines.weight_file import WeightFile
from mimo_edge.export import exporter, fits, tracers
from mimo_edge.export.sources import Sources
from mimo_edge.mimo_ref.config import AudioTokenizerConfig, LanguageModelConfig
from mimo_edge.mimo_ref.errors import CheckpointError
from mimo_edge.runtime.bundle.bundle import Bundle
from mimo_edge.runtime.bundle.errors import BundleError, InputError
from mimo_edge.runtime.bundle.family import SPEECH_PIECES
from mimo_edge.runtime.bundle.files import hash_file
from mimo_edge.runtime.bundle.manifest import PIECES, FileSpec, PieceSpec
from mimo_edge.runtime.chat.text_tokenizer import TextTokenizer
from mimo_edge.scripts.checkpoint.pair_folder import AUDIO_TOKENIZER, LANGUAGE_MODEL
from mimo_edge.scripts.checkpoint.presets import PRESETS
from mimo_edge.scripts.checkpoint.small_tokenizer import write_tokenizer
from mimo_edge.scripts.make_checkpoint import make_checkpoint
from safetensors.numpy import load_file, save_file

from tests.bundles import NANO, hollow
from tests.golden import Golden

TINY = PRESETS["tiny"].cut(1)


def opened(folder: Path) -> Sources:
    return Sources.open(folder / LANGUAGE_MODEL, folder / AUDIO_TOKENIZER, folder / LANGUAGE_MODEL)


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    make_checkpoint(tmp_path / "tiny", TINY)
    return tmp_path / "tiny"


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    raw = json.loads(path.read_text(encoding="utf-8"))
    change(raw)
    path.write_text(json.dumps(raw), encoding="utf-8")


def test_what_there_is_fits(golden: Golden, tiny: Path) -> None:
    opened(tiny)
    opened(NANO)
    for lm in golden.lm_names:
        text = golden.folder / "text_tokenizer"
        Sources.open(golden.folder / lm, golden.folder / "audio_tokenizer", text)


def test_the_released_sizes_fit(tmp_path: Path) -> None:
    real = PRESETS["real"]
    lm = LanguageModelConfig.from_dict(real.language_model)
    audio = AudioTokenizerConfig.from_dict(real.audio_tokenizer)
    write_tokenizer(tmp_path, real.specials)
    fits.check_text_fits(lm, tmp_path, TextTokenizer.from_folder(tmp_path), tmp_path)
    fits.check_codes_fit(lm, tmp_path, audio, tmp_path)


def refused(folder: Path, *parts: str) -> None:
    with pytest.raises(InputError) as error:
        opened(folder)
    for part in (f"{folder / LANGUAGE_MODEL}", *parts):
        assert part in str(error.value)


@pytest.mark.parametrize(
    ("moved", "more", "says"),
    [
        (100, {}, f"id {TINY.specials['<|sosp|>'] + 100} (sosp)"),
        (1, {"<|more|>": 512}, "id 512 (the largest)"),
    ],
    ids=["special", "largest"],
)
def test_a_text_tokenizer_beyond_the_vocabulary(
    tiny: Path, moved: int, more: Mapping[str, int], says: str
) -> None:
    specials = {token: number + moved for token, number in TINY.specials.items()}
    write_tokenizer(tiny / LANGUAGE_MODEL, specials | more)
    refused(tiny, says, "vocab_size 512", "Take both from one release")


AUDIO = {
    "too few codebooks": (
        lambda c: c.update(num_quantizers=7, codebook_size=c["codebook_size"][:7]),
        "7 codebooks (num_quantizers)",
    ),
    "other codebooks": (
        lambda c: c.update(codebook_size=[256, 128, *c["codebook_size"][2:]]),
        "codebooks of 256-128-64",
    ),
}


@pytest.mark.parametrize("case", AUDIO)
def test_an_audio_tokenizer_of_another_model(tiny: Path, case: str) -> None:
    change, says = AUDIO[case]
    edit(tiny / AUDIO_TOKENIZER / "config.json", change)
    refused(tiny, f"{tiny / AUDIO_TOKENIZER}", says, "Take both from one release")


def test_a_codebook_that_is_not_used_may_have_any_size(tiny: Path) -> None:
    """The language model speaks in the first of them."""
    config = AudioTokenizerConfig.from_dict(TINY.audio_tokenizer)
    sizes = (*config.codebook_size[:8], *(7 for _ in config.codebook_size[8:]))
    lm = LanguageModelConfig.from_dict(TINY.language_model)
    other = dataclasses.replace(config, codebook_size=sizes)
    fits.check_codes_fit(lm, tiny, other, tiny)


def test_a_tensor_of_another_dtype_is_named(tiny: Path) -> None:
    path = tiny / AUDIO_TOKENIZER / "model.safetensors"
    tensors = load_file(path)
    name = sorted(tensors)[0]
    save_file(tensors | {name: tensors[name].astype(np.float64)}, path)
    with pytest.raises(CheckpointError, match=f"{path}: {name} is F64; weights must be F32"):
        opened(tiny)


def test_the_fingerprint_follows_everything(tiny: Path, tmp_path: Path) -> None:
    """Weights and text tokenizer too, wherever the folders lie."""
    seen = {opened(tiny).fingerprint()}
    same = Path(shutil.copytree(tiny, tmp_path / "same"))
    assert opened(same).fingerprint() in seen
    make_checkpoint(tmp_path / "other", TINY, seed=1)
    seen.add(opened(tmp_path / "other").fingerprint())
    edit(same / LANGUAGE_MODEL / "special_tokens_map.json", lambda raw: raw.update(note="other"))
    seen.add(opened(same).fingerprint())
    edit(same / AUDIO_TOKENIZER / "config.json", lambda raw: raw.update(_name_or_path="other"))
    heard: list[tuple[int, int]] = []
    seen.add(opened(same).fingerprint(lambda *progress: heard.append(progress)))
    assert len(seen) == 4
    sizes = [path.stat().st_size for path in opened(same).files()]
    assert heard[0] == (0, sum(sizes)) and heard[-1] == (sum(sizes[:-1]), sum(sizes))


def test_other_code_makes_other_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What `--resume` takes over is of this exporter, its tools included."""
    for package in ("export", "mimo_ref"):
        (tmp_path / package).mkdir()
        (tmp_path / package / "piece.py").write_text("x = 1")
    monkeypatch.setattr(exporter, "__file__", str(tmp_path / "export" / "exporter.py"))
    before = exporter._code_digest()
    (tmp_path / "mimo_ref" / "piece.py").write_text("x = 2")
    changed = exporter._code_digest()
    assert changed != before
    (tmp_path / "mimo_ref" / "piece.py").write_text("x = 1")
    assert exporter._code_digest() == before
    assert "onnx-ir" in exporter.tool_versions()


@pytest.mark.parametrize(
    ("preset", "speech"), [("tiny", False), ("tiny-asr", False), ("tiny-asr", True)]
)
def test_what_speaks_is_exported_of_what_speaks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, preset: str, speech: bool
) -> None:
    """Of a model that only listens, if it is asked for."""
    made: list[str] = []
    like = hollow(tmp_path / "hollow").manifest

    def write_nothing(
        sources: Sources, data: WeightFile, name: str, *_: object
    ) -> tuple[PieceSpec, FileSpec]:
        made.append(name)
        spec = dataclasses.replace(like.pieces[name], data=data.path.name)
        data.write([])
        graph = data.path.with_name(spec.file)
        shutil.copyfile(tmp_path / "hollow" / spec.file, graph)
        return spec, hash_file(graph)

    monkeypatch.setattr(tracers, "processes_for", lambda _: 0)
    monkeypatch.setattr(tracers, "traced_piece", lambda *_: None)
    monkeypatch.setattr(exporter, "_write_piece", write_nothing)
    monkeypatch.setattr(Sources, "model_spec", lambda _: like.model)
    make_checkpoint(tmp_path / "c", PRESETS[preset].cut(1))
    sources = opened(tmp_path / "c")
    exporter.export_bundle(sources, tmp_path / "b", "fp32", speech=speech)
    bundle = Bundle.open(tmp_path / "b")
    speaks = speech or preset == "tiny"
    assert bundle.speaks == speaks
    assert set(made) == set(PIECES) - (set() if speaks else set(SPEECH_PIECES))
    fp32 = recipe.load("fp32")
    whole, heard = (sources.stored_bytes("fp32", fp32, all) for all in (True, False))
    assert 0 < heard < whole
    if not speaks:
        with pytest.raises(BundleError, match=r"no piece patch_decoder: .*--with-speech"):
            bundle.path("patch_decoder")


def test_ids_in_the_config_are_those_of_the_text_tokenizer(tiny: Path) -> None:
    path, ids = tiny / LANGUAGE_MODEL / "config.json", TINY.specials
    named = {"empty_idx": "<|empty|>", "sosp_idx": "<|sosp|>", "speechlm_idx": "<|SpeechLM|>"}
    edit(path, lambda raw: raw.update({key: ids[token] for key, token in named.items()}))
    opened(tiny)
    edit(path, lambda raw: raw.update(human_idx=None, eot_idx=ids["<|eot|>"] + 1))
    number = ids["<|eot|>"]
    refused(tiny, f"<|eot|> has the id {number}", f"config.json says eot_idx {number + 1}")
