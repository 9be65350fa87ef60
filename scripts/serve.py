"""`mimo-edge serve BUNDLE`: a speech server with OpenAI's interface."""

import argparse
import logging
import os
import sys
from pathlib import Path
from socket import socket
from typing import TYPE_CHECKING

from mimo_edge.runtime.bundle.errors import EnvironmentProblem, InputError
from mimo_edge.runtime.bundle.requirements import install
from mimo_edge.runtime.server.app import make_app
from mimo_edge.runtime.server.limits import Limits
from mimo_edge.runtime.server.service import Service, Streaming
from mimo_edge.runtime.server.serving import DRAIN_SECONDS, Server, listen, open_port
from mimo_edge.runtime.server.voices import Voices
from mimo_edge.runtime.tasks import MimoAudio
from mimo_edge.scripts.backend_arguments import add_backend_arguments, opening, verify
from mimo_edge.scripts.stream_arguments import add_stream_arguments, streaming

if TYPE_CHECKING:
    from mimo_edge.runtime.server.wyoming import WyomingServer

KEY = "MIMO_EDGE_API_KEY"
EXAMPLES = f"""examples:
  mimo-edge serve bundle
  mimo-edge serve bundle --slots 8 --voices voices/
  mimo-edge serve bundle --wyoming 10300
  {KEY}=... mimo-edge serve bundle --host 0.0.0.0 --port 8000

Then, with the openai package: OpenAI(base_url="http://127.0.0.1:8000/v1", api_key="none")."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.epilog = EXAMPLES
    parser.add_argument("bundle", metavar="BUNDLE", type=Path)
    parser.add_argument("--name", help="of the model, for clients (default: the bundle's folder)")
    parser.add_argument("--host", default="127.0.0.1", help="default: 127.0.0.1, this machine only")
    parser.add_argument("--port", type=int, default=8000, help="default: 8000; 0 takes a free one")
    parser.add_argument(
        "--api-key", metavar="KEY", help=f"what clients must send; better given as {KEY}"
    )
    parser.add_argument(
        "--origin",
        metavar="URL",
        action="append",
        default=[],
        help="a web site whose pages may use the server; may be repeated",
    )
    parser.add_argument("--voices", metavar="DIR", type=Path, help="keep uploaded voices here")
    parser.add_argument(
        "--wyoming",
        metavar="[HOST:]PORT",
        help="speak Wyoming, too, for Home Assistant; on this machine only unless HOST says "
        "otherwise: the protocol knows no keys",
    )
    parser.add_argument("--drain", metavar="SECONDS", type=float, default=DRAIN_SECONDS)
    add_backend_arguments(parser)
    limits = parser.add_argument_group("how much is served")
    limits.add_argument("--slots", metavar="N", type=int, help="answers at a time (default: 4)")
    limits.add_argument("--queue", metavar="N", type=int, default=Limits.queue)
    limits.add_argument("--max-audio", metavar="SECONDS", type=float, default=Limits.audio_seconds)
    limits.add_argument("--max-upload", metavar="MIB", type=int, default=Limits.upload_bytes >> 20)
    limits.add_argument("--max-seconds", metavar="SECONDS", type=float, default=Limits.seconds)
    add_stream_arguments(parser.add_argument_group("how answers are streamed"))


def run(args: argparse.Namespace) -> int:
    """Serve until SIGTERM or Ctrl-C, and drain. Returns the exit code."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    key = args.api_key or os.environ.get(KEY) or None
    limits = _limits(args)
    sock = listen(args.host, args.port, key=key)
    wyoming = None if args.wyoming is None else _wyoming(args.wyoming)
    if not args.no_verify:
        verify(args.bundle)
    with MimoAudio.open(
        args.bundle, args.backend, slots=args.slots, verify=not args.no_verify, **opening(args)
    ) as model:
        voices = Voices(model, args.voices, most=limits.voices, max_seconds=limits.voice_seconds)
        service = Service(
            model,
            voices,
            name=args.name or args.bundle.resolve().name,
            limits=limits,
            streaming=Streaming(**streaming(args)),
        )
        app = make_app(service, key=key, origins=tuple(args.origin))
        beside = None
        if wyoming is not None:
            kind, beside_sock = wyoming
            beside = kind(service, beside_sock)
            print(f"serving Wyoming on tcp://{_where(beside_sock)}", file=sys.stderr)
        print(f"serving {service.name} on http://{_where(sock)}", file=sys.stderr, flush=True)
        Server(service, app, drain_seconds=args.drain, beside=beside).run_on(sock)
    return 0


def _where(sock: socket) -> str:
    host, port = sock.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _wyoming(where: str) -> "tuple[type[WyomingServer], socket]":
    """The server and its port, before any long work."""
    try:
        from mimo_edge.runtime.server.wyoming import WyomingServer
    except ModuleNotFoundError as error:
        raise EnvironmentProblem(
            f"--wyoming needs the package wyoming. Install it: {install('wyoming')}."
        ) from error
    host, _, port = where.rpartition(":")
    if not port.isdecimal():
        raise InputError(f"--wyoming is a port, or a host and a port, not {where!r}")
    return WyomingServer, open_port(host.strip("[]") or "127.0.0.1", int(port))


def _limits(args: argparse.Namespace) -> Limits:
    given = {
        "--queue": args.queue,
        "--max-audio": args.max_audio,
        "--max-upload": args.max_upload,
        "--max-seconds": args.max_seconds,
    }
    for name, value in given.items():
        if value < (0 if name == "--queue" else 1):
            raise InputError(f"{name} cannot be {value:g}")
    return Limits(
        queue=args.queue,
        audio_seconds=args.max_audio,
        upload_bytes=args.max_upload << 20,
        seconds=args.max_seconds,
    )
