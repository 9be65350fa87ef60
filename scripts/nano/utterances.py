"""The utterances that demo, tests and `mimo-edge score` use: held-out sentences of every kind."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import soundfile
from mimo_edge.parity.speech_score import UTTERANCES
from mimo_edge.scripts.nano import grammar
from mimo_edge.scripts.nano.evaluate import Spoken, held_out
from mimo_edge.scripts.nano.speak import RATE

LISTEN, READ, ASK = 12, 18, 9


def write_utterances(work: Path, out: Path) -> Path:
    """Write `out`, a folder of recordings by seen voices with `utterances.json`."""
    sentences = grammar.by_text()
    by_kind: dict[str, list[Spoken]] = {kind: [] for kind in grammar.kinds()}
    for spoken in held_out(work):
        if spoken.clip.part == "held_out" and not spoken.clip.own:
            by_kind[sentences[spoken.clip.text].kind].append(spoken)
    drawn = _in_turn(list(by_kind.values()))
    listen = [next(drawn) for _ in range(LISTEN)]
    read = [next(drawn) for _ in range(READ)]
    asked = (spoken for spoken in drawn if sentences[spoken.clip.text].answer)
    ask = [next(asked) for _ in range(ASK)]

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
