"""Components: the parts of the model that a recipe speaks of, and the tensors that belong to each.

Tensors go by their names in the graphs. These end as the checkpoint's do, and begin with the part
of the model that holds them: `backbone.model.layers.0.mlp.down_proj.weight`.
"""

from dataclasses import dataclass
from fnmatch import fnmatchcase

# the first pattern that fits says which component a tensor belongs to
_TABLE = (
    ("patch_encoder.text_embedding.*", "text_embedding"),
    ("*.speech_embeddings.*", "speech_embeddings"),
    ("patch_encoder.*", "patch_encoder"),
    ("backbone.lm_head.*", "lm_head"),
    ("backbone.*", "backbone"),
    ("patch_decoder.local_transformer_lm_heads.*", "speech_heads"),
    ("patch_decoder.*", "patch_decoder"),
    ("quantizer.*", "codebooks"),
    ("encoder.*", "tokenizer_encoder"),
    ("decoder.vocoder.*", "vocoder"),
    ("stream.decoder.vocoder.*", "vocoder"),
    ("decoder.*", "tokenizer_decoder"),
    ("stream.decoder.*", "tokenizer_decoder"),
)
STREAM = "stream."  # before the names of layers in the graphs that stream; they are the same layers
COMPONENTS = (
    "text_embedding",
    "speech_embeddings",
    "patch_encoder",
    "backbone",
    "lm_head",
    "patch_decoder",
    "speech_heads",
    "tokenizer_encoder",
    "codebooks",
    "tokenizer_decoder",
    "vocoder",
)
TABLES = ("text_embedding", "speech_embeddings")  # gathered by row, never multiplied
# pieces of which each run has many rows: products are bound by arithmetic, not by what they read
MANY_ROWS = frozenset({"tokenizer_encoder", "tokenizer_decoder", "mel_stream", "vocoder_stream"})
EXACT = "codebooks"  # in float32 whatever the recipe: a code is the nearest row of one


@dataclass(frozen=True)
class Matrix:
    """A weight that can be quantised: a linear layer, or a table of rows that are looked up."""

    name: str
    component: str
    outputs: int  # channels of a layer, rows of a table
    inputs: int  # what a channel is summed over, the width of a row

    @property
    def table(self) -> bool:
        return self.component in TABLES


def bare(name: str) -> str:
    """The name of a tensor in every graph that holds it."""
    return name.removeprefix(STREAM)


def component_of(name: str) -> str | None:
    """The component of a tensor; None for constants that no checkpoint has."""
    return next((component for glob, component in _TABLE if fnmatchcase(name, glob)), None)


def matrix(name: str, outputs: int, inputs: int) -> Matrix | None:
    """A tensor of two axes as a Matrix; None if it is none that may be quantised: a codebook, a
    constant."""
    component = component_of(name)
    if component is None or component == EXACT or not name.endswith(".weight"):
        return None
    return Matrix(name, component, outputs, inputs)
