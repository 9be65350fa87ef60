"""Lead a side through its stages and record what it computes.

The side that leads makes the inputs of every stage: codes are those that it heard, prompts those
that it built, answers those that it gave. A side that follows gets the same inputs at every stage,
so that one difference does not make all later ones.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from mimo_edge.parity.recording import LIMIT, Layout, Recording
from mimo_edge.parity.recording import Sequence as Answer
from mimo_edge.parity.side import Arrays, Side
from mimo_edge.runtime.backends.base import Floats, Ints
from mimo_edge.runtime.bundle.errors import InputError
from mimo_edge.runtime.chat.presets import Sampling
from mimo_edge.runtime.chat.segments import Grid, pad_codes

LONGEST = 30  # seconds of a clip that are heard
GREEDY = Sampling(0.0)
SAMPLED = Sampling(0.9, top_k=50, top_p=0.95)
Report = Callable[..., None]


@dataclass(frozen=True, eq=False)
class Inputs:
    """What is heard and read. `clips` [N] at the model's rate, by name."""

    clips: Mapping[str, Floats]
    texts: Sequence[str]
    max_new: int = 24  # patches of an answer
    seed: int = 1


def lead(side: Side, inputs: Inputs, on_progress: Report | None = None) -> Recording:
    """A recording whose inputs are the side's own. Raises InputError if it would be too large."""
    if not inputs.clips and not inputs.texts:
        raise InputError("there is nothing to hear or to read; give --audio, --text, or both")
    arrays: Arrays = {}
    sequences = []
    for name, wav in inputs.clips.items():
        arrays[f"wav/{name}"] = wav[: LONGEST * side.layout.sampling_rate]
    _hear(side, list(inputs.clips), arrays, arrays)
    jobs = [("asr", name, GREEDY) for name in inputs.clips]
    jobs += [("tts", text, how) for text in inputs.texts for how in (GREEDY, SAMPLED)]
    for number, (task, source, how) in enumerate(jobs):
        _tell(on_progress, "answering", number, len(jobs))
        codes = heard(arrays, source, side.layout) if task == "asr" else None
        prompt, stops = side.prompt(task, source if codes is None else codes)
        patches = prompt.shape[1] // side.layout.group_size
        way = "greedy" if how.greedy else "sampled"
        label = source if task == "asr" else f"text-{1 + inputs.texts.index(source)}"
        sequence = Answer(
            name=f"{task}/{label}/{way}",
            task=task,
            source=source,
            text=how,
            audio=how,
            seed=inputs.seed,
            max_new=inputs.max_new,
            stop_ids=stops,
            prompt=patches,
        )
        answered = side.answer(prompt, sequence)
        arrays[f"grid/{sequence.name}"] = np.concatenate((prompt, answered.grid), axis=1)
        sequences.append(sequence)
    recording = Recording(
        side.identity,
        side.identity["id"],
        side.layout,
        tuple(inputs.clips),
        tuple(sequences),
        arrays,
    )
    _along(side, recording, arrays, on_progress)
    return recording


def follow(side: Side, led: Recording, on_progress: Report | None = None) -> Recording:
    """A recording on the inputs of another. Raises InputError if the models differ in layout."""
    if side.layout != led.layout:
        raise InputError(
            f"{side.identity['name']} and {led.identity['name']} are of different models: "
            f"{side.layout} and {led.layout}. Compare builds of one checkpoint."
        )
    arrays = {n: a for n, a in led.arrays.items() if n.startswith(("wav/", "grid/"))}
    _hear(side, led.clips, led.arrays, arrays)
    recording = Recording(
        side.identity, led.identity["id"], led.layout, led.clips, led.sequences, arrays
    )
    _along(side, recording, led.arrays, on_progress)
    return recording


def _hear(side: Side, clips: Sequence[str], given: Arrays, arrays: Arrays) -> None:
    """Mel and codes of clips; the codes of the mel that is given."""
    for name in clips:
        arrays[f"mel/{name}"] = side.mel(given[f"wav/{name}"])
        encoded = side.encode(given[f"mel/{name}"])
        arrays[f"heard/{name}"] = encoded.codes
        if encoded.margins is not None:
            arrays[f"margins/{name}"] = encoded.margins


