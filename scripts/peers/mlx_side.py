"""mlx-audio's port of MiMo-Audio as a side of a comparison, computed in float32 on the CPU.

What is the port's own: mel, codec, how a prompt is put together from its parts, both transformers,
the delay pattern, the loop. From here it gets what a draw needs to be comparable: the instruction
of a prompt, which the port has only one of, and the uniform numbers of sampled runs. Written for
mlx-audio 0.6; two things that its loader does not do are done here: config.json of a checkpoint
does not name the empty id, and the codec is read from a folder, in float32 where its default is
bfloat16.
"""

import hashlib
import importlib.metadata
import json
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from mimo_edge.parity.bundle_side import machine, peak_bytes
from mimo_edge.parity.recording import Layout, Sequence
from mimo_edge.parity.side import Answered, Encoded, Forced, Streamed
from mimo_edge.runtime.backends.base import Floats, Ints
from mimo_edge.runtime.bundle.errors import InputError
from mimo_edge.runtime.chat.presets import PRESETS, Sampling
from mimo_edge.runtime.chat.segments import Grid
from mimo_edge.runtime.chat.templates import asr_template, tts_template
from mimo_edge.runtime.chat.text_tokenizer import TextTokenizer
from mimo_edge.runtime.generation.sampling import Noise, sample
from mlx_audio.codec.models.mimo_audio_tokenizer.audio import log_mel_spectrogram
from mlx_audio.codec.models.mimo_audio_tokenizer.model import MiMoAudioTokenizer
from mlx_audio.sts.models.mimo_audio.config import ModelConfig
from mlx_audio.sts.models.mimo_audio.generation import generate_tokens
from mlx_audio.sts.models.mimo_audio.model import Model

Chooser = Callable[..., mx.array]


