"""MiMo-V2.5-ASR in the reference, against an independent port."""

import numpy as np
import pytest
import soundfile
import torch
from mimo_edge.mimo_ref.backbone import KVCache
from mimo_edge.mimo_ref.family import MIMO_V25_ASR
from mimo_edge.mimo_ref.generate import Limits, generate
from mimo_edge.mimo_ref.mel import resample
from mimo_edge.mimo_ref.model import AudioTokenizer, LanguageModel
from mimo_edge.mimo_ref.pieces import PIECE_SECONDS, encode_pieces, wav_pieces
from mimo_edge.mimo_ref.weights import load_audio_tokenizer, load_language_model
from mimo_edge.parity import tolerances

from tests import check
from tests.v25_asr import AUDIO_TOKENIZER, CASES, LANGUAGE_MODEL, Case

EACH = pytest.mark.parametrize("case", CASES, ids=str)


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    return load_language_model(LANGUAGE_MODEL, dtype=torch.float32)


@pytest.fixture(scope="module")
def tokenizer() -> AudioTokenizer:
    return load_audio_tokenizer(AUDIO_TOKENIZER, torch.float32)


@pytest.mark.parametrize("case", [c for c in CASES if c.language == "auto"], ids=str)
def test_codes(tokenizer: AudioTokenizer, case: Case) -> None:
    wav, rate = soundfile.read(case.audio, dtype="float32")
    wav = resample(torch.tensor(wav), rate, tokenizer.config.sampling_rate)
    codes = encode_pieces(tokenizer, wav, 8, 4)
    check.equal(codes, case.array("codes").astype(np.int64), "codes")


@EACH
def test_scores_and_answers(model: LanguageModel, case: Case) -> None:
    assert model.config.architecture == MIMO_V25_ASR
    grid = torch.tensor(case.array("prompt"))
    patches = grid.shape[1] // 4
    hidden = model(grid[None], KVCache(model.config.backbone, 1, patches))[:, -1]
    scores = model.backbone.text_logits(hidden)[0].detach()
    check.close(scores, case.array("text_logits_0"), tolerances.LM, "scores")
    local = model.patch_decoder.hidden_states_downcast(hidden)[0].detach()
    check.close(local, case.array("local_hidden_0"), tolerances.LM, "local hidden")

    ends = frozenset((476, 478))  # end of text and <|im_end|>
    generated = torch.cat([*generate(model, grid, Limits(patches + 24, 0, ends))], dim=1)
    assert generated[0, ::4].tolist() == case.raw["ids"]
    expected = case.array("generated")
    check.equal(generated[1:], expected[1:], "codes of the answer")


def test_a_model_that_only_listens_draws_no_codes(model: LanguageModel) -> None:
    """The same ids up to the first patch of speech, which is then empty."""
    case = next(c for c in CASES if model.empty_id in c.raw["ids"])
    first = case.raw["ids"].index(model.empty_id)
    grid = torch.tensor(case.array("prompt"))
    limits = Limits(grid.shape[1] // 4 + first + 1)
    patches = list(generate(model, grid, limits, speaks=False))
    assert [int(p[0, 0]) for p in patches] == case.raw["ids"][: first + 1]
    empty = torch.tensor(model.config.speech_zeroemb_idx)[:, None].expand(-1, 4)
    assert torch.equal(patches[-1][1:], empty)


@pytest.mark.parametrize(
    ("samples", "lengths"),
    [
        (1, [960]),
        (959, [960]),
        (960, [960]),
        (3000, [3000]),
        (3001, [3001]),
        (3959, [3959]),
        (3960, [3000, 960]),
        (6959, [3000, 3959]),
        (7000, [3000, 3000, 1000]),
    ],
)
def test_pieces(samples: int, lengths: list[int]) -> None:
    wav = torch.arange(1.0, samples + 1)
    pieces = wav_pieces(wav, 3000, 960)
    assert [len(piece) for piece in pieces] == lengths
    joined = torch.cat(pieces)
    assert torch.equal(joined[:samples], wav) and not joined[samples:].any()


def test_a_piece_knows_nothing_of_the_next(tokenizer: AudioTokenizer) -> None:
    rate = tokenizer.config.sampling_rate
    wav = torch.randn(
        (PIECE_SECONDS * rate + 4800,), generator=torch.Generator().manual_seed(0)
    ).mul(0.1)
    alone = [tokenizer.encode(part, 8) for part in wav.split(PIECE_SECONDS * rate)]
    joined = torch.cat(alone, dim=1)
    codes = encode_pieces(tokenizer, wav, 8, 4)
    assert torch.equal(codes[:, : joined.shape[1]], joined)
    filled = codes[:, joined.shape[1] :]
    assert codes.shape[1] % 4 == 0 and filled.shape[1] < 4
    assert torch.equal(filled, joined[:, -1:].expand_as(filled))
