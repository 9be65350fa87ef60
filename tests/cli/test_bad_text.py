"""Text, conversations and settings that cannot be used."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.conftest import CLIP, Outcome

Run = Callable[..., Outcome]


@pytest.mark.parametrize("text", ["", "   ", "\n\t"])
def test_no_characters(mimo_edge: Run, bundle: Path, tmp_path: Path, text: str) -> None:
    mimo_edge("run", "tts", bundle, text, "-o", tmp_path / "x.wav").refused(2, "text")
    mimo_edge("run", "chat", bundle, text).refused(2, "text")


def test_lone_surrogates(mimo_edge: Run, bundle: Path, tmp_path: Path) -> None:
    """As undecodable bytes of a command line arrive, and as a JSON file can hold them."""
    mimo_edge("run", "chat", bundle, "bad \udcff end").refused(2, "surrogate")
    path = tmp_path / "talk.json"
    path.write_text('{"messages": [{"role": "user", "text": "bad \\ud800"}]}')
    mimo_edge("run", "chat", bundle, "--conversation", path).refused(2, "surrogate")


def test_far_too_long(mimo_edge: Run, bundle: Path, tmp_path: Path) -> None:
    text = "word " * 20_000  # 100,000 characters
    done = mimo_edge("run", "tts", bundle, text, "-o", tmp_path / "x.wav")
    done.refused(2, "context", "8192")
    assert not list(tmp_path.iterdir())


def test_special_tokens_in_the_text(mimo_edge: Run, bundle: Path) -> None:
    """They are read as the tokens they name, as upstream reads them."""
    assert mimo_edge("run", "chat", bundle, "<|im_end|> and <|empty|>", "--max-new", 2).code == 0


def test_conversation_outgrows_the_context(mimo_edge: Run, bundle: Path, tmp_path: Path) -> None:
    turns = [{"role": "user", "text": "hello " * 40}, {"role": "assistant", "text": "yes " * 40}]
    path = tmp_path / "talk.json"
    path.write_text(json.dumps({"messages": turns * 60 + turns[:1]}))
    mimo_edge("run", "chat", bundle, "--conversation", path).refused(2, "context", "oldest turns")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("{", "no conversation file"),
        ("[]", "no conversation file"),
        ('{"messages": [{"text": "hi"}]}', "message 0"),
        ('{"messages": [{"role": "user", "txt": "hi"}]}', "message 0"),
        ('{"messages": [{"role": "robot", "text": "hi"}]}', "robot"),
        ('{"messages": [{"role": "assistant", "text": "hi"}]}', "user"),
    ],
)
def test_conversation_files(
    mimo_edge: Run, bundle: Path, tmp_path: Path, content: str, says: str
) -> None:
    path = tmp_path / "talk.json"
    path.write_text(content)
    mimo_edge("run", "chat", bundle, "--conversation", path).refused(2, says)


def test_choices_that_exclude_one_another(mimo_edge: Run, bundle: Path, tmp_path: Path) -> None:
    mimo_edge("run", "chat", bundle).refused(2, "--conversation")
    mimo_edge("run", "chat", bundle, "hi", "--conversation", "x.json").refused(2, "either")
    mimo_edge("run", "chat", bundle, "--conversation", tmp_path / "none.json").refused(
        2, "none.json"
    )
    out = ("-o", tmp_path / "x.wav")
    mimo_edge("run", "tts", bundle, "hi", *out, "--voice", CLIP).refused(2, "instruction")
    natural = ("--natural", "--instruction", "loud")
    mimo_edge("run", "tts", bundle, "hi", *out, *natural).refused(2, "natural")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--temperature", "-1"), "temperature"),
        (("--temperature", "nan"), "temperature"),
        (("--top-p", "0"), "top_p"),
        (("--top-p", "1.5"), "top_p"),
        (("--top-k", "-3"), "top_k"),
        (("--audio-top-p", "2"), "top_p"),
        (("--max-new", "0"), "max_new"),
        (("--min-new", "-1"), "min_new"),
        (("--backend", "tpu"), "invalid choice"),
    ],
)
def test_settings(mimo_edge: Run, bundle: Path, words: tuple[str, ...], says: str) -> None:
    mimo_edge("run", "chat", bundle, "hi", *words).refused(2, says)


def test_history_that_is_none(mimo_edge: Run, bundle: Path, tmp_path: Path) -> None:
    path = tmp_path / "talk.npz"
    path.write_text("nothing")
    mimo_edge("run", "chat", bundle, "hi", "--history", path).refused(2, "talk.npz", "Delete it")