class MlxSide:
    """See `Side`. Raises InputError for a folder that the port cannot load."""

    def __init__(self, checkpoint: Path, audio_tokenizer: Path) -> None:
        mx.set_default_device(mx.cpu)
        ours = TextTokenizer.from_folder(checkpoint)
        self._special = ours.special
        config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
        config["empty_token_id"] = ours.special.empty
        try:
            self._model = _language_model(checkpoint, ModelConfig.from_dict(config))
            self._codec = MiMoAudioTokenizer.from_pretrained(str(audio_tokenizer), dtype=mx.float32)
            self._processor = Model.post_load_hook(self._model, checkpoint).processor
        except (ValueError, OSError, KeyError) as error:
            raise InputError(f"mlx-audio cannot load {checkpoint}: {error}") from error
        c = self._model.config
        self.layout = Layout(
            c.group_size,
            c.audio_channels,
            c.empty_token_id,
            tuple(c.speech_empty_ids),
            tuple(c.delays),
            c.vocab_size,
            self._codec.config.sampling_rate,
        )
        self._folders = checkpoint, audio_tokenizer
        versions = {name: importlib.metadata.version(name) for name in ("mlx-audio", "mlx")}
        self.identity = {
            "id": hashlib.sha256(json.dumps([config, versions]).encode()).hexdigest(),
            "name": f"{checkpoint.resolve().name} in mlx-audio",
            "kind": "bundle",
            "precision": "fp32",
            "runs_on": f"mlx-audio {versions['mlx-audio']}, mlx {versions['mlx']}, CPU",
            "tools": versions,
            **machine(),
        }

    def prompt(self, task: str, source: str | Ints) -> tuple[Grid, tuple[int, ...]]:
        rng, parts = random.Random(0), self._processor
        if isinstance(source, str):
            text = f"{tts_template(source, rng)}: {parts._normalize(source)}"
            said: list[Any] = [
                f"<|im_start|>user\n{text}<|im_end|>\n",
                "<|im_start|>assistant\n<|sostm|>",
            ]
        else:
            said = [
                "<|im_start|>user\n",
                {"codes": source},
                asr_template(rng),
                "<|im_end|>\n",
                "<|im_start|>assistant\n",
                "<think>\n\n</think>\n",
            ]
        return _numpy(parts.segments(said)[0], np.int64), PRESETS[task].stop_ids(self._special)

    def spoken(self, text_ids: list[int]) -> str:
        return str(self._processor.tokenizer.decode(text_ids))

    def mel(self, wav: Floats) -> Floats:
        return _numpy(log_mel_spectrogram(mx.array(wav), self._codec.config), np.float32)

    def encode(self, mel: Floats) -> Encoded:
        return Encoded(_numpy(self._codec.encode_mels(mx.array(mel)), np.int64))

    def forced(self, grid: Grid, sequence: Sequence) -> Forced:
        model, group = self._model, self.layout.group_size
        embeddings = model._prepare_input_embeds(mx.array(grid)[None])
        hidden = model.model(None, input_embeddings=embeddings[:, :-1])[:, sequence.prompt - 1 :]
        logits = _numpy(model.lm_head(hidden)[0], np.float32)
        text_ids = grid[0, ::group][sequence.prompt :]
        spoken = np.flatnonzero(text_ids == self.layout.empty_id)
        noise, drawn = Noise(sequence.seed), []
        along: list[_Along] = []
        for step in spoken.tolist():
            start = model.hidden_states_downcast(hidden[:, step : step + 1])
            codes = model.local_forward(start, self._draw_codes(noise, step, sequence.audio))
            drawn.append(_numpy(codes[0], np.int64))
            place = (sequence.prompt + step) * group
            along.append(_Along(grid[1:, place : place + group].T, self.layout))
            mx.eval(model.local_forward(start, along[-1]))
        shape = (-1, group, self.layout.n_q)
        scores = [
            np.stack([each.scores[codebook] for each in along])
            if along
            else np.zeros((0, group, size), np.float32)
            for codebook, size in enumerate(model.config.speech_vocab_sizes)
        ]
        codes = np.array(drawn, np.int64).reshape(shape)
        return Forced(_numpy(embeddings[0], np.float32), logits, codes, scores)

    def answer(self, prompt: Grid, sequence: Sequence) -> Answered:
        noise, step = Noise(sequence.seed), -1
        count = 1 + self.layout.group_size * self.layout.n_q

        def choose_text(logits: mx.array, removed: tuple[int, ...] = ()) -> mx.array:
            nonlocal step
            step += 1
            scores = _numpy(logits[0], np.float32)
            return mx.array([sample(scores, noise(step, count)[0], sequence.text, tuple(removed))])

        draws: dict[int, Chooser] = {}

        def choose_code(logits: mx.array, removed: list[int]) -> mx.array:
            if step not in draws:
                draws[step] = self._draw_codes(noise, step, sequence.audio)
            return draws[step](logits, removed)

        begin = time.perf_counter()
        tokens, reason = generate_tokens(
            self._model,
            mx.array(prompt)[None],
            max_new_tokens=sequence.max_new,
            stop_tokens=sequence.stop_ids,
            global_sampler=choose_text,
            local_sampler=choose_code,
        )
        seconds = time.perf_counter() - begin
        return Answered(_numpy(tokens, np.int64), reason == "stop", seconds)

    def answer_together(self, prompts: list[tuple[Grid, Sequence]]) -> list[Grid] | None:
        return None  # the port answers one prompt at a time

    def decode(self, codes: Ints) -> Floats:
        return _numpy(self._codec.decode(mx.array(codes)), np.float32)

    def stream(self, codes: Ints) -> Streamed | None:
        return None  # the port does not stream

    def measured(self) -> dict[str, Any]:
        files = [f for folder in self._folders for f in folder.glob("*.safetensors")]
        return {"bytes": sum(f.stat().st_size for f in files), "peak_bytes": peak_bytes()}

    def _draw_codes(self, noise: Noise, step: int, sampling: Sampling) -> Chooser:
        """Chooses the codes of one patch, in the order in which the port asks for them."""
        group, n_q = self.layout.group_size, self.layout.n_q
        uniforms = noise(step, 1 + group * n_q)[1:].reshape(group, n_q)
        order = iter(draw_order(self.layout))

        def choose(logits: mx.array, removed: list[int]) -> mx.array:
            uniform = uniforms[next(order)]
            scores = _numpy(logits[0], np.float32)
            return mx.array([sample(scores, uniform, sampling, tuple(removed))])

        return choose


class _Along:
    """Chooses the codes [G, K] that are given, and keeps the scores they were given in view of."""

    def __init__(self, codes: Ints, layout: Layout) -> None:
        self._codes, self._order = codes, iter(draw_order(layout))
        self._found: dict[tuple[int, int], Floats] = {}
        self._layout = layout

    def __call__(self, logits: mx.array, removed: list[int]) -> mx.array:
        place = next(self._order)
        self._found[place] = _numpy(logits[0], np.float32)
        return mx.array([int(self._codes[place])])

    @property
    def scores(self) -> list[Floats]:
        """By codebook, [G, V_k]."""
        frames = range(self._layout.group_size)
        return [np.stack([self._found[g, k] for g in frames]) for k in range(self._layout.n_q)]


def draw_order(layout: Layout) -> list[tuple[int, int]]:
    """(frame, codebook) of every draw of a patch, sub-step by sub-step."""
    return [
        (sub_step - delay, codebook)
        for sub_step in range(layout.group_size + max(layout.delays))
        for codebook, delay in enumerate(layout.delays)
        if delay <= sub_step < delay + layout.group_size
    ]


def _language_model(checkpoint: Path, config: ModelConfig) -> Model:
    model = Model(config)
    weights: dict[str, mx.array] = {}
    for path in sorted(checkpoint.glob("*.safetensors")):
        weights |= mx.load(str(path))
    kept = {n: w.astype(mx.float32) for n, w in model.sanitize(weights).items()}
    model.load_weights(list(kept.items()), strict=True)
    model.eval()
    return model


def _numpy(array: mx.array, dtype: type) -> Any:
    return np.asarray(array).astype(dtype)
