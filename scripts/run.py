"""`mimo-edge run TASK`: every task of the model on a bundle."""

import argparse
import dataclasses
import json
import os
import sys
import unicodedata
from collections.abc import Iterator
from contextlib import ExitStack, nullcontext
from pathlib import Path

from mimo_edge.runtime.audio.play import BothSinks, SystemPlayer
from mimo_edge.runtime.audio.write import AudioSink, open_sink
from mimo_edge.runtime.bundle.errors import InputError, MimoError
from mimo_edge.runtime.bundle.lock import locked
from mimo_edge.runtime.chat.conversation import write_history
from mimo_edge.runtime.chat.presets import PRESETS
from mimo_edge.runtime.generation.generation import Generation, Result
from mimo_edge.runtime.options import Options
from mimo_edge.runtime.tasks import MimoAudio
from mimo_edge.scripts.backend_arguments import add_backend_arguments, opening, verify
from mimo_edge.scripts.run_tasks import TASKS
from mimo_edge.scripts.standard_streams import ReaderGone, stdout_lost
from mimo_edge.scripts.stream_arguments import add_stream_arguments, check_streaming, streaming

EXAMPLES = """examples:
  mimo-edge run asr bundle question.wav
  mimo-edge run asr bundle *.wav
  mimo-edge run tts bundle "Hello there." -o hello.wav --stream
  mimo-edge run tts bundle "Hello there." -o hello.wav --instruction "happily" --voice me.wav
  mimo-edge run dialogue bundle question.wav -o answer.wav --history talk.npz --json"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the tasks and their arguments."""
    parser.epilog = EXAMPLES
    tasks = parser.add_subparsers(dest="task", metavar="TASK", required=True)
    for name, (text, declare, _) in TASKS.items():
        task = tasks.add_parser(name, help=text, description=text + ".")
        task.add_argument("bundle", metavar="BUNDLE", type=Path)
        declare(task)
        _common(task, speaks=PRESETS[name].speaks)


def run(args: argparse.Namespace) -> int:
    """Run a task: text or JSON to stdout, speech to the file of -o. Returns the exit code."""
    _check(args)
    speaks = PRESETS[args.task].speaks
    if not args.no_verify:
        verify(args.bundle)
    with ExitStack() as held:
        for output in _outputs(args):
            held.enter_context(locked(output))
        model = held.enter_context(
            MimoAudio.open(args.bundle, args.backend, verify=not args.no_verify, **opening(args))
        )
        if args.task == "asr" and len(args.audio) > 1:
            return _transcribe(model, args)
        # before the long work, so that an output that cannot be written is refused at once
        sink = _sink(args, model.sampling_rate) if speaks else None
        generation = TASKS[args.task][2](model, args, _options(args))
        if args.stream:
            result = _stream(generation, args, sink)
        else:
            result = generation.result()
            if sink is not None and result.wav is not None:
                with sink:
                    sink.write(result.wav)
        _print(result, args)  # first: whatever becomes of the file, the answer was seen
        if getattr(args, "history", None):
            write_history(args.history, result.history)
    _remark(result, args)
    return 0


def _remark(result: Result, args: argparse.Namespace) -> None:
    """Say what a whole-looking answer does not show; not behind JSON on stderr, which has it."""
    if args.json and args.output == "-":
        return
    if result.wav is not None and not len(result.wav):
        print("mimo-edge: no speech came; the answer is silent", file=sys.stderr)
    if not result.stopped:
        patches = result.timings.patches
        why = "--max-new" if patches == args.max_new else "the context"
        print(
            f"mimo-edge: the answer was cut after {patches} patches, by {why}; it may go on",
            file=sys.stderr,
        )


def _sink(args: argparse.Namespace, rate: int) -> AudioSink:
    """Where speech goes: to a file, to the player, or to both."""
    if not args.play:
        return open_sink(args.output, rate)
    player = SystemPlayer(rate)
    return player if args.output is None else BothSinks(open_sink(args.output, rate), player)


def _transcribe(model: MimoAudio, args: argparse.Namespace) -> int:
    """Several recordings that share steps: a line for each, in their order. One that cannot be
    read is told of, and the others are transcribed. Returns the exit code."""
    failed: list[MimoError] = []
    names: list[str] = []

    def prepared() -> Iterator[Generation]:
        for name in args.audio:
            try:
                generation = model.asr(name, _options(args), language=args.language)
            except InputError as error:
                print(f"mimo-edge: {error}", file=sys.stderr)
                failed.append(error)
                continue
            names.append(name)
            yield generation

    for number, result in enumerate(model.results(prepared())):
        _remark(result, args)
        if args.json:
            print(json.dumps({"input": names[number]} | _as_json(result, args), ensure_ascii=False))
        else:
            print(f"{names[number]}\t{_printable(result.answer or result.text)}")
    return failed[0].exit_code if failed else 0


