"""From recordings and texts to a calibration: in order, resumable, each item counted once."""

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import onnx
from mimo_edge.engines.calibration import FORMAT, About, Calibration, Statistics, check
from mimo_edge.engines.observed_graph import kept_by, sites_of
from mimo_edge.runtime.bundle.bundle import Bundle
from mimo_edge.runtime.bundle.errors import CalibrationError, InputError, MimoError
from mimo_edge.runtime.bundle.files import hash_file, read_text
from mimo_edge.runtime.bundle.lock import locked
from mimo_edge.scripts.observing import Done, Observed, ObservingBackend, merged

SUFFIXES = (
    *(".wav", ".flac", ".mp3", ".ogg", ".oga", ".opus"),
    *(".aif", ".aiff", ".au", ".caf", ".w64", ".rf64", ".sph"),
)
LONGEST = 96  # patches of an answer: 15 seconds of speech
_SAVE_EVERY = 5.0  # seconds between two states on the disk
# (what is being done, items done, items in all)
OnProgress = Callable[[str, int, int], None]


def recordings(folder: Path) -> list[Path]:
    """The sound files in a folder and in those below it. Raises InputError if there are none."""
    if not folder.is_dir():
        raise InputError(f"{folder} is no folder. Give one that holds recordings of speech.")
    found = sorted(p for p in folder.rglob("*") if p.is_file() and p.suffix.lower() in SUFFIXES)
    if not found:
        raise InputError(
            f"{folder} holds no recordings ({' '.join(SUFFIXES)}). Give a folder with speech."
        )
    return found


def lines(file: Path) -> list[str]:
    """The texts of a file, one a line. Raises InputError if there are none."""
    try:
        found = [line.strip() for line in read_text(file).splitlines()]
    except (OSError, ValueError) as error:
        raise InputError(
            f"{file} cannot be read as text ({error}). Give one text a line."
        ) from error
    texts = [line for line in found if line]
    if not texts:
        raise InputError(f"{file} holds no text. Give one text a line.")
    return texts


def check_bundle(bundle: Bundle) -> None:
    """Raises CalibrationError for a bundle whose layers read something else than the model's."""
    if bundle.manifest.calibration is not None:
        raise CalibrationError(
            f"{bundle.folder} was itself made with a calibration: its layers are scaled. Calibrate "
            "the float bundle, or one of the recipe int8."
        )


class Work:
    """What is to be read. `seed` + i draws for item i."""

    def __init__(
        self, folder: Path | None, audio: Sequence[Path], texts: Sequence[str], seed: int
    ) -> None:
        self.folder, self.audio, self.texts, self.seed = folder, audio, texts, seed

    def __len__(self) -> int:
        return len(self.audio) + len(self.texts)

    def name(self, item: int) -> str:
        """For people."""
        if item < len(self.audio):
            return self._name(self.audio[item])
        return f"text {item - len(self.audio) + 1}"

    def digest(self, bundle: Bundle, longest: int) -> str:
        """Over all that decides what comes out."""
        sounds = [[self._name(path), hash_file(path).sha256] for path in self.audio]
        about = [FORMAT, bundle.identity, self.seed, longest, sounds, list(self.texts)]
        return hashlib.sha256(json.dumps(about).encode()).hexdigest()

    def do(self, item: int, observed: Observed) -> Done:
        """Raises what the pipeline raises."""
        if item < len(self.audio):
            return observed.recording(self.audio[item], self.seed + item)
        return observed.text(self.texts[item - len(self.audio)], self.seed + item)

    def counted(self, item: int, done: Done, about: About) -> About:
        """What is known of the work, with one item more."""
        positions = {n: about.positions.get(n, 0) + c for n, c in done.positions.items()}
        about = replace(about, items=item + 1, positions=positions)
        if item >= len(self.audio):
            return replace(about, texts=_plus_one(about.texts, done.script))
        seconds = dict(about.recordings) | {self._name(self.audio[item]): done.seconds}
        return replace(about, recordings=seconds, spoken=_plus_one(about.spoken, done.script))

    def _name(self, path: Path) -> str:
        return path.name if self.folder is None else path.relative_to(self.folder).as_posix()


def calibrate(
    bundle: Bundle,
    work: Work,
    output: Path,
    *,
    longest: int = LONGEST,
    threads: int | None = None,
    resume: bool = False,
    on_progress: OnProgress = lambda *_: None,
) -> Calibration:
    """Run the pipeline on all of the work, and write what its layers read.

    With `resume`, what was done when this ended early stays beside the output, and is not done
    again. Raises CalibrationError, or what the pipeline raises, with the item's name.
    """
    check_bundle(bundle)
    state = output.with_name(output.name + ".partial")
    with locked(output):
        about = About(bundle.manifest.source, bundle.manifest.recipe, work.seed)
        about = replace(about, work=work.digest(bundle, longest))
        layers: dict[str, Statistics] = {}
        if resume and (kept := _kept(state, about.work)):
            about, layers = kept.about, dict(kept.layers)
        saved, written = time.monotonic(), about.items
        backend = ObservingBackend(bundle, threads)
        observed = Observed(backend, longest)
        try:
            for item in range(about.items, len(work)):
                on_progress("calibrating", item, len(work))
                done = _done(work, item, observed)
                layers, about = merged(layers, done.statistics), work.counted(item, done, about)
                if resume and time.monotonic() - saved > _SAVE_EVERY:
                    Calibration(about, layers).save(state)
                    saved, written = time.monotonic(), about.items
        except BaseException:
            if resume and about.items > written:
                Calibration(about, layers).save(state)
            raise
        finally:
            observed.close()
        found = Calibration(about, layers)
        _check_whole(bundle, found)
        found.save(output)
        state.unlink(missing_ok=True)
    on_progress("done", len(work), len(work))
    return found


def _done(work: Work, item: int, observed: Observed) -> Done:
    try:
        done = work.do(item, observed)
    except MimoError as error:
        raise type(error)(f"{work.name(item)}: {error}") from error
    for name, statistics in done.statistics.items():
        if not statistics.finite:
            check(statistics, name, work.name(item))
    return done


def _check_whole(bundle: Bundle, found: Calibration) -> None:
    """Raises CalibrationError for a layer that read nothing, or only zeros, or a cache alike."""
    for piece in bundle.manifest.pieces:
        model = onnx.load(bundle.path(piece), load_external_data=False)
        for site in sites_of(model.graph):
            for weight in site.weights:
                check(found.of(weight, site.width), weight, "all that was read")
        for kept in kept_by(model.graph):
            check(found.of(kept.name, kept.width), kept.name, "all that was read")


def _kept(state: Path, work: str) -> Calibration | None:
    """What an earlier run of the same work has left."""
    try:
        kept = Calibration.read(state)
    except CalibrationError:
        return None
    return kept if kept.about.work == work else None


def _plus_one(counts: Mapping[str, int], key: str) -> dict[str, int]:
    return dict(counts) | {key: counts.get(key, 0) + 1}
