"""The command line `mimo-edge`. Commands are imported when asked for: `run` needs no torch."""

import argparse
import importlib
import importlib.metadata
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TextIO

from mimo_edge.mimo_ref.errors import CheckpointError, ConfigError
from mimo_edge.runtime.bundle.errors import (
    DISK_FULL,
    BundleWarning,
    EnvironmentProblem,
    MimoError,
    no_room,
)
from mimo_edge.runtime.bundle.requirements import install
from mimo_edge.scripts.signals import code_of, ending_signals
from mimo_edge.scripts.standard_streams import ReaderGone, check_stdout, tolerant_streams

# name -> (module, what it does); the order is the order of use
COMMANDS = {
    "make-checkpoint": ("make_checkpoint", "write a random checkpoint pair, to try all else"),
    "export": ("export", "turn a checkpoint pair into a bundle of ONNX graphs"),
    "quantize": ("quantize", "turn a float bundle into a quantised one, without torch"),
    "dequantize": ("dequantize", "turn a quantised bundle into a checkpoint again"),
    "calibrate": ("calibrate", "find what the layers of a model read, for recipes that need it"),
    "recipe": ("recipe", "the recipes: what each means, and what it will weigh"),
    "plan": ("plan", "does a model fit a device, and how fast will it be there"),
    "build": ("build", "make a bundle ready for a backend: engines, or weights packed for a CPU"),
    "pack": ("pack", "a folder with just what one device needs of a bundle"),
    "run": ("run", "transcribe, speak, understand, talk: every task of the model"),
    "serve": ("serve", "serve many callers, by OpenAI's interface"),
    "inspect": ("inspect", "show what is in a bundle"),
    "doctor": ("doctor", "show what this machine can run, and how to get the rest"),
    "demo": ("demo", "a very small model speaks and listens, each stage checked"),
    "score": ("score", "how well a bundle hears and speaks, in word errors"),
    "validate": ("validate", "hold builds against the model stage by stage, and write a report"),
    "record": ("record", "keep what a bundle computes at every stage, to judge it elsewhere"),
    "streams": ("streams", "what each way of streaming costs in sound and in time"),
    "bench": ("bench", "time the stages of a bundle on this machine"),
}
# what the runtime's own dependencies do not bring
OPTIONAL = (
    *("torch", "onnx", "ml_dtypes", "onnx_ir", "onnxscript", "safetensors"),
    *("tensorrt_rtx", "cuda"),
    *("fastapi", "starlette", "uvicorn", "pydantic", "prometheus_client"),
)
# command -> the extra that has what it needs, if it is not `export`
EXTRAS = {
    "build": "trt",
    "pack": "trt",
    "quantize": "quantize",
    "calibrate": "quantize",
    "serve": "server",
}
EPILOG = """exit codes: 0 ok, 2 usage or unusable input, 3 something is not installed or not there,
4 out of memory or disk, 5 parity failed, 6 engine incompatible, 130 interrupted,
143 and 129 ended by SIGTERM and SIGHUP.
`mimo-edge COMMAND --help` explains a command. Results go to stdout, progress to stderr."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code."""
    argv = sys.argv[1:] if argv is None else list(argv)
    with tolerant_streams():
        code = _guarded(argv)
        try:
            check_stdout()  # at exit it would be too late to say that the disk is full
        except MimoError as error:
            return code or _fail(str(error), error.exit_code)
        return code


def _guarded(argv: list[str]) -> int:
    """The exit code of a command, with every error as one sentence."""
    try:
        with ending_signals(), _warnings_as_sentences():
            return _dispatch(argv)
    except SystemExit as ended:  # argparse has said what is wrong
        return ended.code if isinstance(ended.code, int) else 0
    except (MimoError, ConfigError, CheckpointError) as error:
        return _fail(str(error), getattr(error, "exit_code", 2))
    except MemoryError:
        return _fail("out of memory. Use a smaller precision, or a larger machine.", 4)
    except KeyboardInterrupt as interruption:
        return _fail("interrupted", code_of(interruption))
    except ReaderGone:
        return 0
    except OSError as error:
        if error.errno in DISK_FULL:
            return _fail(f"{error}. {no_room(error)}", 4)
        return _fail(f"{error}. Check the path and its permissions.", 2)


@contextmanager
def _warnings_as_sentences() -> Iterator[None]:
    """What the runtime warns of, without the line of code that did; other warnings as ever."""
    with warnings.catch_warnings():
        plain = warnings.showwarning

        def show(
            message: Warning | str,
            category: type[Warning],
            filename: str,
            lineno: int,
            file: TextIO | None = None,
            line: str | None = None,
        ) -> None:
            if issubclass(category, BundleWarning):
                print(f"mimo-edge: {message}", file=sys.stderr)
            else:
                plain(message, category, filename, lineno, file, line)

        warnings.showwarning = show
        yield


def _dispatch(argv: list[str]) -> int:
    parser, module = parser_of(argv)
    args = parser.parse_args(argv)
    assert module is not None  # argparse has refused anything else
    return module.run(args)


def parser_of(argv: Sequence[str]) -> tuple[argparse.ArgumentParser, Any]:
    """What parses a command line, and the module of its command; None if there is no such one."""
    parser = argparse.ArgumentParser(
        prog="mimo-edge",
        description="Export MiMo-Audio to ONNX and TensorRT, and run it without PyTorch.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    version = importlib.metadata.version("mimo-edge")
    parser.add_argument("--version", action="version", version=f"mimo-edge {version}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    chosen = argv[0] if argv and argv[0] in COMMANDS else None
    module = None
    for name, (module_name, text) in COMMANDS.items():
        command = commands.add_parser(name, help=text, description=text + ".")
        command.formatter_class = argparse.RawDescriptionHelpFormatter
        if name == chosen:
            module = _load(name, module_name)
            module.add_arguments(command)
    return parser, module


def _load(command: str, module: str):  # type: ignore[no-untyped-def]
    try:
        return importlib.import_module(f"mimo_edge.scripts.{module}")
    except ModuleNotFoundError as error:
        package = (error.name or "").split(".")[0]
        if package not in OPTIONAL:
            raise
        remedy = f"Install it: {install(EXTRAS.get(command, 'export'))}"
        if command in ("build", "pack"):
            remedy += ", or where classic TensorRT is, pip install onnx"
        raise EnvironmentProblem(
            f"`mimo-edge {command}` needs the package {package}. {remedy}."
        ) from error


def _fail(message: str, code: int) -> int:
    print(f"mimo-edge: {message}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
