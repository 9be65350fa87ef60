"""Stage 2: every clip as codes of the saved audio tokenizer, which is what the next stage reads.

Every third of nano's own clips is also kept as the codes of its reconstruction, because that is
what nano hears when it listens to itself.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from mimo_edge.mimo_ref.config import AudioTokenizerConfig
from mimo_edge.mimo_ref.model import AudioTokenizer
from mimo_edge.mimo_ref.tensor_files import TensorFiles
from mimo_edge.mimo_ref.weights import load_audio_tokenizer
from mimo_edge.scripts.nano.data import (
    Clip,
    read_clips,
    read_shard,
    shards,
    to_float,
)
from mimo_edge.scripts.nano.sizes import NANO
from mimo_edge.scripts.nano.speak import RATE
from mimo_edge.scripts.progress import StageProgress
from numpy.typing import NDArray

Codes = NDArray[np.int64]  # [K, T]
FRAME_SECONDS = AudioTokenizerConfig.from_dict(NANO.audio_tokenizer).samples_per_frame / RATE
_AGAIN = 3  # so many-th of its own clips; a reconstruction takes three times as long as the codes


@dataclass(frozen=True, eq=False)
class Coded:
    """A clip as codes."""

    clip: Clip
    codes: Codes
    again: Codes | None  # of the reconstruction, if there is one


def fingerprint(tokenizer: Path) -> str:
    """Names the encoder and the codebooks of a saved audio tokenizer: what the codes depend on."""
    digest, files = hashlib.sha256(), TensorFiles(tokenizer)
    for name in sorted(name for name in files.where if name.startswith("encoder.")):
        digest.update(name.encode("utf-8") + files.read(name).float().numpy().tobytes())
    return digest.hexdigest()[:12]


def encode_clips(work: Path, tokenizer: Path, workers: int = 1) -> Path:
    """Encode what is not yet encoded by this tokenizer; returns the folder of the codes.

    A clip is too short to keep two threads busy, so every worker is a process of one thread.
    """
    folder = work / f"codes-{fingerprint(tokenizer)}"
    folder.mkdir(parents=True, exist_ok=True)
    paths = shards(work)
    missing = [path for path in paths if not (folder / path.name).exists()]
    if missing:
        jobs = [(path, folder / path.name) for path in missing]
        done, processes = len(paths) - len(missing), get_context("spawn")
        with (
            processes.Pool(workers, _start_worker, (tokenizer,)) as pool,
            StageProgress() as progress,
        ):
            for _ in pool.imap_unordered(_encode_shard, jobs):
                done += 1
                progress.report("encoding", done, len(paths), "shards")
    return folder


def read_codes(work: Path, folder: Path) -> Iterator[Coded]:
    """All clips with their codes."""
    for path in shards(work):
        with np.load(folder / path.name) as file:
            codes = np.split(file["codes"].astype(np.int64), file["ends"][:-1], axis=1)
            again = np.split(file["again"].astype(np.int64), file["again_ends"][:-1], axis=1)
        for clip, first, second in zip(read_clips(path), codes, again, strict=True):
            yield Coded(clip, first, second if second.shape[1] else None)


_worker_model: AudioTokenizer  # of a worker process


def _start_worker(tokenizer: Path) -> None:
    global _worker_model
    torch.set_num_threads(1)
    _worker_model = load_audio_tokenizer(tokenizer, dtype=torch.float32)


@torch.inference_mode()
def _encode_shard(paths: tuple[Path, Path]) -> None:
    """In a worker: from a shard of clips to one of codes."""
    source, target = paths
    model, codes, again = _worker_model, [], []
    for clip, samples in read_shard(source):
        first = model.encode(torch.from_numpy(to_float(samples)))
        twice = clip.own and clip.seed % _AGAIN == 0
        second = model.encode(model.decode(first)) if twice else first[:, :0]
        codes.append(first.numpy().astype(np.int16))
        again.append(second.numpy().astype(np.int16))
    partial = target.with_name(target.stem + ".partial")
    with partial.open("wb") as file:
        np.savez_compressed(
            file,
            codes=np.concatenate(codes, axis=1),
            ends=np.cumsum([c.shape[1] for c in codes]),
            again=np.concatenate(again, axis=1),
            again_ends=np.cumsum([c.shape[1] for c in again]),
        )
    partial.rename(target)
