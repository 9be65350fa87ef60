"""Headless Chromium, driven by its own protocol: no driver is needed besides it."""

import base64
import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from websockets.sync.client import ClientConnection, connect

NAMES = ("chromium", "chromium-browser", "google-chrome")
PHONE, DESK = (390, 844), (1100, 800)


class Page:
    """One page. Whatever it logs, or fails at, or may not load, is kept in `complaints`; what it
    asks for in `requested`."""

    def __init__(self, socket: ClientConnection) -> None:
        self._socket, self._number = socket, 0
        self.complaints: list[str] = []
        self.requested: list[str] = []
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> Any:
        self._number += 1
        self._socket.send(json.dumps({"id": self._number, "method": method, "params": params}))
        while True:
            said = json.loads(self._socket.recv(timeout=30))
            if said.get("id") == self._number:
                assert "error" not in said, said
                return said["result"]
            self._notice(said.get("method"), said.get("params") or {})

    def _notice(self, method: str | None, params: Any) -> None:
        if method == "Runtime.exceptionThrown":
            self.complaints.append(json.dumps(params["exceptionDetails"])[:500])
        elif method == "Log.entryAdded" and params["entry"]["level"] == "error":
            self.complaints.append(f"{params['entry']['text']} {params['entry'].get('url')}")
        elif method == "Network.requestWillBeSent":
            self.requested.append(params["request"]["url"])

    def open(self, url: str) -> None:
        self.call("Page.navigate", url=url)
        self.until("document.readyState === 'complete'")

    def js(self, expression: str) -> Any:
        """The value of an expression, as if it were a gesture of the user."""
        result = self.call(
            "Runtime.evaluate",
            expression=expression,
            returnByValue=True,
            awaitPromise=True,
            userGesture=True,
        )
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def until(self, expression: str, seconds: float = 30) -> Any:
        end = time.monotonic() + seconds
        while not (value := self.js(expression)):
            if time.monotonic() > end:
                shown = self.js("document.body?.innerText")
                raise AssertionError(f"{expression} never came; {shown} {self.complaints}")
            time.sleep(0.05)
        return value

    def pointer(self, kind: str, selector: str) -> None:
        """mousePressed or mouseReleased in the middle of an element."""
        box = f"document.querySelector('{selector}').getBoundingClientRect()"
        x, y = self.js(f"(b => [b.x + b.width / 2, b.y + b.height / 2])({box})")
        self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def click(self, selector: str) -> None:
        self.pointer("mousePressed", selector)
        self.pointer("mouseReleased", selector)

    def fill(self, selector: str, text: str) -> None:
        """As if it were typed, or chosen."""
        self.js(
            f"(e => {{ e.value = {json.dumps(text)}; e.dispatchEvent(new Event('change')); }})"
            f"(document.querySelector('{selector}'))"
        )

    def look(self, *, dark: bool = False, size: tuple[int, int] = DESK, medium: str = "") -> None:
        """The window, which theme the user likes, and "print" for what paper would show."""
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", media=medium, features=[scheme])
        width, height = size
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=size == PHONE,
        )

    def screenshot(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot")["data"]))

    def downloads(self, folder: Path) -> None:
        """Where they go."""
        self.call("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(folder))


@contextmanager
def browsing(profile: Path, microphone: Path | None = None) -> Iterator[Page]:
    """A browser whose microphone is a recording (WAV), and which may use it unasked."""
    program = next(filter(None, map(shutil.which, NAMES)), None)
    assert program is not None, "the tests of the page need chromium: apt-get install chromium"
    words = [
        program,
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--no-first-run",
        "--disable-background-networking",
        "--use-fake-ui-for-media-stream",
        "--use-fake-device-for-media-stream",
        *([f"--use-file-for-fake-audio-capture={microphone}"] if microphone else []),
        "--remote-debugging-port=0",
        f"--user-data-dir={profile}",
        "about:blank",
    ]
    with subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            with connect(_address(profile), max_size=None) as browser:
                browser.send(json.dumps({"id": 1, "method": "Target.getTargets"}))
                targets = json.loads(browser.recv(timeout=30))["result"]["targetInfos"]
            target = next(t["targetId"] for t in targets if t["type"] == "page")
            host = _address(profile).split("/devtools/")[0]
            with connect(f"{host}/devtools/page/{target}", max_size=None) as socket:
                yield Page(socket)
        finally:
            process.terminate()


def _address(profile: Path) -> str:
    """Chromium writes it into its folder."""
    path, end = profile / "DevToolsActivePort", time.monotonic() + 30
    while not path.exists() or len(lines := path.read_text().splitlines()) < 2:
        assert time.monotonic() < end, "the browser did not start"
        time.sleep(0.05)
    return f"ws://127.0.0.1:{lines[0]}{lines[1]}"
