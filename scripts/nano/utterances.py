"""The utterances that demo, tests and `mimo-edge score` use: held-out sentences of every kind."""

import json
import shutil
from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path

import soundfile
from mimo_edge.parity.speech_score import UTTERANCES
from mimo_edge.scripts.nano import grammar
from mimo_edge.scripts.nano.evaluate import Spoken, held_out
from mimo_edge.scripts.nano.speak import RATE

LISTEN, READ, ASK = 12, 18, 9


def write_utterances(
    work: Path, out: Path, listen_to: int = LISTEN, read_aloud: int = READ, asked: int = ASK
) -> Path:
    """Write `out`, a folder of recordings by seen voices with `utterances.json`.

    Raises SystemExit if fewer sentences are held out than are wanted.
    """
    sentences = grammar.by_text()
    by_kind: dict[str, list[Spoken]] = {kind: [] for kind in grammar.kinds()}
    for spoken in held_out(work):
        if spoken.clip.part == "held_out" and not spoken.clip.own:
            by_kind[sentences[spoken.clip.text].kind].append(spoken)
    drawn = _in_turn(list(by_kind.values()))
    listen = list(islice(drawn, listen_to))
    read = list(islice(drawn, read_aloud))
    # a large set asks again what it has listened to or read
    questions = (s for s in chain(drawn, listen, read) if sentences[s.clip.text].answer)
    ask = list(islice(questions, asked))
    if (len(listen), len(read), len(ask)) != (listen_to, read_aloud, asked):
        raise SystemExit(
            f"only {len(listen)}, {len(read)} and {len(ask)} sentences are held out to listen to, "
            "read and answer: ask for fewer"
        )

    partial = out.with_name(out.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)

    def write(name: str, spoken: Spoken) -> str:
        soundfile.write(partial / name, spoken.samples, RATE, subtype="PCM_16")
        return name

    index = {
        "asr": [
            {"audio": write(f"listen-{i:02}.flac", s), "text": s.clip.text}
            for i, s in enumerate(listen, start=1)
        ],
        "tts": [s.clip.text for s in read],
        "dialogue": [
            {"audio": write(f"ask-{i:02}.flac", s), "answer": sentences[s.clip.text].answer}
            for i, s in enumerate(ask, start=1)
        ],
    }
    text = json.dumps(index, indent=1)
    (partial / UTTERANCES).write_text(text + "\n", encoding="utf-8")
    shutil.rmtree(out, ignore_errors=True)
    partial.rename(out)
    return out


def _in_turn(piles: list[list[Spoken]]) -> Iterator[Spoken]:
    """One of each pile, again and again, until all are empty."""
    while any(piles):
        for pile in piles:
            if pile:
                yield pile.pop(0)
