"""The random checkpoint: the released layout, the same every time, and a model that behaves."""

import argparse
import errno
import io
import json
import resource
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from mimo_edge.mimo_ref.generate import Limits, Sampling, generate
from mimo_edge.mimo_ref.model import AudioTokenizer, LanguageModel
from mimo_edge.mimo_ref.weights import load_audio_tokenizer, load_language_model
from mimo_edge.runtime.bundle.errors import InputError, MimoError, ResourceError
from mimo_edge.runtime.chat.text_tokenizer import TextTokenizer
from mimo_edge.scripts import make_checkpoint as command
from mimo_edge.scripts.checkpoint import random_weights
from mimo_edge.scripts.checkpoint.presets import PRESETS
from mimo_edge.scripts.checkpoint.small_tokenizer import train_bpe, write_tokenizer
from mimo_edge.scripts.make_checkpoint import make_checkpoint
from mimo_edge.scripts.progress import ByteProgress

from tests.golden import Golden

ROOT = Path(__file__).parents[1]
TINY = PRESETS["tiny"]
GREEDY, HOT = Sampling(), Sampling(temperature=0.8, top_p=0.95)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("checkpoints") / "tiny"
    make_checkpoint(out, TINY)
    return out


def run(*arguments: object) -> int:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    return command.run(parser.parse_args([str(a) for a in arguments]))


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_layout_is_the_released_one(golden: Golden, tiny: Path) -> None:
    for ours, theirs in (
        ("language_model", golden.lm_names[0]),
        ("audio_tokenizer", "audio_tokenizer"),
    ):
        config = json.loads((tiny / ours / "config.json").read_text())
        assert config.keys() == golden.json(f"{theirs}/config.json").keys()
    expected = {path.name for path in (golden.folder / "text_tokenizer").iterdir()}
    expected |= {"config.json", "model.safetensors"}
    assert {path.name for path in (tiny / "language_model").iterdir()} == expected
    assert sum(len(content) for content in contents(tiny).values()) < 10e6


