"""`pytest --golden-dir DIR` runs the golden tests on another set in the same layout."""

import gc
from pathlib import Path

import pytest

from tests.golden import DEFAULT_FOLDER, Golden


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--golden-dir", default=str(DEFAULT_FOLDER), help="folder of golden vectors")


def pytest_collection_finish() -> None:
    """What has been imported by now stays: no collection of garbage looks through it again."""
    gc.collect()
    gc.freeze()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test that asks for `encoder_case`, `lm_name`, ... runs once for each one in the folder."""
    golden = Golden(Path(metafunc.config.getoption("--golden-dir")))
    for plural in ("mel_cases", "resample_cases", "encoder_cases", "decoder_cases", "stream_cases"):
        if plural[:-1] in metafunc.fixturenames:
            metafunc.parametrize(plural[:-1], getattr(golden, plural))
    if "lm_name" in metafunc.fixturenames:
        if "generate_case" in metafunc.fixturenames:
            pairs = [(lm, case) for lm in golden.lm_names for case in golden.generate_cases(lm)]
            metafunc.parametrize("lm_name,generate_case", pairs)
        else:
            metafunc.parametrize("lm_name", golden.lm_names)


@pytest.fixture(scope="session")
def golden_dir(pytestconfig: pytest.Config) -> Path:
    return Path(pytestconfig.getoption("--golden-dir"))


@pytest.fixture(scope="session")
def golden(golden_dir: Path) -> Golden:
    return Golden(golden_dir)
