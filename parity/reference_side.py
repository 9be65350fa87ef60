"""The PyTorch reference as a side, in float32: the truth that builds are held against.

Only one of the two models is in memory at a time, and of a large one only a part: see `widened`.
"""

import hashlib
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mimo_edge.mimo_ref import generate as reference
from mimo_edge.mimo_ref.backbone import KVCache
from mimo_edge.mimo_ref.config import AudioTokenizerConfig, LanguageModelConfig
from mimo_edge.mimo_ref.mel import log_mel
from mimo_edge.mimo_ref.model import AudioTokenizer, LanguageModel
from mimo_edge.mimo_ref.streaming import StreamState, streaming_decode
from mimo_edge.mimo_ref.weights import (
    load_audio_tokenizer,
    load_language_model,
    read_config,
)
from mimo_edge.parity.bundle_side import Prompts, machine, peak_bytes
from mimo_edge.parity.recording import Layout, Sequence
from mimo_edge.parity.side import Answered, Encoded, Forced, Streamed
from mimo_edge.parity.widened import Model, widened
from mimo_edge.runtime.backends.base import Floats, Ints
from mimo_edge.runtime.chat.presets import Sampling
from mimo_edge.runtime.chat.segments import Grid, PromptLayout
from mimo_edge.runtime.chat.text_tokenizer import TextTokenizer
from mimo_edge.runtime.generation.request import split_grid
from mimo_edge.runtime.generation.sampling import Noise

WHOLE = 2 << 30  # bytes of weights in float32 that are loaded as a whole


class ReferenceSide:
    """See `Side`. Raises CheckpointError and ConfigError for folders that are no checkpoints."""

    def __init__(
        self, checkpoint: Path, audio_tokenizer: Path, text_tokenizer: Path | None = None
    ) -> None:
        self._folders = checkpoint, audio_tokenizer
        tokenizer = TextTokenizer.from_folder(text_tokenizer or checkpoint)
        self._empty_id = tokenizer.special.empty
        self._language: LanguageModel | None = None
        self._audio: AudioTokenizer | None = None
        config = read_config(checkpoint, LanguageModelConfig.from_dict)
        sampling_rate = read_config(audio_tokenizer, AudioTokenizerConfig.from_dict).sampling_rate
        empties = tuple(config.speech_zeroemb_idx)
        layout = PromptLayout(config.group_size, config.audio_channels, empties)
        self._prompts = Prompts(tokenizer, layout)
        self.layout = Layout(
            config.group_size,
            config.audio_channels,
            self._empty_id,
            empties,
            tuple(config.delay_pattern),
            config.vocab_size,
            sampling_rate,
        )
        self.identity = {
            "id": _fingerprint(checkpoint, audio_tokenizer),
            "name": checkpoint.resolve().name,
            "kind": "reference",
            "precision": "fp32",
            "runs_on": f"PyTorch {torch.__version__} on cpu",
            **machine(),
        }

    def prompt(self, task: str, source: str | Ints) -> tuple[Grid, tuple[int, ...]]:
        return self._prompts.build(task, source)

    def spoken(self, text_ids: list[int]) -> str:
        return self._prompts.spoken(text_ids)

    @torch.inference_mode()
    def mel(self, wav: Floats) -> Floats:
        return log_mel(torch.from_numpy(wav), self.audio_tokenizer().config).numpy()

    @torch.inference_mode()
    def encode(self, mel: Floats) -> Encoded:
        tokenizer = self.audio_tokenizer()
        frames = torch.from_numpy(mel)
        states = tokenizer.encoder(frames[None], torch.tensor([len(frames)]))
        codes = tokenizer.quantizer.encode(states)
        margins = nearest_margins(tokenizer, states, codes)
        return Encoded(codes[0].numpy(), margins[0].numpy())

    @torch.inference_mode()
    def forced(self, grid: Grid, sequence: Sequence) -> Forced:
        lm, layout = self.language_model(), self.layout
        text_ids, codes = split_grid(grid, layout.group_size)
        embeddings = lm.patch_encoder(
            torch.from_numpy(text_ids)[None], torch.from_numpy(codes)[None]
        )
        read = embeddings[:, :-1]
        cache = KVCache(lm.config.backbone, 1, read.shape[1])
        hidden = lm.backbone(read, cache)[0, sequence.prompt - 1 :]  # [A, D]
        logits = lm.backbone.text_logits(hidden).numpy()
        spoken = np.flatnonzero(text_ids[sequence.prompt :] == layout.empty_id)  # [S]
        start = hidden[torch.from_numpy(spoken)]
        given = torch.from_numpy(codes[sequence.prompt :][spoken]).transpose(1, 2)  # [S, G, K]
        noise = Noise(sequence.seed)
        count = layout.group_size * layout.n_q
        uniforms = np.zeros((len(spoken), count), np.float32)
        for row, step in zip(uniforms, spoken.tolist(), strict=True):
            row[:] = noise(step, 1 + count)[1:]
        drawn = np.zeros((0, layout.group_size, layout.n_q), np.int64)
        scores = [
            np.zeros((0, layout.group_size, size), np.float32)
            for size in lm.config.speech_vocab_size
        ]
        if len(spoken):
            shaped = torch.from_numpy(uniforms).view(given.shape)
            drawn = reference.draw_patch(lm, start, shaped, _sampling(sequence.audio)).numpy()
            scores = scores_along(lm, start, given)
        return Forced(embeddings[0].numpy(), logits, drawn, scores)

    def answer(self, prompt: Grid, sequence: Sequence) -> Answered:
        lm, noise = self.language_model(), Noise(sequence.seed)
        count = 1 + self.layout.group_size * self.layout.n_q
        length = prompt.shape[1] // self.layout.group_size
        begin = time.perf_counter()
        patches = list(
            reference.generate(
                lm,
                torch.from_numpy(prompt),
                reference.Limits(length + sequence.max_new, stop_ids=frozenset(sequence.stop_ids)),
                lambda step: torch.from_numpy(noise(step, count)),
                _sampling(sequence.text),
                _sampling(sequence.audio),
            )
        )
        grid = torch.cat(patches, dim=1).numpy()
        stopped = int(grid[0, -1]) in sequence.stop_ids
        return Answered(grid, stopped, time.perf_counter() - begin)

    def answer_together(self, prompts: list[tuple[Grid, Sequence]]) -> list[Grid] | None:
        return None  # the reference answers one prompt at a time

    @torch.inference_mode()
    def decode(self, codes: Ints) -> Floats:
        return self.audio_tokenizer().decode(torch.from_numpy(codes)).numpy()

    @torch.inference_mode()
    def stream(self, codes: Ints) -> Streamed:
        state, group, parts = StreamState(), self.layout.group_size, list[Floats]()
        tokenizer, given = self.audio_tokenizer(), torch.from_numpy(codes)
        for at in range(0, codes.shape[1], group):
            (wav,) = streaming_decode(tokenizer, [given[:, at : at + group]], state)
            if wav is not None:
                parts.append(wav.numpy())
        (wav,) = streaming_decode(tokenizer, [given[:, :0]], state, last=True)
        assert wav is not None
        return Streamed.of([*parts, wav.numpy()])

    def measured(self) -> dict[str, Any]:
        files = [f for folder in self._folders for f in folder.glob("*.safetensors")]
        return {"bytes": sum(f.stat().st_size for f in files), "peak_bytes": peak_bytes()}

    def language_model(self) -> LanguageModel:
        """In float32; the audio tokenizer leaves the memory."""
        if self._language is None:
            self._audio = None
            self._language = _in_float32(load_language_model(self._folders[0], self._empty_id))
        return self._language

    def audio_tokenizer(self) -> AudioTokenizer:
        """In float32; the language model leaves the memory."""
        if self._audio is None:
            self._language = None
            self._audio = _in_float32(load_audio_tokenizer(self._folders[1]))
        return self._audio


