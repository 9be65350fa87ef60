"""Which engines may run: the options of every command that runs a bundle on a backend."""

import argparse
from pathlib import Path
from typing import Any


def declare(group: Any) -> None:
    """Add them to a parser, or to a group of one."""
    group.add_argument(
        "--engines",
        metavar="DIR",
        type=Path,
        help="TensorRT engines from here (default: the cache folder of `mimo-edge build`)",
    )
    group.add_argument(
        "--trust-engines",
        action="store_true",
        help="also use engines that came with the bundle; they are programs",
    )


def given(args: argparse.Namespace) -> dict[str, Any]:
    """As `MimoAudio.open` and `open_backend` take them."""
    return {"engines": args.engines, "trust_engines": args.trust_engines}
