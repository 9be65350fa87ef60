"""The contract of a bundle: what bundle.json says is what the graphs, and this runtime, do."""

import ast
import dataclasses
import json
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from mimo_edge.runtime.audio.read import load_audio
from mimo_edge.runtime.audio.write import write_audio
from mimo_edge.runtime.bundle import bundle as bundle_module
from mimo_edge.runtime.bundle import verified
from mimo_edge.runtime.bundle.bundle import Bundle
from mimo_edge.runtime.bundle.dtypes import DTYPES, PRECISIONS
from mimo_edge.runtime.bundle.errors import BundleError
from mimo_edge.runtime.bundle.manifest import COMPONENTS, MANIFEST
from mimo_edge.runtime.chat.presets import PRESETS
from mimo_edge.runtime.chat.prompts import Example, PromptBuilder, Turn
from mimo_edge.runtime.chat.segments import (
    Codes,
    Grid,
    PromptLayout,
    audio_segment,
    streaming_segment,
    text_segment,
)
from mimo_edge.runtime.chat.text_tokenizer import TextTokenizer
from mimo_edge.runtime.options import Options
from mimo_edge.runtime.tasks import MimoAudio

from tests.bundles import ROOT, exported_nano, hollow

SPEECH = ROOT / "assets" / "utterances" / "listen-01.flac"
PROGRAM = ROOT / "docs" / "minimal_asr.py"


@pytest.fixture(scope="module")
def nano() -> Bundle:
    return Bundle.open(exported_nano())


