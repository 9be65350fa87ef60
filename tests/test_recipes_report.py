"""The report of recipes: draws with seeds of their own, paired, and nothing measured twice."""

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from mimo_edge.engines import recipe
from mimo_edge.parity.speech_score import Judge, Utterance, UtteranceSet
from mimo_edge.scripts.progress import StageProgress
from mimo_edge.scripts.recipes_report import spoken, tables
from mimo_edge.scripts.recipes_report.spoken import SOUND, STREAM, WHOLE, Job, jobs
from mimo_edge.scripts.recipes_report.workshop import Figures, Subject, Workshop, only

FEW = UtteranceSet(
    (Utterance("a.wav", "one two"),), ("one two", "three"), (Utterance("b.wav", "five"),)
)
FLOATS = Subject(None)


@pytest.fixture
def workshop(tmp_path: Path) -> Workshop:
    (tmp_path / "utterances.json").write_text("{}", encoding="utf-8")
    own = SimpleNamespace(folder=tmp_path / "own", manifest=SimpleNamespace(source="f" * 64))
    return Workshop(tmp_path / "work", own, tmp_path / "utterances.json")  # type: ignore[arg-type]


class Echo:
    """A model that hears and says nothing, and notes the seeds that it is given."""

    sampling_rate = 24_000

    def __init__(self) -> None:
        self.seeds: list[int] = []

    def asr(self, _audio: object, options: Any) -> Any:
        return self.tts("", options=options)

    def tts(self, _text: object, options: Any) -> Any:
        self.seeds.append(options.seed)
        return SimpleNamespace(result=lambda: SimpleNamespace(answer="", wav=None))

    dialogue = tts


def test_every_draw_has_seeds_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first has those of `mimo-edge score`; figures are in the order of the utterances."""
    found = []
    for draw in range(3):
        model = Echo()
        monkeypatch.setattr(spoken.MimoAudio, "open", lambda *_, m=model, **__: nullcontext(m))
        job, steps = Job(FLOATS, "tts", WHOLE, draw), []
        figures = job.run(Path(), FEW, lambda s=steps: s.append(1))
        assert figures == {"edits": [2, 1], "words": [2, 1]} and len(steps) == 2
        found.append(sorted(model.seeds))
    model = Echo()
    list(Judge(model).tts(FEW.tts))  # type: ignore[arg-type]
    assert found[0] == model.seeds == [0, 1]
    assert len({seed for seeds in found for seed in seeds}) == 6


def test_a_draw_of_all_comes_before_the_next() -> None:
    one, other = FLOATS, Subject(recipe.load("int8"))
    found = jobs([one, other], {WHOLE: 2, STREAM: 1, SOUND: 0})
    order = [(job.subject.name, job.task, job.how, job.draw) for job in found]
    assert order[:6] == [(s, t, WHOLE, 0) for s in ("fp32", "int8") for t in spoken.TASKS]
    assert [o[1:] for o in order[6:10]] == [(t, STREAM, 0) for t in spoken.SPEAKING] * 2
    assert order[10:] == [(*o[:3], 1) for o in order[:6]]


def test_what_was_measured_is_not_measured_again(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An interrupted run goes on where it was; utterances that are left are counted."""
    ran: list[tuple[str, str, int]] = []
    said: list[tuple[int, int]] = []
    stop_at = 4

    def run(job: Job, _bundle: Path, utterances: UtteranceSet, on_progress: Any) -> Figures:
        if len(ran) == stop_at:
            raise KeyboardInterrupt
        ran.append((job.subject.name, job.task, job.draw))
        for _ in getattr(utterances, job.task):
            on_progress()
        return {"edits": [0], "words": [1]}

    monkeypatch.setattr(Job, "run", run)
    monkeypatch.setattr(Workshop, "bundle", lambda *_: Path())
    progress = StageProgress()
    monkeypatch.setattr(progress, "report", lambda _s, done, total, _u: said.append((done, total)))
    wanted = jobs([FLOATS, Subject(recipe.load("int8"))], {WHOLE: 2})
    with pytest.raises(KeyboardInterrupt):
        spoken.run(wanted, workshop, FEW, progress)
    assert said[-1] == (5, 16)
    stop_at = -1
    spoken.run(wanted, workshop, FEW, progress)
    assert said[-1] == (11, 11)
    assert ran == [(j.subject.name, j.task, j.draw) for j in wanted]
    spoken.run(wanted, workshop, FEW, progress)
    assert len(ran) == len(wanted)


def test_figures_belong_to_what_a_recipe_does(workshop: Workshop) -> None:
    """Not to its name: what two recipes have in common is measured once, what changes again."""
    taken: list[str] = []

    def take(subject: Subject, what: str = "led.1") -> Figures:
        return workshop.figures(subject, what, lambda: {"n": taken.append(what) or len(taken)})

    int8, edge = recipe.load("int8"), recipe.load("int4-edge")
    assert take(Subject(int8, "vocoder")) == take(Subject(recipe.load("int4"), "vocoder"))
    assert take(Subject(int8, "vocoder")) != take(Subject(edge, "vocoder"))  # dynamic there
    assert take(Subject(int8)) != take(Subject(edge)) != take(FLOATS)
    assert take(Subject(int8), "led.2") != take(Subject(int8))
    assert take(Subject(replace(edge, about="other"))) == take(Subject(edge))
    assert take(Subject(replace(edge, exceptions=()))) != take(Subject(edge))
    known = len(taken)
    workshop.utterances.write_text('{"asr": []}', encoding="utf-8")
    take(Subject(int8))
    assert len(taken) == known + 1


