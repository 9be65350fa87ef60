"""Text, conversations, histories and settings that cannot be used."""

import errno
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from mimo_edge.runtime.bundle.manifest import ModelSpec
from mimo_edge.runtime.chat import conversation
from mimo_edge.runtime.chat.conversation import read_history, write_history
from mimo_edge.runtime.chat.text_tokenizer import TextTokenizer

from tests.cli.conftest import CLIP, Outcome, process

Run = Callable[..., Outcome]
SURROGATE = "lone surrogate"


@pytest.mark.parametrize("text", ["", "   ", "\n\t"])
def test_no_characters(mimo_edge: Run, bundle: Path, tmp_path: Path, text: str) -> None:
    out = ("-o", tmp_path / "x.wav")
    for words in (
        ("tts", bundle, text, *out),
        ("tts", bundle, "Hello.", "--instruction", text, *out),
        ("chat", bundle, text),
        ("understand", bundle, CLIP, text),
        ("in-context", bundle, CLIP, "--instruction", text, *out),
    ):
        mimo_edge("run", *words).refused(2, repr(text), "has no words", "not blank")


def test_lone_surrogates(mimo_edge: Run, bundle: Path, tmp_path: Path) -> None:
    """As undecodable bytes of a command line arrive, and as a JSON file can hold them."""
    path = tmp_path / "talk.json"
    path.write_text('{"messages": [{"role": "user", "text": "bad \\ud800"}]}')
    says = (SURROGATE, "'\\ud800' at character 4", "errors='replace'")
    mimo_edge("run", "chat", bundle, "--conversation", path).refused(2, *says)
    bad, out = "bad \udcff", ("-o", tmp_path / "x.wav")
    for words in (
        ("chat", bundle, bad),
        ("tts", bundle, bad, *out),
        ("tts", bundle, "Hello.", "--instruction", bad, *out),
        ("dialogue", bundle, CLIP, "--system-prompt", bad, *out),
        ("asr", bundle, CLIP, "--template", bad),
    ):
        mimo_edge("run", *words).refused(2, SURROGATE, "remove it")


def test_bytes_that_are_no_text(bundle: Path) -> None:
    """A real command line, with bytes that are not UTF-8 in a text and in a file's name."""
    for words, says in (
        ((b"chat", bundle, b"bad \xff"), SURROGATE),
        ((b"asr", bundle, b"\xff.wav"), "does not exist"),
        ((b"chat", b"\xff", b"hi"), "is not a bundle"),
    ):
        done = process("run", *words, "--max-new", 2)
        out, err = done.communicate(timeout=60)
        assert done.returncode == 2 and out == b"", err
        assert says in err.decode() and "\\udcff" in err.decode() and b"Traceback" not in err


def test_far_too_long(mimo_edge: Run, bundle: Path, tmp_path: Path, spec: ModelSpec) -> None:
    text = "word " * 20_000  # 100,000 characters
    says = (f"the context holds {spec.context}", "Shorten")
    mimo_edge("run", "tts", bundle, text, "-o", tmp_path / "x.wav").refused(2, *says)
    mimo_edge("run", "chat", bundle, text).refused(2, *says)


def test_special_tokens_in_the_text(
    mimo_edge: Run, bundle: Path, tmp_path: Path, spec: ModelSpec
) -> None:
    """They are read as the tokens they name, as upstream reads them."""
    tokenizer, text = TextTokenizer.from_folder(bundle), "<|im_end|> and <|empty|>"
    ids = tokenizer.encode(text)
    assert {tokenizer.special.im_end, tokenizer.special.empty} <= set(ids)
    path = tmp_path / "talk.npz"
    done = mimo_edge("run", "chat", bundle, text, "--max-new", 2, "--history", path)
    assert done.code == 0, done.err
    grid = read_history(path)
    assert grid is not None
    windows = np.lib.stride_tricks.sliding_window_view(grid[0, :: spec.group_size], len(ids))
    assert (windows == ids).all(axis=1).any()


