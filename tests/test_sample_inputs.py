"""`inspect --sample-inputs`: Polygraphy reads what it writes, and every graph runs on it."""

import shlex
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from mimo_edge.runtime.bundle.bundle import Bundle
from mimo_edge.runtime.bundle.manifest import PIECES
from mimo_edge.runtime.chat.text_tokenizer import TextTokenizer
from mimo_edge.scripts.cli import main
from polygraphy.json import load_json
from polygraphy.tools.args.util import parse_arglist_to_dict

from tests.bundles import exported_nano


def test_sample_inputs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle, folder = Bundle.open(exported_nano()), tmp_path / "inputs"
    assert main(["inspect", str(bundle.folder), "--sample-inputs", str(folder)]) == 0
    commands = [shlex.split(line) for line in capsys.readouterr().out.splitlines()]
    assert [command[2] for command in commands] == [str(bundle.path(piece)) for piece in PIECES]
    fed = {}
    for piece in PIECES:
        fed[piece] = load_json(str(folder / f"{piece}.json"))
        ports = bundle.piece(piece).inputs
        session = ort.InferenceSession(str(bundle.path(piece)))
        for feed in fed[piece]:
            assert {n: str(a.dtype) for n, a in feed.items()} == {p.name: p.dtype for p in ports}
            for output in session.run(None, dict(feed)):
                assert np.isfinite(output).all(), piece
            check_ranges((folder / f"{piece}.shapes").read_text(), feed)
    special = TextTokenizer.from_folder(bundle.folder).special
    first = fed["patch_encoder"][0]
    heard = first["text_ids"][0] == special.empty
    assert heard.any() and not heard.all(), "patches of speech, and of text"
    assert (first["codes"][0][heard] < np.array(bundle.model.empty_codes)[:, None]).all()
    prompt, step = fed["backbone"]
    assert step["past_lengths"] == prompt["new_lengths"] == len(heard)
    assert all(prompt[n].any() == 0 and step[n].any() for n in step if n.startswith("past_keys"))


def check_ranges(flags: str, feed: dict[str, np.ndarray]) -> None:
    """The shapes of a feed lie in the profile that the flags describe."""
    words, ends = shlex.split(flags), {}
    for kind in ("min", "opt", "max"):
        start = words.index(f"--trt-{kind}-shapes") + 1
        stop = next((i for i in range(start, len(words)) if words[i][:2] == "--"), len(words))
        ends[kind] = parse_arglist_to_dict(words[start:stop])
    for name, array in feed.items():
        assert (np.array(ends["min"][name]) <= array.shape).all(), name
        assert (array.shape <= np.array(ends["max"][name])).all(), name
        assert len(ends["opt"][name]) == array.ndim
