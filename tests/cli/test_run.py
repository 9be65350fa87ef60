"""Every task from the command line."""

import json
from collections.abc import Callable, Iterator
from dataclasses import fields
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import soundfile
from mimo_edge.runtime.bundle.manifest import ModelSpec
from mimo_edge.runtime.chat.conversation import read_history
from mimo_edge.runtime.chat.presets import PRESETS
from mimo_edge.runtime.generation.generation import Timings
from mimo_edge.runtime.generation.request import Step
from mimo_edge.runtime.generation.scheduler import Scheduler
from mimo_edge.scripts.cli import COMMANDS
from mimo_edge.scripts.run_tasks import TASKS

from tests.cli.conftest import CLIP, Outcome, process

Run = Callable[..., Outcome]
FEW = ("--max-new", 6, "--json")
CUT = "mimo-edge: the answer was cut after {} patches, by --max-new; it may go on\n"
KEYS = ["task", "text", "answer", "thinking", "audio", "frames", "stopped", "seed", "timings"]

COMMON = "--backend --threads --no-verify --json --stream --codec-stream --chunk --lookahead "
COMMON += "--left-overlap --right-overlap "
COMMON += "--seed --max-new --min-new --temperature --top-k --top-p "
COMMON += "--audio-temperature --audio-top-k --audio-top-p"
TURN = "INPUT --conversation --history"
OPTIONS = {
    "asr": "AUDIO --template",
    "tts": "TEXT --output --play --instruction --natural --voice --template",
    "understand": "AUDIO QUESTION --thinking",
    "dialogue": f"{TURN} --output --play --system-prompt --voice",
    "speech-to-text": f"{TURN} --thinking",
    "chat": f"{TURN} --thinking",
    "in-context": "AUDIO --output --play --instruction --example IN OUT TEXT",
}


def task_words(task: str, bundle: Path, out: Path) -> tuple[object, ...]:
    return {
        "asr": ("asr", bundle, CLIP),
        "tts": ("tts", bundle, "Hello.", "-o", out),
        "understand": ("understand", bundle, CLIP, "What is it?", "--thinking"),
        "dialogue": ("dialogue", bundle, CLIP, "-o", out, "--system-prompt", "Be kind."),
        "speech-to-text": ("speech-to-text", bundle, CLIP, "--thinking"),
        "chat": ("chat", bundle, "Hello"),
        "in-context": (
            *("in-context", bundle, CLIP, "--instruction", "Repeat.", "-o", out),
            *("--example", CLIP, CLIP, "What is the weather like today?"),
        ),
    }[task]


@pytest.mark.parametrize("stream", [(), ("--stream", "--right-overlap", 4)], ids=["", "stream"])
@pytest.mark.parametrize("task", TASKS)
def test_tasks(
    mimo_edge: Run,
    bundle: Path,
    tmp_path: Path,
    spec: ModelSpec,
    task: str,
    stream: tuple[object, ...],
) -> None:
    """Alone on stdout: one JSON object; the sound is as long as it says."""
    out, speaks = tmp_path / "out.wav", PRESETS[task].speaks
    done = mimo_edge("run", *task_words(task, bundle, out), *FEW, "--seed", 5, *stream)
    assert done.code == 0, done.err
    assert done.changed == (["out.wav"] if speaks else [])
    raw = json.loads(done.out)
    assert list(raw) == KEYS and list(raw["timings"]) == [f.name for f in fields(Timings)]
    assert raw["task"] == task and raw["seed"] == 5 and 1 <= raw["timings"]["patches"] <= 6
    assert raw["audio"] == (str(out) if speaks else None)
    if speaks:
        info = soundfile.info(out)
        assert info.samplerate == spec.sampling_rate and info.channels == 1
        assert info.frames == raw["frames"] * spec.samples_per_frame
        if raw["frames"]:
            assert raw["timings"]["first_audio"] > 0 and raw["timings"]["real_time_factor"] > 0


