"""What a bundle of the real size takes on a device: by piece, by rows, whole and streamed."""

import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from mimo_edge.runtime.audio import codec
from mimo_edge.runtime.backends.ort import OrtBackend
from mimo_edge.runtime.backends.ort_rows import OrtRowStates
from mimo_edge.runtime.bundle.bundle import Bundle
from mimo_edge.runtime.bundle.errors import MimoError
from mimo_edge.scripts.benchmark.speech import rehearse_stream
from mimo_edge.scripts.benchmark.stages import weights_read
from mimo_edge.scripts.gpu.device import Device
from mimo_edge.scripts.gpu.placement import RECORDED, record_placements
from mimo_edge.scripts.gpu.records import Records
from mimo_edge.scripts.gpu.settings import Settings

PATCH_SECONDS = 0.16
HEARD_SECONDS = 4
STREAMED = 6  # patches of one call
# what is recorded as CUDA graphs, by turns
GRAPHS = (("patch_decoder",), ("patch_encoder", "backbone"))


class Measure:
    """A bundle opened on a device, and the findings about it."""

    def __init__(self, folder: Path, settings: Settings, records: Records) -> None:
        self._folder, self._settings, self._records = folder, settings, records
        self._bundle = Bundle.open(folder, verify=False)
        self._rng = np.random.default_rng(0)

    def all(self) -> bool:
        """In order of value; returns whether every operator is where it should be."""
        with self._open() as backend:
            device = Device(backend.memory)
            self._rate = device.copy_rate()
            self._add("copy, bytes read and written", self._rate / 1e9, "GB/s")
            for piece in self._bundle.manifest.pieces:
                took = _seconds(lambda piece=piece: backend.session(piece))  # type: ignore[misc]
                self._add(f"load {piece}", took, "s")
            self._add("memory, all pieces loaded", device.used(), "GB")
            well = record_placements(backend, self._folder.name, self._records)
            patch = {n: self._rows(backend, n) for n in self._settings.rows}
            prefill = {n: self._prefill(backend, n) for n in self._settings.prompts}
            self._codec(backend)
            first = min(self._settings.rows), min(self._settings.prompts)
            player = rehearse_stream(backend, patch[first[0]], prefill[first[1]])
            what = f"first sound, prompt of {first[1]} patches"
            self._add(what, 1e3 * (player.first_sound or 0.0), "ms")
            self._add("silence in the stream", player.silence, "s")
            self._add("memory at the end", device.used(), "GB")
        for pieces in GRAPHS:
            self._graphs(pieces)
        return well

    def _open(self, graphs: tuple[str, ...] = ()) -> OrtBackend:
        device, options = self._settings.device, RECORDED
        return OrtBackend(self._bundle, device, session_options=options, cuda_graphs=graphs)

    def _rows(self, backend: OrtBackend, rows: int, made_by: str = "") -> float:
        """Time of a patch of `rows` rows, in seconds."""
        states = backend.new_rows(rows)
        try:
            step = self._median(self._step(states, rows))
            draw = self._median(self._draw(states, rows))
        finally:
            states.close()
        reads = {
            "step": (step, ("patch_encoder", "backbone")),
            "patch decoder": (draw, ("patch_decoder",)),
        }
        for name, (took, pieces) in reads.items():
            read = sum(weights_read(self._bundle, piece, rows) for piece in pieces)
            what = f"{name}, {rows} rows{made_by}"
            self._add(what, 1e3 * took, "ms")
            self._add(f"{what}: weights read", read / took / 1e9, "GB/s")
            self._add(f"{what}: of the copy", 100 * read / took / self._rate, "%")
        patch = step + draw
        self._add(f"patch, {rows} rows{made_by}", 1e3 * patch, "ms")
        self._add(f"patch, {rows} rows{made_by}: RTF", patch / PATCH_SECONDS, "")
        sound = rows * PATCH_SECONDS / patch
        self._add(f"patch, {rows} rows{made_by}: sound", sound, "s a second")
        return patch

    def _step(self, states: OrtRowStates, rows: int) -> Callable[[], object]:
        prompt = self._prompt(min(self._settings.prompts))
        for row in range(rows):
            states.extend(row, *prompt)
        text_ids, codes = prompt
        one = text_ids[:1].repeat(rows), codes[:1].repeat(rows, 0), np.zeros(rows, bool)
        return lambda: states.step(0, *one)

    def _draw(self, states: OrtRowStates, rows: int) -> Callable[[], object]:
        model = self._bundle.model
        uniforms = self._rng.random((rows, model.group_size, model.n_q), np.float32)
        settings = (
            np.full(rows, 0.9, np.float32),
            np.zeros(rows, np.int64),
            np.full(rows, 0.95, np.float32),
        )
        return lambda: states.draw_codes(0, uniforms, *settings)

    def _prefill(self, backend: OrtBackend, patches: int) -> float:
        prompt = self._prompt(patches)

        def read() -> None:
            states = backend.new_rows(1)
            states.extend(0, *prompt)
            states.close()

        took = self._median(read, runs=3)
        self._add(f"prefill, {patches} patches", 1e3 * took, "ms")
        return took

    def _codec(self, backend: OrtBackend) -> None:
        model = self._bundle.model
        wav = self._rng.normal(0, 0.1, HEARD_SECONDS * model.sampling_rate).astype(np.float32)
        mel = backend.mel(wav)
        self._add(
            f"hear {HEARD_SECONDS} s: mel", 1e3 * self._median(lambda: backend.mel(wav)), "ms"
        )
        encode = self._median(lambda: backend.encode(mel))
        self._add(f"hear {HEARD_SECONDS} s: tokenizer encoder", 1e3 * encode, "ms")
        frames = STREAMED * model.group_size
        sound = STREAMED * PATCH_SECONDS
        window = self._codes(codec.LEFT_OVERLAP + frames + codec.RIGHT_OVERLAP)
        whole = self._codes(round(HEARD_SECONDS / PATCH_SECONDS) * model.group_size)
        stream = codec.open_stream(backend, codec.STATEFUL)
        try:
            new = self._codes(frames)
            calls: dict[str, tuple[Callable[[], object], float]] = {
                f"decode {HEARD_SECONDS} s": (lambda: codec.decode(backend, whole), HEARD_SECONDS),
                f"windowed, {STREAMED} patches": (lambda: codec.decode(backend, window), sound),
                f"stateful, {STREAMED} patches": (lambda: stream.push(new), sound),
            }
            for name, (call, seconds) in calls.items():
                took = self._median(call)
                self._add(name, 1e3 * took, "ms")
                self._add(f"{name}: RTF", took / seconds, "")
        finally:
            stream.close()

    def _graphs(self, pieces: tuple[str, ...]) -> None:
        """The same steps recorded as CUDA graphs, or why they cannot be."""
        made_by = f", graphs of {' and '.join(pieces)}"
        try:
            with self._open(pieces) as backend:
                for rows in self._settings.rows[:2]:
                    self._rows(backend, rows, made_by)
        except MimoError as error:
            self._add(f"patch{made_by}", f"not possible: {error}")

    def _prompt(self, patches: int) -> tuple[np.ndarray, np.ndarray]:
        model = self._bundle.model
        codes = self._codes(patches * model.group_size)
        grid = codes.reshape(model.n_q, patches, model.group_size).swapaxes(0, 1)
        return np.zeros(patches, np.int64), np.ascontiguousarray(grid)

    def _codes(self, frames: int) -> np.ndarray:
        model = self._bundle.model
        return self._rng.integers(0, min(model.empty_codes), (model.n_q, frames))

    def _median(self, call: Callable[[], object], runs: int | None = None) -> float:
        """Seconds, after two calls that are not counted: what is made at first, and recorded."""
        for _ in range(2):
            call()
        return statistics.median(_seconds(call) for _ in range(runs or self._settings.runs))

    def _add(self, what: str, value: float | str, unit: str = "") -> None:
        self._records.add(what, value, unit)


def _seconds(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began