def heard(arrays: Arrays, clip: str, layout: Layout) -> Ints:
    """The codes [K, T] of a clip, as a prompt takes them."""
    return pad_codes(arrays[f"heard/{clip}"][: layout.n_q], layout.group_size)


def _along(side: Side, recording: Recording, given: Arrays, on_progress: Report | None) -> None:
    """Everything that is computed along the lead's grids."""
    arrays, layout = recording.arrays, recording.layout
    seconds: list[float] = []
    greedy: list[tuple[Grid, Answer]] = []
    _refuse_too_large(recording)
    for number, sequence in enumerate(recording.sequences):
        _tell(on_progress, "following", number, len(recording.sequences))
        name, grid = sequence.name, given[f"grid/{sequence.name}"]
        source: str | Ints = sequence.source
        if sequence.task == "asr":
            source = heard(given, sequence.source, layout)
        arrays[f"prompt/{name}"], _ = side.prompt(sequence.task, source)
        forced = side.forced(grid, sequence)
        arrays[f"logits/{name}"], arrays[f"codes/{name}"] = forced.logits, forced.codes
        if forced.embeddings is not None:
            arrays[f"embeddings/{name}"] = forced.embeddings
        for k, scores in enumerate(forced.scores or ()):
            arrays[f"scores/{name}/{k}"] = scores
        prompt = grid[:, : sequence.prompt * layout.group_size]
        answered = side.answer(prompt, sequence)
        arrays[f"free/{name}"] = answered.grid
        arrays[f"stopped/{name}"] = np.array(answered.stopped)
        patches = answered.grid.shape[1] // layout.group_size
        seconds.append(answered.seconds / max(1, patches))
        if sequence.text.greedy:
            greedy.append((prompt, sequence))
    together = side.answer_together(greedy)
    for (_, sequence), batched in zip(greedy, together or (), strict=False):
        arrays[f"batched/{sequence.name}"] = batched
    for name, codes in _sounds(recording, given).items():
        _tell(on_progress, "decoding", 0, 1)
        arrays[f"sound/{name}"] = side.decode(codes)
        streamed = side.stream(codes)
        if streamed is not None:
            arrays[f"streamed/{name}"], arrays[f"seams/{name}"] = streamed.wav, streamed.seams
    measured: dict[str, Any] = side.measured()
    measured["seconds_per_patch"] = float(np.median(seconds)) if seconds else None
    measured["answers"] = {
        s.name: side.spoken(arrays[f"free/{s.name}"][0, :: layout.group_size].tolist())
        for s in recording.sequences
    }
    ids = {int(i) for s in recording.sequences for i in arrays[f"free/{s.name}"][0]}
    measured["tokens"] = {str(i): side.spoken([i]) for i in sorted(ids)}
    recording.measured.update(measured)


def _sounds(recording: Recording, given: Arrays) -> dict[str, Ints]:
    """Codes [K, T] to decode: of every clip, and of what the lead spoke greedily."""
    layout = recording.layout
    codes = {clip: heard(given, clip, layout) for clip in recording.clips}
    for sequence in recording.sequences:
        answer = given[f"grid/{sequence.name}"][1:, sequence.prompt * layout.group_size :]
        spoken = answer[:, (answer != np.array(layout.empty_codes)[:, None]).all(axis=0)]
        if sequence.text.greedy and spoken.shape[1]:
            codes[sequence.name] = spoken
    return codes


def _refuse_too_large(recording: Recording) -> None:
    """Before anything is computed: text scores of a large vocabulary are nearly all of it."""
    patches = sum(sequence.max_new for sequence in recording.sequences)
    if 4 * patches * recording.layout.vocab_size > LIMIT:
        raise InputError(
            f"{patches} patches of text scores pass the limit of {LIMIT >> 20} MB for a "
            "recording. Give fewer clips and texts, or lower --max-new."
        )


def _tell(on_progress: Report | None, stage: str, done: int, total: int) -> None:
    if on_progress is not None:
        on_progress(stage, done, total, "sequences")
