"""`mimo-edge recipe`: what the recipes are, what each means, and what it will weigh."""

import argparse
import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path

from mimo_edge.engines import recipe
from mimo_edge.engines.calibration import HOW
from mimo_edge.engines.components import COMPONENTS
from mimo_edge.engines.weigh import Part, Share, as_parts, weigh
from mimo_edge.runtime.bundle.bundle import Bundle
from mimo_edge.runtime.bundle.dtypes import PRECISIONS
from mimo_edge.runtime.bundle.errors import InputError
from mimo_edge.runtime.bundle.manifest import MANIFEST
from mimo_edge.scripts.progress import size

REAL = "real"
NO_COMPUTE = "as exported"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.epilog = (
        "examples:\n  mimo-edge recipe list\n  mimo-edge recipe show int4-edge --for real\n"
        "  mimo-edge recipe show mine.toml --for bundle"
    )
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    listing = actions.add_parser("list", help="the presets")
    listing.add_argument("--json", action="store_true")
    show = actions.add_parser("show", help="what one means for each component")
    show.add_argument("recipe", metavar="NAME", help="a preset, or a .toml file")
    show.add_argument(
        "--for",
        dest="subject",
        metavar="WHAT",
        help="what it would weigh for: a bundle, a folder with language_model/ and "
        f"audio_tokenizer/ (their config.json is enough), or `{REAL}`, the sizes of the released "
        "model",
    )
    show.add_argument("--dtype", choices=tuple(PRECISIONS), help="where the recipe leaves it open")
    show.add_argument("--json", action="store_true")


def run(args: argparse.Namespace) -> int:
    """Print. Returns the exit code."""
    if args.action == "list":
        about = {name: recipe.load(name).about for name in recipe.names()}
        lines = (f"{name:10} {text}" for name, text in about.items())
        print(json.dumps(about) if args.json else "\n".join(lines))
        return 0
    chosen = recipe.load(args.recipe)
    shares = None
    if args.subject is not None:
        parts, dtype = _parts(args.subject, args.dtype)
        shares = weigh(chosen, parts, dtype)
    if args.json:
        more = {"slow_on_cpus": chosen.slow_on_cpus, "shares": [asdict(s) for s in shares or ()]}
        print(json.dumps(asdict(chosen) | more))
    else:
        print("\n".join(_table(chosen, shares)))
    return 0


def _table(chosen: recipe.Recipe, shares: list[Share] | None) -> Iterator[str]:
    yield f"{chosen.name}: {chosen.about}"
    yield ""
    weighed = {share.component: share for share in shares or ()}
    head = f"{'component':18} {'compute':11} {'activations':11} {'weights':40}"
    yield (head + (f" {'numbers':>9} {'bytes':>9} bits" if shares else "")).rstrip()
    for name in COMPONENTS:
        component = chosen.components[name]
        compute = "fp32" if name == "codebooks" else component.compute or NO_COMPUTE
        stored = str(component.weights)
        line = f"{name:18} {compute:11} {component.activations:11} {stored:40}"
        if name in weighed:
            share = weighed[name]
            line = f"{name:18} {share.compute:11} {component.activations:11} "
            line += f"{_stored(share) or stored:40} {share.numbers / 1e6:7.1f} M "
            line += f"{size(share.bytes):>9} {8 * share.bytes / max(1, share.numbers):4.1f}"
        yield line.rstrip()
    for glob, weights in chosen.exceptions:
        yield f"except {glob}: {weights}"
    if chosen.float_inputs:
        yield f"inputs in floats: {', '.join(chosen.float_inputs)}"
    if chosen.calibrated:
        yield f"needs a calibration: {HOW}"
    if slow := chosen.slow_on_cpus:
        yield f"slow on ONNX Runtime's CPU, which widens these at every product: {', '.join(slow)}"
        yield f"    there take {' or '.join(_fast_on_cpus())} (docs/quantization.md)"
    if shares:
        yield f"{'all':83} {sum(s.numbers for s in shares) / 1e6:7.1f} M " + (
            f"{size(sum(s.bytes for s in shares)):>9}"
        )


def _fast_on_cpus() -> Iterator[str]:
    """The presets that multiply integers throughout."""
    presets = (recipe.load(name) for name in recipe.names())
    return (preset.name for preset in presets if preset.quantizes and not preset.slow_on_cpus)


def _stored(share: Share) -> str:
    return ", ".join(f"{count} {form}" for form, count in share.stored.items())


def _parts(subject: str, dtype: str | None) -> tuple[Iterable[Part], str]:
    """The tensors of what is asked for, and what it is computed in."""
    folder = Path(subject)
    if (folder / MANIFEST).is_file():
        from mimo_edge.engines.quantize import bundle_parts

        bundle = Bundle.open(folder, verify=False)
        own = bundle.piece("backbone").compute
        if dtype not in (None, own):
            raise InputError(f"{folder} is in {own}: leave --dtype out, or export it in {dtype}")
        return bundle_parts(bundle), own
    from mimo_edge.scripts.checkpoint.shapes import real_shapes, shapes_of

    found = real_shapes() if subject == REAL else shapes_of(folder)
    return as_parts(found), dtype or "fp32"
