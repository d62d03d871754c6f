"""One self-contained HTML file: its styles and scripts are in it, and its policy lets nothing else run or load.

What may run is named by its SHA-256, so that a script which somebody gets into a text of the page is text and no more.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from cutlayer.report.json_lines import to_json

HERE = Path(__file__).parent
LOOK, CHARTS = HERE / "look.css", HERE / "charts.js"
"""Every page's style, and the script of `curves.py`'s charts."""


def html_page(
    title: str,
    body: str,
    *,
    styles: Sequence[str] = (),
    scripts: Sequence[str] = (),
    data: Mapping[str, Any] | None = None,
    more_policy: str = "",
) -> str:
    """The whole file.

    Args:
      title: text.
      body: HTML.
      styles: CSS behind the look that all pages have.
      scripts: JavaScript behind the charts'; each is one function's body, apart from the others.
      data: by the id of the element in which a script finds it as JSON.
      more_policy: directives of the policy, each with a `;` before it.
    """
    style = "\n" + "\n".join([LOOK.read_text(encoding="utf-8"), *styles])
    script = "\n" + "\n".join(['"use strict";', CHARTS.read_text(encoding="utf-8"), *map(_apart, scripts)])
    elements = "".join(
        f'<script id="{escape(name)}" type="application/json">{_json(value)}</script>\n'
        for name, value in (data or {}).items()
    )
    policy = f"default-src 'none'; script-src {_digest(script)}; style-src {_digest(style)}; base-uri 'none'; "
    policy += f"form-action 'none'{more_policy}"
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="referrer" content="no-referrer">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<title>{escape(title)}</title>
<style>{style}</style>
</head>
<body>
<main>
{body}
</main>
<div id="tip" role="status" hidden></div>
{elements}<script>{script}</script>
</body>
</html>
"""


def _apart(script: str) -> str:
    return f"{{\n{script}}}"


def _digest(text: str) -> str:
    """The digest by which a policy names an element's text."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _json(value: Any) -> str:
    """JSON that may stand in HTML: no tag begins or ends in it, and no line ends where JavaScript would see one."""
    text = to_json(value)
    for letter in "<>&\u2028\u2029":
        text = text.replace(letter, f"\\u{ord(letter):04x}")
    return text


def short_name(name: str) -> str:
    """A path's last part; other names as they are.

    Args:
      name: of a model, of data or of a fleet, as a config has it.
    """
    return Path(name).name if name.startswith("/") else name
