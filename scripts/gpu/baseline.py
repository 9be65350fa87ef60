"""The PyTorch reference on the same device: what every figure is compared with."""

import statistics
import time
from collections.abc import Callable

import torch
from mimo_edge.mimo_ref.backbone import KVCache
from mimo_edge.mimo_ref.config import LanguageModelConfig
from mimo_edge.mimo_ref.generate import Sampling, draw_patch
from mimo_edge.mimo_ref.model import LanguageModel
from mimo_edge.mimo_ref.weights import EMPTY_TOKEN
from mimo_edge.scripts.checkpoint.presets import PRESETS, Preset
from mimo_edge.scripts.gpu.records import Records
from mimo_edge.scripts.gpu.settings import Settings

HOT = Sampling(0.9, top_p=0.95)


class Baseline:
    """The language model of a preset with random weights, eager and in bfloat16 on CUDA."""

    def __init__(self, settings: Settings, records: Records) -> None:
        self._settings, self._records = settings, records
        self._dtype = torch.bfloat16 if settings.device == "cuda" else torch.float32
        torch.set_default_device(settings.device)
        self._model = random_model(PRESETS[settings.preset], self._dtype, settings.device)

    @torch.inference_mode()
    def all(self) -> None:
        """Step, patch and prefill; then the patch decoder as a CUDA graph, where there is CUDA."""
        for rows in self._settings.rows[:2]:
            step = self._add(f"step, {rows} rows", self._step(rows))
            draw = self._add(f"patch decoder, {rows} rows", self._draw(rows))
            self._records.add(f"patch, {rows} rows", 1e3 * (step + draw), "ms")
        prompt = max(self._settings.prompts)
        self._add(f"prefill, {prompt} patches", lambda: self._read(self._cache(1, prompt), prompt))
        if self._settings.device == "cuda":
            self._records.add("memory at the peak", torch.cuda.max_memory_allocated() / 1e9, "GB")
            self._graph()

    def _step(self, rows: int) -> Callable[[], object]:
        past = min(self._settings.prompts)
        cache = self._cache(rows, past + 1)
        self._read(cache, past)
        lengths = cache.lengths

        def step() -> None:
            cache.lengths = lengths
            self._model.backbone.text_logits(self._read(cache, 1)[:, -1])

        return step

    def _draw(self, rows: int) -> Callable[[], object]:
        config = self._model.config
        hidden = torch.randn(rows, config.hidden_size, dtype=self._dtype)
        uniforms = torch.rand(rows, config.group_size, config.audio_channels)
        return lambda: draw_patch(self._model, hidden, uniforms, HOT)

    def _graph(self) -> None:
        """Eager code that looks at no number can be recorded as it is."""
        try:
            draw = self._draw(1)
            draw()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                draw()
            self._add("patch decoder, 1 rows, as a CUDA graph", graph.replay)
        except Exception as error:  # it is a finding, of whatever kind
            self._records.add("patch decoder as a CUDA graph", f"not possible: {error}")

    def _cache(self, rows: int, positions: int) -> KVCache:
        backbone, device = self._model.config.backbone, self._settings.device
        return KVCache(backbone, rows, positions, self._dtype, device)

    def _read(self, cache: KVCache, patches: int) -> torch.Tensor:
        config, rows = self._model.config, len(cache.lengths)
        cache.lengths = torch.zeros_like(cache.lengths) if patches > 1 else cache.lengths
        codes = torch.zeros(rows, config.audio_channels, patches * config.group_size).long()
        text = torch.full((rows, 1, codes.shape[-1]), self._model.empty_id)
        return self._model(torch.cat((text, codes), dim=1), cache)

    def _add(self, what: str, call: Callable[[], object]) -> float:
        call()
        took = statistics.median(self._seconds(call) for _ in range(self._settings.runs))
        self._records.add(what, 1e3 * took, "ms")
        return took

    def _seconds(self, call: Callable[[], object]) -> float:
        began = time.perf_counter()
        call()
        if self._settings.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - began


def random_model(preset: Preset, dtype: torch.dtype, device: str) -> LanguageModel:
    """Weights that keep the states finite; drawn on the device, in the dtype."""
    config = LanguageModelConfig.from_dict(preset.language_model)
    with torch.device("meta"):
        model = LanguageModel(config, preset.specials[EMPTY_TOKEN]).to(dtype)
    model = model.to_empty(device=device).requires_grad_(False)
    for name, weight in model.named_parameters():
        if name.endswith("norm.weight"):
            weight.fill_(1.0)
        else:
            weight.normal_(0.0, 0.02)
    return model
