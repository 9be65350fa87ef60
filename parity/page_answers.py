"""The page's part on what a candidate says along the model's answers, and in free runs."""

from typing import Any

from mimo_edge.parity import charts
from mimo_edge.parity.page_parts import Numbers, floats, short, text

PATCHES = "patch of the answer (160 ms each)"
ENDS = {True: "stopped by itself", False: "ended by the limit"}


def answers(data: dict[str, Any], numbers: Numbers, path: str, candidate: dict[str, Any]) -> str:
    """Each prompt of a candidate, which is at `path` of the report's data."""
    parts = ["<h3>Along the answers</h3>"] if candidate["sequences"] else []
    names = data["against"]["name"], candidate["name"]
    for i, found in enumerate(candidate["sequences"]):
        here, name = f"{path}.sequences.{i}", found["name"]
        said = [side["answers"].get(name, "") for side in (data["against"], candidate)]
        heard = "".join(
            f"<dt>{text(side)}</dt><dd>{text(short(words))}</dd>"
            for side, words in zip(names, said, strict=True)
        )
        parts.append(
            f"<article><h4>{text(name)}</h4><p>{_free(numbers, here, found)} "
            f"{_in_batch(numbers, here, found)} {_length(numbers, here, found)}</p>"
            f"<dl>{heard}</dl>{_charts(found, names)}</article>"
        )
    return "".join(parts)


def _charts(found: dict[str, Any], names: tuple[str, str]) -> str:
    name, kl = found["name"], floats(found["kl"])
    choices = charts.strip(
        f"Choices of {name}", [("text", found["text"]), ("speech gate", found["gate"])], PATCHES
    )
    largest = f"largest {max(kl, default=0):.3g} nats"
    divergence = charts.lines(f"Divergence of {name}", [("KL", kl)], PATCHES, "KL, nats", largest)
    entropy = charts.lines(
        f"Entropy of {name}",
        [(names[1], floats(found["entropy"])), (names[0], floats(found["entropy_own"]))],
        PATCHES,
        "entropy, nats",
        "entropy of the text distribution of both sides",
    )
    return (
        f'<div class="charts"><figure class="row">{choices}</figure>'
        f"<figure>{divergence}</figure><figure>{entropy}</figure></div>"
    )


def _free(numbers: Numbers, path: str, found: dict[str, Any]) -> str:
    if found["parting"] is None:
        return "The free runs are equal."
    return f"The free runs part at {_parting(numbers, f'{path}.parting', found['parting'])}."


def _in_batch(numbers: Numbers, path: str, found: dict[str, Any]) -> str:
    """A sampled answer, and a side that has no batch, were not run in one."""
    if not found["batched"]:
        return ""
    if found["parting_in_batch"] is None:
        return "In a batch it says the same as alone."
    parting = _parting(numbers, f"{path}.parting_in_batch", found["parting_in_batch"])
    return f"In a batch it parts from its own answer at {parting}."


def _parting(numbers: Numbers, path: str, parting: dict[str, Any]) -> str:
    where = parting["where"]
    if where == "codes":
        codebook, frame = (numbers.at(f"{path}.{key}") for key in ("codebook", "frame"))
        where = f"codebook {codebook}, frame {frame}"
    margin = "not known"
    if parting["margin"] is not None:
        margin = numbers.at(path + ".margin")
    ids = [numbers.at(f"{path}.{key}") for key in ("chosen", "expected")]
    for place, token in enumerate((parting["said"], parting["wanted"])):
        if token is not None:
            ids[place] += f" ({text(repr(token))})"
    return (
        f"patch {numbers.at(path + '.patch')}, {where}: {ids[0]} in place of {ids[1]}; "
        f"margin {margin}{', a near tie' if parting['near_tie'] else ''}"
    )


def _length(numbers: Numbers, path: str, found: dict[str, Any]) -> str:
    return (
        f"{numbers.at(path + '.patches')} patches, {ENDS[found['stopped']]}; the model's "
        f"{numbers.at(path + '.patches_own')}, {ENDS[found['stopped_own']]}."
    )
