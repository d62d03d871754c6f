"""A headless browser that opens one page: what it became, and what it complained of."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import dataclass
from html import unescape
from pathlib import Path

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
)


@dataclass(frozen=True)
class Opened:
    """The page after its scripts have run, and the lines of the console."""

    dom: str
    console: list[str]

    def attribute(self, name: str) -> str:
        """Of the body: where a test's own script leaves what it found."""
        found = re.search(rf'<body[^>]* data-{name}="([^"]*)"', self.dom)
        assert found, f"no data-{name}"
        return unescape(found[1])


def open_page(page: Path, profile: Path) -> Opened:
    """Opens a file; skips where there is no browser."""
    browser = next((found for name in NAMES if (found := shutil.which(name))), None)
    if browser is None:
        pytest.skip(f"no browser to open the report with: none of {', '.join(NAMES)}")
    flags = (*QUIET, f"--user-data-dir={profile}", "--enable-logging=stderr", "--window-size=1280,2000")
    done = subprocess.run(
        [browser, *flags, "--dump-dom", page.as_uri()], capture_output=True, text=True, timeout=120, check=True
    )
    return Opened(done.stdout, [line for line in done.stderr.splitlines() if ":CONSOLE" in line])
