"""What the recipes cost: the tables of docs/quantization.md.

    python -m mimo_edge.scripts.recipes_report BUNDLE --set DIR --work DIR [--recipes NAME ...]
        [--calibration FILE] [--streamed] [--quality]

BUNDLE is nano in float32, DIR a set of utterances (`mimo-edge score --set`). Each recipe's bundle
is made in the work folder, led along what the float model read and said (level 5 of the ladder),
and judged by word errors. Figures are kept as JSON: what is there is not measured again.
"""

import argparse
import json
import random
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from mimo_edge.engines import recipe
from mimo_edge.engines.calibration import Calibration
from mimo_edge.engines.components import COMPONENTS, TABLES, component_of
from mimo_edge.engines.quantize import bundle_parts, quantize_bundle
from mimo_edge.engines.recipe import FLOAT, Recipe, Weights
from mimo_edge.engines.weigh import weigh
from mimo_edge.parity.confidence import interval
from mimo_edge.parity.forced import Led, LedBundle, Recorded
from mimo_edge.parity.precision import Choices, Closeness, compare
from mimo_edge.parity.sound_quality import Opinion, Voice
from mimo_edge.parity.speech_score import LONGEST, Judge, Streaming, UtteranceSet, Verdict
from mimo_edge.parity.word_errors import words
from mimo_edge.runtime.audio import codec
from mimo_edge.runtime.audio.read import load_audio
from mimo_edge.runtime.backends.base import Floats, Ints
from mimo_edge.runtime.backends.ort import OrtBackend
from mimo_edge.runtime.bundle.bundle import Bundle
from mimo_edge.runtime.bundle.files import write_text
from mimo_edge.runtime.chat.presets import PRESETS
from mimo_edge.runtime.chat.segments import Grid
from mimo_edge.runtime.generation.loop import generate
from mimo_edge.runtime.generation.request import Request, join_steps, split_grid
from mimo_edge.runtime.tasks import MimoAudio
from mimo_edge.scripts.progress import StageProgress, size

LED = 12  # utterances of each task that bundles are led along
STREAMED = Streaming()  # as `run --stream` does
Figures = dict[str, Any]


class Own:
    """What the float model read and said, and what it computes of that."""

    def __init__(self, folder: Path, utterances: UtteranceSet) -> None:
        self.folder, self.bundle = folder, Bundle.open(folder)
        with MimoAudio.open(folder, threads=1) as model:
            self.empty_id = model.tokenizer.special.empty
            self.sequences = list(_record(model, utterances))
            heard = utterances.asr[:LED]
            self.mels = [model.backend.mel(_wav(model, u.audio)) for u in heard]
        self.led = LedBundle(self.bundle, 1).along(self.sequences, self.empty_id)
        self.codes, self.wavs = self.sound(self.bundle, None)

    def sound(self, bundle: Bundle, codes: list[Ints] | None) -> tuple[list[Ints], list[Floats]]:
        """What a bundle's codec makes of the recordings, and of codes (None: its own)."""
        with OrtBackend(bundle, threads=1) as backend:
            found = [backend.encode(mel) for mel in self.mels]
            n_q = bundle.model.n_q
            return found, [codec.decode(backend, c[:n_q]) for c in (codes or found)]


def figures(own: Own, bundle: Bundle) -> Figures:
    """Level 5 of a bundle."""
    led: Led = LedBundle(bundle, 1).along(own.sequences, own.empty_id)
    found = compare(led, own.led, own.sequences, own.empty_id, own.bundle.model.empty_codes)
    codes, wavs = own.sound(bundle, own.codes)
    heard = [
        float(np.mean([(a[k] == b[k]).mean() for a, b in zip(codes, own.codes, strict=True)]))
        for k in range(own.bundle.model.n_q)
    ]
    sound = Closeness.of(np.concatenate(wavs), np.concatenate(own.wavs))
    return asdict(found) | {"heard": heard, "sound": asdict(sound)}


def only(chosen: Recipe, component: str) -> Recipe:
    """A recipe for one component alone; the others stay as they are computed. (The presets'
    exceptions begin with a name of the component that they are of.)"""
    components = {
        name: part if name == component else replace(part, weights=Weights(), activations=FLOAT)
        for name, part in chosen.components.items()
    }
    kept = tuple(e for e in chosen.exceptions if component_of(e[0]) == component)
    return replace(chosen, components=components, exceptions=kept)


