"""The arguments that say on what a bundle runs, the same in every command that runs one."""

import argparse
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, TypedDict

from mimo_edge.runtime.backends.base import Providers
from mimo_edge.runtime.backends.opening import BACKENDS
from mimo_edge.runtime.bundle.bundle import Bundle
from mimo_edge.runtime.bundle.verified import LARGE
from mimo_edge.scripts.progress import StageProgress


class Opening(TypedDict):
    """What `open_backend` takes, by its names."""

    threads: int | None
    providers: Providers | None
    session_options: Mapping[str, str] | None
    engines: Path | None
    trust_engines: bool


def add_backend_arguments(parser: argparse.ArgumentParser, *, verify: bool = True) -> None:
    """Declare them. `verify`: whether the command hashes what it opens."""
    group = parser.add_argument_group("on what it runs")
    group.add_argument("--backend", choices=BACKENDS, default="ort-cpu", help="default: ort-cpu")
    group.add_argument("--threads", metavar="N", type=int, help="CPU threads (default: all cores)")
    if verify:
        group.add_argument("--no-verify", action="store_true", help="skip hashing files, engines")
    group.add_argument(
        "--provider",
        metavar="NAME",
        action=_Provider,
        help="an execution provider of ONNX Runtime in place of the backend's own; may be "
        "repeated, first choice first",
    )
    group.add_argument(
        "--provider-option",
        metavar="KEY=VALUE",
        action=_ProviderOption,
        help="of the --provider before it; may be repeated",
    )
    group.add_argument(
        "--session-option",
        metavar="KEY=VALUE",
        action=_SessionOption,
        help="a session configuration entry of ONNX Runtime; may be repeated",
    )
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


def opening(args: argparse.Namespace) -> Opening:
    """What the arguments say, for `open_backend` and `MimoAudio.open`."""
    return {
        "threads": args.threads,
        "providers": args.provider,
        "session_options": args.session_option,
        "engines": args.engines,
        "trust_engines": args.trust_engines,
    }


def verify(folder: Path) -> None:
    """Hash a large bundle with progress, which then is remembered; raises BundleError.

    A small one is hashed in no time when it is opened.
    """
    bundle = Bundle.open(folder, verify=False)
    if bundle.bytes >= LARGE:
        with StageProgress() as progress:
            Bundle.open(folder, on_progress=partial(progress.report, "checking the bundle"))


class _Provider(argparse.Action):
    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        namespace.provider = [*(namespace.provider or ()), (values, {})]


class _ProviderOption(argparse.Action):
    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        if not namespace.provider:
            parser.error(f"{option_string} {values} must follow the --provider that it is for")
        key, value = _pair(parser, option_string, values)
        *before, (name, options) = namespace.provider
        namespace.provider = [*before, (name, {**options, key: value})]


class _SessionOption(argparse.Action):
    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        key, value = _pair(parser, option_string, values)
        namespace.session_option = {**(namespace.session_option or {}), key: value}


def _pair(parser: argparse.ArgumentParser, option: str | None, text: str) -> tuple[str, str]:
    key, sign, value = text.partition("=")
    if not key or not sign:
        parser.error(f"{option} {text} must be KEY=VALUE")
    return key, value