def test_an_answer_without_speech_is_a_file_and_says_so(
    mimo_edge: Run, bundle: Path, tmp_path: Path
) -> None:
    """One patch of a spoken answer is text: nothing sounds yet."""
    out = tmp_path / "em.flac"
    done = mimo_edge("run", "tts", bundle, "Hello.", "-o", out, "--max-new", 1)
    assert done.code == 0 and not np.any(soundfile.read(out)[0])
    assert "no speech came; the answer is silent" in done.err and CUT.format(1) in done.err


@pytest.mark.parametrize("most", [2**63 - 1, 10**400])
def test_a_top_k_beyond_every_codebook_is_no_limit(
    mimo_edge: Run, bundle: Path, tmp_path: Path, most: int
) -> None:
    def answer(name: str, top_k: int) -> bytes:
        words = ("run", "tts", bundle, "Hello.", "-o", tmp_path / name, "--max-new", 12)
        done = mimo_edge(*words, "--top-k", top_k, "--audio-top-k", top_k)
        assert done.code == 0, done.err
        return (tmp_path / name).read_bytes()

    assert answer("a.wav", most) == answer("b.wav", 0)


@pytest.mark.parametrize("stream", [(), ("--stream",)], ids=["", "stream"])
def test_seeds(mimo_edge: Run, bundle: Path, tmp_path: Path, stream: tuple[str, ...]) -> None:
    """A stream is cut where time has it cut, which moves its sound by rounding: a 16-bit step."""

    def sound(name: str, *seed: object) -> npt.NDArray[np.int16]:
        words = ("run", "tts", bundle, "Hello there.", "-o", tmp_path / name, "--max-new", 12)
        assert mimo_edge(*words, *stream, *seed).code == 0
        return soundfile.read(tmp_path / name, dtype="int16")[0]

    one, again, other = sound("a.wav", "--seed", 1), sound("b.wav", "--seed", 1), sound("c.wav")
    assert len(one), "the seed gives no speech to compare"
    steps = 1 if stream else 0
    np.testing.assert_allclose(again, one, rtol=0, atol=steps)
    np.testing.assert_allclose(sound("d.wav", "--seed", 0), other, rtol=0, atol=steps)
    assert len(one) != len(other) or np.abs(one.astype(int) - other).max() > 1


def test_stdout_is_text_alone(mimo_edge: Run, bundle: Path) -> None:
    """What is streamed is what is printed whole."""
    words = ("run", "chat", bundle, "Hello", "--max-new", 12, "--temperature", 1)
    whole, streamed = mimo_edge(*words), mimo_edge(*words, "--stream")
    assert whole.code == streamed.code == 0
    assert whole.err == streamed.err == CUT.format(12)
    assert whole.out.strip() == streamed.out.strip() != ""


@pytest.mark.parametrize("stream", [(), ("--stream", "--right-overlap", "4")], ids=["", "stream"])
def test_sound_to_stdout(
    bundle: Path, tmp_path: Path, spec: ModelSpec, stream: tuple[str, ...]
) -> None:
    """A WAV and nothing else, with the samples of a file; the JSON makes room for it."""
    path = tmp_path / "x.wav"
    words = ("run", "tts", bundle, "Hello there.", "--max-new", 24, "--seed", 1, "--json", *stream)
    to_file, piped = process(*words, "-o", path), process(*words, "-o", "-")
    told, _ = to_file.communicate(timeout=60)
    sound, said = piped.communicate(timeout=60)
    frames = json.loads(told)["frames"]
    assert to_file.returncode == piped.returncode == 0 and json.loads(said)["frames"] == frames > 0
    assert sound[:4] == b"RIFF" and len(sound) == 44 + 2 * spec.samples_per_frame * frames
    assert path.read_bytes()[44:] == sound[44:]


