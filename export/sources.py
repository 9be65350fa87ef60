"""What one export is made from: two checkpoints and a text tokenizer that fit each other."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from mimo_edge.engines.recipe import Recipe
from mimo_edge.engines.weigh import as_parts, weigh
from mimo_edge.export.fits import check_codes_fit, check_ids_fit, check_text_fits
from mimo_edge.export.pieces import Pieces
from mimo_edge.export.shapes import graph_tensors
from mimo_edge.export.tracers import processes_for
from mimo_edge.export.weights import check_dtypes
from mimo_edge.mimo_ref.config import AudioTokenizerConfig, LanguageModelConfig
from mimo_edge.mimo_ref.model import AudioTokenizer, LanguageModel
from mimo_edge.mimo_ref.tensor_files import TensorFiles
from mimo_edge.mimo_ref.weights import check_names, read_config, upstream_tensors
from mimo_edge.runtime.bundle.family import Member, member
from mimo_edge.runtime.bundle.files import hash_file
from mimo_edge.runtime.bundle.manifest import PIECES, ModelSpec
from mimo_edge.runtime.chat.text_tokenizer import TextTokenizer, tokenizer_files

TRACE_BYTES = 640 << 20  # memory that a process with torch and a traced graph takes at most


@dataclass(frozen=True)
class Sources:
    """The checkpoints of one export, checked against their configs and against each other."""

    language_model: LanguageModelConfig
    audio_tokenizer: AudioTokenizerConfig
    text_tokenizer: TextTokenizer
    text_files: list[Path]
    tensors: list[TensorFiles]

    @classmethod
    def open(cls, checkpoint: Path, audio_tokenizer: Path, text_tokenizer: Path) -> "Sources":
        """Raises CheckpointError, ConfigError or BundleError for what is not as it must be, and
        InputError for folders that do not belong together."""
        lm = read_config(checkpoint, LanguageModelConfig.from_dict)
        audio = read_config(audio_tokenizer, AudioTokenizerConfig.from_dict)
        text = TextTokenizer.from_folder(text_tokenizer)
        check_text_fits(lm, checkpoint, text, text_tokenizer)
        check_ids_fit(checkpoint, text, text_tokenizer)
        check_codes_fit(lm, checkpoint, audio, audio_tokenizer)
        tensors = [TensorFiles(checkpoint), TensorFiles(audio_tokenizer)]
        with torch.device("meta"):
            models = LanguageModel(lm, text.special.empty), AudioTokenizer(audio)
        shapes_of = tensor_shapes(models[0]), tensor_shapes(models[1])
        for files, shapes in zip(tensors, shapes_of, strict=True):
            check_names(files, shapes)
            check_dtypes(files, shapes)
        return cls(lm, audio, text, tokenizer_files(text_tokenizer), tensors)

    def files(self) -> list[Path]:
        """Every file that the bundle is made from."""
        weights = [sorted(set(files.path_of.values())) for files in self.tensors]
        configs = [files.folder / "config.json" for files in self.tensors]
        return [*configs, *(path for paths in weights for path in paths), *self.text_files]

    def fingerprint(self, on_progress: Callable[[int, int], None] = lambda *_: None) -> str:
        """sha256 over the names and contents of all files that the bundle is made from.

        It reads them all, weights included; `on_progress` is told how many bytes of how many.
        """
        digest, done = hashlib.sha256(), 0
        paths = self.files()
        total = sum(path.stat().st_size for path in paths)
        for path in paths:
            on_progress(done, total)
            spec = hash_file(path)
            digest.update(f"{path.name} {spec.sha256}\n".encode())
            done += spec.bytes
        return digest.hexdigest()

    @property
    def member(self) -> Member:
        """Which model of the family the checkpoint is of."""
        return member(self.language_model.architecture)

    def exports_speech(self, asked: bool) -> bool:
        """Whether what makes speech is exported: always, but of a model that only listens."""
        return asked or not self.member.listens_only

    def pieces(self, dtype: torch.dtype) -> Pieces:
        """How to build each piece, computed in `dtype`."""
        empty = self.text_tokenizer.special.empty
        return Pieces(self.language_model, self.audio_tokenizer, empty, dtype)

    def stored_bytes(self, dtype_name: str, recipe: Recipe, speech: bool = True) -> int:
        """Bytes of weights as a recipe stores them. Raises RecipeError if it does not fit."""
        parts = as_parts(graph_tensors(self.language_model, self.audio_tokenizer, speech))
        return sum(share.bytes for share in weigh(recipe, parts, dtype_name))

    def memory_bytes(self, dtype: torch.dtype, recipe: Recipe) -> int:
        """Memory that the export takes at its peak, all its processes together: those that trace,
        and the largest tensor, or its codes."""
        with torch.device("meta"):
            models = LanguageModel(self.language_model, 0), AudioTokenizer(self.audio_tokenizer)
        largest = max(t.numel() for m in models for t in m.parameters())
        tracing = 1 + processes_for(len(PIECES))  # this one has torch in memory, too
        return tracing * TRACE_BYTES + largest * (1 if recipe.quantizes else dtype.itemsize)

    def model_spec(self) -> ModelSpec:
        lm, audio = self.language_model, self.audio_tokenizer
        return ModelSpec(
            group_size=lm.group_size,
            n_q=lm.audio_channels,
            code_vocab=lm.speech_vocab_size,
            empty_codes=lm.speech_zeroemb_idx,
            delays=lm.delay_pattern,
            hidden_size=lm.hidden_size,
            vocab_size=lm.vocab_size,
            layers=lm.num_hidden_layers,
            kv_heads=lm.num_key_value_heads,
            head_dim=lm.head_dim,
            context=lm.max_position_embeddings,
            sampling_rate=audio.sampling_rate,
            n_fft=audio.nfft,
            hop_length=audio.hop_length,
            n_mels=audio.n_mels,
            mel_per_frame=audio.stride_size * audio.avg_pooler,
            samples_per_frame=audio.samples_per_frame,
            max_audio_seconds=audio.max_audio_seconds,
        )


def tensor_shapes(model: LanguageModel | AudioTokenizer) -> dict[str, tuple[int, ...]]:
    """Checkpoint name -> shape that the model wants."""
    places = upstream_tensors(model.pieces())
    return {n: tuple(p[0][0].state_dict()[p[0][1]].shape) for n, p in places.items()}
