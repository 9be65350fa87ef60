"""What an export costs, stage by stage, known from its configs and recipe before it begins."""

from collections.abc import Iterable

from mimo_edge.engines.recipe import Recipe, compute_of
from mimo_edge.engines.weigh import FLOAT_BYTES, as_parts
from mimo_edge.engines.work import HASH, TRACE, TRACE_BLOCKS, TRACE_LEAST, writing
from mimo_edge.export.shapes import graph_tensors
from mimo_edge.export.sources import Sources
from mimo_edge.export.tracers import processes_for
from mimo_edge.runtime.bundle.manifest import COMPONENTS

HASHING = "hashing the checkpoints"
_IN_BLOCKS = "tokenizer_decoder"  # whose attention is


def tracing(piece: str) -> str:
    """The stage in which a piece is traced."""
    return f"tracing {piece}"


def writing_of(piece: str) -> str:
    """The stage in which its weights are written."""
    return f"writing {piece}"


def stages_of(piece: str) -> tuple[str, str]:
    """All of a piece."""
    return tracing(piece), writing_of(piece)


def export_costs(
    sources: Sources, recipe: Recipe, dtype_name: str, names: Iterable[str]
) -> dict[str, float]:
    """Of each stage. Weights that pieces share are read, and cost, once for each."""
    names = list(names)
    found = {HASHING: HASH * sum(path.stat().st_size for path in sources.files())}
    compute = compute_of(recipe, dtype_name)
    parts = as_parts(graph_tensors(sources.language_model, sources.audio_tokenizer))
    at_once = processes_for(len(names)) or 1
    for name in names:
        own = [part for part in parts if part.component in COMPONENTS[name]]
        each = TRACE_BLOCKS if name == _IN_BLOCKS else TRACE
        found[tracing(name)] = (TRACE_LEAST + each * len(own)) / at_once
        found[writing_of(name)] = 0.0
        for part in own:
            form = None if part.matrix is None else recipe.form(part.matrix)
            as_it_lies = part.matrix is None or part.matrix.table
            width = FLOAT_BYTES[compute[part.component]]
            found[writing_of(name)] += part.numbers * writing(form, width, as_it_lies)
    return found
