from collections.abc import Callable
from functools import cache

import pytest
from mimo_edge.mimo_ref.model import AudioTokenizer, LanguageModel
from mimo_edge.mimo_ref.weights import load_audio_tokenizer, load_language_model

from tests.golden import Golden


@pytest.fixture(scope="session")
def tokenizer(golden: Golden) -> AudioTokenizer:
    return load_audio_tokenizer(golden.folder / "audio_tokenizer")


@pytest.fixture(scope="session")
def load_lm(golden: Golden) -> Callable[[str], LanguageModel]:
    return cache(lambda name: load_language_model(golden.folder / name, golden.empty_id))