def test_conversation_outgrows_the_context(
    mimo_edge: Run, bundle: Path, tmp_path: Path, spec: ModelSpec
) -> None:
    turns = [{"role": "user", "text": "hello " * 40}, {"role": "assistant", "text": "yes " * 40}]
    path = tmp_path / "talk.json"
    path.write_text(json.dumps({"messages": turns * (spec.context // 80 + 1) + turns[:1]}))
    says = (f"holds {spec.context}", "drop the oldest turns")
    mimo_edge("run", "chat", bundle, "--conversation", path).refused(2, *says)

    history = tmp_path / "talk.npz"
    assert mimo_edge("run", "chat", bundle, "hi", "--history", history, "--max-new", 2).code == 0
    grid = read_history(history)
    assert grid is not None
    write_history(history, np.tile(grid, spec.context * spec.group_size // grid.shape[1]))
    mimo_edge("run", "chat", bundle, "hi", "--history", history).refused(2, *says)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("{", 'JSON with a list "messages"'),
        ("[" * 100_000, 'JSON with a list "messages"'),
        ("[]", 'JSON with a list "messages"'),
        ("{}", 'JSON with a list "messages"'),
        ('{"messages": 5}', 'JSON with a list "messages"'),
        ('{"messages": [{"role": "user", "text": "hi"}], "voice": 5}', "no conversation file"),
        ('{"messages": ["hi"]}', "message 0: give a role"),
        ('{"messages": [{"text": "hi"}]}', "message 0: give a role"),
        ('{"messages": [{"role": "user", "txt": "hi"}]}', "message 0: give a role"),
        ('{"messages": []}', "add what to answer"),
        ('{"messages": [{"role": "user", "audio": "x.wav"}]}', "chat does not use its audio"),
        ('{"messages": [{"role": "user", "text": "hi"}], "voice": "x.wav"}', "has a voice"),
        ('{"messages": [{"role": "user", "text": "hi"}], "system_prompt": "a"}', "a system prompt"),
        ('{"messages": [{"role": "user", "text": 5}]}', "5 has no words; pass a str"),
        ('{"messages": [{"role": "user", "text": " "}]}', "' ' has no words; pass a str"),
        ('{"messages": [{"role": "robot", "text": "hi"}]}', "must be user or assistant"),
        ('{"messages": [{"role": "assistant", "text": "hi"}]}', "must be the user's; add"),
        ('{"messages": [{"role": "assistant"}, {"role": "user", "text": "a"}]}', "text missing"),
    ],
)
def test_conversation_files(
    mimo_edge: Run, bundle: Path, tmp_path: Path, content: str, says: str
) -> None:
    path = tmp_path / "talk.json"
    path.write_text(content)
    mimo_edge("run", "chat", bundle, "--conversation", path).refused(2, says)


def test_audio_of_a_conversation(mimo_edge: Run, bundle: Path, tmp_path: Path) -> None:
    path = tmp_path / "talk.json"
    path.write_text('{"messages": [{"role": "user", "audio": "x.wav"}]}')
    done = mimo_edge("run", "speech-to-text", bundle, "--conversation", path)
    done.refused(2, "x.wav' does not exist; check")


def test_choices_that_exclude_one_another(mimo_edge: Run, bundle: Path, tmp_path: Path) -> None:
    mimo_edge("run", "chat", bundle).refused(2, "either", "--conversation FILE")
    mimo_edge("run", "chat", bundle, "hi", "--conversation", "x.json").refused(2, "either")
    both = ("--conversation", "x.json", "--history", "x.npz")
    mimo_edge("run", "chat", bundle, *both).refused(2, "--history or --conversation")
    mimo_edge("run", "chat", bundle, "--conversation", tmp_path / "none.json").refused(
        2, "none.json", "No such file", "Check the path"
    )
    out = ("-o", tmp_path / "x.wav")
    mimo_edge("run", "tts", bundle, "hi", *out, "--voice", CLIP).refused(2, "Add an instruction")
    natural = ("--natural", "--instruction", "loud")
    mimo_edge("run", "tts", bundle, "hi", *out, *natural).refused(2, "natural", "drop the")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--temperature", "-1"), "temperature must be 0, or a number"),
        (("--temperature", "nan"), "temperature must be 0, or a number"),
        (("--temperature", "1e-30"), "use 0 for greedy"),
        (("--temperature", "warm"), "invalid float value: 'warm'"),
        (("--top-p", "0"), "top_p must be above 0 and at most 1"),
        (("--top-p", "1.5"), "top_p must be above 0 and at most 1"),
        (("--top-k", "-3"), "top_k must be a whole number, 0 or more"),
        (("--top-k", "1.5"), "invalid int value: '1.5'"),
        (("--audio-temperature", "inf"), "temperature must be 0, or a number"),
        (("--audio-top-k", "-1"), "top_k must be a whole number"),
        (("--audio-top-p", "2"), "top_p must be above 0 and at most 1, not 2.0"),
        (("--max-new", "0"), "max_new must be at least 1"),
        (("--min-new", "-1"), "min_new must be 0 or more"),
        (("--seed", "-1"), "seed must be 0 or more"),
        (("--threads", "0"), "threads must be 1 to"),
        (("--stream", "--chunk", "0"), "chunk must be at least 1"),
        (
            ("--stream", "--left-overlap", "250", "--chunk", "400"),
            "1850 frames to decode at once, of at most 1500",
        ),
        (("--stream", "--right-overlap", "-1"), "upstream uses 250 and 40"),
        (("--stream", "--left-overlap", "3"), "upstream uses 250 and 40"),
        (("--stream", "--codec-stream", "windowed", "--lookahead", "4"), "it has a right overlap"),
        (("--stream", "--codec-stream", "stateful", "--right-overlap", "4"), "it has a lookahead"),
        (("--stream", "--lookahead", "-1"), "give a lookahead of 0 or more"),
        (("--backend", "tpu"), "choose from"),
    ],
)
def test_settings(
    mimo_edge: Run, bundle: Path, tmp_path: Path, words: tuple[str, ...], says: str
) -> None:
    say = ("run", "tts", bundle, "Hello.", "-o", tmp_path / "x.wav", "--max-new", 2)
    mimo_edge(*say, *words).refused(2, says)


@pytest.mark.parametrize("case", ["text", "empty", "truncated", "altered", "array", "other name"])
def test_history_that_is_none(mimo_edge: Run, bundle: Path, tmp_path: Path, case: str) -> None:
    path = tmp_path / "talk.npz"
    write_history(path, np.random.default_rng(0).integers(0, 100, (9, 4000)))
    whole = path.read_bytes()
    altered = bytearray(whole)
    altered[len(whole) // 2] ^= 255
    content = {"text": b"nothing", "truncated": whole[: len(whole) // 2], "altered": bytes(altered)}
    path.write_bytes(content.get(case, b""))
    if case == "array":
        with path.open("wb") as file:
            np.save(file, np.zeros((9, 8), np.int64))
    if case == "other name":
        np.savez(path, other=np.zeros((9, 8), np.int64))
    done = mimo_edge("run", "chat", bundle, "hi", "--history", path)
    done.refused(2, "talk.npz", "no history file", "Delete it to start anew")


def test_history_of_another_model(
    mimo_edge: Run, bundle: Path, tmp_path: Path, spec: ModelSpec
) -> None:
    """What would fail deep inside the backend, or wrap around to other codes."""
    path, rows, columns = tmp_path / "talk.npz", 1 + spec.n_q, 2 * spec.group_size
    for grid in (
        np.zeros(columns, np.int64),
        np.zeros((rows - 1, columns), np.int64),
        np.zeros((rows, columns - 1), np.int64),
        np.zeros((rows, columns), np.float32),
        np.full((rows, columns), -1, np.int64),
        np.full((rows, columns), max(spec.code_vocab), np.int64),
        np.full((rows, columns), spec.vocab_size, np.int64),
    ):
        write_history(path, grid)
        done = mimo_edge("run", "chat", bundle, "hi", "--history", path)
        done.refused(2, str(list(grid.shape)), "not of this model", "start without one")


def test_history_of_the_longest_name(mimo_edge: Run, bundle: Path, tmp_path: Path) -> None:
    path = tmp_path / ("x" * 251 + ".npz")
    assert mimo_edge("run", "chat", bundle, "hi", "--history", path).changed == [path.name]
    done = mimo_edge("run", "chat", bundle, "hi", "--history", tmp_path / ("x" * 252 + ".npz"))
    done.refused(2, "xxx.npz")


def test_a_full_disk_keeps_the_history(
    mimo_edge: Run, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answer is seen all the same."""

    def full(path: Path, content: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    path = tmp_path / "talk.npz"
    monkeypatch.setattr(conversation, "write_bytes", full)
    done = mimo_edge("run", "chat", bundle, "hi", "--history", path)
    assert done.code == 4 and "disk is full" in done.err and done.out and not done.changed


def test_history_without_a_folder(mimo_edge: Run, bundle: Path, tmp_path: Path) -> None:
    path = tmp_path / "none" / "talk.npz"
    done = mimo_edge("run", "chat", bundle, "hi", "--history", path)
    done.refused(2, "/none/talk.npz", "create it first")
