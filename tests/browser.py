"""A headless browser that opens pages: driven over a pipe, by the few commands of DevTools that tests need.

Nothing of it is slept for: `until` waits in the page, from frame to frame, for what is expected there.
"""

from __future__ import annotations

import base64
import fcntl
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome")
QUIET = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--remote-debugging-pipe",
)
PLUMBED = (
    "import os, sys; os.dup2(int(sys.argv[1]), 3); os.dup2(int(sys.argv[2]), 4); os.execv(sys.argv[3], sys.argv[3:])"
)
"""The browser reads from the third of its files and writes to the fourth."""
HIGH = 20
UNTIL = """new Promise((found, not) => {
  const begun = performance.now();
  const look = () => {
    let value = null;
    try { value = (%s); } catch (error) { value = null; }
    if (value) found(value);
    else if (performance.now() - begun > %d) not(new Error(`never: ${document.body?.innerText.slice(0, 2000)}`));
    else setTimeout(look, 20);
  };
  look();
})"""


class Browser:
    """A browser; `open_browser` begins one."""

    def __init__(self, sends: int, hears: int) -> None:
        self._sends, self._hears, self._heard, self._number = sends, hears, b"", 0
        self.pages: dict[str, Page] = {}

    def call(self, method: str, session: str | None = None, **params: Any) -> dict[str, Any]:
        """Does something, and returns what comes of it; events that come meanwhile go to their pages."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        data = json.dumps(message | ({"sessionId": session} if session else {})).encode() + b"\0"
        while data:
            data = data[os.write(self._sends, data) :]
        while (answer := self._next()).get("id") != self._number:
            page = self.pages.get(answer.get("sessionId", ""))
            if page is not None and "method" in answer:
                page.happened(answer["method"], answer["params"])
        assert "error" not in answer, f"{method}: {answer['error']}"
        result: dict[str, Any] = answer["result"]
        return result

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._heard:
            piece = os.read(self._hears, 2**20)
            assert piece, "the browser is there"
            self._heard += piece
        message, _, self._heard = self._heard.partition(b"\0")
        answer: dict[str, Any] = json.loads(message)
        return answer

    def open(self, url: str, *, width: int = 1280, height: int = 900, dark: bool = False) -> Page:
        """Opens a page, and returns when it is loaded."""
        context = self.call("Target.createBrowserContext")["browserContextId"]
        target = self.call("Target.createTarget", url="about:blank", browserContextId=context)["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        page = self.pages[session] = Page(self, session, target)
        for domain in ("Page", "Runtime", "Log", "Network"):
            page.call(f"{domain}.enable")
        page.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        page.call("Emulation.setEmulatedMedia", features=[scheme])
        page.call("Page.navigate", url=url)
        page.until("document.readyState === 'complete' && location.href !== 'about:blank'")
        return page


class Page:
    """A page that is open.

    Attributes:
      console: what it complained of: errors, warnings, and what was thrown.
      requests: the addresses that it asked for.
    """

    def __init__(self, browser: Browser, session: str, target: str) -> None:
        self._browser, self._session, self._target = browser, session, target
        self.console: list[str] = []
        self.requests: list[str] = []

    def happened(self, method: str, params: dict[str, Any]) -> None:
        """Takes an event."""
        if method == "Runtime.exceptionThrown":
            self.console.append(json.dumps(params["exceptionDetails"]))
        elif method == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning", "assert"):
            self.console.append(json.dumps(params["args"]))
        elif method == "Log.entryAdded":
            self.console.append(json.dumps(params["entry"]))
        elif method == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """As `Browser.call`, of this page."""
        return self._browser.call(method, self._session, **params)

    def value(self, expression: str) -> Any:
        """The value that a JavaScript expression, or a promise of it, has in the page."""
        done = self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in done, f"{expression}: {done['exceptionDetails']}"
        return done["result"].get("value")

    def until(self, expression: str, seconds: float = 20) -> Any:
        """Waits until an expression is true in the page, and returns it."""
        return self.value(UNTIL % (expression, int(seconds * 1000)))

    def text(self, selector: str) -> str:
        """The text of the first element that a selector finds."""
        return str(self.value(f"document.querySelector({json.dumps(selector)}).innerText"))

    def click(self, selector: str) -> None:
        """Clicks the first element that a selector finds, where it is, as a pointer does."""
        place = self.value(
            f"(() => {{ const e = document.querySelector({json.dumps(selector)});"
            " e.scrollIntoView({block: 'center'});"
            " const box = e.getBoundingClientRect(); return [box.x + box.width / 2, box.y + box.height / 2]; })()"
        )
        for kind in ("mousePressed", "mouseReleased"):
            self.mouse(kind, *place)

    def mouse(self, kind: str, x: float, y: float, *, pressed: bool = True) -> None:
        """Moves, presses or lets go of the pointer, in pixels of the window."""
        button = "left" if pressed else "none"
        self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button=button, buttons=int(pressed), clickCount=1)

    def key(self, name: str) -> None:
        """Presses a key, such as `Tab` or `ArrowDown`."""
        codes = {"Tab": 9, "Enter": 13, "ArrowDown": 40, "ArrowUp": 38, "ArrowLeft": 37, "ArrowRight": 39, "Escape": 27}
        more = {"text": "\r"} if name == "Enter" else {"text": name} if len(name) == 1 else {}
        code = codes.get(name, ord(name[0].upper()))
        self.call("Input.dispatchKeyEvent", type="keyDown", key=name, windowsVirtualKeyCode=code, **more)
        self.call("Input.dispatchKeyEvent", type="keyUp", key=name, windowsVirtualKeyCode=code)

    def type(self, text: str) -> None:
        """Types into what has the focus."""
        self.call("Input.insertText", text=text)

    def picture(self, file: Path, *, whole: bool = False) -> None:
        """Writes what is on the screen, or the whole page, as a PNG."""
        size = {"captureBeyondViewport": True} if whole else {}
        if whole:
            found = self.call("Page.getLayoutMetrics")["cssContentSize"]
            size["clip"] = {"x": 0, "y": 0, "width": found["width"], "height": found["height"], "scale": 1}
        shot = self.call("Page.captureScreenshot", format="png", **size)
        file.write_bytes(base64.b64decode(shot["data"]))

    def close(self) -> None:
        """Closes it."""
        self._browser.call("Target.closeTarget", targetId=self._target)


@contextmanager
def open_browser(profile: Path) -> Iterator[Browser]:
    """Begins a browser; skips where there is none."""
    found = next((path for name in NAMES if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip(f"no browser to open the page with: none of {', '.join(NAMES)}")
    pairs = [os.pipe(), os.pipe()]
    (reads, sends), (hears, writes) = ((_high(a), _high(b)) for a, b in pairs)
    words = [sys.executable, "-c", PLUMBED, str(reads), str(writes), found, *QUIET, f"--user-data-dir={profile}"]
    process = subprocess.Popen(
        words, pass_fds=(reads, writes), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL
    )
    os.close(reads)
    os.close(writes)
    browser = Browser(sends, hears)
    try:
        yield browser
        browser.call("Browser.close")
    finally:
        os.close(sends)
        os.close(hears)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _high(handle: int) -> int:
    """The same file under a number that is none of the browser's own two."""
    try:
        return fcntl.fcntl(handle, fcntl.F_DUPFD_CLOEXEC, HIGH)
    finally:
        os.close(handle)