def test_a_reader_that_leaves(bundle: Path) -> None:
    """As `| head` does: no error, and no complaint at exit."""
    for words in (
        ("tts", bundle, "Hello there.", "-o", "-", "--stream", "--right-overlap", 4, "--seed", 1),
        ("chat", bundle, "Hello"),
        ("chat", bundle, "Hello", "--json"),
    ):
        running = process("run", *words, "--max-new", 24)
        assert running.stdout is not None and running.stderr is not None
        running.stdout.close()
        assert running.wait(timeout=60) == 0
        assert running.stderr.read().decode() in ("", CUT.format(24))
        running.stderr.close()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux has a device that is full")
def test_a_full_disk_behind_stdout(bundle: Path) -> None:
    for words in (("tts", bundle, "Hello.", "-o", "-"), ("chat", bundle, "Hello", "--json")):
        with open("/dev/full", "wb") as full:
            running = process("run", *words, "--max-new", 3, stdout=full)
            _, err = running.communicate(timeout=60)
        assert running.returncode == 4, err
        assert b"No space left" in err and b"write elsewhere" in err and b"Traceback" not in err


def test_a_locale_without_the_answer(bundle: Path, tmp_path: Path) -> None:
    """JSON is UTF-8 everywhere, also with a file name that is none."""
    path = bytes(tmp_path) + b"/\xe4.wav"
    words = ("run", "tts", bundle, "你好", "-o", path, "--max-new", 3, "--json")
    running = process(*words, env={"PYTHONIOENCODING": "ascii"})
    out, err = running.communicate(timeout=60)
    assert running.returncode == 0, err
    assert json.loads(out.decode("utf-8"))["audio"].endswith("\udce4.wav")
    assert [bytes(p) for p in tmp_path.iterdir()] == [path]


@pytest.mark.parametrize("stream", [(), ("--stream", "--chunk", 1, "--right-overlap", 0)])
@pytest.mark.parametrize("name", ["x.wav", "x.flac"])
def test_interrupt_while_speaking(
    mimo_edge: Run,
    bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    stream: tuple[object, ...],
    name: str,
) -> None:
    """An older file stays as it was, and a history too."""

    def interrupted(*words: object) -> Iterator[Step]:
        for step in real(*words):  # type: ignore[arg-type]
            yield step
            if step.index == 8:
                raise KeyboardInterrupt

    history = tmp_path / "talk.npz"
    words = ("run", "dialogue", bundle, CLIP, "-o", tmp_path / name, "--history", history)
    assert mimo_edge(*words, "--max-new", 2).code == 0
    real = Scheduler.generate
    monkeypatch.setattr(Scheduler, "generate", interrupted)
    words = (*words, "--max-new", 12, "--min-new", 12, *stream)
    done = mimo_edge(*words)
    assert done.code == 130 and "interrupted" in done.err and not done.changed


@pytest.mark.parametrize("task", ["dialogue", "speech-to-text", "chat"])
def test_history_goes_on(mimo_edge: Run, bundle: Path, tmp_path: Path, task: str) -> None:
    """Every turn is put behind those before it."""
    history, turn = tmp_path / "talk.npz", "Hello" if task == "chat" else CLIP
    words = ("run", task, bundle, turn, "--history", history, "--max-new", 4)
    words += ("-o", tmp_path / "x.wav") if PRESETS[task].speaks else ()
    grids = []
    for _ in range(3):
        assert mimo_edge(*words).code == 0
        grids.append(read_history(history))
    for before, after in pairwise(grids):
        assert after.shape[1] > before.shape[1]
        np.testing.assert_array_equal(after[:, : before.shape[1]], before)


