from collections.abc import Callable

import torch
from mimo_edge.mimo_ref.backbone import KVCache
from mimo_edge.mimo_ref.model import LanguageModel
from mimo_edge.parity import tolerances
from torch import Tensor

from tests import check
from tests.golden import Golden

Load = Callable[[str], LanguageModel]


def new_cache(model: LanguageModel, capacity: int, batch: int = 1) -> KVCache:
    return KVCache(model.config.backbone, batch, capacity)


def heads(model: LanguageModel, hidden: Tensor) -> tuple[Tensor, Tensor]:
    return model.backbone.text_logits(hidden), model.patch_decoder.hidden_states_downcast(hidden)


def test_patch_encoder(golden: Golden, load_lm: Load, lm_name: str) -> None:
    model, arrays = load_lm(lm_name), golden.npz(f"{lm_name}.forward.npz")
    encoder, group = model.patch_encoder, model.config.group_size
    patches = int(arrays["prefill_groups"])
    text, codes = model.split_grid(torch.tensor(arrays["ids"])[None, :, : patches * group])
    summed = encoder.sum_codes(text == golden.empty_id, codes)[0]
    check.close(summed, arrays["prefill.input_local_in"], tolerances.LM, "input_local_in")
    seen = []
    hook = encoder.input_local_transformer.register_forward_hook(lambda _m, _i, o: seen.append(o))
    embeds = encoder(text, codes)
    hook.remove()
    check.close(seen[0], arrays["prefill.input_local_out"], tolerances.LM, "input_local_out")
    check.close(embeds, arrays["prefill.inputs_embeds"], tolerances.LM, "inputs_embeds")
    causal = tolerances.difference(seen[0], arrays["prefill.input_local_out_causal_variant"])
    assert causal > 100 * tolerances.LM.absolute, "cannot tell a causal patch encoder apart"


def test_forward(golden: Golden, load_lm: Load, lm_name: str) -> None:
    model, arrays = load_lm(lm_name), golden.npz(f"{lm_name}.forward.npz")
    group, patches = model.config.group_size, int(arrays["prefill_groups"])
    grid = torch.tensor(arrays["ids"])[None]
    cache = new_cache(model, grid.shape[-1] // group)

    hidden = model(grid[..., : patches * group], cache)
    check.close(hidden, arrays["prefill.hidden"], tolerances.LM, "prefill.hidden")
    logits, local = heads(model, hidden[:, -1:])
    check.close(logits, arrays["prefill.text_logits"], tolerances.LM, "prefill.text_logits")
    check.close(local, arrays["prefill.local_hidden"], tolerances.LM, "prefill.local_hidden")
    for name in arrays:
        if name.startswith("prefill.k_layer") or name.startswith("prefill.v_layer"):
            kept = cache.keys if "k_layer" in name else cache.values
            layer = int(name.split("layer")[1])
            check.close(kept[layer, :, :, :patches], arrays[name], tolerances.LM, name)

    for step in range(grid.shape[-1] // group - patches):
        one = grid[..., (patches + step) * group : (patches + step + 1) * group]
        embeds = model.patch_encoder(*model.split_grid(one))
        check.close(embeds, arrays[f"step{step}.inputs_embeds"], tolerances.LM, "inputs_embeds")
        hidden = model.backbone(embeds, cache)
        logits, local = heads(model, hidden)
        for name, value in (("hidden", hidden), ("text_logits", logits), ("local_hidden", local)):
            check.close(value, arrays[f"step{step}.{name}"], tolerances.LM, f"step{step}.{name}")

    hidden = model(grid, new_cache(model, grid.shape[-1] // group))
    logits, local = heads(model, hidden)
    for name, value in (("hidden", hidden), ("text_logits", logits), ("local_hidden", local)):
        check.close(value, arrays[f"full.{name}"], tolerances.LM, f"full.{name}")


def test_chunked(golden: Golden, load_lm: Load, lm_name: str) -> None:
    model, arrays = load_lm(lm_name), golden.npz(f"{lm_name}.forward.npz")
    group, patches = model.config.group_size, int(arrays["prefill_groups"])
    grid = torch.tensor(arrays["ids"])[None, :, : patches * group]
    first = patches - arrays["chunked.hidden"].shape[1]
    cache = new_cache(model, patches)
    model(grid[..., : first * group], cache)
    hidden = model(grid[..., first * group :], cache)
    check.close(hidden, arrays["chunked.hidden"], tolerances.LM, "chunked.hidden")
    logits = model.backbone.text_logits(hidden[:, -1:])
    check.close(logits, arrays["chunked.text_logits"], tolerances.LM, "chunked.text_logits")


def test_long(golden: Golden, load_lm: Load, lm_name: str) -> None:
    model, arrays = load_lm(lm_name), golden.npz(f"{lm_name}.forward.npz")
    grid = torch.tensor(arrays["long.ids"].astype("int64"))[None]
    group = model.config.group_size
    cache = new_cache(model, grid.shape[-1] // group)
    for prefix, part in (("long", grid[..., :-group]), ("long.step", grid[..., -group:])):
        logits, local = heads(model, model(part, cache)[:, -1:])
        check.close(logits, arrays[f"{prefix}.text_logits"], tolerances.LM, prefix)
        check.close(local, arrays[f"{prefix}.local_hidden"], tolerances.LM, prefix)


def test_unequal_rows_equal_rows_alone(golden: Golden, load_lm: Load, lm_name: str) -> None:
    """Rows of different lengths, in two chunks of different sizes, get what each gets alone."""
    model, arrays = load_lm(lm_name), golden.npz(f"{lm_name}.forward.npz")
    group = model.config.group_size
    grid = torch.tensor(arrays["ids"])  # [1 + K, P * G]
    total = grid.shape[-1] // group
    lengths = [total, total - 5, 3]
    alone = [model(grid[None, :, : n * group], new_cache(model, n))[0] for n in lengths]

    cache, seen = new_cache(model, total, batch=3), [[], [], []]
    for counts in ([4, 7, 1], [total - 4, total - 12, 2]):
        new = torch.tensor(counts)
        batch = torch.full((3, grid.shape[0], max(counts) * group), 1)
        for row, n in enumerate(counts):
            start = int(cache.lengths[row]) * group
            batch[row, :, : n * group] = grid[:, start : start + n * group]
        hidden = model(batch, cache, new)
        for row, n in enumerate(counts):
            seen[row].append(hidden[row, :n])
    for row, expected in enumerate(alone):
        check.close(torch.cat(seen[row]), expected.numpy(), tolerances.LM, f"row {row}")


def test_cache_overflow(load_lm: Load, golden: Golden) -> None:
    model = load_lm(golden.lm_names[0])
    cache = new_cache(model, 2)
    x = torch.zeros(1, 3, model.config.hidden_size)
    try:
        model.backbone(x, cache)
    except ValueError as error:
        assert "2 positions" in str(error)
    else:
        raise AssertionError("wrote past the capacity")