def test_a_program_of_a_hundred_lines_transcribes(nano: Bundle, tmp_path: Path) -> None:
    """It knows the contract and nothing of ours, and hears what `run asr` hears."""
    source = PROGRAM.read_text(encoding="utf-8")
    nodes = list(ast.walk(ast.parse(source)))
    named = {a.name for n in nodes if isinstance(n, ast.Import) for a in n.names}
    named |= {n.module or "" for n in nodes if isinstance(n, ast.ImportFrom)}
    assert named - set(sys.stdlib_module_names) == {"numpy", "onnxruntime", "tokenizers"}
    assert len(source.splitlines()) <= 100
    path = tmp_path / "speech.wav"
    rate = nano.model.sampling_rate
    write_audio(path, load_audio(SPEECH, rate=rate), rate)
    command = [sys.executable, str(PROGRAM), str(nano.folder), str(path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    template = nano.manifest.chat["templates"]["asr"][-1]["text"]
    with MimoAudio.open(nano.folder, threads=1) as model:
        heard = model.asr(path, Options(template=template)).result().answer
    assert heard and done.stdout == f"{heard}\n", done.stderr


def test_special_ids_and_presets(nano: Bundle) -> None:
    chat = nano.manifest.chat
    special = TextTokenizer.from_folder(nano.folder).special
    assert chat["special_ids"] == dataclasses.asdict(special)
    assert chat["tasks"].keys() == PRESETS.keys()
    for task, preset in PRESETS.items():
        said = chat["tasks"][task]
        assert (
            said["stop_ids"] == list(preset.stop_ids(special)) and said["speaks"] is preset.speaks
        )
        assert said["text"] == dataclasses.asdict(preset.text)
        assert said["audio"] == dataclasses.asdict(preset.audio)


class Reader:
    """Prompts from the section `chat`, as docs/bundle.md says: a second way to the same grid."""

    def __init__(self, bundle: Bundle) -> None:
        model = bundle.model
        self.chat, self.layout = bundle.manifest.chat, _layout(bundle)
        self.tokenizer = TextTokenizer.from_folder(bundle.folder)
        rng = np.random.default_rng(0)
        shape = (model.n_q, 3 * model.group_size)
        self.sounds = [rng.integers(0, min(model.empty_codes), shape) for _ in range(4)]

    def grid(self, task: str, form: str, **words: str) -> Grid:
        sounds = iter(self.sounds)
        parts = []
        for part in self.chat["tasks"][task]["prompts"][form]:
            if "audio" in part:
                parts.append(audio_segment(next(sounds), self.layout, self.tokenizer.special))
            elif "spoken" in part:
                number = part["spoken"].split()[1]
                said = self.tokenizer.encode(words[f"{part['spoken'].split()[0]} {number}"])
                parts.append(
                    streaming_segment(said, next(sounds), self.layout, self.tokenizer.special)
                )
            else:
                ids = part.get("ids")
                if ids is None:
                    text = part["text"]
                    for name, value in words.items():
                        text = text.replace(f"{{{name}}}", value)
                    ids = self.tokenizer.encode(text)
                parts.append(text_segment(ids, self.layout))
        return np.concatenate(parts, axis=1)


def _layout(bundle: Bundle) -> PromptLayout:
    model = bundle.model
    return PromptLayout(model.group_size, model.n_q, model.empty_codes)


Build = Callable[[PromptBuilder, list[Codes]], Grid]
RNG = random.Random(0)
WORDS = {
    "text": "Close the door.",
    "question": "Who is it?",
    "template": "Read it",
    "instruction": "calmly",
    "system_prompt": "Be kind.",
    "turn 0": "One.",
    "turn 1": "Two and three and four and five.",
    "turn 2": "Six.",
    "example 0": "Seven.",
}


def turns(a: Codes, b: Codes, c: Codes) -> list[Turn]:
    return [
        Turn("user", WORDS["turn 0"], a),
        Turn("assistant", WORDS["turn 1"], b),
        Turn("user", WORDS["turn 2"], c),
    ]


def tts(b: PromptBuilder, **how: Any) -> Grid:
    return b.tts(WORDS["text"], rng=RNG, template=WORDS["template"], **how)


# the forms of a prompt that bundle.json writes down, and how this runtime builds them
FORMS: dict[tuple[str, str], Build] = {
    ("asr", "plain"): lambda b, s: b.asr(s[0], rng=RNG, template=WORDS["template"]),
    ("tts", "plain"): lambda b, s: tts(b),
    ("tts", "instruction"): lambda b, s: tts(b, instruction="calmly"),
    ("tts", "instruction, voice"): lambda b, s: tts(b, instruction="calmly", voice=s[0]),
    ("tts", "natural"): lambda b, s: tts(b, natural=True),
    ("tts", "natural, voice"): lambda b, s: tts(b, natural=True, voice=s[0]),
    ("understand", "plain"): lambda b, s: b.understand(s[0], "Who is it?"),
    ("understand", "thinking"): lambda b, s: b.understand(s[0], "Who is it?", thinking=True),
    ("dialogue", "plain"): lambda b, s: b.dialogue(s[0]),
    ("dialogue", "system prompt, voice"): lambda b, s: b.dialogue(
        s[1], system_prompt="Be kind.", voice=s[0]
    ),
    ("dialogue", "turns"): lambda b, s: b.dialogue_turns(turns(*s[:3])),
    ("speech-to-text", "plain"): lambda b, s: b.speech_to_text(s[0]),
    ("speech-to-text", "thinking"): lambda b, s: b.speech_to_text(s[0], thinking=True),
    ("speech-to-text", "turns"): lambda b, s: b.speech_to_text_turns(turns(s[0], s[2], s[1])),
    ("chat", "plain"): lambda b, s: b.chat(WORDS["text"]),
    ("chat", "thinking"): lambda b, s: b.chat(WORDS["text"], thinking=True),
    ("chat", "turns"): lambda b, s: b.chat_turns(turns(*s[:3])),
    ("in-context", "one example"): lambda b, s: b.in_context(
        "calmly", [Example(s[0], s[1], WORDS["example 0"])], s[2]
    ),
}


def test_prompts_are_those_that_the_runtime_builds(nano: Bundle) -> None:
    reader = Reader(nano)
    builder = PromptBuilder(reader.tokenizer, reader.layout)
    written = {(t, f) for t, said in reader.chat["tasks"].items() for f in said["prompts"]}
    assert written == FORMS.keys()
    for (task, form), build in FORMS.items():
        wanted = build(builder, reader.sounds)
        assert np.array_equal(reader.grid(task, form, **WORDS), wanted), (task, form)


def test_pieces_are_what_the_manifest_says(nano: Bundle) -> None:
    """Names, purpose, components, and the number type of every stored weight."""
    assert nano.manifest.architecture == "MiMoAudioForCausalLM"
    assert (nano.manifest.activation_dtype, nano.manifest.cache_dtype) == ("float32", "float32")
    for name, piece in nano.manifest.pieces.items():
        graph = onnx.load(nano.path(name), load_external_data=False).graph
        assert graph.name == name and graph.doc_string.startswith(f"Piece `{name}`: ")
        assert tuple(piece.weights) == COMPONENTS[name]
        stored = [t for t in graph.initializer if t.external_data]
        places = {e.value for t in stored for e in t.external_data if e.key == "location"}
        assert places == {piece.data}
        schemes = {PRECISIONS[w.scheme].onnx for w in piece.weights.values()}
        assert {onnx.TensorProto.DataType.Name(t.data_type) for t in stored} <= schemes
        axes = [a.i for n in graph.node if n.op_type == "GatherElements" for a in n.attribute]
        assert all(axis >= 0 for axis in axes), name


def test_dtypes() -> None:
    for name, dtype in DTYPES.items():
        if name != "bfloat16":  # numpy has none
            assert np.dtype(name).itemsize == dtype.bytes
            number = onnx.TensorProto.DataType.Value(dtype.onnx)
            assert onnx.helper.tensor_dtype_to_np_dtype(number) == np.dtype(name)


def port(raw: dict[str, Any], piece: str, side: str, name: str) -> dict[str, Any]:
    return next(p for p in raw["pieces"][piece][side] if p["name"] == name)


WRONG: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "an older schema": (lambda raw: raw.update(schema=1), "schema version 1.*Export.*again"),
    "dtype of a state": (
        lambda raw: port(raw, "patch_encoder", "outputs", "embeddings").update(dtype="float16"),
        "patch_encoder gives embeddings float16.*backbone takes embeddings float32",
    ),
    "width of a state": (
        lambda raw: port(raw, "patch_decoder", "inputs", "x").update(axes=["batch", 9]),
        r"backbone gives local_hidden float32 \['batch', 4\], patch_decoder takes",
    ),
    "mel": (
        lambda raw: port(raw, "tokenizer_encoder", "inputs", "mel").update(axes=["mel_frames", 80]),
        "mel gives mel",
    ),
    "codebooks": (lambda raw: raw["model"].update(n_q=3), "n_q says 3"),
    "vocabulary": (lambda raw: raw["model"].update(vocab_size=10**6), "logits"),
    "layers": (lambda raw: raw["model"].update(layers=1000), "the model 1000 layers"),
    "cache": (lambda raw: raw.update(cache_dtype="float16"), "past_keys_0 float32"),
    "activations": (lambda raw: raw.update(activation_dtype="float16"), "embeddings float32"),
    "unknown dtype": (
        lambda raw: port(raw, "patch_encoder", "outputs", "embeddings").update(dtype="fp8"),
        "'fp8'",
    ),
    "a file elsewhere": (
        lambda raw: raw["files"].update({"../x": {"sha256": "", "bytes": 0}}),
        "'../x' is not the name of a file",
    ),
    "no weights": (lambda raw: raw["files"].pop("mel.onnx.data"), "mel.onnx.data"),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_manifest_that_contradicts_itself(tmp_path: Path, what: str) -> None:
    bundle = hollow(tmp_path / "bundle")
    change, said = WRONG[what]
    raw = json.loads((bundle.folder / MANIFEST).read_text(encoding="utf-8"))
    change(raw)
    (bundle.folder / MANIFEST).write_text(json.dumps(raw), encoding="utf-8")
    with pytest.raises(BundleError, match=said):
        Bundle.open(bundle.folder)


def test_a_large_bundle_is_hashed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = hollow(tmp_path / "bundle").folder
    assert not (tmp_path / "cache").exists(), "of a small bundle nothing is remembered"
    monkeypatch.setattr(bundle_module, "LARGE", 1)
    read: list[str] = []
    chunks = bundle_module.chunks

    def watched(path: Path) -> Any:
        read.append(path.name)
        return chunks(path)

    monkeypatch.setattr(bundle_module, "chunks", watched)
    files = len(Bundle.open(folder).manifest.files)
    assert len(read) == files
    read.clear()
    told: list[tuple[int, int]] = []
    Bundle.open(folder, on_progress=lambda *now: told.append(now))
    assert read == []

    damaged = folder / "backbone.onnx.data"
    content = damaged.read_bytes()
    damaged.write_bytes(b"\x01" + content[1:])  # of the same size
    with pytest.raises(BundleError, match=r"backbone\.onnx\.data was altered"):
        Bundle.open(folder)
    with pytest.raises(BundleError, match="altered"):
        Bundle.open(folder)
    damaged.write_bytes(content)
    read.clear()
    Bundle.open(folder)
    assert read == [damaged.name]

    (remembered,) = (path for path in (tmp_path / "cache").rglob("*") if path.is_file())
    remembered.write_text("[1, 2")  # damaged: as if nothing were known
    read.clear()
    Bundle.open(folder)
    assert len(read) == files
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", _homeless)
    Bundle.open(folder)
    assert verified.Verified.of_user().holds(damaged, Bundle.open(folder).weights("mel")) is False


def _homeless() -> Path:
    raise RuntimeError("no home")