def _in_float32(mapped: Model) -> Model:
    """A small model as a whole, a large one from where it is mapped."""
    if 4 * sum(weight.numel() for weight in mapped.parameters()) > WHOLE:
        return widened(mapped)
    return mapped.float()


def nearest_margins(
    tokenizer: AudioTokenizer, states: torch.Tensor, codes: torch.Tensor
) -> torch.Tensor:
    """By how much, of the larger distance, each code is nearer than the second: states [B, T, D],
    codes [B, n_q, T] -> [B, n_q, T]."""
    residual, margins = states.float(), []
    for codebook, chosen in zip(tokenizer.quantizer.codebooks, codes.unbind(1), strict=True):
        table = codebook.float()
        distance = torch.cdist(residual, table.expand(len(residual), -1, -1)).square()
        nearest = distance.topk(2, dim=-1, largest=False).values
        margins.append((nearest[..., 1] - nearest[..., 0]) / nearest[..., 1].clamp_min(1e-30))
        residual = residual - table[chosen]
    return torch.stack(margins, dim=1)


def scores_along(lm: LanguageModel, start: torch.Tensor, codes: torch.Tensor) -> list[Floats]:
    """States [S, D] and the codes [S, G, K] that are drawn -> scores by codebook [S, G, V_k]."""
    found: list[dict[int, torch.Tensor]] = [{} for _ in range(codes.shape[2])]

    def choose(scores: list[torch.Tensor], draws: list[tuple[int, int]]) -> list[torch.Tensor]:
        for (codebook, frame), each in zip(draws, scores, strict=True):
            found[codebook][frame] = each
        return [codes[:, frame, codebook] for codebook, frame in draws]

    lm.patch_decoder(lm.patch_decoder.hidden_states_downcast(start), choose)
    return [
        torch.stack([by_frame[g] for g in range(codes.shape[1])], dim=1).float().numpy()
        for by_frame in found
    ]


def _sampling(sampling: Sampling) -> reference.Sampling:
    return reference.Sampling(sampling.temperature, sampling.top_k, sampling.top_p)


def _fingerprint(*folders: Path) -> str:
    """sha256 over names, sizes and headers of the checkpoint files; the weights are not read."""
    digest = hashlib.sha256()
    for folder in folders:
        for path in sorted(f for f in folder.iterdir() if f.is_file()):
            digest.update(f"{path.name} {path.stat().st_size}\n".encode())
            with path.open("rb") as file:
                digest.update(file.read(1 << 20))
    return digest.hexdigest()