def _stream(generation: Generation, args: argparse.Namespace, sink: AudioSink | None) -> Result:
    """Text to stdout and sound to the sink while they come."""
    result = None
    show_text = not args.json and args.output != "-"
    with sink or nullcontext():
        for event in generation.stream(**streaming(args)):
            if event.text and show_text:
                print(_printable(event.text), end="", flush=True)
            if sink is not None and len(event.wav):
                sink.write(event.wav)
            result = event.result
            if stdout_lost() and not _outputs(args) and not (args.json and args.output == "-"):
                raise ReaderGone
    if show_text:
        print()
    assert result is not None  # the last event of every stream
    return result


def _print(result: Result, args: argparse.Namespace) -> None:
    if args.json:
        raw = _as_json(result, args)
        out = sys.stderr if getattr(args, "output", None) == "-" else sys.stdout
        print(json.dumps(raw, ensure_ascii=False), file=out)
    elif not args.stream and getattr(args, "output", None) != "-":
        print(_printable(result.answer or result.text))


def _as_json(result: Result, args: argparse.Namespace) -> dict[str, object]:
    return {
        "task": args.task,
        "text": result.text,
        "answer": result.answer,
        "thinking": result.thinking,
        "audio": str(args.output) if result.wav is not None and args.output else None,
        "frames": int(result.codes.shape[1]),
        "stopped": result.stopped,
        "seed": result.seed,
        "timings": dataclasses.asdict(result.timings),
    }


def _printable(text: str) -> str:
    """Without control characters, which a terminal would obey, and halves of characters."""
    return "".join(
        "\N{REPLACEMENT CHARACTER}"
        if c not in "\n\t" and unicodedata.category(c) in ("Cc", "Cs")
        else c
        for c in text
    )


def _outputs(args: argparse.Namespace) -> list[str]:
    """The files that are written."""
    given = args.output, getattr(args, "history", None)
    return [path for path in given if path is not None and path != "-"]


def _inputs(args: argparse.Namespace) -> Iterator[str]:
    """The files that are read and must not be written over."""
    audio = getattr(args, "audio", None) or []
    yield from [audio] if isinstance(audio, str) else audio
    yield from (getattr(args, name, None) or "" for name in ("voice", "conversation"))
    if args.task != "chat":
        yield getattr(args, "input", None) or ""
    for heard, spoken, _ in getattr(args, "example", []):
        yield from (heard, spoken)


def _check(args: argparse.Namespace) -> None:
    """What argparse cannot see."""
    if PRESETS[args.task].speaks and args.output is None and not args.play:
        raise InputError(
            "this task answers with speech: say where it goes with -o FILE (or -o -), or --play it"
        )
    given = [name for name in ("history", "conversation") if getattr(args, name, None)]
    if len(given) == 2:
        raise InputError("give --history or --conversation, not both")
    history = getattr(args, "history", None)
    check_streaming(args)
    places = [os.path.realpath(path) for path in _outputs(args)]
    if len(set(places)) < len(places):
        raise InputError(f"-o and --history both name {history}; give them different names")
    for path in _inputs(args):
        if path and os.path.realpath(path) in places:
            raise InputError(f"{path} is read, and would be written over; name another output")
    if history and not Path(history).parent.is_dir():
        raise InputError(f"{history} cannot be written: there is no such folder; create it first")
    if history and not os.access(Path(os.path.realpath(history)).parent, os.W_OK):
        raise InputError(f"{history} cannot be written: its folder allows no writing; name another")
    if args.task == "asr" and len(args.audio) > 1 and args.stream:
        raise InputError("--stream is of one recording; give one, or leave it out")
    if args.task in ("dialogue", "speech-to-text", "chat"):
        conversation = getattr(args, "conversation", None) is not None
        if conversation == (args.input is not None):
            raise InputError("give either an input or --conversation FILE")


def _options(args: argparse.Namespace) -> Options:
    names = ["seed", "max_new", "min_new", "template"]
    names += (f"{p}{n}" for p in ("", "audio_") for n in ("temperature", "top_k", "top_p"))
    return Options(**{name: getattr(args, name) for name in names if hasattr(args, name)})


def _common(parser: argparse.ArgumentParser, speaks: bool) -> None:
    if speaks:
        parser.add_argument(
            "-o", "--output", metavar="FILE", help=".wav .flac .ogg .opus .mp3, or - for stdout"
        )
        parser.add_argument("--play", action="store_true", help="let it be heard as well")
    else:
        parser.set_defaults(output=None, play=False)
    add_backend_arguments(parser)
    how = parser.add_argument_group("how it answers")
    how.add_argument("--json", action="store_true", help="one JSON object with text and timings")
    how.add_argument("--stream", action="store_true", help="put out text and sound as they come")
    add_stream_arguments(how)
    what = parser.add_argument_group("what it generates (defaults: the task's own)")
    what.add_argument("--seed", type=int, default=0, help="same seed, same answer; default 0")
    what.add_argument("--max-new", metavar="N", type=int, help="patches at most")
    what.add_argument("--min-new", metavar="N", type=int, default=0, help="patches at least")
    for prefix, channel in (("", "text"), ("audio-", "audio codes")):
        what.add_argument(f"--{prefix}temperature", type=float, help=f"of {channel}; 0 is greedy")
        what.add_argument(f"--{prefix}top-k", type=int)
        what.add_argument(f"--{prefix}top-p", type=float)
