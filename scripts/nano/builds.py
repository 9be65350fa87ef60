"""`python -m mimo_edge.scripts.nano.builds OUT`: nano in five precisions, side by side.

Exports nano, quantises it, and holds all five builds against the checkpoint in one report,
OUT/report. Each step is a command of `mimo-edge`, which is printed; a build that is in OUT already
is taken as it is.
"""

import argparse
import shlex
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from mimo_edge.parity.speech_score import UtteranceSet
from mimo_edge.runtime.bundle.files import write_text
from mimo_edge.scripts import cli
from mimo_edge.scripts.checkpoint.pair_folder import AUDIO_TOKENIZER, LANGUAGE_MODEL
from mimo_edge.scripts.demo import NANO, UTTERANCES

FLOATS, QUANTISED = ("fp32", "fp16"), ("int8", "int4-edge", "fp8")
CALIBRATED = ("fp8",)
CALIBRATION, CALIBRATED_ON, REPORTED_ON = "calibration.npz", "calibrated-on.txt", "texts.txt"
HEARD = ("ask-01", "ask-02", "listen-01")  # that the report is made of
SPOKEN = 2  # of the set's texts; the others calibrate


def steps(out: Path) -> Iterator[list[str]]:
    """The words of each command, for what is not in `out` yet; the last is the report."""
    tokenizer = ["--audio-tokenizer", str(NANO / AUDIO_TOKENIZER)]
    for dtype in FLOATS:
        if not (out / dtype).exists():
            words = ["export", str(NANO / LANGUAGE_MODEL), *tokenizer, "--dtype", dtype]
            yield [*words, "-o", str(out / dtype)]
    calibration = out / CALIBRATION
    if not calibration.exists():
        words = ["calibrate", str(out / "fp32"), "--audio", str(UTTERANCES), "--max-new", "24"]
        yield [*words, "--text", str(out / CALIBRATED_ON), "-o", str(calibration)]
    for recipe in QUANTISED:
        if not (out / recipe).exists():
            words = ["quantize", str(out / "fp32"), "--recipe", recipe]
            if recipe in CALIBRATED:
                words += ["--calibration", str(calibration)]
            yield [*words, "-o", str(out / recipe)]
    clips = [str(UTTERANCES / f"{name}.flac") for name in HEARD]
    words = ["validate", *(str(out / name) for name in (*FLOATS, *QUANTISED))]
    words += ["--against", str(NANO / LANGUAGE_MODEL), *tokenizer, "--audio", *clips]
    yield [*words, "--text", str(out / REPORTED_ON), "--bisect", "-o", str(out / "report")]


def main(arguments: list[str] | None = None) -> int:
    """Make all of it. Returns the exit code of the first command that fails, else 0."""
    parser = argparse.ArgumentParser(description="nano in five precisions, in one report")
    parser.add_argument("out", metavar="OUT", type=Path)
    out: Path = parser.parse_args(arguments).out
    out.mkdir(parents=True, exist_ok=True)
    texts = UtteranceSet.open(UTTERANCES).tts
    for name, some in ((REPORTED_ON, texts[:SPOKEN]), (CALIBRATED_ON, texts[SPOKEN:])):
        write_text(out / name, "\n".join(some) + "\n")
    began = time.monotonic()
    for words in steps(out):
        print(f"$ mimo-edge {shlex.join(words)}", flush=True)
        if code := cli.main(words):
            return code
    print(f"{time.monotonic() - began:.0f} s in all")
    return 0


if __name__ == "__main__":
    sys.exit(main())
