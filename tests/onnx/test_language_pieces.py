"""Levels 2 and 4: patch encoder, backbone and patch decoder on ONNX Runtime against the goldens."""

from collections.abc import Callable

import numpy as np
from mimo_edge.parity import tolerances
from mimo_edge.runtime.backends.ort import OrtBackend
from mimo_edge.runtime.backends.ort_rows import OrtRowStates
from mimo_edge.runtime.generation.request import split_grid

from tests import check
from tests.golden import Golden
from tests.grids import forward_of

Open = Callable[[str], OrtBackend]


def test_patch_encoder(golden: Golden, open_backend: Open, lm_name: str) -> None:
    backend, arrays = open_backend(lm_name), golden.npz(f"{lm_name}.forward.npz")
    patches = int(arrays["prefill_groups"])
    text, codes = forward_of(golden, lm_name, backend)
    feed = {"text_ids": text[None, :patches], "codes": codes[None, :patches]}
    embeddings = backend.session("patch_encoder").run(None, feed)[0]
    check.close(embeddings, arrays["prefill.inputs_embeds"], tolerances.LM, "inputs_embeds")
    for step in range(len(text) - patches):
        one = slice(patches + step, patches + step + 1)
        feed = {"text_ids": text[None, one], "codes": codes[None, one]}
        embeddings = backend.session("patch_encoder").run(None, feed)[0]
        check.close(embeddings, arrays[f"step{step}.inputs_embeds"], tolerances.LM, f"step{step}")


def run_backbone(
    backend: OrtBackend, embeddings: np.ndarray, past: np.ndarray, new: np.ndarray, caches: list
) -> tuple[np.ndarray, np.ndarray, list]:
    """One call with the caches as ordinary arrays: local_hidden, logits, updated caches."""
    names = [port.name for port in backend.bundle.piece("backbone").inputs]
    feed = dict(zip(names, [embeddings, past, new, *caches], strict=True))
    local_hidden, logits, *updated = backend.session("backbone").run(None, feed)
    return local_hidden, logits, updated


def empty_caches(backend: OrtBackend, rows: int, capacity: int) -> list[np.ndarray]:
    model = backend.bundle.model
    shape = (rows, model.kv_heads, capacity, model.head_dim)
    return [np.zeros(shape, np.float32) for _ in range(2 * model.layers)]


def test_backbone(golden: Golden, open_backend: Open, lm_name: str) -> None:
    """Every position at once (as rows of growing length), keys and values, then single steps."""
    backend, arrays = open_backend(lm_name), golden.npz(f"{lm_name}.forward.npz")
    embeddings = arrays["prefill.inputs_embeds"]
    patches = embeddings.shape[1]
    rows = np.repeat(embeddings, patches, axis=0)
    past, new = np.zeros(patches, np.int64), np.arange(1, patches + 1)
    caches = empty_caches(backend, patches, patches)
    local_hidden, logits, caches = run_backbone(backend, rows, past, new, caches)
    expected = arrays["full.local_hidden"][:, :patches]
    check.close(local_hidden[None], expected, tolerances.LM, "full.local_hidden")
    check.close(logits[-1:, None], arrays["prefill.text_logits"], tolerances.LM, "text_logits")
    layers = backend.bundle.model.layers
    for name, expected in arrays.items():
        for kind, offset in (("k", 0), ("v", layers)):
            if name.startswith(f"prefill.{kind}_layer"):
                kept = caches[offset + int(name.split("layer")[1])][-1:]
                check.close(kept, expected, tolerances.LM, name)

    steps = len([n for n in arrays if n.startswith("step") and n.endswith(".hidden")])
    caches = [np.pad(c[-1:], ((0, 0), (0, 0), (0, steps), (0, 0))) for c in caches]
    for step in range(steps):
        one, past = arrays[f"step{step}.inputs_embeds"], np.array([patches + step])
        local_hidden, logits, caches = run_backbone(backend, one, past, np.array([1]), caches)
        expected = arrays[f"step{step}.local_hidden"]
        check.close(local_hidden[:, None], expected, tolerances.LM, f"step{step}")
        check.close(logits[:, None], arrays[f"step{step}.text_logits"], tolerances.LM, "logits")


def test_unequal_rows_in_chunks(golden: Golden, open_backend: Open, lm_name: str) -> None:
    """Two rows at unequal positions, prefilled in chunks of unequal size, equal rows alone."""
    backend, arrays = open_backend(lm_name), golden.npz(f"{lm_name}.forward.npz")
    embeddings = arrays["prefill.inputs_embeds"][0]  # [P, D]
    patches = len(embeddings)
    caches = empty_caches(backend, 2, patches + 8)
    past = np.zeros(2, np.int64)
    for counts in ([7, 3], [patches - 9, 2], [2, 6]):
        new = np.array(counts)
        batch = np.zeros((2, new.max(), embeddings.shape[1]), np.float32)
        for row in range(2):
            batch[row, : new[row]] = embeddings[past[row] : past[row] + new[row]]
        local_hidden, logits, caches = run_backbone(backend, batch, past, new, caches)
        past = past + new
        for row in range(2):
            expected = arrays["full.local_hidden"][0, past[row] - 1]
            check.close(local_hidden[row], expected, tolerances.LM, f"row {row} at {past[row]}")
    check.close(logits[:1, None], arrays["prefill.text_logits"], tolerances.LM, "text_logits")


def test_row_states(golden: Golden, open_backend: Open, lm_name: str) -> None:
    """prefill = chunks = steps, through the bound buffers and a cache that grows."""
    backend, arrays = open_backend(lm_name), golden.npz(f"{lm_name}.forward.npz")
    text, codes = forward_of(golden, lm_name, backend)
    patches = int(arrays["prefill_groups"])
    states = OrtRowStates(backend, 1, capacity=4)
    logits = states.extend(0, text[:patches], codes[:patches])
    check.close(logits[None, None], arrays["prefill.text_logits"], tolerances.LM, "prefill")
    for step in range(len(text) - patches):
        one = slice(patches + step, patches + step + 1)
        logits = states.step(0, text[one], codes[one], np.array([True]))
        check.close(logits[None], arrays[f"step{step}.text_logits"], tolerances.LM, f"step{step}")

    states = OrtRowStates(backend, 1, capacity=4)
    states.extend(0, text[:1], codes[:1])
    for patch in range(1, patches):
        one = slice(patch, patch + 1)
        logits = states.step(0, text[one], codes[one], np.array([True]))
    check.close(logits[None], arrays["prefill.text_logits"], tolerances.LM, "steps only")


def test_long_prompt(golden: Golden, open_backend: Open, lm_name: str, monkeypatch) -> None:
    monkeypatch.setattr("mimo_edge.runtime.backends.ort_rows.PREFILL_CHUNK", 100)
    backend, arrays = open_backend(lm_name), golden.npz(f"{lm_name}.forward.npz")
    grid = arrays["long.ids"].astype(np.int64)
    text, codes = split_grid(grid, backend.bundle.model.group_size)
    states = backend.new_rows(1)
    logits = states.extend(0, text[:-1], codes[:-1])
    check.close(logits[None, None], arrays["long.text_logits"], tolerances.LM, "long")
    logits = states.step(0, text[-1:], codes[-1:], np.array([True]))
    check.close(logits[None], arrays["long.step.text_logits"], tolerances.LM, "long.step")