def speech(folder: Path, utterances: UtteranceSet, stream: bool, quality: bool) -> Figures:
    """Edits and words of every utterance, by task; of spoken ones what listeners would say, and the
    voice."""
    opinion, voice = Opinion(), Voice()
    with MimoAudio.open(folder, threads=1) as model:
        found: Figures = {}
        verdict: Verdict
        for verdict in Judge(model, STREAMED if stream else None).all(utterances):
            counts = found.setdefault(verdict.task, {"edits": [], "words": []})
            counts["edits"].append(verdict.edits)
            counts["words"].append(len(words(verdict.wanted)))
            wav = verdict.wav
            if quality and wav is not None:
                place = counts.setdefault("sound", {})  # by the utterance's number
                place[str(len(counts["words"]) - 1)] = {
                    "opinion": opinion.of(wav, model.sampling_rate),
                    "voice": voice.of(wav, model.sampling_rate).round(4).tolist(),
                }
    return found


def _record(model: MimoAudio, utterances: UtteranceSet) -> Iterator[Recorded]:
    """The first utterances of each task with the float model's own answers."""
    rng = random.Random(0)
    prompts: list[tuple[str, Grid]] = []
    for utterance in utterances.asr[:LED]:
        prompts.append(("asr", model.prompts.asr(model.encode(utterance.audio), rng=rng)))
    for text in utterances.tts[:LED]:
        prompts.append(("tts", model.prompts.tts(text, rng=rng)))
    for utterance in utterances.dialogue[:LED]:
        prompts.append(("dialogue", model.prompts.dialogue(model.encode(utterance.audio))))
    spec, special = model.backend.bundle.model, model.tokenizer.special
    for seed, (task, prompt) in enumerate(prompts):
        preset = PRESETS[task]
        stops = preset.stop_ids(special)
        request = Request(prompt, preset.text, preset.audio, stops, LONGEST, seed=seed)
        steps = list(generate(model.backend, request, special.empty))
        answer = join_steps(steps, spec.empty_codes, spec.group_size)
        grid = np.concatenate((prompt, answer), axis=1)
        text_ids, codes = split_grid(grid, spec.group_size)
        yield Recorded(text_ids, codes, prompt.shape[1] // spec.group_size)


def _wav(model: MimoAudio, audio: Any) -> Floats:
    longest = model.backend.bundle.model.max_audio_seconds
    return load_audio(audio, rate=model.sampling_rate, max_seconds=longest)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--set", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--recipes", nargs="+", default=["int8", "int4", "int4-edge"])
    parser.add_argument("--calibration", type=Path, help="for the recipes that need it")
    parser.add_argument("--no-speech", action="store_true", help="leave word errors out")
    parser.add_argument("--quality", action="store_true", help="judge sound apart from words")
    parser.add_argument("--streamed", action="store_true", help="word errors of streams too")
    args = parser.parse_args(arguments)
    utterances = UtteranceSet.open(args.set)
    calibration = args.calibration and Calibration.load(args.calibration)
    args.work.mkdir(parents=True, exist_ok=True)
    own = Own(args.bundle, utterances)
    parts = list(bundle_parts(own.bundle))
    with StageProgress() as progress:
        for name in args.recipes:
            chosen = recipe.load(name)
            shares = {share.component: share for share in weigh(chosen, parts, "fp32")}

            def measure(component: str, chosen: Recipe = chosen) -> Figures:
                part = chosen if component == "all" else only(chosen, component)
                folder = args.work / "bundle" / f"{part.name}-{component}"
                known = calibration if part.calibrated else None
                quantize_bundle(own.bundle, part, folder, calibration=known, force=True)
                return figures(own, Bundle.open(folder))

            for component in (*(c for c in COMPONENTS if shares[c].stored), "all"):
                progress.report(f"{name} {component}", 0, 0)
                path = args.work / f"{name}.{component}.json"
                _kept(path, lambda component=component: measure(component))  # type: ignore[misc]
            print("\n".join(_component_table(name, shares, args.work)), flush=True)
        if not args.no_speech:
            folders = {"fp32": args.bundle}
            folders |= {n: args.work / "bundle" / f"{n}-all" for n in args.recipes}
            for name, folder in folders.items():
                for stream in (False, True) if args.streamed else (False,):
                    progress.report(f"{name} speaks{' as a stream' if stream else ''}", 0, 0)
                    path = args.work / f"{name}.{'streamed' if stream else 'whole'}.json"
                    _kept(path, lambda f=folder, s=stream: speech(f, utterances, s, args.quality))  # type: ignore[misc]
            print("\n".join(_speech_table(list(folders), args.work)))
            if args.quality:
                print("\n".join(_sound_table(list(folders), args.work)))
    return 0


