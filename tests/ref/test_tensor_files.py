"""Which file a tensor comes from, and what a folder may hold in place of weights."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from mimo_edge.mimo_ref.errors import CheckpointError
from mimo_edge.mimo_ref.tensor_files import INDEX, TensorFiles, read_json
from mimo_edge.mimo_ref.weights import check_names
from safetensors.torch import save_file

FILE = "model.safetensors"
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 123\n"
WANTED = {"a": (2,), "b": (3,)}


def save(path: Path, **tensors: torch.Tensor) -> None:
    save_file(tensors, path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save(tmp_path / FILE, a=torch.ones(2), b=torch.ones(3))
    return tmp_path


def refusal(folder: Path) -> str:
    with pytest.raises(CheckpointError) as error:
        check_names(TensorFiles(folder), WANTED)
    return str(error.value)


def test_a_second_file_of_weights(folder: Path) -> None:
    save(folder / "model_old.safetensors", a=torch.zeros(2))
    text = refusal(folder)
    assert "a is in " in text and FILE in text and "model_old.safetensors" in text
    assert "Move the file" in text


def test_files_that_do_not_overlap_are_one_checkpoint(folder: Path) -> None:
    save(folder / FILE, a=torch.ones(2))
    save(folder / "more.safetensors", b=torch.ones(3))
    check_names(TensorFiles(folder), WANTED)


@pytest.mark.parametrize("first", ["a-first.safetensors", "z-last.safetensors"])
def test_an_index_says_which_file_counts(folder: Path, first: str) -> None:
    save(folder / first, a=torch.zeros(2))
    index = {"weight_map": {"a": first, "b": FILE}}
    (folder / INDEX).write_text(json.dumps(index))
    files = TensorFiles(folder)
    check_names(files, WANTED)
    assert files.read("a").tolist() == [0, 0] and files.path_of["a"] == folder / first
    index["weight_map"]["a"] = FILE
    (folder / INDEX).write_text(json.dumps(index))
    files = TensorFiles(folder)
    assert files.read("a").tolist() == [1, 1] and files.path_of["a"] == folder / FILE


def test_an_index_that_is_wrong(folder: Path) -> None:
    save(folder / "other.safetensors", b=torch.zeros(3))
    for file, says in (
        ("other.safetensors", "a is in other.safetensors, and it is not"),
        ("../x.safetensors", "must be the plain name"),
        ("config.json", "must be the plain name"),
        (7, "must be the plain name"),
    ):
        (folder / INDEX).write_text(json.dumps({"weight_map": {"a": file, "b": FILE}}))
        assert says in refusal(folder)
    for content in ("[]", "{}", '{"weight_map": []}'):
        (folder / INDEX).write_text(content)
        assert "lists no weights" in refusal(folder)


def test_hidden_files_do_not_count(folder: Path) -> None:
    (folder / "._model.safetensors").write_bytes(b"\0\5\26\7 of another system")
    save(folder / ".old.safetensors", a=torch.zeros(2))
    check_names(TensorFiles(folder), WANTED)


@pytest.mark.parametrize(
    ("tensors", "says"),
    [
        (["base_model.model.a", "base_model.model.b"], "a wrapper put 'base_model.model.'"),
        (["module.a", "module.b"], "a wrapper put 'module.'"),
        (["a.lora_A.weight", "a.lora_B.weight"], "LoRA adapter"),
        (["a", "b", "a.lora_A.default.weight"], "LoRA adapter"),
    ],
)
def test_names_that_say_where_they_come_from(folder: Path, tensors: list[str], says: str) -> None:
    save(folder / FILE, **{name: torch.ones(2) for name in tensors})
    text = refusal(folder)
    assert says in text and "merge_and_unload" in text


OTHERS: dict[str, tuple[str, bytes, str]] = {
    "pointer": (FILE, LFS, "git lfs pull"),
    "bin": ("pytorch_model.bin", b"x", "its weights in pytorch_model.bin"),
    "adapter": ("adapter_config.json", b"{}", "LoRA adapter"),
    "nothing": ("notes.txt", b"x", "has not any *.safetensors"),
}


@pytest.mark.parametrize("case", OTHERS)
def test_what_is_no_weights(folder: Path, case: str) -> None:
    name, content, says = OTHERS[case]
    (folder / FILE).unlink()
    (folder / name).write_bytes(content)
    assert says in refusal(folder)


def test_pointers_in_place_of_json(folder: Path) -> None:
    (folder / INDEX).write_bytes(LFS)
    assert "git lfs pull" in refusal(folder)


@pytest.mark.parametrize("name", [FILE, INDEX])
def test_files_that_may_not_be_read(
    folder: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """As the system says it; a test that runs as root is refused nothing."""
    (folder / INDEX).write_text(json.dumps({"weight_map": {"a": FILE, "b": FILE}}))
    real: Callable[..., object] = Path.open

    def guarded(self: Path, *args: object, **kwargs: object) -> object:
        if self.name == name:
            raise PermissionError(13, "Permission denied", str(self))
        return real(self, *args, **kwargs)

    monkeypatch.setattr(Path, "open", guarded)
    assert f"{folder / name} may not be read; change its permissions" in refusal(folder)


def test_a_name_that_no_folder_can_hold(tmp_path: Path) -> None:
    for name in ("x" * 300 + ".safetensors", "é" * 130 + ".safetensors"):
        (tmp_path / INDEX).write_text(json.dumps({"weight_map": {"a": name}}))
        with pytest.raises(CheckpointError, match="must be the plain name"):
            TensorFiles(tmp_path)


def test_json_without_an_end(tmp_path: Path) -> None:
    (tmp_path / "config.json").symlink_to("/dev/zero")
    with pytest.raises(CheckpointError, match=r"config.json has more than 64 MiB"):
        read_json(tmp_path / "config.json")
