"""Checkpoints by their id on the Hugging Face Hub: from the local cache, else downloaded."""

import json
import re
from pathlib import Path

from mimo_edge.mimo_ref.tensor_files import INDEX
from mimo_edge.runtime.bundle.errors import (
    MALFORMED,
    EnvironmentProblem,
    InputError,
)
from mimo_edge.runtime.bundle.requirements import install

AUDIO_TOKENIZER = "XiaomiMiMo/MiMo-Audio-Tokenizer"  # of every released language model
# all that an export reads
FILES = (
    "config.json",
    "*.safetensors",
    INDEX,
    "tokenizer.json",
    "vocab.json",
    "merges.txt",
    "tokenizer_config.json",
    "added_tokens.json",
    "special_tokens_map.json",
)
_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def is_id(given: str) -> bool:
    """Whether this names a repository of the Hub. What exists here is a path."""
    return _ID.fullmatch(given) is not None and not Path(given).exists()


def folder_of(given: str) -> Path:
    """The folder of a checkpoint: a path as it is, an id in the Hub's cache.

    Of a repository only FILES are downloaded, and only where the cache lacks some of them. Raises
    EnvironmentProblem without the package huggingface_hub, InputError if nothing can be had.
    """
    if not is_id(given):
        return Path(given)
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise EnvironmentProblem(
            f"there is no folder {given}. To take it from the Hugging Face Hub, {install('hub')}."
        ) from error
    said = "only a part of it is in the cache, and the network is not to be used"
    for local in (True, False):
        try:
            found = snapshot_download(given, allow_patterns=[*FILES], local_files_only=local)
            if _whole(Path(found)):
                return Path(found)
        except Exception as error:  # errors of its own, and of whatever HTTP client it uses
            said = str(error).strip().split("\n")[0] or type(error).__name__
    raise InputError(
        f"there is no folder {given}, and the Hub's cache does not hold it whole, nor can it be "
        f"downloaded: {said}. Check the name and the network, or give a folder."
    )


def _whole(folder: Path) -> bool:
    """Whether a cached snapshot has its config and all its weights; text files come with them."""
    if not (folder / "config.json").is_file():
        return False
    if not (folder / INDEX).is_file():
        return any(folder.glob("*.safetensors"))
    try:
        names = set(json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"].values())
    except MALFORMED:
        return True  # damaged: the export says so, and how
    return all((folder / name).is_file() for name in names)
