"""Inputs of every piece as they occur, and the ranges of their shapes, for Polygraphy.

Its own inputs are random numbers: they make lengths that no cache holds, and sounds shorter than
the transform, and never a patch of speech. These come from running the bundle on a short sound.
"""

import base64
import io
import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from mimo_edge.engines.profiles import Limits, profiles
from mimo_edge.runtime.backends.ort import OrtBackend
from mimo_edge.runtime.bundle.bundle import Bundle
from mimo_edge.runtime.bundle.files import write_text
from mimo_edge.runtime.bundle.manifest import PIECES
from mimo_edge.runtime.chat.text_tokenizer import TextTokenizer
from numpy.typing import NDArray

SECONDS = 1  # of sound
ROOM = 64  # positions in the cache: more than the sound and its frame of text have patches
Feed = dict[str, NDArray[Any]]


def write_sample_inputs(bundle: Bundle, folder: Path) -> list[str]:
    """Write <piece>.json and <piece>.shapes for each piece; returns a command for each.

    The JSON is what `--load-inputs` reads; the other holds the flags of an optimisation profile.
    """
    limits = Limits(min(ROOM, bundle.model.context))
    commands, inputs_of = [], sample_inputs(bundle, limits.max_seq)
    folder.mkdir(parents=True, exist_ok=True)
    for piece, feeds in inputs_of.items():
        inputs = folder / f"{piece}.json"
        write_text(inputs, json.dumps([_as_json(feed) for feed in feeds]) + "\n")
        write_text(folder / f"{piece}.shapes", _flags(bundle, piece, limits) + "\n")
        graph = shlex.quote(str(bundle.path(piece)))
        commands.append(f"polygraphy run {graph} --onnxrt --load-inputs {shlex.quote(str(inputs))}")
    return commands


def sample_inputs(bundle: Bundle, capacity: int) -> dict[str, list[Feed]]:
    """Piece -> feeds: a sound, its codes, a prompt with text and speech, and one step after it."""
    model, rng = bundle.model, np.random.default_rng(0)
    special = TextTokenizer.of_bundle(bundle).special
    feeds: dict[str, list[Feed]] = {piece: [] for piece in PIECES}
    with OrtBackend(bundle) as backend:

        def run(piece: str, feed: Feed) -> dict[str, NDArray[Any]]:
            feeds[piece].append(feed)
            names = [port.name for port in bundle.piece(piece).outputs]
            return dict(zip(names, backend.session(piece).run(names, feed), strict=True))

        def one(number: int) -> NDArray[np.int64]:
            return np.array([number], np.int64)

        mel = run("mel", {"wav": _sound(model.sampling_rate, rng)})["mel"]
        heard = run("tokenizer_encoder", {"mel": mel[None], "lengths": one(len(mel))})["codes"]
        codes = heard[:, : model.n_q]  # [1, K, T]
        run("tokenizer_decoder", {"codes": codes, "lengths": one(codes.shape[2])})

        whole = codes.shape[2] // model.group_size
        speech = codes[0, :, : whole * model.group_size]
        speech = speech.reshape(model.n_q, whole, model.group_size).transpose(1, 0, 2)  # [P, K, G]
        silent = np.empty((1, model.n_q, model.group_size), np.int64)
        silent[:] = np.array(model.empty_codes)[:, None]
        text_ids = [special.sosp, *[special.empty] * whole, special.eosp]
        patches = np.concatenate((silent, speech, silent))
        caches = {
            port.name: np.zeros((1, model.kv_heads, capacity, model.head_dim), port.dtype)
            for port in bundle.piece("backbone").inputs
            if port.name.startswith(("past_keys_", "past_values_"))
        }
        past = 0
        for ids, said in ((text_ids, patches), ([special.empty], speech[-1:])):
            feed = {"text_ids": np.array([ids], np.int64), "codes": said[None]}
            state = {
                "embeddings": run("patch_encoder", feed)["embeddings"],
                "past_lengths": one(past),
                "new_lengths": one(len(ids)),
            }
            out = run("backbone", state | caches)
            caches = {name: out[name.replace("past_", "present_")] for name in caches}
            past += len(ids)
        for temperature in (0.0, 0.9):  # a patch each: greedy, and sampled
            x = out["local_hidden"]
            past_of = {
                port.name: np.zeros([a if isinstance(a, int) else 1 for a in port.axes], port.dtype)
                for port in bundle.piece("patch_decoder").inputs
                if port.name.startswith("past_")
            }
            for sub_step in range(model.sub_steps):
                drawn = run(
                    "patch_decoder",
                    {
                        "x": x,
                        "sub_step": one(sub_step),
                        "uniforms": rng.random((1, model.n_q), np.float32),
                        "temperature": np.array([temperature], np.float32),
                        "top_k": one(0),
                        "top_p": np.array([0.95], np.float32),
                    }
                    | past_of,
                )
                x = drawn["next"]
                past_of = {name: drawn[name.replace("past_", "present_")] for name in past_of}
    return feeds


def _sound(rate: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """Something that no codec takes for silence: a rising tone with overtones, and noise."""
    time = np.arange(SECONDS * rate) / rate
    tone = sum(np.sin(2 * np.pi * n * (120 + 40 * time) * time) / n for n in range(1, 9))
    return (0.1 * tone + 0.01 * rng.normal(size=len(time))).astype(np.float32)


def _as_json(feed: Mapping[str, NDArray[Any]]) -> dict[str, dict[str, str]]:
    """As Polygraphy writes arrays: an .npy file in base 64, and what it is."""

    def encoded(array: NDArray[Any]) -> str:
        file = io.BytesIO()
        np.save(file, array, allow_pickle=False)
        return base64.b64encode(file.getvalue()).decode("ascii")

    return {
        name: {"array": encoded(array), "polygraphy_class": "ndarray"}
        for name, array in feed.items()
    }


def _flags(bundle: Bundle, piece: str, limits: Limits) -> str:
    """The piece's profile as Polygraphy's arguments."""
    (ranges,) = profiles(bundle, piece, limits)

    def shapes(end: int) -> Sequence[str]:
        return [f"{name}:[{','.join(map(str, span[end]))}]" for name, span in ranges.items()]

    kinds = ("min", "opt", "max")
    return " ".join(
        f"--trt-{kind}-shapes {' '.join(shapes(end))}" for end, kind in enumerate(kinds)
    )
