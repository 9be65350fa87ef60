"""Strict loading of the released checkpoints: memory-mapped, and without a second copy.

Tensor names on disk are upstream's. Each piece says how its own names differ: `PREFIX` in front,
and `UPSTREAM`, a table of patterns.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from mimo_edge.mimo_ref.config import AudioTokenizerConfig, LanguageModelConfig
from mimo_edge.mimo_ref.errors import CheckpointError, ConfigError
from mimo_edge.mimo_ref.model import AudioTokenizer, LanguageModel
from mimo_edge.mimo_ref.tensor_files import TensorFiles, foreign_names, read_json, shorten
from torch import nn

# training statistics and position tables that some files carry and inference does not use
UNUSED = re.compile(r"\._codebook\.(embed_avg|cluster_size|inited)$|\.inv_freq$")
EMPTY_TOKEN = "<|empty|>"


def upstream_name(piece: nn.Module, name: str) -> str:
    """The checkpoint's name of a piece's own tensor."""
    for pattern, replacement in getattr(piece, "UPSTREAM", {}).items():
        name = re.sub(f"^{pattern}", replacement, name)
    return getattr(piece, "PREFIX", "") + name


def upstream_tensors(pieces: Iterable[nn.Module]) -> dict[str, list[tuple[nn.Module, str]]]:
    """Checkpoint name -> where it goes; a tensor that two pieces share goes to both."""
    places: dict[str, list[tuple[nn.Module, str]]] = {}
    for piece in pieces:
        for name in piece.state_dict():
            places.setdefault(upstream_name(piece, name), []).append((piece, name))
    return places


def check_names(files: TensorFiles, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Compare a folder with what its config implies. Raises CheckpointError with what is wrong."""
    if foreign := foreign_names(files, shapes):
        raise CheckpointError(foreign)
    problems = []
    missing = sorted(set(shapes) - set(files.where))
    unexpected = sorted(n for n in set(files.where) - set(shapes) if not UNUSED.search(n))
    wrong = [
        f"{name} is {list(files.shape(name))}, config.json implies {list(shape)}"
        for name, shape in shapes.items()
        if name in files.where and files.shape(name) != shape
    ]
    for label, names in (("missing", missing), ("unexpected", unexpected), ("wrong shape", wrong)):
        if names:
            problems.append(f"{len(names)} {label}: {shorten(names)}")
    if problems:
        raise CheckpointError(
            f"{files.folder} does not match its config.json. {'; '.join(problems)}. "
            "Check that all files come from one release and were downloaded whole."
        )


def read_config(folder: Path, parse: Callable[[Mapping[str, Any]], Any]) -> Any:
    """Parse config.json; a ConfigError names the file."""
    path = folder / "config.json"
    try:
        return parse(read_json(path))
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def find_empty_id(folder: Path) -> int:
    """The text id that means "speech here", from the text tokenizer's files."""
    for name, items in (
        (
            "tokenizer.json",
            lambda raw: {t["content"]: t["id"] for t in raw.get("added_tokens", [])},
        ),
        ("added_tokens.json", lambda raw: raw),
    ):
        if (folder / name).is_file():
            ids = items(read_json(folder / name))
            if EMPTY_TOKEN in ids:
                return int(ids[EMPTY_TOKEN])
    raise CheckpointError(
        f"{folder} has no tokenizer.json or added_tokens.json that names {EMPTY_TOKEN}. "
        "Copy the text tokenizer's files beside the weights."
    )


def load_language_model(
    folder: Path | str, empty_id: int | None = None, dtype: torch.dtype | None = None
) -> LanguageModel:
    """dtype None keeps the one on disk; empty_id None asks the text tokenizer files."""
    folder = Path(folder)
    config = read_config(folder, LanguageModelConfig.from_dict)
    if empty_id is None:
        empty_id = find_empty_id(folder)
    with torch.device("meta"):
        model = LanguageModel(config, empty_id)
    return _fill(model, folder, dtype)


def load_audio_tokenizer(folder: Path | str, dtype: torch.dtype | None = None) -> AudioTokenizer:
    """Load an audio tokenizer. Upstream runs it in bfloat16, which rounds its codebooks too."""
    folder = Path(folder)
    config = read_config(folder, AudioTokenizerConfig.from_dict)
    with torch.device("meta"):
        model = AudioTokenizer(config)
    return _fill(model, folder, dtype)


def _fill(model: Any, folder: Path, dtype: torch.dtype | None) -> Any:
    """Put the file's tensors in place of the meta tensors, one by one."""
    files = TensorFiles(folder)
    places = upstream_tensors(model.pieces())
    shapes = {n: tuple(p[0][0].state_dict()[p[0][1]].shape) for n, p in places.items()}
    check_names(files, shapes)
    for name, targets in places.items():
        tensor = files.read(name)
        tensor = tensor if dtype is None else tensor.to(dtype)
        for piece, local in targets:
            piece.load_state_dict({local: tensor}, strict=False, assign=True)
    return model.eval().requires_grad_(False)