def test_same_seed_same_bytes(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert run(tmp_path / "again", "--preset", "tiny") == 0
    assert contents(tmp_path / "again") == contents(tiny)
    assert run(tmp_path / "other", "--preset", "tiny", "--seed", 1) == 0
    same = {n for n, c in contents(tmp_path / "other").items() if c == contents(tiny)[n]}
    assert not any(name.endswith(".safetensors") for name in same) and len(same) == 6
    printed = capsys.readouterr()
    assert "tiny checkpoint" in printed.out and "MB/s" in printed.err


def test_values_do_not_depend_on_chunks_or_order(monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = {
        "a.weight": (50, 7),
        "conv.weight": (9, 4, 3),
        "lm_head.weight": (64, 8),
        "b.bias": (33,),
    }
    weights = random_weights.RandomWeights(shapes, {"lm_head.weight": 5}, seed=3)
    whole = {name: np.concatenate(list(weights.chunks(name))) for name in shapes}
    monkeypatch.setattr(random_weights, "CHUNK_ELEMENTS", 20)
    for name in reversed(shapes):
        parts = list(weights.chunks(name))
        assert len(parts) > 1 and np.array_equal(np.concatenate(parts), whole[name])
    rows = np.square(whole["lm_head.weight"]).sum(1)
    assert rows.argmax() == 5


def test_layers_cuts_every_stack(tmp_path: Path) -> None:
    for layers in (1, 2, 4):
        run(tmp_path / str(layers), "--preset", "tiny", "--layers", layers)
        lm = load_language_model(tmp_path / str(layers) / "language_model")
        tokenizer = load_audio_tokenizer(tmp_path / str(layers) / "audio_tokenizer")
        stacks = [m for m in (*lm.modules(), *tokenizer.modules()) if hasattr(m, "layers")]
        assert len(stacks) == 6 and max(len(m.layers) for m in stacks) == layers
        assert 1 <= tokenizer.config.encoder_skip_layer_id <= len(tokenizer.encoder.layers)


@pytest.mark.parametrize("preset", PRESETS)
def test_text_tokenizer(preset: str, tmp_path: Path) -> None:
    specials = PRESETS[preset].specials
    write_tokenizer(tmp_path, specials)
    text = TextTokenizer.from_folder(tmp_path)
    for token, number in specials.items():
        assert text.encode(f"a{token}b")[1:-1] == [number] and text.decode([number]) == token
    said = "Please read: “今天的天气多云”, 12 to 18 degrees. I'm sorry\r\n\t🎵é"
    assert text.decode(text.encode(said)) == said
    assert len(text.encode(said)) < len(said.encode()) * 0.8


def test_special_ids_are_the_released_ones(golden: Golden) -> None:
    released = {"<|endoftext|>": 151643, "<|im_start|>": 151644, "<|im_end|>": 151645}
    speech = ("sosp", "eosp", "empty", "Human", "SpeechLM", "sostm", "eostm", "eot")
    released |= {f"<|{name}|>": 151665 + n for n, name in enumerate(speech)}
    assert released.items() <= PRESETS["real"].specials.items()
    assert list(TINY.specials) == list(golden.info["special_ids"])
    lines = ("the same words", "the same result")
    assert train_bpe(lines, 270).to_str() == train_bpe(lines, 270).to_str()


def prompt(model: LanguageModel, text: list[int]) -> torch.Tensor:
    """A grid of text only, [1 + K, P * G]."""
    empty = torch.tensor(model.config.speech_zeroemb_idx)[:, None]
    grid = torch.cat((torch.zeros(1, 1, dtype=torch.long), empty)).repeat(1, 4 * len(text))
    grid[0] = torch.tensor(text).repeat_interleave(4)
    return grid


def answer(model: LanguageModel, text: list[int], sampling: Sampling, seed: int) -> torch.Tensor:
    """24 patches after `text`: [1 + K, 24 * G]."""
    generator = torch.Generator().manual_seed(seed)
    steps = generate(
        model,
        prompt(model, text),
        Limits(len(text) + 24),
        lambda _step: torch.rand(33, generator=generator),
        sampling,
        sampling,
    )
    return torch.cat(list(steps), dim=1)


def behaves(folder: Path, lines: tuple[str, ...]) -> None:
    """Answers of both kinds, and audio that is neither silent nor clipped."""
    model = load_language_model(folder / "language_model")
    tokenizer = load_audio_tokenizer(folder / "audio_tokenizer")
    text = TextTokenizer.from_folder(folder / "language_model")
    shares = []
    for seed, line in enumerate(lines):
        for sampling in (GREEDY, HOT):
            grid = answer(model, text.encode(line), sampling, seed)
            spoken = grid[0] == model.empty_id
            shares.append(float(spoken.float().mean()))
            assert 0 < shares[-1] < 1, f"{line} {sampling}: only one kind"
            audible(tokenizer, grid[1:, spoken])
    assert 0.2 < np.mean(shares) < 0.8
    # what it hears is not all the same to it
    time = torch.arange(36_000) / 24_000
    wav = 0.3 * torch.sin(700 * time + 30 * torch.sin(20 * time)) * (time * 9).sin().square()
    codes = tokenizer.encode(wav)
    assert codes[:8].unique(dim=1).shape[1] > codes.shape[1] / 2
    audible(tokenizer, codes[:8])


def audible(tokenizer: AudioTokenizer, codes: torch.Tensor) -> None:
    wav = tokenizer.decode(codes)
    assert wav.isfinite().all() and 0.01 < wav.abs().max() < 1


LINES = ("What did he say?", "<|im_start|>user\n今天的天气<|im_end|>\n", "The ferry")


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_tiny_behaves(tmp_path: Path, seed: int) -> None:
    make_checkpoint(tmp_path / "tiny", TINY, seed)
    behaves(tmp_path / "tiny", LINES)


def test_the_real_depth_behaves(tmp_path: Path) -> None:
    """All layers of the real model, narrow, in its bfloat16."""
    real = PRESETS["real"]

    def deep(config: dict, like: dict) -> dict:
        return config | {name: like[name] for name in like if name.endswith("layers")}

    preset = replace(
        TINY,
        language_model=deep(TINY.language_model, real.language_model),
        audio_tokenizer=deep(TINY.audio_tokenizer, real.audio_tokenizer),
        dtype=torch.bfloat16,
    )
    make_checkpoint(tmp_path / "deep", preset)
    behaves(tmp_path / "deep", LINES[:1])


def test_empty_code_is_sometimes_the_raw_top(tiny: Path) -> None:
    """So that its removal matters, as it does in the released model."""
    model, tops = load_language_model(tiny / "language_model"), []

    def choose(scores: list[torch.Tensor], draws: list[tuple[int, int]]) -> list[torch.Tensor]:
        best = [score.argmax(-1) for score in scores]
        empties = [model.config.speech_zeroemb_idx[k] for k, _ in draws]
        tops.extend((b == e).tolist() for b, e in zip(best, empties, strict=True))
        return [b % e for b, e in zip(best, empties, strict=True)]

    state = torch.randn(64, model.config.local_dim, generator=torch.Generator().manual_seed(0))
    model.patch_decoder(state, choose)
    assert 0.02 < np.mean(tops) < 0.6


def refused(kind: type[MimoError], *arguments: object) -> str:
    with pytest.raises(kind) as error:
        run(*arguments, "--preset", "tiny")
    return str(error.value)


def test_existing_folder(tiny: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(tiny, tmp_path / "out"))
    weights = out / "audio_tokenizer" / "model.safetensors"
    weights.write_bytes(b"broken")
    assert "--force" in refused(InputError, out)
    assert weights.read_bytes() == b"broken"
    assert run(out, "--preset", "tiny", "--force") == 0
    assert contents(out) == contents(tiny)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_foreign_folder_is_safe_from_force(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    assert "thesis.txt" in refused(InputError, tmp_path, "--force")
    assert "not a folder" in refused(InputError, tmp_path / "thesis.txt", "--force")
    assert contents(tmp_path) == {"thesis.txt": b"years of work"}


def test_empty_and_nested_folders_are_fine(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert run(tmp_path / "empty", "--preset", "tiny", "--layers", 1) == 0
    assert run(tmp_path / "new" / "nested", "--preset", "tiny", "--layers", 1) == 0


def test_arguments(tmp_path: Path) -> None:
    assert "--layers 0" in refused(InputError, tmp_path / "x", "--layers", 0)
    assert "--seed -1" in refused(InputError, tmp_path / "x", "--seed", -1)


def test_small_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=10**6)
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage)
    text = refused(ResourceError, tmp_path / "x")
    assert "has 1 MB free" in text and "needs 72.3 MB" in text and "--layers" in text
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("failure", "seen"),
    [
        (KeyboardInterrupt(), KeyboardInterrupt),
        (OSError(errno.ENOSPC, "No space left on device"), ResourceError),
        (PermissionError(errno.EACCES, "Permission denied"), InputError),
    ],
    ids=["Ctrl-C", "disk full", "no permission"],
)
def test_interruption_leaves_nothing(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: BaseException, seen: type
) -> None:
    """Neither half a checkpoint, nor the loss of the one that was to be replaced."""
    out = Path(shutil.copytree(tiny, tmp_path / "out"))

    def fail(*_arguments: object) -> None:
        raise failure

    monkeypatch.setattr(command, "write_tokenizer", fail)  # the last thing written
    with pytest.raises(seen):
        run(out, "--preset", "tiny", "--force", "--seed", 1)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert contents(out) == contents(tiny)


def test_another_run_is_not_disturbed(tmp_path: Path) -> None:
    (tmp_path / "x.partial").mkdir()
    (tmp_path / "x.partial" / "somebody's").touch()
    assert "x.partial is in the way" in refused(InputError, tmp_path / "x")
    assert (tmp_path / "x.partial" / "somebody's").exists()


def test_progress_says_how_long_it_will_take() -> None:
    stream = io.StringIO()
    with ByteProgress(4_000_000_000, stream) as progress:
        progress._start -= 10
        progress.add(1_000_000_000)
    assert stream.getvalue() == "1.00 GB of 4.00 GB, 100 MB/s, 0:30 left\n"


@pytest.mark.slow
def test_real_sizes(tmp_path: Path) -> None:
    """Two layers of everything at full width: 3.6 GB, in little memory, and it behaves."""
    code = "import sys; from tests.test_make_checkpoint import run; sys.exit(run(*sys.argv[1:]))"
    arguments = [tmp_path / "real", "--preset", "real", "--layers", "2"]
    subprocess.run([sys.executable, "-c", code, *arguments], cwd=ROOT, check=True)
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss < 2 << 20  # KiB
    sizes = [path.stat().st_size for path in (tmp_path / "real").rglob("*.safetensors")]
    assert 3.5e9 < sum(sizes) < 3.7e9 and max(sizes) <= 2 << 30
    behaves(tmp_path / "real", LINES[:1])
