"""The arguments that say how an answer is streamed, the same in every command that streams one."""

import argparse
from typing import TypedDict

from mimo_edge.runtime.audio.codec import (
    LEFT_OVERLAP,
    RIGHT_OVERLAP,
    STATEFUL,
    STREAMS,
    WINDOWED,
    check_stream,
)
from mimo_edge.runtime.audio.stateful import LOOKAHEAD
from mimo_edge.runtime.bundle.errors import InputError


class StreamSettings(TypedDict):
    """What `Generation.stream` takes, by its names."""

    kind: str | None
    chunk: int | None
    lookahead: int | None
    left: int | None
    right: int | None


def add_stream_arguments(how: argparse._ArgumentGroup) -> None:
    """Declare them."""
    how.add_argument(
        "--codec-stream",
        choices=STREAMS,
        help=f"how a stream sounds: {STATEFUL} (the default) or {WINDOWED}, as upstream does",
    )
    how.add_argument(
        "--chunk", metavar="N", type=int, help="patches between two decodes (default: by speed)"
    )
    how.add_argument(
        "--lookahead",
        metavar="FRAMES",
        type=int,
        help=f"of the {STATEFUL} stream, 40 ms each; default {LOOKAHEAD}, fewer sound sooner",
    )
    for side, frames in (("left", LEFT_OVERLAP), ("right", RIGHT_OVERLAP)):
        how.add_argument(
            f"--{side}-overlap",
            metavar="FRAMES",
            type=int,
            help=f"of the {WINDOWED} stream, which they choose; default {frames}",
        )


def streaming(args: argparse.Namespace) -> StreamSettings:
    """What the arguments say."""
    return {
        "kind": args.codec_stream,
        "chunk": args.chunk,
        "lookahead": args.lookahead,
        "left": args.left_overlap,
        "right": args.right_overlap,
    }


def check_streaming(args: argparse.Namespace) -> None:
    """Refuse settings that no stream can have, before a bundle is opened. Raises InputError."""
    check_stream(args.codec_stream, args.left_overlap, args.right_overlap, args.lookahead)
    if args.chunk is not None and args.chunk < 1:
        raise InputError(f"chunk must be at least 1 patch, not {args.chunk}; leave it out")
