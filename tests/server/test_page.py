"""The page at /: its files, and what a browser makes of it."""

import base64
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mimo_edge.runtime.audio.read import load_audio
from mimo_edge.runtime.audio.write import write_audio
from mimo_edge.runtime.server.service import Streaming
from mimo_edge.runtime.server.web_routes import FOLDER
from mimo_edge.runtime.tasks import MimoAudio

from tests.server.browser import PHONE, Page, browsing
from tests.server.conftest import QUESTION, Serving, serving, until

RATE = 24000


def test_its_files_ask_nobody_else(shared: Serving) -> None:
    with shared.http() as http:
        page = http.get("/")
        named = set(re.findall(r'(?:href|src)="([^"]+)"', page.text))
        for path in sorted(FOLDER.glob("*.js")):
            text = path.read_text(encoding="utf-8")
            assert not re.search(r"https?://|\beval\(|innerHTML", text), path.name
            named |= {f"/web/{name}" for name in re.findall(r'from "\./(\S+)"', text)}
            named |= set(re.findall(r'addModule\("([^"]+)"', text))
        assert {f"/web/{p.name}" for p in FOLDER.iterdir()} - named == {"/web/index.html"}
        for response in (page, *(http.get(name) for name in sorted(named))):
            assert response.status_code == 200, response.url
            policy = response.headers["content-security-policy"]
            assert policy.startswith("default-src 'none'") and "unsafe" not in policy
            assert response.headers["x-content-type-options"] == "nosniff"
        assert not re.search(r"<script>|style=|onclick|http", page.text), "nothing inline"
        for name in ("x.js", "..%2fapp.py", "%2e%2e/app.py", "__init__.py"):
            assert http.get(f"/web/{name}").status_code == 404


def test_with_a_key_the_page_is_open_and_nothing_else(nano: MimoAudio) -> None:
    with serving(nano, key="right") as running, running.http() as http:
        assert http.get("/").status_code == http.get("/web/app.js").status_code == 200
        assert http.get("/v1/audio/voices").status_code == 401
        assert http.get("/web/../v1/models").status_code == 401


@pytest.fixture(scope="module")
def page(nano: MimoAudio, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Page, Path]]:
    """A browser on a server; its microphone is silence, the question, silence, and so on."""
    folder = tmp_path_factory.mktemp("page")
    quiet = np.random.default_rng(0).normal(0, 3e-4, 2 * RATE).astype(np.float32)
    write_audio(folder / "mic.wav", np.concatenate((quiet, load_audio(QUESTION), quiet)), RATE)
    with (
        serving(nano, streaming=Streaming(chunk=2)) as running,
        browsing(folder / "profile", folder / "mic.wav") as opened,
    ):
        opened.downloads(folder)
        opened.look()
        opened.open(running.url)
        opened.until("document.querySelector('#state').textContent === 'nano, ready'")
        yield opened, folder
        assert opened.complaints == []


def items(page: tuple[Page, Path]) -> list[dict[str, Any]]:
    """The conversation as the page exports it, sounds included."""
    opened, folder = page
    path = folder / "conversation.json"
    path.unlink(missing_ok=True)
    opened.click("#export")
    until(path.exists)
    until(lambda: path.read_text().endswith("}"))
    said: list[dict[str, Any]] = json.loads(path.read_text())["items"]
    return said


def assert_audible(item: dict[str, Any]) -> None:
    wav = load_audio(base64.b64decode(item["wav"]))
    assert len(wav) > RATE / 2 and np.sqrt(np.mean(wav**2)) > 0.01
    assert re.fullmatch(r"first sound \d+ ms, real-time factor \d+\.\d\d", item["figures"])


ENDED = "[...document.querySelectorAll('article')].at(-1)?.ariaBusy === null"
ANSWERS = "document.querySelectorAll('article.assistant').length"


@pytest.mark.browser
def test_typed_and_answered_in_speech(page: tuple[Page, Path]) -> None:
    opened, _ = page
    opened.click("#clear")
    opened.fill("#text", "What is four plus five?")
    opened.click("#send")
    opened.until("!document.querySelector('#stop').disabled")
    opened.until(f"{ANSWERS} === 1 && {ENDED}")
    user, answer = items(page)
    assert user["text"] == "What is four plus five?" and len(answer["text"]) > 2
    assert_audible(answer)
    lit = "(c => c.getContext('2d').getImageData(0, 0, c.width, c.height).data.some(v => v > 250))"
    assert opened.js(f"{lit}(document.querySelector('canvas'))"), "a spectrogram is drawn"
    opened.until("document.querySelector('#stop').disabled")


