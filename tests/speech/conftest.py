"""Nano as a bundle, and the utterances it is judged on."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from mimo_edge.parity.speech_score import UtteranceSet
from mimo_edge.parity.word_errors import WordErrors
from mimo_edge.runtime.tasks import MimoAudio
from mimo_edge.scripts.score import read_score

from tests.bundles import NANO, ROOT, exported_nano


@pytest.fixture(scope="session")
def bundle() -> Path:
    return exported_nano()


@pytest.fixture(scope="session")
def nano(bundle: Path) -> Iterator[MimoAudio]:
    with MimoAudio.open(bundle) as model:
        yield model


@pytest.fixture(scope="session")
def utterances() -> UtteranceSet:
    return UtteranceSet.open(ROOT / "assets" / "utterances")


@pytest.fixture(scope="session")
def own_score() -> dict[str, WordErrors]:
    return read_score(NANO / "score.json")
