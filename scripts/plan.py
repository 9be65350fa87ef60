"""`mimo-edge plan`: does a model fit a device, and how fast will it be there, before any export."""

import argparse
import dataclasses
import json
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

from mimo_edge.engines import recipe
from mimo_edge.engines.plan import devices
from mimo_edge.engines.plan.on_device import Load, OnDevice, on_device
from mimo_edge.engines.plan.prediction import PROMPT
from mimo_edge.engines.plan.workload import Workload, of_bundle, of_shapes
from mimo_edge.runtime.bundle.built import KV_CACHES
from mimo_edge.runtime.bundle.bundle import Bundle
from mimo_edge.runtime.bundle.dtypes import DTYPES, PRECISIONS
from mimo_edge.runtime.bundle.errors import EnvironmentProblem, InputError
from mimo_edge.runtime.bundle.manifest import AUDIO_SECONDS
from mimo_edge.runtime.bundle.requirements import install
from mimo_edge.scripts.machine import cores, memory_bytes, product_rate, read_rate
from mimo_edge.scripts.progress import size

POSITIONS = 1024
REAL = "real"
EPILOG = f"""devices: {", ".join(devices.names())}, and `{devices.HERE}`, this
machine, whose memory is read for a second to find out how fast it is.

examples:
  mimo-edge plan bundle
  mimo-edge plan --preset {REAL} --recipe int4-edge --device orin-nano --positions 512
  mimo-edge plan --checkpoint MiMo-Audio-7B-Instruct --audio-tokenizer MiMo-Audio-Tokenizer"""
# the recipes that are named where one does not fit, the one that loses least first
SMALLER = ("int8", "int4", "int4-edge")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.epilog = EPILOG
    parser.add_argument("bundle", metavar="BUNDLE", type=Path, nargs="?", help="as it is stored")
    parser.add_argument(
        "--checkpoint",
        metavar="DIR",
        type=Path,
        help="in place of a bundle: a folder with language_model/ and audio_tokenizer/, or a "
        "language model; only config.json is read",
    )
    parser.add_argument("--audio-tokenizer", metavar="DIR", type=Path)
    parser.add_argument("--preset", choices=(REAL,), help="the sizes of the released 7B")
    parser.add_argument("--recipe", metavar="NAME", help="of a checkpoint (default: fp16)")
    parser.add_argument(
        "--dtype",
        choices=tuple(PRECISIONS),
        help="where the recipe leaves it open (default: fp32 on a CPU, fp16 on a GPU)",
    )
    parser.add_argument(
        "--device",
        metavar="NAME",
        action="append",
        help="may be repeated (default: all, and this machine)",
    )
    parser.add_argument(
        "--positions",
        metavar="N",
        type=int,
        default=POSITIONS,
        help=f"patches that a row holds (default: {POSITIONS})",
    )
    parser.add_argument("--rows", metavar="N", type=int, default=1, help="answers at once")
    parser.add_argument(
        "--kv-cache",
        choices=tuple(KV_CACHES),
        help=f"of {devices.CPU}: what keys and values are kept in once it is built (default: as "
        "the bundle has them)",
    )
    parser.add_argument(
        "--audio-seconds",
        metavar="S",
        type=float,
        default=float(AUDIO_SECONDS),
        help=f"the longest recording that is encoded at once (default: {AUDIO_SECONDS}, and never "
        "more)",
    )
    parser.add_argument("--json", action="store_true")


def run(args: argparse.Namespace) -> int:
    """Print the plan. Returns the exit code."""
    workload_for = _source(args)
    load = Load(args.positions, args.rows, min(args.audio_seconds, AUDIO_SECONDS))
    chosen = [_device(name) for name in args.device or (*devices.names(), devices.HERE)]
    _check(args, workload_for(None, False).sizes.context)

    def plan(device: devices.Device) -> OnDevice:
        cpu = device.backend == devices.CPU
        workload = workload_for(None, cpu)
        if cpu and args.kv_cache is not None:
            workload = workload.keeping(DTYPES[KV_CACHES[args.kv_cache]].bytes)
        later = SMALLER.index(workload.recipe) + 1 if workload.recipe in SMALLER else 0
        names = SMALLER[later:] if args.bundle is None else ()
        return on_device(workload, device, load, lambda: (workload_for(n, cpu) for n in names))

    rows = [plan(device) for device in chosen]
    print(_json(rows, load) if args.json else "\n".join(_table(rows, load)))
    return 0


def _check(args: argparse.Namespace, context: int) -> None:
    if not 2 <= args.positions <= context:
        raise InputError(
            f"--positions {args.positions}: choose 2 to {context}, the model's context"
        )
    if args.rows < 1:
        raise InputError(f"--rows {args.rows}: choose 1 or more")
    if not 0 < args.audio_seconds < float("inf"):
        raise InputError(f"--audio-seconds {args.audio_seconds}: give more than 0")


