"""`python -m mimo_edge.scripts.peers.mlx_audio`: record what mlx-audio computes.

In an environment of its own, from a clone:

    python -m venv peer
    peer/bin/pip install "mlx[cpu]" "mlx-audio==0.6.*" -e ".[cpu]"
    peer/bin/python -m mimo_edge.scripts.peers.mlx_audio assets/nano/language_model \
        --audio-tokenizer assets/nano/audio_tokenizer --audio one.flac --text texts.txt -o peer-rec
    mimo-edge validate peer-rec --against assets/nano/language_model -o report
"""

import argparse
import sys
from pathlib import Path

from mimo_edge.runtime.bundle.errors import InputError, MimoError
from mimo_edge.scripts.peers.mlx_side import MlxSide
from mimo_edge.scripts.progress import StageProgress
from mimo_edge.scripts.record import add_inputs, recorded


def main(words: list[str] | None = None) -> int:
    """Record. Returns the exit code."""
    parser = argparse.ArgumentParser(description="Record what mlx-audio's port computes.")
    parser.add_argument("checkpoint", metavar="CHECKPOINT", type=Path)
    parser.add_argument("--audio-tokenizer", metavar="DIR", type=Path, required=True)
    add_inputs(parser)
    parser.add_argument("--inputs", metavar="RECORDING", type=Path, help="read its inputs")
    parser.add_argument("-o", "--output", metavar="DIR", type=Path, required=True)
    args = parser.parse_args(words)
    try:
        if args.output.exists():
            raise InputError(f"{args.output} exists already; choose another -o, or delete it")
        side = MlxSide(args.checkpoint, args.audio_tokenizer)
        with StageProgress() as progress:
            recording = recorded(side, args.inputs, args, progress)
        recording.save(args.output)
    except MimoError as error:
        print(f"mimo-edge: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
