"""The tasks of `mimo-edge run`: the arguments of each, and how its answer is prepared."""

import argparse
from collections.abc import Callable

from mimo_edge.runtime.bundle.errors import InputError
from mimo_edge.runtime.bundle.family import LANGUAGES
from mimo_edge.runtime.chat.conversation import read_conversation, read_history
from mimo_edge.runtime.generation.generation import Generation
from mimo_edge.runtime.options import Options
from mimo_edge.runtime.tasks import Demonstration, MimoAudio

Prepare = Callable[[MimoAudio, argparse.Namespace, Options], Generation]

_SOUND = (
    "a sound file, or - for stdin; channels become one: stereo its mean, surround mixed so that a "
    "voice in the centre keeps its level"
)


def typed(text: str) -> str:
    """Text of the command line, which Python cannot read in a locale that is not UTF-8; names of
    files it must leave as they are."""
    try:
        return text.encode("utf-8", "surrogateescape").decode("utf-8")
    except UnicodeError:
        return text  # refused where it is used, with the character


def _declare_audio(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("audio", metavar="AUDIO", help=_SOUND)


def _declare_asr(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "audio", metavar="AUDIO", nargs="+", help=f"{_SOUND}; several share their steps"
    )
    parser.add_argument(
        "--language", choices=LANGUAGES, help="of the speech; for MiMo-V2.5-ASR only"
    )
    parser.add_argument(
        "--template", type=typed, help="the instruction (default: one of upstream's, by seed)"
    )


def _declare_tts(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("text", metavar="TEXT", type=typed)
    parser.add_argument("--instruction", type=typed, help="the style, in words")
    parser.add_argument("--natural", action="store_true", help="TEXT says what is spoken and how")
    parser.add_argument("--voice", metavar="AUDIO", help="a voice to copy")
    parser.add_argument(
        "--template", type=typed, help="the instruction (default: one of upstream's, by seed)"
    )


def _declare_understand(parser: argparse.ArgumentParser) -> None:
    _declare_audio(parser)
    parser.add_argument("question", metavar="QUESTION", type=typed)
    parser.add_argument("--thinking", action="store_true")


def _declare_turn(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "input", metavar="INPUT", nargs="?", help="this turn's audio (- for stdin) or text"
    )
    parser.add_argument("--conversation", metavar="FILE", help="JSON with all turns so far")
    parser.add_argument(
        "--history", metavar="FILE", help="go on from this file if it exists, and write it anew"
    )


def _declare_dialogue(parser: argparse.ArgumentParser) -> None:
    _declare_turn(parser)
    parser.add_argument("--system-prompt", metavar="TEXT", type=typed)
    parser.add_argument("--voice", metavar="AUDIO", help="the voice of the answer")


def _declare_written(parser: argparse.ArgumentParser) -> None:
    _declare_turn(parser)
    parser.add_argument("--thinking", action="store_true")


def _declare_in_context(parser: argparse.ArgumentParser) -> None:
    _declare_audio(parser)
    parser.add_argument("--instruction", type=typed, required=True)
    parser.add_argument(
        "--example",
        nargs=3,
        metavar=("IN", "OUT", "TEXT"),
        action="append",
        default=[],
        help="input audio, output audio and what the output says; may be repeated",
    )


def _tts(model: MimoAudio, args: argparse.Namespace, options: Options) -> Generation:
    return model.tts(
        args.text,
        instruction=args.instruction,
        natural=args.natural,
        voice=args.voice,
        options=options,
    )


def _dialogue(model: MimoAudio, args: argparse.Namespace, options: Options) -> Generation:
    if args.conversation:
        conversation = read_conversation(args.conversation)
        return model.dialogue(
            conversation.messages,
            system_prompt=args.system_prompt or conversation.system_prompt,
            voice=args.voice or conversation.voice,
            options=options,
        )
    history = read_history(args.history) if args.history else None
    return model.dialogue(
        args.input,
        system_prompt=args.system_prompt,
        voice=args.voice,
        history=history,
        options=options,
    )


def _written(task: str) -> Prepare:
    def prepare(model: MimoAudio, args: argparse.Namespace, options: Options) -> Generation:
        method = model.speech_to_text if task == "speech-to-text" else model.chat
        if args.conversation:
            given = read_conversation(args.conversation)
            for value, name in ((given.system_prompt, "system prompt"), (given.voice, "voice")):
                if value is not None:
                    raise InputError(
                        f"{args.conversation} has a {name}, which only dialogue uses; take it out"
                    )
            return method(given.messages, thinking=args.thinking, options=options)
        history = read_history(args.history) if args.history else None
        said = typed(args.input) if task == "chat" else args.input
        return method(said, thinking=args.thinking, history=history, options=options)

    return prepare


def _in_context(model: MimoAudio, args: argparse.Namespace, options: Options) -> Generation:
    examples = [Demonstration(a, b, typed(text)) for a, b, text in args.example]
    return model.in_context(args.instruction, examples, args.audio, options)


# name -> (help, arguments, how the answer is prepared)
TASKS: dict[str, tuple[str, Callable[[argparse.ArgumentParser], None], Prepare]] = {
    "asr": (
        "transcribe speech",
        _declare_asr,
        lambda m, a, o: m.asr(a.audio[0], o, language=a.language),
    ),
    "tts": ("speak a text", _declare_tts, _tts),
    "understand": (
        "answer a question about audio",
        _declare_understand,
        lambda m, a, o: m.understand(a.audio, a.question, thinking=a.thinking, options=o),
    ),
    "dialogue": ("answer speech with speech", _declare_dialogue, _dialogue),
    "speech-to-text": (
        "answer speech with text",
        _declare_written,
        _written("speech-to-text"),
    ),
    "chat": ("answer text with text", _declare_written, _written("chat")),
    "in-context": ("do what the examples show, speech to speech", _declare_in_context, _in_context),
}
