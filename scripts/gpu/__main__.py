"""`python -m mimo_edge.scripts.gpu kit | run | step`: see the package's docstring."""

import argparse
import sys
from pathlib import Path

from mimo_edge.runtime.bundle.errors import InputError, MimoError
from mimo_edge.scripts.gpu.records import TABLE
from mimo_edge.scripts.gpu.runner import python, run_steps
from mimo_edge.scripts.gpu.settings import Settings
from mimo_edge.scripts.gpu.steps import plan, run_step

MODULE = "mimo_edge.scripts.gpu"


def main(arguments: list[str] | None = None) -> int:
    """0 when all went well, 1 when a step did not, 2 for unusable input."""
    options = _parser().parse_args(arguments)
    try:
        return options.run(options)
    except MimoError as error:
        print(f"gpu: {error}", file=sys.stderr)
        return error.exit_code


def run(settings: Settings, seconds: float, only: list[str] | None = None) -> bool:
    """All steps, or some; returns whether all went well."""
    settings.out.mkdir(parents=True, exist_ok=True)
    settings.work.mkdir(parents=True, exist_ok=True)
    settings.write()
    steps = plan(settings)
    if unknown := set(only or ()) - {planned.step for planned in steps}:
        known = ", ".join(planned.step for planned in steps)
        raise InputError(f"there is no step {min(unknown)}; choose of {known}")
    chosen = [planned for planned in steps if only is None or planned.step in only]
    return run_steps(
        chosen, seconds, settings.out, lambda s: python("-m", MODULE, "step", s, str(settings.out))
    )


def _run(options: argparse.Namespace) -> int:
    work = options.work or options.out / "work"
    settings = Settings(options.kit.resolve(), options.out, work, options.device)
    well = run(settings, 60 * options.minutes, options.only)
    print((options.out / TABLE).read_text(encoding="utf-8"))
    return 0 if well else 1


def _step(options: argparse.Namespace) -> int:
    return 0 if run_step(options.step, Settings.read(options.out)) else 1


def _kit(options: argparse.Namespace) -> int:
    from mimo_edge.scripts.gpu.kit import make_kit

    bundles = {"golden": options.golden, "nano": options.nano}
    recipes, python_version = tuple(options.recipe), options.python
    parts = make_kit(
        options.out,
        bundles,
        options.real,
        recipes,
        python_version,
        options.architecture,
        round(options.part_mb * (1 << 20)),
    )
    for part in parts:
        print(f"{part} {part.stat().st_size / (1 << 20):.1f} MiB")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=f"python -m {MODULE}", description=__doc__)
    commands = parser.add_subparsers(required=True)

    kit = commands.add_parser("kit", help="make the kit, with network and without a GPU")
    kit.add_argument("out", type=Path, metavar="PARTS")
    kit.add_argument("--golden", type=Path, required=True, help="bundle of the first golden model")
    kit.add_argument("--nano", type=Path, required=True, help="bundle of nano, in fp32")
    kit.add_argument("--real", type=Path, required=True, help="float bundle of the real size")
    kit.add_argument("--recipe", action="append", default=[], help="how to quantise it as well")
    kit.add_argument("--python", default="3.12", help="version there (default: 3.12)")
    kit.add_argument("--architecture", type=int, help="leave out code for other GPUs: 90 for 9.0")
    kit.add_argument("--part-mb", type=float, default=60.0, help="MiB of a part (default: 60)")
    kit.set_defaults(run=_kit)

    there = commands.add_parser("run", help="measure, on the machine with the GPU")
    there.add_argument("kit", type=Path)
    there.add_argument("out", type=Path, help="folder for records, table and log")
    there.add_argument("--work", type=Path, help="room for 26 GB of weights (default: OUT/work)")
    there.add_argument("--minutes", type=float, default=8.0)
    there.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    there.add_argument("--only", action="append", metavar="STEP")
    there.set_defaults(run=_run)

    step = commands.add_parser("step", help="one step of a run; the run starts it")
    step.add_argument("step")
    step.add_argument("out", type=Path)
    step.set_defaults(run=_step)
    return parser


if __name__ == "__main__":
    sys.exit(main())
