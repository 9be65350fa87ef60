"""The report's files: JSON as its schema says, a page with the same numbers that asks for nothing
from outside, thresholds of the user's own, and the command line."""

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile
from mimo_edge.parity import report_files
from mimo_edge.parity.judge import Verdict, judge, streaming
from mimo_edge.parity.page import Page
from mimo_edge.parity.recording import Recording
from mimo_edge.parity.report_data import plain, report
from mimo_edge.parity.report_files import write_report
from mimo_edge.parity.side import Streamed
from mimo_edge.parity.sound_checks import Heard, sound_checks
from mimo_edge.parity.thresholds import Thresholds
from mimo_edge.parity.word_checks import word_checks
from mimo_edge.parity.word_errors import WordErrors
from mimo_edge.runtime.bundle.errors import InputError
from mimo_edge.scripts.cli import main

from tests.golden import Golden
from tests.reports.json_schema import problems

SCHEMA = Path(report_files.__file__).with_name("report.schema.json")
VOID = {"meta", "image", "rect", "line", "polyline", "br", "audio"}


class Reader(HTMLParser):
    """Numbers with their places, links to elsewhere, and whether every element is closed."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers: list[tuple[str, str]] = []
        self.links: list[str] = []
        self.open: list[str] = []
        self.unlabelled: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        if tag == "data":
            self.numbers.append((given["data-path"], given["value"]))
        self.links += [given[name] for name in ("src", "href") if name in given]
        if (tag == "svg" and given.get("role") != "img") or (
            tag == "audio" and "aria-label" not in given
        ):
            self.unlabelled.append(tag)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.links += [value or "" for name, value in attrs if name in ("src", "href")]

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag


def at(data: Any, path: str) -> Any:
    for key in path.split("."):
        data = data[int(key)] if isinstance(data, list) else data[key]
    return data


def test_a_free_run_that_parts_is_shown_with_what_both_would_have_said(
    folder: Path, parted: Verdict, own: Recording
) -> None:
    data = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    shown = data["candidates"][1]["sequences"][0]["parting"]
    wanted = int(own.arrays[f"free/{own.sequences[0].name}"][0, 2 * own.layout.group_size])
    assert (shown["patch"], shown["where"], shown["expected"]) == (2, "text", wanted)
    assert shown["chosen"] == wanted + 1 and shown["margin"] > 0 and not shown["near_tie"]
    assert shown["wanted"] == own.measured["tokens"][str(wanted)]
    assert not parted.passed and parted.first_failed == "answers"
    assert "was born there" in (folder / "report.html").read_text(encoding="utf-8")


def test_json_is_as_the_schema_says(folder: Path) -> None:
    schema = json.loads(SCHEMA.read_text(encoding="utf-8"))
    data = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    assert list(problems(data, schema, schema)) == []
    del data["candidates"][0]["checks"][0]["limit"]
    assert list(problems(data, schema, schema)) == [".candidates.0.checks.0.limit is missing"]


def test_the_page_has_the_numbers_of_the_json(folder: Path) -> None:
    data = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    reader = Reader()
    reader.feed((folder / "report.html").read_text(encoding="utf-8"))
    assert reader.open == [] and reader.unlabelled == []
    assert all(json.loads(value) == at(data, path) for path, value in reader.numbers)
    shown = {path for path, _ in reader.numbers}
    for index, candidate in enumerate(data["candidates"]):
        wanted = {f"candidates.{index}.checks.{i}.value" for i in range(len(candidate["checks"]))}
        wanted |= {f"candidates.{index}.figures.{i}.snr" for i in range(len(candidate["figures"]))}
        assert wanted <= shown


def test_the_page_asks_for_nothing_from_outside(folder: Path) -> None:
    page = (folder / "report.html").read_text(encoding="utf-8")
    reader = Reader()
    reader.feed(page)
    assert len(reader.links) > 10
    assert {link.partition(":")[0] for link in reader.links} == {"#main", "data"}
    assert not re.search(r"url\(|@import|<script|https?://", page)


def test_a_report_replaces_a_report_and_nothing_else(folder: Path, clean: Verdict) -> None:
    write_report(folder, [clean])
    assert len(json.loads((folder / "report.json").read_text())["candidates"]) == 1
    other = folder.with_name("other")
    other.mkdir()
    (other / "mine").touch()
    with pytest.raises(InputError, match="no report"):
        write_report(other, [clean])
    assert [p.name for p in other.iterdir()] == ["mine"]


def test_limits_of_the_user(tmp_path: Path, clean: Verdict, own: Recording) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('[sound_snr]\nfp32 = 500\nreason = "as I say"\n', encoding="utf-8")
    verdict = judge(clean.candidate, own, Thresholds.open(path))
    failed = [check for check in verdict.checks if check.passed is False]
    assert [(c.name, c.limit, c.reason) for c in failed] == [("sound_snr", 500, "as I say")]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[sound]\nfp32 = 1", "has a table 'sound'"),
        ("[sound_snr]\nfp33 = 1", "fp33 = 1; give numbers"),
        ("[sound_snr]\nfp32 = 'loud'", "fp32 = 'loud'; give numbers"),
        ("sound_snr = 3", "must be a table"),
        ("[sound_snr", "cannot be read as TOML"),
    ],
)
def test_limits_that_cannot_be(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(InputError, match=re.escape(message)):
        Thresholds.open(path)


def test_every_check_has_a_reason_and_a_limit_in_float32() -> None:
    for threshold in Thresholds.open().all.values():
        assert threshold.reason and "fp32" in threshold.limits, threshold.name


def test_the_command_line(
    tmp_path: Path, golden: Golden, bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A device records; the recording is judged against the checkpoint, and again with other
    limits against the recording that came of it."""
    soundfile.write(tmp_path / "clip.wav", golden.npz("pipeline.npz")["wav24k"], 24000)
    recording, made = tmp_path / "rec", tmp_path / "report"
    inputs = ["--audio", str(tmp_path / "clip.wav"), "--max-new", "4", "--threads", "1"]
    assert main(["record", str(bundle), *inputs, "-o", str(recording)]) == 0
    lm = str(golden.folder / golden.lm_names[0])
    against = ["--against", lm, "--audio-tokenizer", str(golden.folder / "audio_tokenizer")]
    against += ["--text-tokenizer", str(golden.folder / "text_tokenizer")]
    assert main(["validate", str(recording), *against, "-o", str(made)]) == 0
    assert "pass backbone, decode step" in capsys.readouterr().out
    (tmp_path / "strict.toml").write_text("[mel_relative]\nfp32 = 0", encoding="utf-8")
    own = next(p for p in (made / "recordings").iterdir() if p.name.endswith(Path(lm).name))
    again = ["validate", str(recording), "--against", str(own), "-o", str(tmp_path / "strict")]
    assert main([*again, "--thresholds", str(tmp_path / "strict.toml")]) == 5
    out = capsys.readouterr()
    assert "the first stage that fails: mel" in out.out and "parity failed" in out.err
    assert main([*again, "--bisect"]) == 2


