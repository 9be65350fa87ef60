"""The report in a real browser: light and dark, on a desk, a phone and paper."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.server.browser import DESK, PHONE, Page, browsing

PAPER = (794, 1123)  # A4 at 96 dots an inch
# of WCAG: how much lighter the paper is than the ink
CONTRAST = """(() => {
  const numbers = colour => colour.match(/[\\d.]+/g).map(Number);
  const light = colour => numbers(colour).slice(0, 3).map(v => v / 255)
    .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = element => {
    const colour = getComputedStyle(element).backgroundColor;
    return numbers(colour)[3] === 0 ? behind(element.parentElement) : colour;
  };
  const ratio = element => {
    const text = element.namespaceURI.endsWith('svg') ? 'fill' : 'color';
    const [a, b] = [getComputedStyle(element)[text], behind(element)].map(light);
    return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
  };
  const written = [...document.querySelectorAll('body *')].filter(e =>
    !e.classList.contains('glyph') && !/^(title|desc)$/.test(e.tagName) &&
    [...e.childNodes].some(n => n.nodeType === 3 && n.data.trim()));
  return Math.min(...written.map(ratio));
})()"""
OVERFLOWS = "document.documentElement.scrollWidth > document.documentElement.clientWidth"


@pytest.fixture(scope="module")
def page(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with browsing(tmp_path_factory.mktemp("report") / "profile") as opened:
        opened.open((folder / "report.html").as_uri())
        yield opened
        assert opened.complaints == []


@pytest.mark.browser
@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize(("size", "medium"), [(DESK, ""), (PHONE, ""), (PAPER, "print")])
def test_it_fits_and_can_be_read(
    page: Page, size: tuple[int, int], medium: str, dark: bool
) -> None:
    page.look(dark=dark, size=size, medium=medium)
    assert not page.js(OVERFLOWS), "it need not be moved sideways"
    assert page.js(CONTRAST) >= 4.5
    paper = page.js("getComputedStyle(document.body).backgroundColor")
    assert (paper == "rgb(255, 255, 255)") == (not dark or medium == "print")


@pytest.mark.browser
def test_it_asks_for_its_own_file_alone(page: Page, folder: Path) -> None:
    page.js("Promise.all([...document.querySelectorAll('audio')].map(a => a.load()))")
    assert {url for url in page.requested if not url.startswith("data:")} == {
        (folder / "report.html").as_uri()
    }


@pytest.mark.browser
def test_it_can_be_used_without_a_mouse(page: Page) -> None:
    """The first key leads past the head; whatever scrolls, opens or plays can be reached."""
    page.look()
    page.call("Input.dispatchKeyEvent", type="keyDown", key="Tab", windowsVirtualKeyCode=9)
    assert page.js("document.activeElement.className") == "skip"
    reached = (
        "[...document.querySelectorAll('.scroll, summary, audio')].every(e => e.tabIndex >= 0)"
    )
    assert page.js(reached)
    unnamed = "[...document.querySelectorAll('svg')].filter(s => !s.querySelector('title')).length"
    assert page.js(unnamed) == 0
    named = "[...document.querySelectorAll('.scroll')].every(e => e.ariaLabel && e.role)"
    assert page.js(named)


@pytest.mark.browser
def test_what_is_folded_on_the_screen_is_printed(page: Page) -> None:
    page.look(size=PAPER, medium="print")
    hidden = "[...document.querySelectorAll('details table')].filter(t => !t.checkVisibility())"
    assert page.js("document.querySelectorAll('details:not([open]) table').length") > 0
    assert page.js(f"{hidden}.length") == 0
