"""Where engines lie, whose are used, and what a build takes over. Nothing is traced or built."""

import dataclasses
from pathlib import Path
from types import SimpleNamespace

import pytest
from mimo_edge.engines.build import build_engines, engine_home
from mimo_edge.runtime.backends.opening import open_backend
from mimo_edge.runtime.bundle.bundle import Bundle
from mimo_edge.runtime.bundle.engine_folders import INSIDE, Trust, cache_folder, find, home_of
from mimo_edge.runtime.bundle.errors import EngineError, InputError
from mimo_edge.runtime.bundle.files import hash_file
from mimo_edge.runtime.bundle.manifest import PIECES
from mimo_edge.scripts.cli import main

from tests.engines.fake_builds import CLASSIC, LIMITS, WANTED, Builds, built, identity_of


def changed(bundle: Bundle, name: str) -> Bundle:
    """The same bundle, but for one of its files."""
    files = dict(bundle.manifest.files)
    files[name] = dataclasses.replace(files[name], sha256="0" * 64) if name in files else None
    manifest = dataclasses.replace(bundle.manifest, files=files)
    return Bundle(bundle.folder, manifest)


def test_engines_lie_outside_the_bundle(bundle: Bundle, builds: Builds, tmp_path: Path) -> None:
    folder, _ = built(bundle)
    assert folder.is_relative_to(tmp_path / "cache" / "mimo-edge" / "engines")
    assert not (bundle.folder / INSIDE).exists()
    assert folder.stat().st_mode & 0o077 == 0, "others cannot put anything there"


def test_a_relative_cache_folder_is_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "here")
    monkeypatch.setenv("HOME", "/home/of/mine")
    assert cache_folder() == Path("/home/of/mine/.cache/mimo-edge/engines")


def test_those_in_the_bundle_are_used_only_when_asked(bundle: Bundle, builds: Builds) -> None:
    home = engine_home(bundle, in_bundle=True)
    found = build_engines(bundle, identity_of(bundle), CLASSIC, None, LIMITS, home)
    assert found[0].parent == bundle.folder / INSIDE
    with pytest.raises(EngineError, match="if you trust who made them, say so with --trust-eng"):
        find(bundle, WANTED)
    assert find(bundle, WANTED, Trust(bundle=True)) == found


def test_a_build_refuses_a_place_in_a_bundle(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "link").symlink_to(bundle.folder)
    for place in (bundle.folder, bundle.folder / "engines", tmp_path / "link" / "x"):
        with pytest.raises(InputError, match=r"Engines are programs.*--in-bundle"):
            engine_home(bundle, place)
    with pytest.raises(InputError, match="not both"):
        engine_home(bundle, tmp_path, in_bundle=True)
    monkeypatch.setenv("XDG_CACHE_HOME", str(bundle.folder))
    with pytest.raises(InputError, match="Engines are programs"):
        engine_home(bundle)


def test_a_named_folder(bundle: Bundle, builds: Builds, tmp_path: Path) -> None:
    """The one that was built into, the home in it, or the engine folder itself."""
    root = tmp_path / "elsewhere"
    home = engine_home(bundle, root)
    found = build_engines(bundle, identity_of(bundle), CLASSIC, None, LIMITS, home)
    for named in (root, home, found[0]):
        assert find(bundle, WANTED, Trust(named)) == found
    with pytest.raises(EngineError, match="has no engines for trt"):
        find(bundle, WANTED)
    with pytest.raises(InputError, match="no folder with engines"):
        find(bundle, WANTED, Trust(tmp_path / "nowhere"))


def test_only_what_changed_is_built_again(bundle: Bundle, builds: Builds) -> None:
    """Another text tokenizer: nothing. Other weights of a piece: that piece."""
    folder, manifest = built(bundle)
    files = bundle.manifest.files | {"tokenizer.json": hash_file(bundle.path("mel"))}
    other = Bundle(bundle.folder, dataclasses.replace(bundle.manifest, files=files))
    assert other.identity != bundle.identity
    assert built(other) == (folder, manifest)
    assert builds.graphs == list(PIECES), "not a second time"
    requantised = changed(bundle, "patch_decoder.onnx.data")
    new_folder, new = built(requantised)
    assert builds.graphs[len(PIECES) :] == ["patch_decoder"]
    assert new_folder.parent == home_of(requantised) != folder.parent
    assert {p for p in PIECES if new.plans[p].key != manifest.plans[p].key} == {"patch_decoder"}
    assert find(requantised, WANTED) == (new_folder, new)
    mel = "mel.plan"
    assert (new_folder / mel).stat().st_ino == (folder / mel).stat().st_ino, "once on the disk"
    assert find(bundle, WANTED) == (folder, manifest), "and the old one is as it was"


