"""The weight files of a checkpoint folder, and what else it may hold in place of weights.

With an index, a tensor comes from the file that the index names; without one, from the only file
that has it. Hidden files do not count: copies from other systems leave `._model.safetensors`.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mimo_edge.mimo_ref.errors import CheckpointError
from safetensors import SafetensorError, safe_open
from torch import Tensor

INDEX = "model.safetensors.index.json"
SAFETENSORS = ".safetensors"
# what other programs keep weights in; none of it is read
_OTHER_WEIGHTS = (".bin", ".pt", ".pth", ".ckpt", ".gguf", ".onnx", ".h5", ".msgpack")
_LARGEST = 1 << 26  # bytes of a JSON file; a real text tokenizer has 12 MB
_LONGEST_NAME = 255  # bytes of a file's name
_LFS = b"version https://git-lfs"
# what wrappers put before every name
_WRAPPERS = ("base_model.model.", "module.", "_orig_mod.", "model.")


class TensorFiles:
    """The tensors of a checkpoint folder, by name. Raises CheckpointError for damaged files."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.where: dict[str, Any] = {}
        self.path_of: dict[str, Path] = {}
        index = folder / INDEX
        if index.is_file():
            self._open_named(_weight_map(index), index)
        else:
            self._open_all()

    def _open_named(self, weight_map: Mapping[str, str], index: Path) -> None:
        paths = {file: self.folder / file for file in sorted(set(weight_map.values()))}
        missing = [file for file, path in paths.items() if not path.is_file()]
        if missing:
            raise CheckpointError(
                f"{self.folder} has not {shorten(missing)}. Download the missing files."
            )
        opened = {file: _opened(path) for file, path in paths.items()}
        held = {file: set(handle.keys()) for file, handle in opened.items()}
        for name, file in weight_map.items():
            if name not in held[file]:
                raise CheckpointError(
                    f"{index} says that {name} is in {file}, and it is not. "
                    "Download both again, from one release."
                )
            self.where[name], self.path_of[name] = opened[file], paths[file]

    def _open_all(self) -> None:
        paths = sorted(
            path
            for path in self.folder.glob(f"*{SAFETENSORS}")
            if path.is_file() and not path.name.startswith(".")
        )
        if not paths:
            raise CheckpointError(_without_weights(self.folder))
        for path in paths:
            file = _opened(path)
            for name in list(file.keys()):
                if name in self.where:
                    raise CheckpointError(
                        f"{name} is in {self.path_of[name]} and in {path.name}, and no {INDEX} "
                        "says which counts. Move the file that does not belong here away."
                    )
                self.where[name], self.path_of[name] = file, path

    def shape(self, name: str) -> tuple[int, ...]:
        """Without reading it."""
        return tuple(self.where[name].get_slice(name).get_shape())

    def read(self, name: str) -> Tensor:
        """One tensor, mapped."""
        return self.where[name].get_tensor(name)


def foreign_names(files: TensorFiles, wanted: Mapping[str, object]) -> str | None:
    """What the names of the tensors say of a folder in which none of `wanted` is found, or None."""
    names = list(files.where)
    if any("lora_" in name for name in names):
        return _adapter(files.folder)
    for prefix in _WRAPPERS:
        inside = [name for name in names if name.removeprefix(prefix) in wanted]
        if inside and not any(name in wanted for name in inside):
            return (
                f"{files.folder} has {inside[0]} in place of {inside[0].removeprefix(prefix)}: a "
                f"wrapper put {prefix!r} before {len(inside)} names. Save the model inside the "
                "wrapper (for peft merge_and_unload first, then save_pretrained)."
            )
    return None


def read_json(path: Path) -> Any:
    """What a JSON file of a checkpoint holds; a byte order mark is skipped, UTF-16 is read.

    Raises CheckpointError for what cannot be read, and for a key that is given twice.
    """
    try:
        with path.open("rb") as file:
            content = bytearray()
            # a device has no end, and asking for all that may be there takes as much memory
            while len(content) <= _LARGEST and (part := file.read(1 << 20)):
                content += part
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} is missing. Give a released checkpoint's folder.") from error
    except PermissionError as error:
        raise CheckpointError(f"{path} may not be read; change its permissions.") from error
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error}). Download it again.") from error
    if content.startswith(_LFS):
        raise CheckpointError(_lfs_pointer(path))
    if len(content) > _LARGEST:
        raise CheckpointError(f"{path} has more than {_LARGEST >> 20} MiB. Download it again.")
    try:
        return json.loads(content, object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read ({error}). Download it again.") from error


def shorten(names: list[str], limit: int = 10) -> str:
    """The first names, and whether there are more."""
    return ", ".join(names[:limit]) + (" ..." if len(names) > limit else "")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"{name} is given twice")
        found[name] = value
    return found


def _weight_map(index: Path) -> dict[str, str]:
    """Tensor -> file, from an index. Only plain names: no index reaches out of its folder."""
    raw = read_json(index)
    weight_map = raw.get("weight_map") if isinstance(raw, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index} lists no weights. Download it again.")
    for name, file in weight_map.items():
        if not _is_plain(file):
            raise CheckpointError(
                f"{index} gives {file!r:.80} as the file of {name}; it must be the plain name of a "
                f"{SAFETENSORS} file beside it. Download it again."
            )
    return weight_map


def _is_plain(file: object) -> bool:
    """Whether it names a file of weights, which a folder can hold."""
    return (
        isinstance(file, str)
        and Path(file).name == file
        and file.endswith(SAFETENSORS)
        and len(file.encode("utf-8", "surrogatepass")) <= _LONGEST_NAME
    )


def _opened(path: Path) -> Any:
    try:
        with path.open("rb") as file:
            start = file.read(len(_LFS))
        if start == _LFS:
            raise CheckpointError(_lfs_pointer(path))
        return safe_open(path, framework="pt")
    except PermissionError as error:
        raise CheckpointError(f"{path} may not be read; change its permissions.") from error
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path} is damaged or truncated ({error}). Download it again."
        ) from error


def _adapter(folder: Path) -> str:
    return (
        f"{folder} holds a LoRA adapter, which is not used by itself. Merge it into its base "
        "(peft: merge_and_unload, then save_pretrained) and give the merged folder."
    )


def _lfs_pointer(path: Path) -> str:
    return (
        f"{path} is a pointer of git-lfs, not the file itself. Run `git lfs install` and then "
        "`git lfs pull` in its folder, or download the file."
    )


def _without_weights(folder: Path) -> str:
    others = sorted(
        path.name
        for path in (folder.iterdir() if folder.is_dir() else ())
        if path.suffix in _OTHER_WEIGHTS and not path.name.startswith(".")
    )
    if (folder / "adapter_config.json").is_file():
        return _adapter(folder)
    if not others:
        return f"{folder} has not any *{SAFETENSORS}. Download the missing files."
    return (
        f"{folder} has its weights in {shorten(others, 3)} and not any *{SAFETENSORS}, which alone "
        "is read: the others can hold programs. Convert them (save_pretrained with "
        "safe_serialization), or download the release's own."
    )