def test_seams_are_where_one_decode_gives_way_to_the_next(
    clean: Verdict, own: Recording, folder: Path
) -> None:
    parts = [np.zeros(n, np.float32) for n in (0, 3, 0, 4, 2)]
    assert Streamed.of(parts).seams.tolist() == [3, 7]
    data = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    (mine, *_), (theirs, *_) = data["candidates"][0]["streaming"], data["against"]["streaming"]
    name = own.clips[0]
    assert mine["name"] == theirs["name"] == name
    assert float(mine["snr"]) == pytest.approx(float(theirs["snr"]), rel=0.01)
    whole = own.arrays[f"sound/{name}"]
    wav = whole + 0.001
    seam = len(wav) // 2
    wav[seam] += 1.0
    arrays = {f"sound/{name}": whole, f"streamed/{name}": wav}
    arrays[f"seams/{name}"] = np.array([seam])
    (found,) = streaming(replace(clean.candidate, arrays=arrays))
    assert found.seam_error is not None and found.seam_error > 20


def test_what_a_batch_changes_is_told(
    clean: Verdict, own: Recording, thresholds: Thresholds
) -> None:
    arrays = dict(clean.candidate.arrays)
    name = f"batched/{own.sequences[0].name}"
    arrays[name] = arrays[name].copy()
    arrays[name][0, : own.layout.group_size] += 1
    parted = judge(replace(clean.candidate, arrays=arrays), own, thresholds)
    data = plain(report([clean, parted], "today", "1"))
    same, other = Page(data, [clean, parted]).html().split("<section>")[-2:]
    assert "In a batch it says the same as alone." in same
    assert "In a batch it parts from its own answer at patch" in other
    assert "In a batch it parts" not in same


class _Network:
    """In the place of both: the first sample is the mark, and the voice's direction."""

    def __init__(self, voice: bool) -> None:
        self._voice = voice

    def of(self, wav: np.ndarray, rate: int) -> Any:
        turn = float(wav[0])
        return np.array([np.cos(turn), np.sin(turn)]) if self._voice else turn


def _heard(*firsts: float) -> Heard:
    heard = Heard(_Network(False), _Network(True))  # type: ignore[arg-type]
    said = [SimpleNamespace(wav=np.array([first])) for first in firsts]
    silent = SimpleNamespace(wav=None)
    assert [*heard.listen([silent, *said], 24000)] == [silent, *said]  # type: ignore[list-item]
    return heard


def test_sound_is_judged_by_the_models_own() -> None:
    own = _heard(3.0, 3.2, 3.1)
    assert [check.passed for check in sound_checks(own, own)] == [True, True]
    opinion, voice = sound_checks(_heard(2.5, 2.5), own)
    assert (opinion.value, opinion.passed) == (2.5, False) and opinion.limit == pytest.approx(2.9)
    assert voice.value == pytest.approx(np.cos(0.6)) and not voice.passed and voice.count == 2
    (measured,) = sound_checks(own, None)
    assert measured.passed is None and measured.value == pytest.approx(3.1)
    assert sound_checks(Heard(), own) == [], "it only listens"


@pytest.mark.parametrize(
    ("edits", "own", "passed"), [(3, 0, True), (4, 0, False), (36, 25, False), (35, 25, True)]
)
def test_word_errors_are_judged_by_the_models_own(edits: int, own: int, passed: bool) -> None:
    """3 points of 100 words, or twice the root of its own errors."""
    mine, theirs = WordErrors(edits, 100, 0, 10), WordErrors(own, 100, 0, 10)
    (check,) = word_checks({"tts": mine}, {"tts": theirs})
    assert check.passed is passed and check.value == edits / 100
    (measured,) = word_checks({"tts": mine}, None)
    assert measured.passed is None and measured.limit is None