@pytest.mark.browser
def test_held_to_talk(page: tuple[Page, Path]) -> None:
    opened, _ = page
    opened.click("#clear")
    opened.pointer("mousePressed", "#talk")
    opened.until("document.querySelector('#talk').ariaPressed === 'true'")
    opened.until("document.querySelector('#level').value > 0.5")  # the question is being said
    opened.until("document.querySelector('#level').value < 0.3")
    opened.pointer("mouseReleased", "#talk")
    opened.until(f"{ANSWERS} === 1 && {ENDED}")
    user, answer = items(page)
    assert user["who"] == "user" and len(user["text"].split()) > 1, "it was transcribed"
    assert_audible(answer)


@pytest.mark.browser
def test_hands_free(page: tuple[Page, Path]) -> None:
    """The server hears when the question begins and ends; nothing is pressed."""
    opened, _ = page
    opened.click("#clear")
    opened.click("#handsfree")
    opened.until(f"{ANSWERS} >= 1 && {ENDED}")
    opened.click("#handsfree")
    opened.until(ENDED)
    assert any(item["wav"] and len(item["text"]) > 1 for item in items(page))
    assert opened.js("document.querySelector('#level').value") == 0


@pytest.mark.browser
@pytest.mark.parametrize("task", ["write", "read", "transcribe", "understand"])
def test_every_task(page: tuple[Page, Path], task: str) -> None:
    opened, _ = page
    opened.js("document.querySelector('#settings').open = true")
    opened.click("#clear")
    opened.fill("#task", task)
    if task in ("transcribe", "understand"):
        opened.pointer("mousePressed", "#talk")
        opened.until("document.querySelector('#level').value > 0.5")
        opened.until("document.querySelector('#level').value < 0.3")
        opened.pointer("mouseReleased", "#talk")
    if task != "transcribe":
        opened.fill("#text", "The red cup is on the table.")
        opened.until("!document.querySelector('#talk').matches('[aria-pressed=true]')")
        opened.click("#send")
    opened.until(f"{ANSWERS} === 1 && {ENDED}")
    assert not opened.js("document.querySelector('.wrong')?.textContent")
    answer = items(page)[-1]
    assert answer["who"] == "assistant" and len(answer["text"]) > 1
    if task == "read":
        assert_audible(answer)
    opened.fill("#task", "talk")
    opened.js("document.querySelector('#settings').open = false")


@pytest.mark.browser
def test_it_is_kept_and_fits_a_phone(page: tuple[Page, Path]) -> None:
    opened, folder = page
    opened.click("#clear")
    opened.fill("#text", "What is four plus five?")
    opened.click("#send")
    opened.until(f"{ANSWERS} === 1 && {ENDED}")
    texts = [item["text"] for item in items(page)]
    for dark in (False, True):
        opened.look(dark=dark)
        opened.screenshot(folder / f"desk-{'dark' if dark else 'light'}.png")
        opened.look(dark=dark, size=PHONE)
        opened.screenshot(folder / f"phone-{'dark' if dark else 'light'}.png")
        wide = "document.documentElement.scrollWidth > document.documentElement.clientWidth"
        assert not opened.js(wide), "it need not be moved sideways"
    unnamed = "[...document.querySelectorAll('button, input, select, textarea')].filter("
    unnamed += "e => !e.innerText && !e.labels?.length && !e.ariaLabel).length"
    assert opened.js(unnamed) == 0, "every control has a name"
    opened.look()
    opened.call("Page.reload")
    opened.until("document.querySelector('#state')?.textContent === 'nano, ready'")
    assert [item["text"] for item in items(page)] == texts


@pytest.mark.browser
def test_a_key_is_asked_for(nano: MimoAudio, page: tuple[Page, Path]) -> None:
    opened, _ = page
    with serving(nano, key="right") as running:
        before = opened.complaints[:]
        opened.open(running.url)
        opened.until("document.querySelector('#state').textContent === 'A key is needed'")
        opened.fill("#key", "right")
        opened.until("document.querySelector('#state').textContent === 'nano, ready'")
        opened.fill("#text", "What is four plus five?")
        opened.click("#send")
        opened.until(f"{ANSWERS} === 1 && {ENDED}")
        assert_audible(items(page)[-1])
        opened.complaints[:] = before  # 401 is logged