def test_a_damaged_plan_is_not_taken_over(bundle: Bundle, builds: Builds) -> None:
    folder, _ = built(bundle)
    (folder / "mel.plan").write_bytes(b"mol")
    built(changed(bundle, "patch_decoder.onnx.data"))
    assert builds.graphs[len(PIECES) :] == ["mel", "patch_decoder"]


def test_a_strict_build_does_not_take_what_was_warned_of(bundle: Bundle, builds: Builds) -> None:
    builds.warnings = ["something new"]
    _, manifest = built(bundle)
    assert {plan.warnings for plan in manifest.plans.values()} == {1}
    built(bundle)
    assert builds.graphs == list(PIECES), "that is no reason to build again"
    builds.warnings = []
    _, manifest = built(bundle, strict=True)
    assert builds.graphs == [*PIECES, *PIECES]
    assert {plan.warnings for plan in manifest.plans.values()} == {0}


def test_several_that_fit(bundle: Bundle, builds: Builds) -> None:
    """Most rows, then the longest cache, then those for the fewest GPUs, then by name."""
    first = identity_of(bundle)
    order = [
        dataclasses.replace(first, max_batch=2),
        identity_of(bundle, 48),
        first,
        dataclasses.replace(first, capabilities=("8.0", "8.9")),
        dataclasses.replace(first, capabilities=("8.9", "9.0")),
    ]
    made = [
        build_engines(bundle, identity, CLASSIC, None, LIMITS, home_of(bundle))[0]
        for identity in reversed(order)
    ]
    for folder in reversed(made):
        assert find(bundle, WANTED)[0] == folder
        (folder / "engine.json").unlink()


def test_inspect_says_where_they_are(
    bundle: Bundle, builds: Builds, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, _ = built(bundle)
    home = engine_home(bundle, in_bundle=True)
    inside, _ = build_engines(bundle, identity_of(bundle), CLASSIC, None, LIMITS, home)
    assert main(["inspect", str(bundle.folder)]) == 0
    said = capsys.readouterr().out
    assert f"engines: {folder}\n" in said
    assert f"engines: {inside} (in the bundle: used only with --trust-engines)" in said


def test_the_options_reach_the_backend(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    given = []
    monkeypatch.setattr(
        "mimo_edge.runtime.backends.trt.TrtBackend", lambda *_, trust: given.append(trust)
    )
    open_backend("trt", bundle)
    open_backend("trt-rtx", bundle, engines=Path("there"), trust_engines=True)
    assert given == [Trust(), Trust(Path("there"), True)]
    for backend, options in (
        ("ort-cuda", {"engines": Path("there")}),
        ("ort-cuda", {"trust_engines": True}),
        ("ort-cpu", {"trust_engines": True}),
    ):
        with pytest.raises(InputError, match=f"{backend} runs no engines"):
            open_backend(backend, bundle, **options)


def test_an_export_says_that_engines_go(
    bundle: Bundle, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    sources = SimpleNamespace(
        exports_speech=lambda asked: True, stored_bytes=lambda *_: 1, memory_bytes=lambda *_: 1
    )
    monkeypatch.setattr("mimo_edge.scripts.export.Sources.open", lambda *_: sources)
    monkeypatch.setattr("mimo_edge.scripts.export.export_bundle", lambda *_, **__: None)
    words = ["export", "lm", "--audio-tokenizer", "at", "-o", str(bundle.folder), "--force"]
    for holds in (False, True):
        assert main(words) == 0
        assert ("goes with the bundle that is replaced" in capsys.readouterr().err) == holds
        (bundle.folder / INSIDE).mkdir(exist_ok=True)
