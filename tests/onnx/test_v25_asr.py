"""MiMo-V2.5-ASR as a bundle: codes, prompts, answers and text against an independent port."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from mimo_edge.export.sources import Sources
from mimo_edge.runtime.audio import codec
from mimo_edge.runtime.bundle.bundle import Bundle
from mimo_edge.runtime.bundle.errors import BundleError, InputError
from mimo_edge.runtime.bundle.family import MIMO_AUDIO, MIMO_V25_ASR, SPEECH_PIECES
from mimo_edge.runtime.bundle.manifest import MANIFEST
from mimo_edge.runtime.chat.presets import Sampling
from mimo_edge.runtime.options import Options
from mimo_edge.runtime.tasks import MimoAudio
from mimo_edge.scripts.cli import main

from tests import check
from tests.bundles import exported_v25_asr
from tests.v25_asr import AUDIO_TOKENIZER, CASES, LANGUAGE_MODEL, Case

EACH = pytest.mark.parametrize("case", CASES, ids=str)


@pytest.fixture(scope="module")
def model() -> Iterator[MimoAudio]:
    with MimoAudio.open(exported_v25_asr()) as opened:
        yield opened


def linked(folder: Path, keep_speech: bool, **changes: object) -> Path:
    """The bundle under another manifest; its files are links."""
    folder.mkdir()
    source = exported_v25_asr()
    raw = json.loads((source / MANIFEST).read_text(encoding="utf-8")) | changes
    if not keep_speech:
        for piece in SPEECH_PIECES:
            spec = raw["pieces"].pop(piece)
            for file in (spec["file"], spec["data"]):
                raw["files"].pop(file, None)  # some share their data
    (folder / MANIFEST).write_text(json.dumps(raw), encoding="utf-8")
    for name in raw["files"]:
        shutil.copyfile(source / name, folder / name)
    return folder


@pytest.fixture(scope="module")
def listener(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MimoAudio]:
    """As it is exported unless more is asked for."""
    folder = linked(tmp_path_factory.mktemp("listener") / "b", keep_speech=False)
    with MimoAudio.open(folder) as opened:
        yield opened


def test_what_is_exported() -> None:
    sources = Sources.open(LANGUAGE_MODEL, AUDIO_TOKENIZER, LANGUAGE_MODEL)
    assert sources.member.listens_only
    bundle = Bundle.open(exported_v25_asr())
    assert bundle.manifest.architecture == MIMO_V25_ASR and bundle.speaks


@EACH
def test_codes_prompt_and_answer(model: MimoAudio, case: Case) -> None:
    check.equal(model.encode(case.audio), case.array("codes").astype(np.int64), "codes")
    options = Options(audio=Sampling(0), max_new=24, template=case.raw["template"])
    generation = model.asr(case.audio, options, language=case.language)
    check.equal(generation.request.prompt[0, ::4], case.array("prompt")[0, ::4], "prompt")
    check.equal(generation.request.prompt[1:], case.array("prompt")[1:], "codes of the prompt")
    result = generation.result()
    answer = result.history[:, generation.request.prompt.shape[1] :]
    assert answer[0, ::4].tolist() == case.raw["ids"]
    check.equal(answer[1:], case.array("generated")[1:], "codes of the answer")
    assert result.stopped == case.raw["stopped"] and result.wav is None


@EACH
def test_text(model: MimoAudio, case: Case) -> None:
    """The port strips blanks after the marks are gone, upstream before."""
    options = Options(audio=Sampling(0), max_new=24, template=case.raw["template"])
    result = model.asr(case.audio, options, language=case.language).result()
    assert result.text.strip() == case.raw["text"].strip()


@pytest.mark.parametrize("case", [c for c in CASES if 483 not in c.raw["ids"]], ids=str)
def test_without_the_pieces_that_speak(listener: MimoAudio, case: Case) -> None:
    assert not listener.backend.bundle.speaks
    options = Options(max_new=24, template=case.raw["template"])
    generation = listener.asr(case.audio, options, language=case.language)
    result = generation.result()
    assert [e.text for e in generation.stream()][:-1]
    answer = result.history[0, generation.request.prompt.shape[1] :: 4]
    assert answer.tolist() == case.raw["ids"]


def test_a_patch_of_speech_without_them_is_empty(listener: MimoAudio, model: MimoAudio) -> None:
    """As in the reference: the ids are the same up to there."""
    case = next(c for c in CASES if 483 in c.raw["ids"])
    options = Options(max_new=24, template=case.raw["template"])
    result = listener.asr(case.audio, options, language=case.language).result()
    answer = result.history[:, case.array("prompt").shape[1] :]
    first = case.raw["ids"].index(483) + 1
    assert answer[0, ::4].tolist()[:first] == case.raw["ids"][:first]
    empty = np.array(listener.backend.bundle.model.empty_codes)[:, None]
    assert (answer[1:] == empty).all() and result.codes.shape[1] == 0


def test_other_tasks_are_refused(listener: MimoAudio) -> None:
    audio = CASES[0].audio
    for ask in (
        lambda: listener.tts("Hello."),
        lambda: listener.understand(audio, "What?"),
        lambda: listener.dialogue(audio),
        lambda: listener.speech_to_text(audio),
        lambda: listener.chat("Hello."),
        lambda: listener.in_context("Say", [], audio),
    ):
        with pytest.raises(InputError, match=r"MiMo-V2\.5-ASR does asr only, not .*use a bundle"):
            ask()


def test_languages(listener: MimoAudio) -> None:
    with pytest.raises(InputError, match="knows no language 'german'; choose one of auto, "):
        listener.asr(CASES[0].audio, language="german")
    asked = {
        language: listener.asr(CASES[0].audio, language=language).request.prompt.shape[1]
        for language in (None, "auto", "english")
    }
    assert asked[None] == asked["auto"] != asked["english"]


@pytest.mark.parametrize("samples", [1, 480, 959])
def test_audio_below_one_window(listener: MimoAudio, samples: int) -> None:
    wav = np.full(samples, 0.1, np.float32)
    padded = np.pad(wav, (0, 960 - samples))
    check.equal(listener.encode(wav), listener.encode(padded), "codes")


def test_mimo_audio_needs_all_its_pieces(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="lacks the pieces patch_decoder, tokenizer_decoder"):
        Bundle.open(linked(tmp_path / "b", keep_speech=False, architecture=MIMO_AUDIO))
    with pytest.raises(BundleError, match="architecture 'other', which this program does not"):
        Bundle.open(linked(tmp_path / "c", keep_speech=True, architecture="other"))
    bundle = linked(tmp_path / "d", keep_speech=True, architecture=MIMO_AUDIO)
    with MimoAudio.open(bundle) as model, pytest.raises(InputError, match="takes no language"):
        model.asr(CASES[0].audio, language="auto")


@pytest.mark.parametrize(
    ("piece", "says"),
    [
        ("mel", "piece mel computed NaN"),
        ("tokenizer_encoder", "piece tokenizer_encoder computed NaN"),
        ("patch_encoder", "the scores of the text are NaN"),
        ("backbone", "the scores of the text are NaN"),
        ("patch_decoder", "the scores of the audio codes are NaN"),
        ("tokenizer_decoder", "piece tokenizer_decoder computed NaN"),
    ],
)
@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_nan_is_named_at_every_hand_over(
    tmp_path: Path, piece: str, says: str, temperature: float
) -> None:
    """All weights of a piece are NaN, which no export would write."""
    folder = linked(tmp_path / "b", keep_speech=True)
    data = folder / f"{piece}.onnx.data"
    data.write_bytes(b"\xff" * data.stat().st_size)
    case = next(c for c in CASES if 483 in c.raw["ids"])
    options = Options(
        text=Sampling(0), audio=Sampling(temperature), max_new=24, template=case.raw["template"]
    )
    with MimoAudio.open(folder, verify=False) as model, pytest.raises(BundleError, match=says):
        model.asr(case.audio, options, language=case.language).result()
        codec.decode(model.backend, case.array("codes").astype(np.int64))


def test_the_command_line(
    listener: MimoAudio, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    case = next(c for c in CASES if 483 not in c.raw["ids"])
    bundle, audio = str(listener.backend.bundle.folder), str(case.audio)
    given = ["--language", case.language, "--template", case.raw["template"], "--max-new", "24"]
    assert main(["run", "asr", bundle, audio, *given]) == 0
    assert capsys.readouterr().out.strip() == "".join(
        c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in case.raw["text"]
    )
    assert main(["run", "tts", bundle, "Hello.", "-o", str(tmp_path / "x.wav")]) == 2
    assert "MiMo-V2.5-ASR does asr only, not tts" in capsys.readouterr().err
    assert not any(tmp_path.iterdir())
