"""`mimo-edge demo`: the whole chain on nano, a tiny checkpoint that really speaks and listens.

It is exported, held against the reference stage by stage, and then put to work.
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

from mimo_edge.export.exporter import export_bundle
from mimo_edge.export.sources import Sources
from mimo_edge.parity.compare import Row, compare, table
from mimo_edge.parity.spectrogram import draw
from mimo_edge.parity.speech_score import UtteranceSet
from mimo_edge.runtime.audio.read import load_audio
from mimo_edge.runtime.audio.write import open_sink, write_audio
from mimo_edge.runtime.backends.base import Floats
from mimo_edge.runtime.bundle.errors import InputError, ParityError
from mimo_edge.runtime.generation.generation import Generation, Result
from mimo_edge.runtime.options import Options
from mimo_edge.runtime.tasks import MimoAudio
from mimo_edge.scripts.checkpoint.pair_folder import AUDIO_TOKENIZER, LANGUAGE_MODEL
from mimo_edge.scripts.progress import StageProgress

ASSETS = Path(__file__).parent.parent / "assets"
NANO, UTTERANCES, CLIP = (
    ASSETS / "nano",
    ASSETS / "utterances",
    ASSETS / "utterances/listen-01.flac",
)
LISTENED, READ, ASKED = 3, 2, 2  # how many of the utterances
BUNDLE = "nano-of-the-demo"  # it is replaced: no name that somebody gives to a bundle of his own
NEXT = """
With the released checkpoints the same commands take any speech and any language of the model:

  mimo-edge export MiMo-Audio-7B-Instruct --dtype fp16 \\
      --audio-tokenizer MiMo-Audio-Tokenizer -o bundle
  mimo-edge run asr bundle question.wav
  mimo-edge run tts bundle "Hello there." -o hello.wav --stream
  mimo-edge run dialogue bundle question.wav -o answer.wav"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("--out", metavar="DIR", type=Path, default=Path("out/demo"))


def run(args: argparse.Namespace) -> int:
    """Run the demo. Returns the exit code; raises ParityError if a check fails."""
    if not ASSETS.is_dir():
        raise InputError(
            "nano is in the repository and not in an installed package: run the demo from the "
            "repository, `make demo`"
        )
    lm, audio_tokenizer = NANO / LANGUAGE_MODEL, NANO / AUDIO_TOKENIZER
    utterances = UtteranceSet.open(UTTERANCES)
    print("1. export of nano, a toy that knows two hundred words (tracing takes about a minute)")
    with StageProgress() as progress:
        sources = Sources.open(lm, audio_tokenizer, lm)
        bundle = args.out / BUNDLE
        export_bundle(sources, bundle, "fp32", force=True, on_progress=progress.work)
    with MimoAudio.open(bundle) as model:
        wav = load_audio(CLIP, rate=model.sampling_rate)
        print("2. the torch-free runtime against the PyTorch reference")
        prompt = model.asr(wav).request.prompt
        rows = list(compare(model.backend, lm, audio_tokenizer, wav, prompt))
        print(table(rows), end="\n\n")
        print("3. it listens, speaks and answers; no sentence it is given was in its training")
        for what, sound in _work(model, utterances, args.out):
            write_audio(args.out / f"{what}.wav", sound, model.sampling_rate)
            draw({what: sound}, model.sampling_rate, args.out / f"{what}.png", what)
    print(f"\n   sounds and spectrograms are in {args.out}\n{NEXT}")
    _check(rows)
    print("\nall checks passed", file=sys.stderr)
    return 0


def _work(model: MimoAudio, utterances: UtteranceSet, out: Path) -> Iterator[tuple[str, Floats]]:
    """Say what the model does, and yield the sounds that it makes, by name."""
    for utterance in utterances.asr[:LISTENED]:
        heard = model.asr(utterance.audio).result()
        _say("hears", f"{heard.answer!r}  (it was {utterance.text!r})", heard)
    for number, text in enumerate(utterances.tts[:READ], start=1):
        generation = model.tts(text, options=Options(seed=number))
        spoken = generation.result()
        assert spoken.wav is not None
        back = model.asr(spoken.wav).result()
        _say("speaks", f"{text!r}  (heard back as {back.answer!r})", spoken)
        yield f"speaks-{number}", spoken.wav
    _say("streams", f"{text!r}", _stream(generation, out / "streams.wav", model.sampling_rate))
    for number, utterance in enumerate(utterances.dialogue[:ASKED], start=1):
        question = model.asr(utterance.audio).result()
        answer = model.dialogue(utterance.audio, options=Options(seed=number)).result()
        assert answer.wav is not None
        back = model.asr(answer.wav).result()
        _say("answers", f"{question.answer!r} with {back.answer!r}", answer)
        yield f"answers-{number}", answer.wav


def _stream(generation: Generation, path: Path, rate: int) -> Result:
    """The same speech again, as it comes."""
    with open_sink(path, rate) as sink:
        for event in generation.stream():
            if len(event.wav):
                sink.write(event.wav)
            result = event.result
    assert result is not None
    return result


def _say(did: str, what: str, result: Result) -> None:
    t = result.timings
    print(f"   {did:8} {what}")
    facts = [f"{t.patches} patches"]
    if t.patch_median:
        facts.append(f"{1e3 * t.patch_median:.1f} ms a patch")
    if result.wav is not None:
        facts.append(f"{t.audio_seconds:.2f} s of sound in {t.total:.2f} s")
    if t.first_audio:
        facts.append(f"the first after {1e3 * t.first_audio:.0f} ms")
    print(f"   {'':8} {', '.join(facts)}")


def _check(rows: list[Row]) -> None:
    failed = [row.stage for row in rows if not row.passed]
    if failed:
        raise ParityError(f"the runtime differs from the reference in {', '.join(failed)}")