def test_conversation_files(mimo_edge: Run, bundle: Path, tmp_path: Path) -> None:
    """Paths in the file are relative to it."""
    (tmp_path / "clip.flac").write_bytes(CLIP.read_bytes())
    path, out = tmp_path / "talk.json", ("-o", tmp_path / "x.wav")
    heard = {"role": "user", "audio": "clip.flac"}
    for task, answer, more in (
        ("dialogue", {"text": "Sunny.", "audio": "clip.flac"}, {"system_prompt": "Be kind."}),
        ("dialogue", {"text": "Sunny.", "audio": "clip.flac"}, {"voice": "clip.flac"}),
        ("speech-to-text", {"text": "Sunny."}, {}),
    ):
        turns = [heard, {"role": "assistant", **answer}, heard]
        path.write_text(json.dumps({"messages": turns, **more}))
        words = ("run", task, bundle, "--conversation", path, *FEW)
        done = mimo_edge(*words, *(out if PRESETS[task].speaks else ()))
        assert done.code == 0, done.err
    turns = [{"role": r, "text": t} for r, t in (("user", "1"), ("assistant", "2"), ("user", "3"))]
    path.write_text(json.dumps({"messages": turns}))
    assert mimo_edge("run", "chat", bundle, "--conversation", path, *FEW).code == 0


def test_help_teaches(mimo_edge: Run) -> None:
    done = mimo_edge("--help")
    assert done.code == 0 and "exit codes:" in done.out
    for command, (_, says) in COMMANDS.items():
        assert command in done.out and says.split()[0] in done.out
    for command in COMMANDS:
        done = mimo_edge(command, "--help")
        assert done.code == 0 and f"usage: mimo-edge {command}" in done.out and done.err == ""
    assert mimo_edge("run", "--help").out.count("mimo-edge run") >= 4  # examples
    for option in ("--audio-tokenizer", "--text-tokenizer", "--dtype", "--resume", "--force"):
        assert option in mimo_edge("export", "--help").out
    for option in ("--no-verify", "--json"):
        assert option in mimo_edge("inspect", "--help").out


@pytest.mark.parametrize("task", TASKS)
def test_help_of_a_task(mimo_edge: Run, task: str) -> None:
    done = mimo_edge("run", task, "--help")
    assert done.code == 0 and done.err == ""
    missing = [w for w in f"BUNDLE {OPTIONS[task]} {COMMON}".split() if w not in done.out]
    assert not missing, missing
    assert ("--output" in done.out) == PRESETS[task].speaks


def test_inspect(mimo_edge: Run, bundle: Path, spec: ModelSpec) -> None:
    done = mimo_edge("inspect", bundle)
    assert done.code == 0 and "patch_decoder" in done.out and "-->" in done.out
    assert "all hashes verified" in done.out and done.err == ""
    assert "sizes only" in mimo_edge("inspect", bundle, "--no-verify").out
    raw = json.loads(mimo_edge("inspect", bundle, "--json").out)
    assert raw == json.loads((bundle / "bundle.json").read_text())
    assert raw["model"]["context"] == spec.context


def test_doctor(mimo_edge: Run) -> None:
    done = mimo_edge("doctor")
    assert done.code == 0 and "ok  run on the CPU (ort-cpu)" in done.out and done.err == ""
    findings = {f["what"]: f for f in json.loads(mimo_edge("doctor", "--json").out)}
    assert findings["run on the CPU (ort-cpu)"]["works"]
    for finding in findings.values():
        assert finding["works"] or finding["remedy"], "what is missing needs a way to get it"


def test_bench(mimo_edge: Run, bundle: Path) -> None:
    done = mimo_edge("bench", bundle, "--runs", 2, "--rows", 2, "--json")
    raw = json.loads(done.out)
    assert done.code == 0 and len(raw["stages"]) == 7 and 0 < raw["overhead_share"] < 1
    patch = raw["stages"][-3:]
    assert [told["stage"] for told in raw["foretold"]] == [stage["stage"] for stage in patch]
    for told, stage in zip(raw["foretold"], patch, strict=True):
        assert told["measured_ms"] == stage["median_ms"] and told["foretold_ms"] > 0
        assert told["off"] == pytest.approx(told["foretold_ms"] / told["measured_ms"] - 1)
