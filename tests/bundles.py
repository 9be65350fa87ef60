"""Bundles exported from a golden folder, kept between test runs.

Tracing takes about a minute, so a bundle is kept in build/test-bundles under a hash of everything
that it depends on: the golden models, and the code of the exporter and of the reference.
"""

import hashlib
from pathlib import Path

from export.exporter import Sources, export_bundle, tool_versions
from runtime.bundle import MANIFEST
from tests.golden import Golden

ROOT = Path(__file__).parent.parent
CODE = ("mimo_ref/*.py", "export/*.py", "runtime/bundle.py")


def exported(golden: Golden, lm: str, dtype: str = "fp32") -> Path:
    """The bundle of one of the folder's language models and its audio tokenizer."""
    sources = Sources.open(
        golden.folder / lm, golden.folder / "audio_tokenizer", golden.folder / "text_tokenizer"
    )
    digest = hashlib.sha256(f"{dtype} {tool_versions()}".encode())
    for path in sorted(p for pattern in CODE for p in ROOT.glob(pattern)):
        digest.update(path.read_bytes())
    for path in sorted(
        p for name in (lm, "audio_tokenizer") for p in (golden.folder / name).iterdir()
    ):
        digest.update(path.read_bytes())
    folder = ROOT / "build" / "test-bundles" / digest.hexdigest()[:16]
    if not (folder / MANIFEST).is_file():
        export_bundle(sources, folder, dtype, force=True)
    return folder