def _source(args: argparse.Namespace) -> Callable[[str | None, bool], Workload]:
    """(recipe, or None for the one that is asked for; on a CPU?) -> the model."""
    named = [args.bundle, args.checkpoint, args.preset]
    if sum(one is not None for one in named) != 1:
        raise InputError("name one of a bundle, --checkpoint DIR and --preset real")
    if args.bundle is not None:
        for flag in ("recipe", "dtype", "audio_tokenizer"):
            if getattr(args, flag) is not None:
                raise InputError(
                    f"--{flag.replace('_', '-')} is of a checkpoint: a bundle is planned as it is "
                    "stored. Leave it out, or name the checkpoint."
                )
        stored = of_bundle(Bundle.open(args.bundle, verify=False))
        return lambda _name, _cpu: stored
    return _of_checkpoint(args)


def _of_checkpoint(args: argparse.Namespace) -> Callable[[str | None, bool], Workload]:
    try:
        from mimo_edge.export.shapes import graph_tensors
        from mimo_edge.scripts.checkpoint.shapes import configs_of, preset_configs, sizes_of
    except ModuleNotFoundError as error:
        raise EnvironmentProblem(
            f"to plan without a bundle needs the package {error.name}: {install('export')}. A "
            "bundle is planned without it."
        ) from error
    if args.preset is not None:
        configs = preset_configs(args.preset)
    else:
        configs = configs_of(args.checkpoint, args.audio_tokenizer)
    shapes = list(graph_tensors(*configs))

    @cache
    def made(name: str, dtype: str) -> Workload:
        sizes = sizes_of(configs, PRECISIONS[dtype].bytes)
        return of_shapes(shapes, sizes, recipe.load(name), dtype)

    def workload(name: str | None, cpu: bool) -> Workload:
        return made(name or args.recipe or "fp16", args.dtype or ("fp32" if cpu else "fp16"))

    return workload


def _device(name: str) -> devices.Device:
    if name != devices.HERE:
        return devices.device(name)
    return devices.this_machine(read_rate(), product_rate(), memory_bytes(), cores())


def _json(rows: list[OnDevice], load: Load) -> str:
    made = []
    for row in rows:
        own, need = row.prediction, row.need
        made.append(
            {
                "device": dataclasses.asdict(row.device),
                "efficiency": dataclasses.asdict(row.device.efficiency),
                "recipe": row.workload.recipe,
                "compute": row.workload.compute,
                "need": dataclasses.asdict(need) | {"total": need.total, "fits": need.fits},
                "seconds": dataclasses.asdict(own)
                | {"patch": own.patch, "rtf": own.rtf, "rtf_with_codec": own.rtf_with_codec},
                "remedy": row.remedy,
                "note": row.note,
            }
        )
    return json.dumps({"load": dataclasses.asdict(load), "devices": made}, ensure_ascii=False)


def _table(rows: list[OnDevice], load: Load) -> Iterator[str]:
    first = rows[0].workload
    seconds = load.positions * first.sizes.patch_seconds
    yield (
        f"recipe {first.recipe}: {load.rows} row{'s' if load.rows > 1 else ''} of "
        f"{load.positions} patches ({seconds:.0f} s of speech), recordings of at most "
        f"{load.audio_seconds:g} s\n"
    )
    for workload in {id(row.workload): row.workload for row in rows}.values():
        parts = workload.components()
        yield f"weights where {workload.compute} is computed: {size(sum(parts.values()))}"
        yield "  " + ", ".join(f"{name} {size(count)}" for name, count in parts.items() if count)
    yield ""
    yield (
        f"{'device':13} {'runs on':8} {'weights':>8} {'cache':>8} {'other':>8} {'all':>8} "
        f"{'free':>8} {'bound':>9} {'patch':>9} {'RTF':>6} {'+codec':>6} {'prompt':>9}"
    )
    for row in rows:
        yield _line(row)
    yield ""
    yield (
        "all: what is needed of the memory that is free. bound: a patch at the full bandwidth. "
        "patch: as foretold.\nRTF: of the language model; +codec: with the decode of a stream. "
        f"prompt: {PROMPT} patches are read.\nNothing but `{devices.HERE}` was measured: "
        "docs/deploy/planning.md has the efficiencies that are assumed."
    )
    for row in rows:
        for said in (row.remedy, row.note):
            if said is not None:
                yield f"{row.device.name}: {said}"


def _line(row: OnDevice) -> str:
    need, own = row.need, row.prediction
    other = need.activations + need.base
    text = (
        f"{row.device.name:13} {row.device.backend:8} "
        f"{size(need.weights):>8} {size(need.cache):>8} {size(other):>8} {size(need.total):>8} "
        f"{size(need.available):>8} "
    )
    if row.remedy is not None:
        return text + "see below"
    return text + (
        f"{1e3 * own.bound:6.1f} ms {1e3 * own.patch:6.1f} ms {own.rtf:6.2f} "
        f"{own.rtf_with_codec:6.2f} {1e3 * own.prefill:6.0f} ms"
    )