def _kept(path: Path, make: Callable[[], Figures]) -> Figures:
    if not path.is_file():
        write_text(path, json.dumps(make(), indent=1) + "\n")
    found: Figures = json.loads(path.read_text(encoding="utf-8"))
    return found


def _component_table(name: str, shares: dict[str, Any], work: Path) -> Iterator[str]:
    yield f"\n{name}\n"
    yield (
        "| component | bytes | state SNR | text | gate | KL text | codes drawn, by codebook | "
        "KL codes | codes heard | sound SNR |"
    )
    yield "|---|---|---|---|---|---|---|---|---|---|"
    for component in (*COMPONENTS, "all"):
        path = work / f"{name}.{component}.json"
        if not path.is_file():
            continue
        found = json.loads(path.read_text(encoding="utf-8"))
        bytes_ = sum(s.bytes for c, s in shares.items() if component in (c, "all"))
        text, gate = Choices(**found["text"]), Choices(**found["gate"])
        codes = [Choices(**c) for c in found["codes"]]
        state = found["embeddings" if component in TABLES else "local_hidden"]["snr"]
        yield (
            f"| {component} | {size(bytes_)} | {_db(state)} | {_percent(text.agreement)} | "
            f"{_percent(gate.agreement)} | {text.kl:.1e} | "
            f"{' '.join(f'{100 * c.agreement:.1f}' for c in codes)} | "
            f"{np.mean([c.kl for c in codes]):.1e} | {_percent(float(np.mean(found['heard'])))} | "
            f"{_db(found['sound']['snr'])} |"
        )


def _speech_table(names: list[str], work: Path) -> Iterator[str]:
    yield "\n| recipe | task | words wrong | against fp32, points | streamed |"
    yield "|---|---|---|---|---|"

    def read(name: str, how: str) -> Figures | None:
        path = work / f"{name}.{how}.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None

    own = read("fp32", "whole")
    for name in names:
        streamed = read(name, "streamed")
        for task, counts in (read(name, "whole") or {}).items():
            edits, said = counts["edits"], counts["words"]
            low, high = interval(edits, said)
            line = f"| {name} | {task} | {sum(edits)} of {sum(said)}, "
            line += f"{_percent(sum(edits) / sum(said))} ({100 * low:.1f} to {100 * high:.1f}) | "
            if own is not None and name != "fp32":
                gap = np.subtract(edits, own[task]["edits"]).tolist()
                less, more = interval(gap, said)
                line += (
                    f"{100 * sum(gap) / sum(said):+.1f} ({100 * less:+.1f} to {100 * more:+.1f})"
                )
            line += " | "
            if streamed is not None:
                line += _percent(sum(streamed[task]["edits"]) / sum(said))
            yield f"{line} |"


def _sound_table(names: list[str], work: Path) -> Iterator[str]:
    """What is spoken, against what the float model spoke of the same text by the same seed."""
    yield "\n| recipe | task | opinion, 1 to 5 | against fp32 | voice like fp32's |"
    yield "|---|---|---|---|---|"
    found = {n: json.loads((work / f"{n}.whole.json").read_text(encoding="utf-8")) for n in names}
    for name, tasks in found.items():
        for task in (task for task in tasks if "sound" in tasks[task]):
            own, sounds = found["fp32"][task]["sound"], tasks[task]["sound"]
            both = sorted(own.keys() & sounds.keys(), key=int)
            marks, ones = [sounds[n]["opinion"] for n in both], [1] * len(both)
            line = f"| {name} | {task} | {np.mean(marks):.2f} | "
            if name != "fp32":
                gap = np.subtract(marks, [own[n]["opinion"] for n in both]).tolist()
                less, more = interval(gap, ones)
                like = [float(np.dot(own[n]["voice"], sounds[n]["voice"])) for n in both]
                line += f"{np.mean(gap):+.2f} ({less:+.2f} to {more:+.2f}) | {np.mean(like):.3f}"
            else:
                line += "| "
            yield f"{line} |"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _db(value: float) -> str:
    return "equal" if value == float("inf") else f"{value:.1f} dB"


if __name__ == "__main__":
    sys.exit(main())
