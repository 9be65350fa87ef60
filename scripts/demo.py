"""`mimo-edge demo`: the whole chain on a tiny random checkpoint, checked step by step.

Random weights make noise, not speech: what is shown is that the exported chain computes what the
reference computes, and what each stage takes.
"""

import argparse
import sys
from pathlib import Path

from export.exporter import Sources, export_bundle
from runtime.audio import load_audio, open_sink, write_audio
from runtime.errors import ParityError
from runtime.talk import Result
from runtime.tasks import MimoAudio, Options
from scripts.checkpoint_presets import PRESETS
from scripts.make_checkpoint import AUDIO_TOKENIZER, LANGUAGE_MODEL, make_checkpoint
from scripts.parity import compare, table
from scripts.progress import StageProgress

CLIP = Path(__file__).parent.parent / "assets" / "clips" / "weather-question.flac"
NEXT = """
With the released checkpoints the same chain speaks and listens:

  mimo-edge export MiMo-Audio-7B-Instruct --audio-tokenizer MiMo-Audio-Tokenizer -o bundle
  mimo-edge run asr bundle question.wav
  mimo-edge run tts bundle "Hello there." -o hello.wav --stream
  mimo-edge run dialogue bundle question.wav -o answer.wav"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("--out", metavar="DIR", type=Path, default=Path("out/demo"))
    parser.add_argument("--clip", metavar="AUDIO", type=Path, default=CLIP, help="what is heard")


def run(args: argparse.Namespace) -> int:
    """Run the demo. Returns the exit code; raises ParityError if a check fails."""
    checkpoint, bundle = args.out / "checkpoint", args.out / "bundle"
    lm, audio_tokenizer = checkpoint / LANGUAGE_MODEL, checkpoint / AUDIO_TOKENIZER
    print("1. a tiny random checkpoint in the released layout")
    make_checkpoint(checkpoint, PRESETS["tiny"], force=True)
    print("2. export to ONNX (tracing takes about a minute)")
    with StageProgress() as progress:
        sources = Sources.open(lm, audio_tokenizer, lm)
        export_bundle(sources, bundle, "fp32", force=True, report=progress.report)

    with MimoAudio.open(bundle) as model:
        wav = load_audio(args.clip, rate=model.sampling_rate)
        print(f"3. the runtime against the reference, on {args.clip.name}")
        prompt = model.asr(wav).request.prompt
        rows = list(compare(model.backend, lm, audio_tokenizer, wav, prompt))
        print(table(rows), end="\n\n")

        print("4. tasks, on the torch-free runtime (random weights: noise, not speech)")
        options = Options(seed=1, max_new=40)
        heard = model.asr(wav, options).result()
        _say("asr", heard, f"-> {heard.answer!r}")
        talk = model.tts("Turn on the light, please.", options=options)
        spoken = talk.result()
        assert spoken.wav is not None
        write_audio(args.out / "tts.wav", spoken.wav, model.sampling_rate)
        _say("tts", spoken, f"-> {args.out / 'tts.wav'}")
        with open_sink(args.out / "tts-stream.wav", model.sampling_rate) as sink:
            for event in talk.stream(right=8, left=64):
                if len(event.wav):
                    sink.write(event.wav)
                streamed = event.result
        assert streamed is not None
        _say("tts, streamed", streamed, f"-> {args.out / 'tts-stream.wav'}")
    print(NEXT)
    failed = [row.stage for row in rows if not row.passed]
    if failed:
        raise ParityError(f"the runtime differs from the reference in {', '.join(failed)}")
    print("\nall checks passed", file=sys.stderr)
    return 0


def _say(task: str, result: Result, where: str) -> None:
    t = result.timings
    sound = f", {t.audio_seconds:.2f} s of sound" if result.wav is not None else ""
    first = f", first sound after {1e3 * t.first_audio:.0f} ms" if t.first_audio else ""
    patch = f", {1e3 * t.patch_median:.2f} ms a patch" if t.patch_median else ""
    print(f"   {task:14} {t.patches} patches{sound}{first}{patch} {where}")
