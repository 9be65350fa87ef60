"""A recipe as the text of its file."""

from mimo_edge.engines.components import EXACT
from mimo_edge.engines.recipe import FLOAT, Recipe, Weights
from mimo_edge.engines.schemes import CHANNEL


def dump(recipe: Recipe) -> str:
    """What `recipe.load` reads as the same recipe, from a file of the recipe's name."""
    lines = [f'name = "{recipe.name}"', f'about = "{recipe.about}"']
    if recipe.float_inputs:
        globs = ", ".join(f'"{glob}"' for glob in recipe.float_inputs)
        lines.append(f"float_inputs = [{globs}]")
    for name, component in recipe.components.items():
        if name == EXACT:  # the same whatever a recipe says
            continue
        lines += ["", f"[components.{name}]"]
        if component.compute is not None:
            lines.append(f'compute = "{component.compute}"')
        lines.append(f"weights = {_weights(component.weights)}")
        lines.append(f'activations = "{component.activations}"')
    for tensors, weights in recipe.exceptions:
        lines += ["", "[[exceptions]]", f'tensors = "{tensors}"', f"weights = {_weights(weights)}"]
    return "\n".join(lines) + "\n"


def _weights(weights: Weights) -> str:
    if weights.scheme == FLOAT:
        return f'{{ scheme = "{FLOAT}" }}'
    blocks = ", ".join('"channel"' if b == CHANNEL else str(b) for b in weights.blocks)
    block = blocks if len(weights.blocks) == 1 else f"[{blocks}]"
    return f'{{ scheme = "{weights.scheme}", block = {block}, method = "{weights.method}" }}'