def test_a_component_alone() -> None:
    found = only(recipe.load("int8-w8a8"), "backbone")
    assert found.components["backbone"].weights.scheme == "int8" and found.float_inputs
    assert {c for c, p in found.components.items() if p.weights.scheme != "float"} == {"backbone"}
    assert not only(recipe.load("int8-w8a8"), "vocoder").float_inputs
    assert len(only(recipe.load("int4-edge"), "tokenizer_encoder").exceptions) == 1
    assert Subject.parse("int4:vocoder").name == "int4:vocoder"
    with pytest.raises(ValueError, match="no component 'vcoder'"):
        Subject.parse("int4:vcoder")


def spoke(workshop: Workshop, subject: Subject, edits: list[list[int]], task: str = "tts") -> None:
    for draw, row in enumerate(edits):
        figures = {"edits": row, "words": [10] * len(row)}
        workshop.figures(subject, Job(subject, task, WHOLE, draw).what, lambda f=figures: f)


def test_differences_are_of_the_same_draws(workshop: Workshop) -> None:
    """Paired by utterance and seed; an utterance is drawn again with all of its seeds."""
    int8 = Subject(recipe.load("int8"))
    own = np.random.default_rng(0).integers(0, 4, (3, 40))
    spoke(workshop, FLOATS, own.tolist())
    spoke(workshop, int8, (own[:2] + 1).tolist())  # one word more wrong in each, and a draw less
    line = next(row for row in tables.speech_table([FLOATS, int8], workshop) if "int8" in row)
    assert "| tts | 2 |" in line and "+10.00 (+10.00 to +10.00)" in line
    spoke(workshop, Subject(recipe.load("int4")), np.minimum(own + 30, 30).tolist())
    line = next(
        row
        for row in tables.speech_table([Subject(recipe.load("int4"))], workshop)
        if "int4" in row
    )
    assert line.split(" | ")[5] == f"{100 - own.sum() / 12:+.2f}" + line.split(" | ")[5][6:]
    floats = next(row for row in tables.speech_table([FLOATS, int8], workshop) if "fp32 |" in row)
    assert f"| 3 | {own.sum()} of 1200, " in floats and floats.count("+") == 0


def test_tasks_together(workshop: Workshop) -> None:
    """As many draws as all have, each utterance counted once."""
    for task, edits in (
        ("asr", [[1, 0]]),
        ("tts", [[0, 0], [5, 5]]),
        ("dialogue", [[2, 0], [1, 1]]),
    ):
        spoke(workshop, FLOATS, edits, task)
    lines = list(tables.speech_table([FLOATS], workshop))[2:]
    assert [line.split(" | ")[1] for line in lines] == ["asr", "tts", "dialogue", "all"]
    assert " | 1 | 3 of 60, 5.0 %" in lines[-1]


def test_more_seeds_of_one_utterance_say_nothing_of_others(workshop: Workshop) -> None:
    """Twenty draws of utterances that differ are as wide as one, of chance they are narrower."""
    rng = np.random.default_rng(1)
    fixed = rng.integers(0, 2, 30)
    int8, int4 = Subject(recipe.load("int8")), Subject(recipe.load("int4"))
    spoke(workshop, FLOATS, [[0] * 30] * 20)
    spoke(workshop, int8, [fixed.tolist()] * 20)
    spoke(workshop, int4, rng.integers(0, 2, (20, 30)).tolist())

    def width(subject: Subject) -> float:
        (line,) = (r for r in tables.speech_table([subject], workshop) if " | tts | " in r)
        low, high = line.split("|")[5].split("(")[1].split(")")[0].split(" to ")
        return float(high) - float(low)

    assert width(int8) > 3 > 2 * width(int4) > 0


def test_sound_is_of_the_same_draws_and_silence_is_left_out(workshop: Workshop) -> None:
    int8 = Subject(recipe.load("int8"))
    voices = np.eye(3).tolist()
    for subject, better, turned in ((FLOATS, 0.0, 0), (int8, 0.25, 1)):
        for draw in range(2):
            figures: Figures = {
                "opinion": [3 + better, 2 + better, None if subject is int8 else 5.0],
                "voice": [voices[draw], voices[(draw + turned) % 3], None],
            }
            what = Job(subject, "tts", SOUND, draw).what
            workshop.figures(subject, what, lambda f=figures: f)
    floats, line = list(tables.sound_table([FLOATS, int8], workshop))[2:]
    assert "| int8 | tts | 2 | 2.75 | +0.250 (+0.250 to +0.250) | 0.500 |" in line
    assert "| fp32 | tts | 2 | 3.33 | | 0.000 from seed to seed |" in floats
